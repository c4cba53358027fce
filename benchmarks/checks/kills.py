"""Kills commands at every change that they make to their files, and at random, and gives them again.

`python -m benchmarks.checks.kills --out O [--random 100] [--every 1]` writes O/kills.md: of `runtime.predict` with one
and two workers, `export`, `teacher.label` and `student.distill`, on procedural pictures of 64 px:

    half     OUT was neither absent, nor the old result, nor the new one after the kill
    failed   the command that was given again did not end well; where OUT was complete it may say that it is there
    lost     OUT is not what an undisturbed run writes, or a stray epoch was trained again
    twice    what was finished before the kill was made again
    extra    something lies in OUT or beside it that does not belong there

A kill is SIGKILL for all processes of the command. `HOOK` counts, in each of them, what Python is about to do to files
of the run: rename, remove, make, link, open to write, fsync. It comes from outside, so the commands are what users run.
With `--overwrite` in every other run, over a result that was there before.
"""

from __future__ import annotations

import csv
import hashlib
import importlib
import json
import os
import random
import runpy
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NoReturn

from pydantic import Field

from runtime.predict.write import PREDICTIONS_FILE
from segcore.bundle.folder import MANIFEST, open_bundle
from segcore.command import Settings, log, print_result, run_command
from segcore.dataset.dataset import open_dataset
from segcore.dataset.soft_labels import LABELS
from segcore.outfolder import out_folder, write_text

_DATA = "phantom:cxr:12"
_EPOCHS = 2
_IMAGES = 4
_OLD = "old.txt"
"""The result that was there before, in the runs with --overwrite."""
_PRELOADED = (
    "torch",
    "accelerate",
    "onnxruntime",
    "export.pipeline",
    "export.graph.openvino_export",
    "student.network",
    "segcore.learn.seal",
    "teacher.ensemble",
)
"""Imported once, because every run is a fork of this process; by name, because this room imports no torch."""
_RECORD = 200  # bytes a line of the log, so that its length tells their number
HOOK = f"""
import os, signal, sys

def install():
    log = os.open(os.environ["KILL_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    under, at = os.environ["KILL_UNDER"], int(os.environ["KILL_AT"])
    sync = os.fsync

    def count(what):
        os.write(log, what.encode(errors="replace")[:{_RECORD - 1}].ljust({_RECORD - 1}) + b"\\n")
        if os.lseek(log, 0, os.SEEK_CUR) == at * {_RECORD}:
            os.killpg(0, signal.SIGKILL)

    def full(path, folder):
        path = os.fsdecode(path)
        if isinstance(folder, int) and folder >= 0 and not os.path.isabs(path):
            path = os.path.join(os.readlink(f"/proc/self/fd/{{folder}}"), path)
        return os.path.abspath(path)

    def hook(event, args):
        folder = None
        if event in ("os.remove", "os.rmdir", "shutil.rmtree"):
            path, folder = args[0], args[1]
        elif event in ("os.rename", "os.link", "os.symlink", "os.truncate"):
            path = args[0]
        elif event == "os.mkdir":
            path, folder = args[0], args[2]
        elif event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR):
            path = args[0]
        elif event == "ctypes.dlsym" and args[1] in ("renameat2", "syncfs"):
            count(args[1])
            return
        else:
            return
        if isinstance(path, (str, bytes)) or hasattr(path, "__fspath__"):
            path = full(path, folder)
            if path.startswith(under):
                count(f"{{event}} {{path[len(under):]}}")

    def fsync(file):
        count("os.fsync")
        sync(file)

    os.fsync = fsync
    sys.addaudithook(hook)

if "KILL_LOG" in os.environ:
    install()
"""


class KillSettings(Settings):
    """Kills commands at every change that they make to their files, and at random, and gives them again."""

    out: Path
    """Folder for kills.md, and for what the runs write meanwhile."""
    command: tuple[str, ...] = ("predict", "predict-2", "export", "label", "distill")
    """Which; repeat for several."""
    random: int = Field(100, ge=0)
    """Kills at random moments, of each command."""
    every: int = Field(1, ge=1)
    """Of the changes to files every so manieth; 1 takes all."""
    seconds: float = Field(float("inf"), gt=0)
    """Begins no more kills of a command after so long."""
    seed: int = 0
    """Of the random moments."""
    overwrite: bool = False
    """Replace OUT if it is there."""


@dataclass(frozen=True)
class Command:
    """What is killed.

    Attributes:
        name: in the table.
        module: `python -m` of it; None runs `call`.
        words: its flags but for --out and --overwrite.
        call: a function of OUT and whether to overwrite, in the place of a module.
    """

    name: str
    module: str | None = None
    words: tuple[str, ...] = ()
    call: Callable[[Path, bool], None] | None = None


