"""A folder that is there is complete; what was interrupted is a .partial that equal settings resume."""

import os
import subprocess
import sys
from contextlib import suppress

import pytest

from segcore.errors import InputError
from segcore.outfolder import out_folder, write_text


def fail(out, settings, text="half", **options):
    with suppress(RuntimeError), out_folder(out, settings, **options) as folder:
        (folder / "a.txt").write_text(text)
        raise RuntimeError


def make(out, settings, text="whole", **options):
    with out_folder(out, settings, **options) as folder:
        (folder / "a.txt").write_text(text)


def message(out, settings, **options):
    with pytest.raises(InputError) as caught:
        make(out, settings, **options)
    return str(caught.value).replace(str(out), "O")


def test_the_folder_appears_at_the_end(tmp_path):
    out = tmp_path / "deep" / "O"
    with out_folder(out, {"seed": 0}) as folder:
        assert folder != out
        assert not out.exists()
        (folder / "a.txt").write_text("whole")
    assert [p.name for p in out.iterdir()] == ["a.txt"]
    assert [p.name for p in out.parent.iterdir()] == ["O"]


def test_nothing_made_leaves_nothing_behind(tmp_path):
    with pytest.raises(InputError, match="wrong window"), out_folder(tmp_path / "O", {"window": "wrong"}):
        raise InputError("wrong window")
    make(tmp_path / "O", {"window": "right"})


def test_out_that_exists(tmp_path):
    make(tmp_path / "O", {})
    assert (
        message(tmp_path / "O", {}) == "--out O: must not exist yet, it does; add --overwrite to replace it"
    )


def test_overwrite(tmp_path):
    make(tmp_path / "O", {}, "old")
    make(tmp_path / "O", {}, "new", overwrite=True)
    assert (tmp_path / "O" / "a.txt").read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["O"]


def test_overwrite_keeps_the_old_until_the_new_is_complete(tmp_path):
    make(tmp_path / "O", {}, "old")
    fail(tmp_path / "O", {}, overwrite=True)
    assert (tmp_path / "O" / "a.txt").read_text() == "old"


def test_out_that_is_no_folder(tmp_path):
    (tmp_path / "O").write_text("")
    expected = "--out O: must be the name of a new folder, is not; choose another"
    assert message(tmp_path / "O", {}, overwrite=True) == expected


def test_equal_settings_resume(tmp_path):
    fail(tmp_path / "O", {"seed": 0, "data": "d"})
    assert not (tmp_path / "O").exists()
    with out_folder(tmp_path / "O", {"data": "d", "seed": 0}) as folder:
        assert (folder / "a.txt").read_text() == "half"
    assert (tmp_path / "O" / "a.txt").read_text() == "half"


def test_partial_of_other_settings(tmp_path):
    fail(tmp_path / "O", {"seed": 0, "data": "d", "lr": 0.1})
    assert message(tmp_path / "O", {"seed": 1, "data": "d", "steps": 5}) == (
        "--out O: O.partial was made with other settings (lr, seed, steps); "
        "use the same settings to resume it, or remove it"
    )
    assert (tmp_path / "O.partial" / "a.txt").read_text() == "half"


@pytest.mark.parametrize("text", ["", "{", "\udcff"])
def test_partial_with_damaged_settings_is_not_resumed(tmp_path, text):
    fail(tmp_path / "O", {"seed": 0})
    (tmp_path / "O.partial" / "settings.json").write_bytes(text.encode(errors="surrogateescape"))
    assert message(tmp_path / "O", {"seed": 0}).startswith(
        "--out O: O.partial was made with other settings (seed)"
    )


def test_partial_without_settings_starts_again(tmp_path):
    (tmp_path / "O.partial").mkdir()
    (tmp_path / "O.partial" / "foreign.txt").write_text("")
    make(tmp_path / "O", {})
    assert [p.name for p in (tmp_path / "O").iterdir()] == ["a.txt"]


def test_stage_that_cannot_resume_leaves_nothing(tmp_path):
    fail(tmp_path / "O", {}, resumes=False)
    assert list(tmp_path.iterdir()) == []


def test_write_text_replaces_whole(tmp_path):
    write_text(tmp_path / "a", "one")
    write_text(tmp_path / "a", "two")
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("a", "two")]


@pytest.mark.skipif(os.name != "posix", reason="locks are POSIX")
def test_two_runs_into_one_folder_are_not_two_writers(tmp_path):
    """Two exports at once wrote over each other's files, and one of them died of it (SIGBUS)."""
    out = tmp_path / "out"
    with out_folder(out, {"a": 1}) as folder:
        (folder / "half").write_text("half")
        words = r"^--out .*out: must be written by one run, another is at it; "
        with pytest.raises(InputError, match=words), out_folder(out, {"a": 1}):
            raise AssertionError("two writers")
        assert (folder / "half").read_text() == "half"
        command = f"from segcore.outfolder import out_folder\nwith out_folder({str(out)!r}, {{'a': 1}}): pass"
        done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=False)
        assert "another is at it" in done.stderr
    assert [path.name for path in out.iterdir()] == ["half"]
    with out_folder(out, {"a": 2}, overwrite=True) as folder:  # free again
        assert folder.exists()
