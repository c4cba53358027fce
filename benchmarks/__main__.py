"""`python -m benchmarks`: measures bundles side by side and writes the report."""

from __future__ import annotations

import sys

from benchmarks.measuring import repeat_flags
from benchmarks.report.run import LIST_FLAGS, BenchmarkSettings, main
from segcore.command import run_command

if __name__ == "__main__":
    words = repeat_flags(sys.argv[1:], LIST_FLAGS)
    run_command(main, BenchmarkSettings, "python -m benchmarks", words)
