"""Memory that a training step frees stays with the process, for the next step takes the same amount."""

from __future__ import annotations

import ctypes
import sys

# Source: mallopt(3) and glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_MOST = 2**31 - 1


def keep_freed_memory() -> bool:
    """Tells glibc not to give large blocks back to the kernel when they are freed; returns whether it could.

    By default it maps each large tensor anew, and the kernel clears its pages when they are first written: a fifth
    of the time of a small student's step. A process that trains has no better use for the memory.
    """
    if sys.platform != "linux":
        return False
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if set_option is None:
        return False
    return bool(set_option(_M_MMAP_MAX, 0)) and bool(set_option(_M_TRIM_THRESHOLD, _MOST))
