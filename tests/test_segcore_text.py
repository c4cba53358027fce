"""Text from other people's machines: tables, encodings, names. A patient is one, whatever a spreadsheet did to the cell."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from runtime.predict.inputs import list_inputs
from segcore.command import read_config
from segcore.dataset.dataset import open_dataset
from segcore.errors import InputError
from segcore.text import path_in, read_table, read_text, readable_name

CASES = 8


@pytest.fixture
def pictures(tmp_path):
    """A folder of i0.png … and m0.png …, and i0.png … in sub/ as well."""
    for place in (tmp_path, tmp_path / "sub"):
        place.mkdir(exist_ok=True)
        for i in range(CASES):
            image = np.full((8, 8), 20 * i, np.uint8)
            image[i] = 255
            Image.fromarray(image).save(place / f"i{i}.png")
            Image.fromarray((image > 200).astype(np.uint8) * 255).save(place / f"m{i}.png")
    return tmp_path


def rows(
    separator: str = ",", *, image: str = "i{}.png", mask: str = "m{}.png", patient: str = "P{}"
) -> list[str]:
    return [
        separator.join((f"c{i}", patient.format(i // 2), image.format(i), mask.format(i)))
        for i in range(CASES)
    ]


@pytest.mark.parametrize(
    ("head", "body", "encoding", "end"),
    [
        ("case,patient,image,mask", rows(), "utf-8", "\n"),
        ("case;patient;image;mask", rows(";"), "utf-8-sig", "\r\n"),
        ("case\tpatient\timage\tmask", rows("\t"), "utf-16", "\r\n"),
        ("Case,PATIENT, Image ,mask ", rows(), "utf-8", "\r\n"),
        ("case,patient,image,mask", [row.replace(",", " , ") for row in rows()], "utf-8", "\n"),
        ("case,patient,image,mask", rows(patient="P{} ") [::2] + rows(patient=" P{}\u00a0")[1::2], "utf-8", "\n"),
        ("case,patient,image,mask", rows(image="sub\\i{}.png", mask="sub\\m{}.png"), "utf-8", "\n"),
        ('"case","patient","image","mask"', [f'"{row.replace(",", chr(34) + "," + chr(34))}"' for row in rows()], "utf-8", "\n"),
        ("case,patient,image,mask", [*rows(), ",,,", "", "  "], "utf-8", "\n"),
        ("sep=;\ncase;patient;image;mask", rows(";"), "utf-8", "\n"),
    ],
    ids=["plain", "semicolons", "tabs, utf-16", "capitals", "blanks", "blank patients", "backslashes", "quotes", "empty rows", "Excel first line"],
)  # fmt: skip
def test_an_index_as_spreadsheets_save_it(pictures, head, body, encoding, end):
    (pictures / "Index.CSV").write_bytes(end.join((head, *body)).encode(encoding))
    for data in (pictures, pictures / "Index.CSV"):
        dataset = open_dataset(str(data))
        assert [case.id for case in dataset.cases] == [f"c{i}" for i in range(CASES)] or len(
            dataset.cases
        ) == CASES
        assert {case.patient for case in dataset.cases} == {"P0", "P1", "P2", "P3"}
        homes = {
            case.patient: {c.split for c in dataset.cases if c.patient == case.patient}
            for case in dataset.cases
        }
        assert all(len(splits) == 1 for splits in homes.values())
    listed = list_inputs(pictures / "Index.CSV").inputs
    assert len(listed) == CASES
    assert all(Path(str(one.path)).is_file() for one in listed)


def test_splits_and_spacings_as_people_write_them(pictures):
    lines = ["case;image;mask;split;spacing_row_mm;spacing_col_mm"]
    lines += [f"c{i};i{i}.png;m{i}.png;{('Train', 'VAL ', 'test')[min(i, 2)]};0,5;0,25" for i in range(CASES)]
    (pictures / "index.csv").write_text("\n".join(lines))
    cases = open_dataset(str(pictures)).cases
    assert [case.split for case in cases[:3]] == ["train", "val", "test"]
    assert cases[0].spacing_mm == (0.5, 0.25)


@pytest.mark.parametrize("name", ["classes.txt", "index.csv", "settings.yaml"])
def test_an_encoding_that_cannot_be_told_is_one_line(pictures, name):
    path = pictures / name
    path.write_bytes("case,image\nZähne,i0.png\n".encode("latin-1"))
    if name == "classes.txt":
        (pictures / "index.csv").write_text("case,image\nc,i0.png\n")
    read, what = (read_config, path) if name == "settings.yaml" else (open_dataset, str(pictures))
    with pytest.raises(
        InputError, match=r"must be text in UTF-8, got another encoding in line 2; save it as UTF-8$"
    ):
        read(what)


def test_class_names_in_utf_16(pictures):
    (pictures / "index.csv").write_text("\n".join(("case,patient,image,mask", *rows())))
    (pictures / "classes.txt").write_bytes("Zähne\r\n".encode("utf-16"))
    assert open_dataset(str(pictures)).classes == ("Zähne",)


def test_tables(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("")
    assert read_table(path, "t", ("a",)) == ([], [])
    path.write_text("A;Other\n1;2\n\n3\n")
    columns, found = read_table(path, "t", ("a",))
    assert columns == ["a", "Other"]
    assert found == [(2, {"a": "1", "Other": "2"}), (4, {"a": "3", "Other": ""})]
    path.write_text("image\nx;y.png\n")  # one column: what parts cells is told by the headings
    assert read_table(path, "t", ("image",))[1] == [(2, {"image": "x;y.png"})]


def test_names_of_files_that_are_no_utf_8(tmp_path):
    name = os.fsdecode(b"M\xfcller.png")
    assert readable_name(name) == "Müller.png"
    assert readable_name("Zähne 牙.png") == "Zähne 牙.png"
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
        for i in range(3):
            picture = Image.fromarray(np.eye(8, dtype=np.uint8) * 255)
            picture.save(tmp_path / folder / "x.png")
            (tmp_path / folder / "x.png").rename(tmp_path / folder / os.fsdecode(b"M\xfcller%d.png" % i))
    assert [case.id for case in open_dataset(str(tmp_path)).cases] == ["Müller0", "Müller1", "Müller2"]
    assert [one.case for one in list_inputs(tmp_path / "images").inputs] == ["Müller0", "Müller1", "Müller2"]


def test_letters_in_two_forms_are_one_name(tmp_path):
    """MacOS writes ü as u and two dots: the picture's name, its mask's, and the table's may each be in either."""
    one, two = "Mu\u0308ller", "M\u00fcller"
    for folder, name in (("images", one), ("masks", two)):
        (tmp_path / folder).mkdir()
        for i in range(3):
            Image.fromarray(np.eye(8, dtype=np.uint8) * 255).save(tmp_path / folder / f"{name}{i}.png")
    assert [case.id for case in open_dataset(str(tmp_path)).cases] == [f"{two}{i}" for i in range(3)]
    lines = [f"c{i},{(one, two)[i % 2]} {i // 2},images/{two}{i}.png,masks/{one}{i}.png" for i in range(3)]
    (tmp_path / "index.csv").write_text("\n".join(("case,patient,image,mask", *lines)))
    assert len(list_inputs(tmp_path / "index.csv").inputs) == 3
    assert read_table(tmp_path / "index.csv", "t", ())[1][0][1]["patient"] == f"{two} 0"
    assert read_table(tmp_path / "index.csv", "t", ())[1][1][1]["patient"] == f"{two} 0"