@dataclass
class Outcome:
    """What became of a command's kills.

    Attributes:
        points: changes to files in an undisturbed run: without --overwrite, and with it.
        injected: kills at them.
        timed: kills at random moments.
        found: "half", "failed", "lost", "twice" and "extra", each with where it was.
        temporary: names of what kills left in the system's folder for temporary files.
    """

    name: str
    points: tuple[int, int] = (0, 0)
    injected: int = 0
    timed: int = 0
    found: dict[str, list[str]] = field(
        default_factory=lambda: {k: [] for k in ("half", "failed", "lost", "twice", "extra")}
    )
    temporary: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class _Ended:
    status: int | None  # None where the run was killed
    told: str
    seconds: float
    changes: tuple[str, ...]


def main(settings: KillSettings) -> None:
    """Writes the table."""
    made_from = settings.model_dump(mode="json", exclude={"out", "overwrite"})
    with (
        out_folder(settings.out, made_from, overwrite=settings.overwrite, resumes=False) as folder,
        TemporaryDirectory(dir=folder.parent, prefix="kills-") as work,
    ):
        known = prepare_commands(Path(work), settings.command)
        rows = []
        for command in known:
            rows.append(kill_command(command, Path(work) / command.name, settings))
            write_text(folder / "kills.md", table_of(rows) + "\n")
            for kind, places in rows[-1].found.items():
                for place in places:
                    log(f"{command.name}: {kind}: {place}")
    print(table_of(rows))
    print_result(
        kills=sum(row.injected + row.timed for row in rows),
        faults=sum(len(places) for row in rows for places in row.found.values()),
    )


