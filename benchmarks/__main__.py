"""`python -m benchmarks`: measures bundles side by side and writes the report."""

from __future__ import annotations

import sys

from benchmarks.report.settings import LIST_FLAGS, BenchmarkSettings
from segcore.command import repeat_flags, run_command


def main(settings: BenchmarkSettings) -> None:
    """Measures, writes the folder, prints the table and one JSON line; see `benchmarks.report.run`."""
    from benchmarks.report.run import main as measure_and_report

    measure_and_report(settings)


if __name__ == "__main__":
    run_command(main, BenchmarkSettings, "python -m benchmarks", repeat_flags(sys.argv[1:], LIST_FLAGS))
