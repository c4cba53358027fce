"""What the check of a data set found is kept until a file changes, and is what reading everything again would find."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segcore.cache import user_cache
from segcore.dataset.checked import check_and_hash, check_cases
from segcore.dataset.dataset import open_dataset
from segcore.dataset.listing import list_data
from segcore.errors import InputError

SIZE = (12, 10)
CASES = 4


def save(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path, compress_level=0)  # of one size, whatever is in it


def picture(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, SIZE, np.uint8)


def mask(*values: int) -> np.ndarray:
    array = np.zeros(SIZE, np.uint8)
    array.flat[: len(values)] = values
    return array


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for i in range(CASES):
        save(tmp_path / "data" / "images" / f"c{i}.png", picture(i))
        save(tmp_path / "data" / "masks" / f"c{i}.png", mask(i + 1))
    return tmp_path / "data"


def read(data: Path, settled_s: float = 0.0) -> tuple[list, list[str]]:
    """What is found, and the cases that were read for it."""
    asked = []

    def check(case):
        asked.append(case.id)
        return check_and_hash(case)

    found = check_cases(str(data), list_data(str(data)).cases, check=check, settled_s=settled_s)
    assert found == [check_and_hash(case) for case in list_data(str(data)).cases]
    return found, sorted(asked)


def test_nothing_is_read_twice_and_the_same_is_found(data, monkeypatch):
    first, asked = read(data)
    assert asked == ["c0", "c1", "c2", "c3"]
    assert read(data) == (first, [])
    monkeypatch.chdir(data.parent)
    assert read(Path("data")) == (first, [])  # however the folder is called


def test_an_old_data_set_is_kept_and_one_that_is_just_written_is_not(data):
    read(data, settled_s=3.0)
    assert read(data, settled_s=3.0)[1] == ["c0", "c1", "c2", "c3"]
    assert read(data)[1] == ["c0", "c1", "c2", "c3"]
    assert read(data)[1] == []


def test_a_case_is_read_again_when_its_image_or_its_mask_changes(data):
    before, _ = read(data)
    save(data / "masks" / "c1.png", mask(9))
    after, asked = read(data)
    assert asked == ["c1"]
    assert after[1].values == {0, 9}
    assert after[1].fingerprint != before[1].fingerprint
    save(data / "images" / "c2.png", picture(77))
    assert read(data)[1] == ["c2"]
    assert read(data)[1] == []


@pytest.mark.parametrize("how", ["written over", "exchanged"])
def test_an_old_time_and_the_same_size_hide_no_change(data, how):
    read(data)
    path = data / "masks" / "c1.png"
    before = path.stat()
    if how == "exchanged":
        path.unlink()
    save(path, mask(9))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    found, asked = read(data)
    assert asked == ["c1"]
    assert found[1].values == {0, 9}


def test_new_renamed_and_exchanged_cases_are_read(data):
    read(data)
    save(data / "images" / "c9.png", picture(9))
    save(data / "masks" / "c9.png", mask(2))
    assert read(data)[1] == ["c9"]
    for folder in ("images", "masks"):
        (data / folder / "c3.png").rename(data / folder / "d3.png")
    assert read(data)[1] == ["d3"]
    one, other = data / "masks" / "c0.png", data / "masks" / "c1.png"
    one.rename(data / "c0")
    other.rename(one)
    (data / "c0").rename(other)
    found, asked = read(data)
    assert asked == ["c0", "c1"]
    assert [sorted(found[i].values) for i in (0, 1)] == [[0, 2], [0, 1]]


def test_a_mask_of_the_wrong_size_is_found_after_a_good_check(data):
    read(data)
    save(data / "masks" / "c2.png", mask(3).T)
    with pytest.raises(InputError, match=r"c2\.png: must have the size of its image, 12×10, got 10×12;"):
        check_cases(str(data), list_data(str(data)).cases, settled_s=0.0)
    (data / "images" / "c1.png").unlink()  # nothing was kept of what was wrong
    (data / "masks" / "c1.png").unlink()
    with pytest.raises(InputError, match=r"c2\.png: must have the size of its image"):
        check_cases(str(data), list_data(str(data)).cases, settled_s=0.0)


def test_a_slice_is_read_again_when_any_file_of_its_series_or_its_mask_changes(data, dicom_files):
    series, masks = data / "images" / "ct", data / "masks" / "ct"
    volume = np.stack([picture(i) for i in range(3)]).astype(np.int16)
    dicom_files.make_series(series, volume)
    for i in range(3):
        save(masks / f"{i + 1:04d}.png", mask(1))
    names = ["ct-s001", "ct-s002", "ct-s003"]
    assert set(names) < set(read(data)[1])
    assert read(data)[1] == []
    save(masks / "0002.png", mask(2))
    assert read(data)[1] == names
    slice_file = sorted(series.iterdir())[-1]
    os.utime(slice_file)
    assert read(data)[1] == names


def test_what_is_damaged_or_another_users_is_not_used(data):
    read(data)
    (kept,) = (user_cache() / "datasets").glob("*/cases")
    content = bytearray(kept.read_bytes())
    content[-4] ^= 1
    kept.write_bytes(content)
    assert len(read(data)[1]) == CASES
    assert read(data)[1] == []
    user_cache().chmod(0o777)
    assert len(read(data)[1]) == CASES
    shutil.rmtree(user_cache())
    assert len(read(data)[1]) == CASES


def test_an_opened_data_set_is_the_same_with_and_without_what_is_kept(data, capsys):
    for path in data.glob("masks/*.png"):
        save(path, mask(1, 3))
    first = open_dataset(str(data))
    told = capsys.readouterr().err
    check_cases(str(data), list_data(str(data)).cases, settled_s=0.0)
    assert open_dataset(str(data)) == first
    assert capsys.readouterr().err == told
    assert "classes that never occur in any mask: 2 (class2) of 3" in told
