"""Which files --image names, and what their outputs are called."""

import numpy as np
import pytest
from PIL import Image

from runtime.predict.inputs import PredictionInput, inputs_sha256, list_inputs, name_inputs
from segcore.errors import InputError


def picture(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((4, 4), 7, np.uint8)).save(path)
    return path


def cases(found):
    return [one.case for one in found]


def message(image) -> str:
    with pytest.raises(InputError) as error:
        list_inputs(image)
    return str(error.value)


def test_a_tree_is_mirrored(tmp_path):
    for name in ("b.png", "sub/dir/a.JPG", "sub/a.tif", "sub/.hidden.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 4), 7, np.uint8)).save(tmp_path / name)
    (tmp_path / "notes.md").write_text("no picture")
    found = list_inputs(tmp_path).inputs
    assert sorted(cases(found)) == ["b", "sub/a", "sub/dir/a"]
    assert {one.case: one.path.name for one in found}["sub/dir/a"] == "a.JPG"
    assert found == list_inputs(tmp_path).inputs
    assert [one.shown for one in found] == [str(one.path) for one in found]


@pytest.mark.parametrize(
    ("name", "case"),
    [
        ("x.nii.gz", "x"),
        ("1.2.840.10", "1.2.840.10"),
        ("x.y.PNG", "x.y"),
        ("IM-1.dcm", "IM-1"),
        (".png", ".png"),
    ],
)
def test_only_known_suffixes_are_taken_off(tmp_path, name, case):
    (tmp_path / name).write_bytes(b"")
    assert list_inputs(tmp_path / name).inputs == (PredictionInput(tmp_path / name, case),)


def test_outputs_that_would_meet_get_other_names(tmp_path):
    for name in ("a.png", "a.jpg", "b.png", "b/c.png", "d.png"):
        picture(tmp_path / name)
    assert cases(list_inputs(tmp_path).inputs) == ["a.jpg", "a.png", "b/c", "b.png", "d"]
    picture(tmp_path / "a.png.png")
    assert message(tmp_path) == (
        f"--image {tmp_path}: must have names that differ in more than the suffix, got {tmp_path / 'a.png'} and "
        f"{tmp_path / 'a.png.png'}; rename one, or give them cases in an index.csv"
    )


def test_deidentified_cases_are_numbers(tmp_path):
    for name in ("jane doe.png", "sub/john.png"):
        picture(tmp_path / name)
    found = list_inputs(tmp_path, deidentify=True).inputs
    assert [(one.case, one.shown) for one in found] == [("case-000001", "case-000001"), ("case-000002",) * 2]
    assert found[0].path.name == "jane doe.png"


def test_a_list_is_relative_to_itself(tmp_path):
    picture(tmp_path / "in" / "a.png")
    listed = tmp_path / "in" / "list.txt"
    listed.write_text("﻿a.png\n\n../other/b.png\r\n/else/c.dcm\n", encoding="utf-8")
    found = list_inputs(listed).inputs
    assert cases(found) == ["a", "other/b", "else/c"]
    assert found[0].path == tmp_path / "in" / "a.png"
    assert str(found[2].path) == "/else/c.dcm"
    table = tmp_path / "in" / "index.csv"
    table.write_text('image,case,age\na.png,"ward 3/first",5\nb.png,,\n')
    assert [(one.case, one.path.name) for one in list_inputs(table).inputs] == [
        ("ward 3/first", "a.png"),
        ("b", "b.png"),
    ]


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("l.txt", "\n", "must hold images, DICOM or NIfTI files, got none"),
        ("l.txt", "a.png\na.png\n", "must name each image once, {d}/a.png comes again; remove a line"),
        ("i.csv", "case\nx\n", "must have a column image, got case"),
        ("i.csv", "image,case\n,x\n", "line 2 must name an image, got ''; fill it in"),
    ],
)  # fmt: skip
def test_lists_that_are_wrong(tmp_path, name, text, expected):
    (tmp_path / name).write_text(text)
    assert message(tmp_path / name) == f"--image {tmp_path / name}: {expected.format(d=tmp_path)}"


@pytest.mark.parametrize("case", ["../x", "/x", "a/../../b", "a\\b"])
def test_a_listed_case_stays_in_out(tmp_path, case):
    (tmp_path / "i.csv").write_text(f"image,case\na.png,{case}\n")
    assert message(tmp_path / "i.csv") == (
        f"--image {tmp_path / 'i.csv'}: case of line 2 must be a name for output files, got {case!r}; "
        "use no .. and begin with no /"
    )


def test_nothing_there(tmp_path):
    assert message(tmp_path / "x") == (
        f"--image {tmp_path / 'x'}: must be an image, a folder or a list of images, no such file or folder"
    )
    with pytest.raises(InputError, match=r"got none$"):
        list_inputs(tmp_path)


def test_a_series_is_its_folder(tmp_path, dicom_files):
    volume = np.zeros((3, 8, 8), np.int16)
    dicom_files.make_series(tmp_path / "study" / "ct", volume)
    assert list_inputs(tmp_path).inputs == (PredictionInput(tmp_path / "study" / "ct", "study/ct"),)
    assert cases(list_inputs(tmp_path / "study" / "ct").inputs) == ["ct"]
    picture(tmp_path / "study" / "ct" / "key.png")
    assert cases(list_inputs(tmp_path).inputs) == ["study/ct/series", "study/ct/key"]


def test_uploads_are_called_by_their_names(tmp_path):
    paths = [tmp_path / "1" / "a.png", tmp_path / "2" / "a.dcm", tmp_path / "3" / "a (2).png"]
    found = name_inputs(paths)
    assert [(one.case, one.shown) for one in found] == [
        ("a", "a.png"), ("a (2)", "a.dcm"), ("a (2) (2)", "a (2).png")
    ]  # fmt: skip


def test_the_hash_tells_lists_apart(tmp_path):
    a, b = PredictionInput(tmp_path / "a", "a"), PredictionInput(tmp_path / "b", "b")
    assert inputs_sha256([a, b]) == inputs_sha256((a, b))
    assert len({inputs_sha256(x) for x in ([a], [a, b], [b, a], [PredictionInput(a.path, "c")])}) == 4
