"""Runs `runtime.predict` as a user does, and kills it at half: does it go on with nothing twice and nothing missing?"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from runtime.predict.write import PREDICTIONS_FILE
from segcore.errors import InputError


class Resumed(BaseModel):
    """A command that was killed and given again.

    Attributes:
        way: which.
        inputs: how many it was given.
        lines_at_kill: whole lines of predictions.jsonl then.
        lines: at the end.
        twice: inputs with more than one line.
        missing: inputs without a line.
        failed: lines with an error.
        changed: lines of before the kill that are not the first ones at the end.
        masks: files under masks/.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    way: str
    inputs: int
    lines_at_kill: int
    lines: int
    twice: int
    missing: int
    failed: int
    changed: int
    masks: int


def run_predict(words: Sequence[object], out: Path) -> float:
    """Runs the command into a new folder, which is removed, and gives the seconds that it took, its start included.

    Raises:
        InputError: it failed.
    """
    begin = time.perf_counter()
    done = subprocess.run(_command(words, out), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    seconds = time.perf_counter() - begin
    shutil.rmtree(out, ignore_errors=True)
    if done.returncode != 0:
        raise InputError(f"runtime.predict: must end well, does not: {done.stderr.strip().splitlines()[-1]}")
    return seconds


def kill_and_resume(way: str, words: Sequence[object], cases: Sequence[str], out: Path) -> Resumed:
    """Kills the command (SIGKILL, its own process alone) when half of the inputs have their lines, and gives it again.

    Args:
        way: what the result calls it.
        words: of the command, without --out.
        cases: of its inputs.
        out: folder to write, removed in the end.

    Raises:
        InputError: it ended before it could be killed, or did not end well.
    """
    stored = Path(f"{out}.partial") / PREDICTIONS_FILE
    with subprocess.Popen(
        _command(words, out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as running:
        while not (stored.exists() and stored.read_bytes().count(b"\n") >= len(cases) / 2):
            if running.poll() is not None:
                raise InputError(f"{way}: must be killed at half, ended before that; give more --images")
            time.sleep(0.005)
        os.kill(running.pid, signal.SIGKILL)
    before = stored.read_bytes().split(b"\n")[:-1]
    again = subprocess.run(_command(words, out), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if not out.exists():
        raise InputError(f"{way}: must end well, does not: {again.stderr.strip().splitlines()[-1]}")
    after = (out / PREDICTIONS_FILE).read_bytes().split(b"\n")[:-1]
    times = Counter(json.loads(line)["case"] for line in after)
    resumed = Resumed(
        way=way,
        inputs=len(cases),
        lines_at_kill=len(before),
        lines=len(after),
        twice=sum(count > 1 for count in times.values()),
        missing=len(set(cases) - set(times)),
        failed=sum("error" in json.loads(line) for line in after),
        changed=sum(old != new for old, new in zip(before, after, strict=False)),
        masks=sum(path.is_file() for path in (out / "masks").rglob("*")),
    )
    shutil.rmtree(out)
    return resumed


def _command(words: Sequence[object], out: Path) -> list[str]:
    return [sys.executable, "-m", "runtime.predict", *map(str, words), "--out", str(out)]
