"""The folder of what can be computed again: its place, its bound, and that what is read back is what we wrote."""

import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest

from segcore.cache import (
    RowFile,
    disk_bytes,
    is_remembered,
    open_entry,
    open_private_entry,
    read_private,
    remember,
    shrink_cache,
    user_cache,
    write_private,
)

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
    with pytest.raises(OSError, match="File exists"):
        open_entry(tmp_path / "file", "features", {})


# Private files: what a program runs, or what spares a check.

KEY = {"model": "ab", "threads": 2}
posix = pytest.mark.skipif(os.name != "posix", reason="owners and modes")


def kept(cache, content=b"compiled", key=KEY, kind="openvino"):
    entry = open_private_entry(cache, kind, key)
    write_private(entry, "model", content, max_bytes=2**20)
    return entry


def read(cache, key=KEY, kind="openvino"):
    entry = open_private_entry(cache, kind, key)
    found = entry and read_private(entry, "model")
    return found if found is None else bytes(found)


@pytest.mark.parametrize("content", [b"", b"compiled", bytes(100_000)], ids=len)
def test_a_private_file_comes_back(tmp_path, content):
    kept(tmp_path / "cache", content)
    assert read(tmp_path / "cache") == content
    assert read(tmp_path / "cache", KEY | {"threads": 1}) is None


@pytest.mark.parametrize("place", range(40))
def test_a_bit_that_flipped_anywhere_is_noticed_and_the_file_removed(tmp_path, place):
    path = kept(tmp_path) / "model"
    content = bytearray(path.read_bytes())
    assert len(content) == 40
    content[place] ^= 1 << place % 8
    path.write_bytes(content)
    assert read(tmp_path) is None
    assert not path.exists()


@pytest.mark.parametrize("length", [0, 31, 32, 39])
def test_a_private_file_that_was_cut_off_is_not_there(tmp_path, length):
    path = kept(tmp_path) / "model"
    path.write_bytes(path.read_bytes()[:length])
    assert read(tmp_path) is None


@pytest.mark.parametrize("other", [{"key": KEY | {"threads": 1}}, {"kind": "kernels"}], ids=["entry", "kind"])
def test_a_private_file_is_of_its_place(tmp_path, other):
    """As a backup that puts one where another was, or somebody who wants the other one to be run."""
    here, there = kept(tmp_path), kept(tmp_path, b"another", **other)
    shutil.copy(there / "model", here / "model")
    assert read(tmp_path) is None
    shutil.copy(kept(tmp_path) / "model", here / "verdict")
    assert read_private(here, "verdict") is None


@posix
def test_the_folder_and_the_key_are_the_users_alone_whatever_the_umask(tmp_path):
    before = os.umask(0)
    try:
        entry = kept(tmp_path / "new/cache")
    finally:
        os.umask(before)
    folders = (entry, entry.parent, entry.parents[1])
    assert [folder.stat().st_mode & 0o777 for folder in folders] == [0o700] * 3
    assert (tmp_path / "new/cache/secret").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "new/cache/secret").stat().st_size == 32


@posix
@pytest.mark.parametrize("mode", [0o770, 0o702, 0o777, 0o1777])
def test_a_folder_that_others_can_write_to_is_not_used(tmp_path, mode, capsys):
    cache = tmp_path / "cache"
    kept(cache)
    cache.chmod(mode)
    assert read(cache) is None
    assert read(cache) is None
    assert capsys.readouterr().err == (
        f"cache {cache}: must be this user's alone, others may write to it (mode {mode:o}); nothing in it is used and "
        "nothing is kept: use a folder of your own, with chmod 700\n"
    )
    cache.chmod(0o755)  # to read is not to write
    assert read(cache) == b"compiled"


@posix
def test_a_folder_of_another_user_is_not_used(tmp_path, monkeypatch, capsys):
    kept(tmp_path / "cache")
    user = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: user + 1)
    assert read(tmp_path / "cache") is None
    assert (
        f"must be this user's alone, belongs to user {user}; nothing in it is used" in capsys.readouterr().err
    )


@posix
@pytest.mark.parametrize("how", ["readable", "a link", "short", "gone"])
def test_a_key_that_others_could_know_is_replaced_and_what_it_vouched_for_is_not_there(tmp_path, how):
    cache = tmp_path / "cache"
    kept(cache)
    secret = cache / "secret"
    known = secret.read_bytes()
    if how == "readable":
        secret.chmod(0o644)
    else:
        secret.unlink()
    if how == "a link":
        (tmp_path / "theirs").write_bytes(known)
        (tmp_path / "theirs").chmod(0o600)
        secret.symlink_to(tmp_path / "theirs")
    elif how == "short":
        secret.write_bytes(known[:16])
        secret.chmod(0o600)
    assert read(cache) is None
    kept(cache)
    assert read(cache) == b"compiled"
    assert secret.read_bytes() != known
    assert {path.name for path in cache.iterdir()} == {"secret", "openvino"}


def test_private_files_of_a_kind_are_bounded(tmp_path):
    for number in range(4):
        entry = open_private_entry(tmp_path, "openvino", {"number": number})
        write_private(entry, "model", bytes(10_000), max_bytes=40_000)
        os.utime(entry / "key.json", (number, number))
    kept(tmp_path, kind="kernels")
    found = [read(tmp_path, {"number": number}) is not None for number in range(4)]
    assert found == [False, False, True, True]
    assert read(tmp_path, kind="kernels") is not None


def test_verdicts(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert not is_remembered("golden", KEY)
    remember("golden", KEY)
    assert is_remembered("golden", KEY)
    assert not is_remembered("golden", KEY | {"threads": 1})
    assert not is_remembered("opened", KEY)
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    remember("golden", KEY)
    assert not is_remembered("golden", KEY)
    assert capsys.readouterr().err == (
        f"cache {tmp_path / 'file/sam2edge'}: cannot be written (Not a directory); nothing is kept in it\n"
    )
