"""`python -m benchmarks`: measures bundles side by side and writes the report."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from benchmarks.report.run import BenchmarkSettings, main
from segcore.command import run_command


def _join_numbers(words: Sequence[str]) -> list[str]:
    """`--threads 1 2` to `--threads 1,2`, which is what the parser of segcore.command reads."""
    joined: list[str] = []
    for word in words:
        if word.isdigit() and len(joined) > 1 and joined[-2] == "--threads":
            joined[-1] += "," + word
        else:
            joined.append(word)
    return joined


def _repeat_records(words: Sequence[str]) -> list[str]:
    """`--records a.json b.json` to `--records a.json --records b.json`."""
    repeated: list[str] = []
    listing = False
    for word in words:
        if word.startswith("--"):
            listing = word == "--records"
        elif listing and repeated[-1] != "--records":
            repeated.append("--records")
        repeated.append(word)
    return repeated


if __name__ == "__main__":
    words = _join_numbers(_repeat_records(sys.argv[1:]))
    run_command(main, BenchmarkSettings, "python -m benchmarks", words)