def test_back_slashes_in_a_name_stay(tmp_path):
    (tmp_path / "a\\b.png").touch()
    assert path_in(tmp_path, "a\\b.png") == tmp_path / "a\\b.png"
    assert path_in(tmp_path, "c\\d.png") == tmp_path / "c" / "d.png"


def test_the_mark_of_an_encoding_is_taken_off(tmp_path):
    for encoding in ("utf-8", "utf-8-sig", "utf-16", "utf-32"):
        (tmp_path / "a").write_bytes("ü".encode(encoding))
        assert read_text(tmp_path / "a", "a") == "ü"


def test_in_the_locale_c(pictures):
    (pictures / "index.csv").write_text("\n".join(("case,patient,image,mask", *rows(patient="Müller {}"))))
    (pictures / "classes.txt").write_text("Zähne\n", encoding="utf-8")
    words = [sys.executable, "-m", "segcore.dataset", "--data", str(pictures), "--out", str(pictures / "out")]
    root = Path(__file__).parents[1]
    environment = {
        key: value for key, value in os.environ.items() if not key.startswith(("LC_", "LANG", "PYTHON"))
    }
    done = subprocess.run(
        words, cwd=root, env={**environment, "LC_ALL": "C"}, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Zähne" in done.stdout.decode("utf-8")
