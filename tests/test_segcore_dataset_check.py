"""The check tells everything that is wrong at once, and what is there when nothing is."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from segcore.dataset.__main__ import (
    CheckSettings,
    case_facts,
    check,
    class_shares,
    contact_sheet,
    copies_across_splits,
    find_problems,
    patient_hints,
)
from segcore.dataset.case import Case, FileSource
from segcore.dataset.dataset import open_dataset
from segcore.errors import InputError


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    mask = np.zeros((8, 10), np.uint8)
    mask[:4] = 255
    for i in range(10):
        save(tmp_path / "d" / "images" / f"c{i}.png", rng.integers(0, 255, (8, 10), np.uint8))
        save(tmp_path / "d" / "masks" / f"c{i}.png", mask)
    return tmp_path / "d"


def test_every_problem_at_once(folder, capsys, monkeypatch):
    (folder / "images" / "c0.png").write_bytes(b"")
    (folder / "images" / "c1.png").write_bytes((folder / "images" / "c1.png").read_bytes()[:-30])
    (folder / "masks" / "c2.png").unlink()
    (folder / "images" / "c3.png").unlink()
    save(folder / "masks" / "c4.png", np.zeros((3, 3), np.uint8))
    save(folder / "masks" / "c5.png", np.full((8, 10), 77, np.uint8))
    with pytest.raises(InputError) as caught:
        check(CheckSettings(data=str(folder)))
    assert str(caught.value) == f"--data {folder}: 6 of 10 cases must be mended, see the lines above"
    lines = capsys.readouterr().err.strip().splitlines()
    for i in range(6):
        assert sum(f"/c{i}.png" in line.split(": must")[0] for line in lines) == 1, i
    assert len(lines) == 6


def test_open_dataset_still_raises_the_first(folder):
    (folder / "masks" / "c2.png").unlink()
    (folder / "masks" / "c7.png").unlink()
    with pytest.raises(InputError, match=r"images/c2\.png: must have a mask"):
        open_dataset(str(folder))


def test_patient_in_two_splits_is_named_for_each_case(folder):
    rows = [
        f"c{i},p{i % 2},images/c{i}.png,masks/c{i}.png,{('train', 'val', 'test')[i % 3]}" for i in range(10)
    ]
    (folder / "index.csv").write_text("case,patient,image,mask,split\n" + "\n".join(rows))
    problems, cases = find_problems(str(folder))
    assert cases == 10
    # c0 makes train the home of p0, c1 makes val the home of p1.
    assert [case for case, _ in problems] == ["c2", "c3", "c4", "c5", "c8", "c9"]
    assert problems[0][1].endswith(
        "patient p0 must be in one split, is in train and test; move all cases of a patient to one split"
    )


def test_report_and_sheet(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    test_case = open_dataset(str(folder)).split("test")[0].id
    train_case = open_dataset(str(folder)).split("train")[0].id
    shutil.copy(folder / "images" / f"{train_case}.png", folder / "images" / f"{test_case}.png")
    save(folder / "masks" / f"{test_case}.png", np.zeros((8, 10), np.uint8))
    check(CheckSettings(data=str(folder)))
    lines = capsys.readouterr().out.strip().splitlines()
    result = json.loads(lines[-1])
    assert result["cases"] == result["patients"] == 10
    assert result["splits"] == {"train": 6, "val": 2, "test": 2}
    assert result["class_shares"] == {"foreground": 0.45}
    assert result["empty_masks"] == result["copies_across_splits"] == 1
    assert result["sheet"] == "runs/dataset/d.png"
    assert f"empty masks     1: {test_case}" in lines
    assert any(f"{train_case} (train)" in line and f"{test_case} (test)" in line for line in lines)
    with Image.open(tmp_path / "runs" / "dataset" / "d.png") as picture:
        assert picture.width > 1000


def test_out_folder(folder, tmp_path, capsys):
    check(CheckSettings(data=str(folder), out=tmp_path / "O"))
    assert [p.name for p in (tmp_path / "O").iterdir()] == ["d.png"]
    with pytest.raises(InputError, match="must not exist yet, it does; add --overwrite to replace it"):
        check(CheckSettings(data=str(folder), out=tmp_path / "O"))


def test_dataset_without_masks_is_reported(folder, tmp_path, capsys):
    check(CheckSettings(data=str(folder / "images"), out=tmp_path / "O"))
    assert json.loads(capsys.readouterr().out.strip().splitlines()[-1])["splits"]["unlabelled"] == 10


def test_facts_and_shares(folder):
    facts = [case_facts(case) for case in open_dataset(str(folder)).cases]
    assert facts[0].kind == "8×10 uint8 grey"
    assert facts[0].pixels_per_class == (40, 40)
    assert class_shares(facts, 2) == (0.5, 0.0)


def test_same_pixels_in_another_format_are_a_copy(folder):
    case = open_dataset(str(folder)).cases[0]
    Image.fromarray(case.image()).save(folder / "x.tif")
    copy = Case("x", "x", FileSource(folder / "x.tif", None), "test")
    assert case_facts(case).pixel_sha256 == case_facts(copy).pixel_sha256


def test_pictures_of_one_value_are_no_copies_of_each_other(folder):
    """Slices of air above the patient are equal in every scan."""
    for i in range(10):
        save(folder / "images" / f"c{i}.png", np.full((8, 10), 7, np.uint8))
    cases = open_dataset(str(folder)).cases
    assert copies_across_splits(cases, {case.id: case_facts(case) for case in cases}) == []


@pytest.mark.parametrize(
    ("ids", "patients", "expected"),
    [
        (["P017_1", "P017_2"], ["P017_1", "P017_2"], 1),
        (["291_HC", "291_2HC"], ["291_HC", "291_2HC"], 1),
        (["img_1", "img_2"], ["img_1", "img_2"], 0),
        (["P017_1", "P017_2"], ["a", "b"], 0),  # the user said who they are
    ],
)
def test_patient_hints(tmp_path, ids, patients, expected):
    cases = [
        Case(i, p, FileSource(tmp_path, None), s)
        for i, p, s in zip(ids, patients, ("train", "test"), strict=True)
    ]
    assert len(patient_hints(cases)) == expected


def test_sheet_of_a_phantom_has_about_24_tiles():
    picture = contact_sheet(open_dataset("phantom:ct:9"), count=6)
    assert picture.size == (6 * 228 - 4, 18 + 224)
