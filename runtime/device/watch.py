"""Watches a device while it is measured: snapshots of its sensors, and what they say about the measurement."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from runtime.device import sensors as sensors
from runtime.device.report import ClockReading, Snapshot

_FALLEN_SHARE = 0.95
"""Of a clock's earlier value; below it the clock is said to have fallen."""

# Field of `Snapshot` → where its numbers would be, for the reason that it is None.
_MISSING_BECAUSE = {
    "temperatures_c": "no readable thermal zone in /sys/devices/virtual/thermal",
    "cpu_clocks": "no cpufreq policy in /sys/devices/system/cpu/cpufreq",
    "gpu_clocks": "no integrated GPU in /sys/class/devfreq",
    "power_mw": "no readable INA3221 or INA238 in /sys/bus/i2c/devices",
    "cooling": "no cooling device in /sys/class/thermal",
    "throttle_counts": "no counter of over-current or thermal throttling in /sys",
    "memory_available_mib": "no MemAvailable in /proc/meminfo",
}


class SensorWatch:
    """Takes snapshots, and keeps them in order.

    Attributes:
        snapshots: so far.
    """

    def __init__(self, root: Path = sensors.ROOT) -> None:
        self.snapshots: list[Snapshot] = []
        self._root, self._begin = root, time.perf_counter()

    def take_snapshot(self, moment: Literal["start", "warm", "round", "end"]) -> None:
        """Takes one."""
        root = self._root
        self.snapshots.append(
            Snapshot(
                moment=moment,
                at_s=round(time.perf_counter() - self._begin, 3),
                temperatures_c=sensors.read_temperatures(root),
                cpu_clocks=sensors.read_cpu_clocks(root),
                gpu_clocks=sensors.read_gpu_clocks(root),
                power_mw=sensors.read_power(root),
                cooling=sensors.read_cooling(root),
                throttle_counts=sensors.read_throttle_counts(root),
                memory_available_mib=sensors.read_meminfo(root, "MemAvailable"),
            )
        )


def unread_sensors(snapshots: Sequence[Snapshot]) -> dict[str, str]:
    """Fields that no snapshot holds, with the reason."""
    return {
        f"snapshots.{field}": why
        for field, why in _MISSING_BECAUSE.items()
        if all(getattr(snapshot, field) is None for snapshot in snapshots)
    }


def clocks_pinned(snapshot: Snapshot) -> bool | None:
    """Whether every clock that was read is held at one value (as jetson_clocks does); None without clocks."""
    clocks = _list_clocks(snapshot)
    return all(clock.min_mhz == clock.max_mhz for clock in clocks) if clocks else None


def find_throttling(snapshots: Sequence[Snapshot]) -> tuple[str, ...]:
    """What shows that the device held itself back while it was measured; empty where nothing does.

    A clock that its governor moves says little by itself, so a clock counts where it is pinned and was lower,
    and the GPU's where it was lower at the end than after the warm-up.
    """
    first, last = snapshots[0], snapshots[-1]
    found = []
    for name, count in (last.throttle_counts or {}).items():
        if (more := count - (first.throttle_counts or {}).get(name, 0)) > 0:
            found.append(f"{name} rose by {more}")
    engaged = {name for s in snapshots if s.moment != "start" for name in (s.cooling or {})}
    found += [f"cooling device {name} was engaged" for name in sorted(engaged)]
    loaded = [s for s in snapshots if s.moment in ("warm", "round", "end")]
    for name in sorted({clock.name for s in loaded for clock in _list_clocks(s)}):
        readings = [clock for s in loaded for clock in _list_clocks(s) if clock.name == name]
        slowest = min(readings, key=lambda clock: clock.mhz)
        if slowest.min_mhz == slowest.max_mhz and slowest.mhz < _FALLEN_SHARE * slowest.min_mhz:
            found.append(f"clock {name} is pinned to {slowest.min_mhz:.0f} MHz and ran at {slowest.mhz:.0f}")
        elif any(clock.name == name for s in loaded for clock in s.gpu_clocks or ()):
            before, after = readings[0].mhz, readings[-1].mhz
            if after < _FALLEN_SHARE * before:
                found.append(f"GPU clock {name} fell from {before:.0f} MHz to {after:.0f}")
    return tuple(found)


def _list_clocks(snapshot: Snapshot) -> tuple[ClockReading, ...]:
    return (*(snapshot.cpu_clocks or ()), *(snapshot.gpu_clocks or ()))
