"""The largest memory that this process has held."""

from __future__ import annotations

import sys
from pathlib import Path


def peak_memory_mib() -> float:
    """Largest resident size of this process so far, in MiB.

    Linux hands ru_maxrss down through fork and exec, so a child of a large parent would report the parent's
    peak; VmHWM belongs to the process's own memory alone.
    """
    try:
        status = Path("/proc/self/status").read_text()
        return next(int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / 2**20 if sys.platform == "darwin" else peak / 2**10  # bytes on macOS, KiB elsewhere
