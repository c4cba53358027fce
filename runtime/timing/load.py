"""What this process and the others take of the machine: processor time and memory.

On a busy machine a speed means little, so a measurement says how much other programs took meanwhile.
"""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

BUSY_SHARE = 0.10
"""Share of processor time taken by others above which the report warns."""


@dataclass(frozen=True)
class ProcessorTimes:
    """Processor seconds so far: of all cores together, busy and in all, and of this process."""

    busy_s: float
    all_s: float
    own_s: float


def read_processor_times() -> ProcessorTimes | None:
    """Reads the kernel's counters; None where there are none (they are Linux's)."""
    try:
        line = Path("/proc/stat").read_text().splitlines()[0]
        # Source: proc_stat(5): user nice system idle iowait irq softirq steal; guest time is in user already.
        ticks = [int(word) / os.sysconf("SC_CLK_TCK") for word in line.split()[1:9]]
    except (OSError, ValueError, IndexError):
        return None
    # 3 and 4 are idle and iowait. The process's own time counts its threads, and not its children.
    return ProcessorTimes(sum(ticks) - sum(ticks[3:5]), sum(ticks), time.process_time())


def others_share(before: ProcessorTimes | None, after: ProcessorTimes | None) -> float | None:
    """Share of all processor time between two readings that other programs took, 0–1."""
    if before is None or after is None or after.all_s <= before.all_s:
        return None
    others = (after.busy_s - before.busy_s) - (after.own_s - before.own_s)
    return min(max(others / (after.all_s - before.all_s), 0.0), 1.0)


def busy_remark(share: float | None) -> str:
    """A sentence where others took more than `BUSY_SHARE`, else nothing."""
    if share is None or share <= BUSY_SHARE:
        return ""
    return f" Other programs took {100 * share:.0f} % of the processor time meanwhile: measure again when it is quiet."


def peak_memory_mib() -> float:
    """Largest resident size of this process so far, in MiB.

    Linux hands ru_maxrss down through fork and exec, so a child of a large parent would report the parent's
    peak; VmHWM belongs to the process's own memory alone.
    """
    try:
        status = Path("/proc/self/status").read_text()
        return next(int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        import resource  # Windows has none

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / 2**20 if sys.platform == "darwin" else peak / 2**10  # bytes on macOS, KiB elsewhere
