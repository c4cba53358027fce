"""How much of the machine other programs took meanwhile: on a busy machine a speed means little."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

BUSY_SHARE = 0.10
"""Share of processor time taken by others above which the report warns."""


@dataclass(frozen=True)
class Clock:
    """Processor seconds so far: of all cores together, busy and in all, and of this process."""

    busy_s: float
    all_s: float
    own_s: float


def read_clock() -> Clock | None:
    """Reads the kernel's counters; None where there are none (they are Linux's)."""
    try:
        line = Path("/proc/stat").read_text().splitlines()[0]
        # Source: proc_stat(5): user nice system idle iowait irq softirq steal; guest time is in user already.
        ticks = [int(word) / os.sysconf("SC_CLK_TCK") for word in line.split()[1:9]]
    except (OSError, ValueError, IndexError):
        return None
    return Clock(sum(ticks) - sum(ticks[3:5]), sum(ticks), time.process_time())


def others_share(before: Clock | None, after: Clock | None) -> float | None:
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
