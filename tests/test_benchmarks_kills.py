"""A command that is killed before any change to its files loses nothing, does nothing twice and leaves nothing."""

import sys
from importlib.util import find_spec

import pytest

import segcore.outfolder
from benchmarks.checks.kills import Command, KillSettings, kill_command, prepare_commands
from segcore.outfolder import out_folder, scratch_beside, write_text

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks, and reads /proc")


def make(out, overwrite):
    """A stage that resumes, with a file that is costly and scratch."""
    with out_folder(out, {"seed": 0}, overwrite=overwrite) as folder, scratch_beside(folder) as scratch:
        (scratch / "half").write_text("half")
        for i in range(2):
            if not (folder / f"{i}.txt").exists():
                write_text(folder / f"{i}.txt", str(i), durable=i == 1)


def make_anew(out, overwrite):
    """A stage that does not resume: a file of its own that nobody writes again must not stay."""
    with out_folder(out, {"seed": 0}, overwrite=overwrite, resumes=False) as folder:
        assert [path.name for path in folder.iterdir()] == ["settings.json"]
        (folder / "model.txt").write_text("model")


def make_without_exchange(out, overwrite):
    """As on a file system that cannot let two folders swap their names."""
    segcore.outfolder._exchange = lambda *_: False  # in the fork alone
    make(out, overwrite)


@pytest.mark.parametrize("stage", [make, make_anew, make_without_exchange])
def test_at_every_change_of_a_folder(tmp_path, stage):
    settings = KillSettings(out=tmp_path / "unused", random=0)
    found = kill_command(Command("stage", call=stage), tmp_path / "work", settings)
    assert found.injected == sum(found.points) > 30
    # There the old result has another name for a moment, and the next run puts it back.
    away = found.found.pop("half")
    assert len(away) == (stage is make_without_exchange)
    assert [places for places in found.found.values() if places] == []
    assert found.temporary == set()


def test_commands_at_some_changes(tmp_path):
    """`python -m benchmarks.checks.kills` takes every change, and moments by chance."""
    for package in ("torch", "onnxscript", "onnxruntime", "openvino"):
        if find_spec(package) is None:  # not imported here: openvino must be imported with its telemetry off
            pytest.skip(f"{package} is not installed")
    every = {"predict": 16, "label": 30, "distill": 60, "export": 40}
    for command in prepare_commands(tmp_path, tuple(every)):
        settings = KillSettings(out=tmp_path / "unused", random=0, every=every[command.name])
        found = kill_command(command, tmp_path / f"{command.name}-killed", settings)
        assert found.injected
        assert [places for places in found.found.values() if places] == [], command.name
