"""What cached soft labels save: a distillation epoch with them against one that runs the teacher in every step.

`python -m benchmarks.checks.soft_labels --data D --teacher T --soft S`. Both kinds alternate (A B A B); the figure is
the ratio of the median epoch times. An epoch is the training steps and the validation.
"""

from __future__ import annotations

import csv
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from pydantic import Field

from segcore.command import Settings, log, print_result, run_command
from segcore.errors import InputError
from segcore.host import describe_host, library_versions


class SoftLabelSettings(Settings):
    """`python -m benchmarks.checks.soft_labels` times distillation with cached soft labels against a live teacher."""

    data: str
    """The data set that the soft labels were made for."""
    teacher: Path
    """The teacher bundle (torch format)."""
    soft: Path
    """Its soft labels of this data."""
    size: int = 128
    """The student's input size, in pixels."""
    limit: int = Field(96, ge=8)
    """Training images an epoch."""
    rounds: int = Field(3, ge=1)
    """Runs of each kind; each run has one epoch that counts, after one to warm up."""
    threads: int = Field(1, ge=1)
    """CPU threads."""


def main(settings: SoftLabelSettings) -> None:
    """Alternates the two kinds and prints the medians and their ratio."""
    kinds = {"soft": ("--soft", str(settings.soft)), "live": ("--teacher", str(settings.teacher))}
    seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
    with tempfile.TemporaryDirectory() as folder:
        for i in range(settings.rounds):
            for kind, words in kinds.items():
                seconds[kind].append(_epoch_seconds(settings, words, Path(folder) / f"{kind}{i}"))
                log(f"round {i + 1}/{settings.rounds}  {kind}  {seconds[kind][-1]:.2f} s")
    medians = {kind: statistics.median(times) for kind, times in seconds.items()}
    ratio = medians["live"] / medians["soft"]
    print(
        f"an epoch of {settings.limit} images at {settings.size} px, {settings.threads} thread(s): "
        f"{medians['live']:.2f} s with a live teacher, {medians['soft']:.2f} s with soft labels: {ratio:.1f} times"
    )
    print_result(
        ratio=ratio, medians_s=medians, seconds=seconds, host=describe_host(), versions=library_versions()
    )


def _epoch_seconds(settings: SoftLabelSettings, words: tuple[str, ...], out: Path) -> float:
    command = [sys.executable, "-m", "student.distill", "--data", settings.data, "--out", str(out), *words]
    command += ["--size", str(settings.size), "--limit", str(settings.limit), "--epochs", "2"]
    env = {**os.environ, "OMP_NUM_THREADS": str(settings.threads)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise InputError(done.stderr.strip().splitlines()[-1].removeprefix("error: "))
    with (out / "history.csv").open() as file:
        return float(list(csv.DictReader(file))[-1]["seconds"])  # the second epoch: the first one warms up


if __name__ == "__main__":
    run_command(main, SoftLabelSettings, "python -m benchmarks.checks.soft_labels")
