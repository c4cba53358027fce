"""The settings of `python -m benchmarks`, from which its command line is generated.

Apart from `run`, which imports all that measures: `--help` and a wrong flag are answered without it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from segcore.command import Settings

LIST_FLAGS = ("--threads", "--records")
"""Flags that several values may follow."""


class BenchmarkSettings(Settings):
    """Measures bundles side by side on one dataset: accuracy, latency, memory; writes a report."""

    bundle: tuple[Path, ...] = ()
    """A bundle to measure; give the flag once for each. Torch bundles are measured with PyTorch."""
    expect: tuple[str, ...] = ()
    """sha256 of a bundle (its first 12 digits or more will do); repeat for each: another bundle is refused."""

    data: str
    """Dataset: a folder, an index.csv, or phantom:KIND."""

    out: Path
    """New folder for records.jsonl, cases.jsonl, report.html and report.md."""

    engine: tuple[str, ...] = ()
    """Engine for exported bundles; repeat for several. Default: every installed one that opens the bundle."""

    threads: tuple[int, ...] = ()
    """Thread counts to time with, as in `--threads 1 2`. Default: this machine's number of cores."""

    split: Literal["train", "val", "test"] = "test"
    """Which split's cases to score."""

    limit: int | None = Field(default=None, gt=0)
    """Score at most this many cases, spread over the split."""

    small_px: int = Field(default=50, gt=0)
    """Parts of the true mask with fewer pixels than this, at the picture's own size, are told apart: how many
    of them are found."""

    rounds: int = Field(default=5, gt=0)
    """Rounds of the interleaved timing; each gives every model one short burst."""

    reference: str | None = None
    """Compared with: a bundle's name or folder, or 1 for the first. Default: first teacher."""

    ratio_to: tuple[str, ...] = ()
    """Latencies in the table of networks are told as ratios to these, each at the same thread count; repeat for
    several. A bundle's name or folder, or its number. Default: the reference."""

    roofline: bool = False
    """Measure this machine's peaks too (10 s for each engine and thread count; needs onnx), and tell how much
    of them each model reaches."""

    records: tuple[Path, ...] = ()
    """Reports that devices sent back (python -m runtime.device), shown in a table of their own; several may follow, as
    in `--records a.json b.json`."""

    skip_latency: bool = False
    """Measure accuracy only: no latency, cold start or memory."""

    overwrite: bool = False
    """Replace a finished --out."""