def table_of(rows: Sequence[Outcome]) -> str:
    """The outcomes as a Markdown table."""
    lines = [
        "| command | changes to files | killed at one | at random | half | failed | lost | twice | extra | in /tmp |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        counts = " | ".join(str(len(places)) for places in row.found.values())
        lines.append(
            f"| {row.name} | {row.points[0]}, {row.points[1]} over an old result | {row.injected} | {row.timed} | "
            f"{counts} | {len(row.temporary)} |"
        )
    return "\n".join(lines)


def prepare_commands(work: Path, names: Sequence[str]) -> list[Command]:
    """Makes what the commands read, by the commands themselves."""
    for module in _PRELOADED:
        importlib.import_module(module)
    short: tuple[str, ...] = (
        "--data",
        _DATA,
        "--size",
        "64",
        "--batch-size",
        "4",
        "--design",
        "nano",
        "--device",
        "cpu",
        "--passes",
        "1",
    )
    short = (*short, "--epochs", str(_EPOCHS))
    student, bundle, soft = (str(work / name) for name in ("student", "bundle", "soft"))
    commands = {
        "student": Command("student", "student.distill", short),
        "export": Command("export", "export", ("--bundle", student, "--to", "openvino")),
        "label": Command(
            "label",
            "teacher.label",
            ("--bundle", bundle, "--data", _DATA, "--shard-images", "2", "--device", "cpu"),
        ),
        "distill": Command("distill", "student.distill", (*short, "--soft", soft)),
    }
    predict = (
        "--bundle",
        bundle,
        "--image",
        str(work / "pictures"),
        "--engine",
        "onnxruntime",
        "--no-verify",
    )
    commands["predict"] = Command("predict", "runtime.predict", predict)
    commands["predict-2"] = Command("predict-2", "runtime.predict", (*predict, "--workers", "2"))
    onnx = Command("bundle", "export", ("--bundle", student, "--to", "onnx"))
    for command, out in ((commands["student"], student), (onnx, bundle), (commands["label"], soft)):
        ended = _run(command, Path(out), work / f"{command.name}-made", overwrite=False)
        if ended.status:
            raise RuntimeError(f"{command.name} ended with {ended.status}: {ended.told}")
    (work / "pictures").mkdir()
    from PIL import Image

    for case in open_dataset(_DATA).cases[:_IMAGES]:
        Image.fromarray(case.image()).save(work / "pictures" / f"{case.id.replace('/', '-')}.png")
    if "export" in names:
        _trace_once(Path(student), work / "traced.onnx")
    return [commands[name] for name in names]


def _trace_once(student: Path, path: Path) -> None:
    """Writes a graph in this process: what torch sets up for its first one takes ten times as long as the graph."""
    graph = importlib.import_module("export.pipeline").open_graph(open_bundle(student))
    manifest = open_bundle(student).manifest
    write_model = importlib.import_module("export.model_file").write_model
    write_model(graph, manifest.input, manifest.output, path, to="onnx", precision="fp32")


def kill_command(command: Command, folder: Path, settings: KillSettings) -> Outcome:
    """Kills a command at its changes to files, then at random.

    Args:
        command: with its inputs.
        folder: of the runs; made.
        settings: how many of them.
    """
    row, begun = Outcome(command.name), time.monotonic()
    undisturbed, ways = [], (False, True)
    for overwrite in ways:
        out = _new_out(folder, overwrite)
        ended = _run(command, out, folder, overwrite=overwrite)
        if ended.status:
            raise RuntimeError(f"{command.name} ended with {ended.status}: {ended.told}")
        undisturbed.append(ended)
    expected = fingerprint(out)
    row.points = (len(undisturbed[0].changes), len(undisturbed[1].changes))
    moments = [(at, way) for way in ways for at in range(1, row.points[way] + 1, settings.every)]
    rng = random.Random(settings.seed)
    rng.shuffle(moments)  # a limit of time must not leave out the last ones
    for at, overwrite in moments:
        if time.monotonic() - begun > settings.seconds / (2 if settings.random else 1):
            break
        row.injected += _kill_once(command, folder, expected, row, overwrite=overwrite, at=at)
    for n in range(settings.random):
        if time.monotonic() - begun > settings.seconds:
            break
        overwrite = bool(n % 2)
        after = rng.uniform(0, undisturbed[overwrite].seconds)
        row.timed += _kill_once(command, folder, expected, row, overwrite=overwrite, after=after)
    log(
        f"{command.name}: {row.injected} kills at changes, {row.timed} at random, {time.monotonic() - begun:.0f} s"
    )
    return row


def _kill_once(
    command: Command,
    folder: Path,
    expected: dict[str, str],
    row: Outcome,
    *,
    overwrite: bool,
    at: int = 0,
    after: float | None = None,
) -> bool:
    """One kill and what follows; whether the run did not end before it."""
    out = _new_out(folder, overwrite)
    killed = _run(command, out, folder, overwrite=overwrite, at=at, after=after)
    if killed.status is not None:
        return False
    place = killed.changes[-1] if killed.changes else "start"
    place = f"{'over an old result, ' if overwrite else ''}{'before' if at else 'after'} {place}"
    there = fingerprint(out) if out.exists() else None
    before = {_OLD: _hash(b"old")} if overwrite else None
    if there not in (before, expected):
        row.found["half"].append(f"{place}: {_difference(there or {}, expected)}")
    finished, epochs = finished_files(out.with_name("O.partial")), _epochs_noted(out.with_name("O.partial"))
    again = _run(command, out, folder, overwrite=overwrite)
    stood = there == expected and "must not exist yet, it does" in again.told
    if again.status and not stood:
        row.found["failed"].append(f"{place}: {again.told[-300:]}")
    elif fingerprint(out) != expected:
        row.found["lost"].append(f"{place}: {_difference(fingerprint(out), expected)}")
    if again.told.count("val Dice") > _EPOCHS + 3 - max(0, epochs - 1):
        row.found["twice"].append(f"{place}: {epochs} epochs were done, then again: {again.told[-300:]}")
    if there != expected:  # else a run with --overwrite begins anew
        changed = [n for n, inode in finished.items() if _inode_of(out / n) != inode]
        if changed:
            row.found["twice"].append(f"{place}: {', '.join(changed[:3])}")
    if extra := sorted(path.name for path in out.parent.iterdir() if path != out):
        row.found["extra"].append(f"{place}: {', '.join(extra)} beside OUT")
    row.temporary |= {path.name for path in (folder / "tmp").iterdir()}
    return True


def fingerprint(out: Path) -> dict[str, str]:
    """What a result consists of: name → hash of what does not change from run to run.

    Of a bundle it raises where the manifest does not fit; what is in the folder and not in the manifest shows as such.
    """
    found = {}
    for path in sorted(p for p in out.rglob("*") if p.is_file()):
        name = path.relative_to(out).as_posix()
        if name == PREDICTIONS_FILE:
            records = [json.loads(line) for line in path.read_text().splitlines()]
            content = json.dumps(sorted([r["case"], r.get("files"), r.get("area_px")] for r in records))
        elif name == MANIFEST:
            content = json.dumps(sorted(open_bundle(out).manifest.files))
        elif name == LABELS:
            content = json.dumps(json.loads(path.read_text())["shards"])
        elif path.suffix in (".safetensors", ".onnx", ".bin", ".npy", ".png", ".txt") and path.name not in (
            "curves.png",  # has seconds in it
        ):
            found[name] = _hash(path.read_bytes())
            continue
        elif path.suffix == ".csv":
            content = str(len(path.read_text().splitlines()))
        else:
            content = "there"
        found[name] = _hash(content.encode())
    return found


def finished_files(partial: Path) -> dict[str, int]:
    """Files in OUT.partial that a run which goes on must not make again: name → inode."""
    names: list[str] = []
    records = partial / PREDICTIONS_FILE
    if records.is_file():
        for line in records.read_text().splitlines(keepends=True):
            if line.endswith("\n"):
                names += json.loads(line).get("files", {}).values()
    names += [path.name.removesuffix(".json") for path in partial.glob("shard-*.npy.json")]
    return {name: _inode_of(partial / name) for name in names}


def _epochs_noted(partial: Path) -> int:
    history = partial / "history.csv"
    if not history.is_file():
        return 0
    with history.open(newline="") as file:
        return sum(1 for _ in csv.DictReader(file))


def _inode_of(path: Path) -> int:
    return path.stat().st_ino if path.exists() else 0


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _difference(found: dict[str, str], expected: dict[str, str]) -> str:
    names = sorted(n for n in found.keys() | expected.keys() if found.get(n) != expected.get(n))
    return "differs in " + ", ".join(names[:6])


def _new_out(folder: Path, overwrite: bool) -> Path:
    """An empty place for a run; `overwrite` puts an old result there."""
    shutil.rmtree(folder, ignore_errors=True)
    for name in ("run", "tmp", "hook"):
        (folder / name).mkdir(parents=True)
    out = folder / "run" / "O"
    if overwrite:
        out.mkdir()
        (out / _OLD).write_text("old")
    return out


def _run(
    command: Command, out: Path, folder: Path, *, overwrite: bool, at: int = 0, after: float | None = None
) -> _Ended:
    """Runs a command in a fork of this process, and kills it and its children.

    Args:
        command: what to run.
        out: its --out.
        folder: for the log, temporary files and what the run tells.
        overwrite: give --overwrite.
        at: kill before this change to files, from 1; 0 for never.
        after: kill after so many seconds.
    """
    (folder / "hook").mkdir(parents=True, exist_ok=True)
    (folder / "tmp").mkdir(exist_ok=True)
    (folder / "hook" / "sitecustomize.py").write_text(HOOK)  # for the command's own children
    changes, told = folder / "changes", folder / "told"
    changes.unlink(missing_ok=True)
    environment = {
        "KILL_LOG": str(changes),
        "KILL_AT": str(at),
        "KILL_UNDER": str(out.parent.resolve()),
        "TMPDIR": str(folder / "tmp"),
        "PYTHONPATH": os.pathsep.join([str(folder / "hook"), os.environ.get("PYTHONPATH", "")]),
    }
    sys.stdout.flush()
    sys.stderr.flush()
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        _be_command(command, out, told, environment, overwrite=overwrite)
    if after is not None:
        time.sleep(after)
        with suppress(ProcessLookupError):  # it may have ended
            os.killpg(child, signal.SIGKILL)
    _, ended = os.waitpid(child, 0)
    seconds = time.monotonic() - started
    with suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # workers of a run that was killed
    log_bytes = changes.read_bytes() if changes.exists() else b""
    lines = tuple(line.decode().strip() for line in log_bytes.splitlines())
    status = None if os.WIFSIGNALED(ended) else os.WEXITSTATUS(ended)
    return _Ended(status, told.read_text() if told.exists() else "", seconds, lines)


def _be_command(
    command: Command, out: Path, told: Path, environment: dict[str, str], *, overwrite: bool
) -> NoReturn:
    """In the fork: becomes the command; never returns."""
    status: Any = 1
    try:
        os.setsid()
        os.environ |= environment
        file = os.open(told, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, 1)
        os.dup2(file, 2)
        sys.stdout, sys.stderr = (
            os.fdopen(n, "w", closefd=False) for n in (1, 2)
        )  # not those that pytest reads
        exec(HOOK, {})
        if command.call:
            command.call(out, overwrite)
            status = 0
        elif command.module:
            words = [*command.words, "--out", str(out), *(["--overwrite"] if overwrite else [])]
            sys.argv = [command.module, *words]
            runpy.run_module(command.module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        status = end.code or 0
    except BaseException:
        import traceback

        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    run_command(main, KillSettings, "python -m benchmarks.checks.kills")
