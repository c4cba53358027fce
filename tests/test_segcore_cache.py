"""The folder of what can be computed again: its place, its bound, and rows that are held to their hashes."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from segcore.cache import RowFile, disk_bytes, open_entry, shrink_cache, user_cache

ROWS, WIDTH = 6, 4096


@pytest.mark.parametrize(
    ("chosen", "xdg", "expected"),
    [
        (Path("here"), "/caches", Path("here")),
        (None, "/caches", Path("/caches/sam2edge")),
        (None, "", Path.home() / ".cache/sam2edge"),
        (None, "relative/is/invalid", Path.home() / ".cache/sam2edge"),
    ],
)
def test_the_folder(monkeypatch, chosen, xdg, expected):
    monkeypatch.setenv("XDG_CACHE_HOME", xdg)
    assert user_cache(chosen) == expected


def test_an_entry_is_its_key(tmp_path):
    entry = open_entry(tmp_path, "features", {"a": 1, "b": [2]})
    assert entry == open_entry(tmp_path, "features", {"b": [2], "a": 1})
    others = [
        open_entry(tmp_path, "features", {"a": 2, "b": [2]}),
        open_entry(tmp_path, "checks", {"a": 1, "b": [2]}),
    ]
    assert len({entry, *others}) == 3
    assert entry.parent == tmp_path / "features"


def row(number):
    return np.random.default_rng(number).random(WIDTH).astype(np.float16)


@pytest.fixture
def entry(tmp_path):
    return open_entry(tmp_path, "features", {"of": "this test"})


@pytest.fixture
def stored(entry):
    """Rows 1 and 4 of six."""
    file = RowFile(entry, ROWS, WIDTH, np.float16)
    for number in (1, 4):
        file.write(number, row(number))
    return file


def held(file):
    return [number for number in range(ROWS) if file.holds(number)]


def test_rows_come_back_and_others_are_not_there(entry, stored):
    for file in (stored, RowFile(entry, ROWS, WIDTH, np.float16), pickle.loads(pickle.dumps(stored))):
        assert held(file) == [1, 4]
        assert np.array_equal(file[4], row(4))
        assert not file[4].flags.writeable
    assert len(pickle.dumps(stored)) < 1000  # a loader process opens the file, and is not sent it


def test_a_second_process_sees_what_the_first_one_writes(entry, stored):
    other = RowFile(entry, ROWS, WIDTH, np.float16)
    other.write(0, row(0))
    stored.write(5, row(5))
    assert held(stored) == held(other) == [0, 1, 4, 5]


def test_rows_that_were_not_written_take_no_place_on_the_disk(tmp_path):
    entry = open_entry(tmp_path, "features", {})
    file = RowFile(entry, 10_000, WIDTH, np.float16)  # 80 MB and 320 kB of hashes
    file.write(9_999, row(0))
    assert (entry / "rows.npy").stat().st_size > 80e6
    assert disk_bytes(entry) < 100_000


@pytest.mark.parametrize("name", ["rows.npy", "hashes.npy"])
def test_a_damaged_row_is_not_there(entry, stored, name):
    content = bytearray((entry / name).read_bytes())
    width = {"rows.npy": 2 * WIDTH, "hashes.npy": 32}[name]
    content[len(content) - (ROWS - 4) * width + 7] ^= 1  # a bit of row 4
    (entry / name).write_bytes(content)
    assert held(RowFile(entry, ROWS, WIDTH, np.float16)) == [1]


def test_a_row_in_the_place_of_another_is_not_there(entry, stored):
    for name, width in (("rows.npy", 2 * WIDTH), ("hashes.npy", 32)):
        content = (entry / name).read_bytes()
        start, rows = (
            len(content) - ROWS * width,
            [content[-width * (ROWS - i) :][:width] for i in range(ROWS)],
        )
        rows[0], rows[1] = rows[1], rows[0]
        (entry / name).write_bytes(content[:start] + b"".join(rows))
    assert held(RowFile(entry, ROWS, WIDTH, np.float16)) == [4]


@pytest.mark.parametrize("cut", [0, 60, 1000])
def test_a_file_that_was_cut_off_is_made_anew(entry, stored, cut):
    content = (entry / "rows.npy").read_bytes()
    (entry / "rows.npy").write_bytes(content[:cut])
    file = RowFile(entry, ROWS, WIDTH, np.float16)
    assert held(file) == []
    file.write(1, row(1))
    assert held(file) == [1]
    assert {path.name for path in entry.iterdir()} == {"key.json", "rows.npy", "hashes.npy"}


def test_another_shape_is_made_anew(entry, stored):
    assert held(RowFile(entry, ROWS, 2 * WIDTH, np.float16)) == []


def test_what_was_not_used_for_longest_goes_first(tmp_path):
    entries = []
    for i in range(4):
        entries.append(open_entry(tmp_path, "features", {"number": i}))
        (entries[i] / "rows.npy").write_bytes(bytes(10_000))
        os.utime(entries[i] / "key.json", (i, i))
    foreign = tmp_path / "photos" / "holiday"
    foreign.mkdir(parents=True)
    (foreign / "beach.png").write_bytes(bytes(1_000_000))
    each = disk_bytes(entries[0])

    assert shrink_cache(tmp_path, 4 * each) == 4 * each
    open_entry(tmp_path, "features", {"number": 0})  # used now
    assert shrink_cache(tmp_path, 2 * each, keep=[entries[1]]) == 2 * each
    assert [entry.exists() for entry in entries] == [True, True, False, False]
    assert shrink_cache(tmp_path, 0) == 0
    assert (foreign / "beach.png").exists()


def test_a_cache_that_cannot_be_written_says_so(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="Not a directory"):
        open_entry(tmp_path / "file", "features", {})
