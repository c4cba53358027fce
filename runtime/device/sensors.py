"""Reads a device's sensors and settings, and watches them while it is measured; sets nothing, needs no root.

Every reader takes the root of the file system, so that a test can hand it a made /sys and /proc.

Source: the files' places and meanings follow rbonghi/jetson_stats (jtop/core/power.py, temperature.py, gpu.py,
thor_gpu.py, nvpmodel.py, jetson_variables.py) for Jetson, and the kernel's Documentation/ABI (thermal, cpufreq,
hwmon: millidegrees, kHz, mV, mA, µW) for every Linux.
"""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from runtime.device.report import Board, ClockReading, PowerMode, Snapshot
from segcore.host import read_l4t

ROOT = Path("/")
# Jetson Linux release → JetPack. Source: developer.nvidia.com/embedded/jetpack-archive, as gathered in
# jetson_stats' jetson_variables.py.
_JETPACK = {
    "36.3": "6.0",
    "36.4": "6.1",
    "36.4.0": "6.1",
    "36.4.3": "6.2",
    "36.4.4": "6.2.1",
    "36.4.7": "6.2.1",
    "36.5": "6.2.2",
    "38.2": "7.0",
    "38.4": "7.1",
    "39.2": "7.2",
}
# Orin's GPU is named gpu or ga10b in the device tree; Thor has one devfreq entry for each clock domain.
_GPU_NAMES = ("gpu", "ga10b", "gv11b")
_POWER_CHIPS = ("ina3221", "ina238")
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


# --- watching, and what the snapshots say about the measurement ---


class SensorWatch:
    """Takes snapshots, and keeps them in order.

    Attributes:
        snapshots: so far.
    """

    def __init__(self, root: Path = ROOT) -> None:
        self.snapshots: list[Snapshot] = []
        self._root, self._begin = root, time.perf_counter()

    def take_snapshot(self, moment: Literal["start", "warm", "round", "end"]) -> None:
        """Takes one."""
        root = self._root
        self.snapshots.append(
            Snapshot(
                moment=moment,
                at_s=round(time.perf_counter() - self._begin, 3),
                temperatures_c=read_temperatures(root),
                cpu_clocks=read_cpu_clocks(root),
                gpu_clocks=read_gpu_clocks(root),
                power_mw=read_power(root),
                cooling=read_cooling(root),
                throttle_counts=read_throttle_counts(root),
                memory_available_mib=read_meminfo(root, "MemAvailable"),
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


# --- reading ---


def read_board(root: Path = ROOT) -> Board:
    """The device's model, its Jetson Linux and JetPack, and its memory; no serial number is read."""
    l4t = read_l4t(root / "etc/nv_tegra_release") or None
    jetpack = None if l4t is None else _JETPACK.get(l4t, _JETPACK.get(l4t.removesuffix(".0")))
    return Board(
        model=_read_text(root / "proc/device-tree/model") or _read_pc_model(root),
        l4t=l4t,
        jetpack=jetpack,
        memory_mib=read_meminfo(root, "MemTotal"),
    )


def _read_pc_model(root: Path) -> str | None:
    dmi = root / "sys/devices/virtual/dmi/id"
    words = [text for text in (_read_text(dmi / "sys_vendor"), _read_text(dmi / "product_name")) if text]
    return " ".join(words) or None


def read_meminfo(root: Path, field: str) -> float | None:
    """MiB of one line of /proc/meminfo."""
    found = re.search(rf"^{field}:\s+(\d+) kB", _read_text(root / "proc/meminfo") or "", re.MULTILINE)
    return int(found[1]) / 1024 if found else None


def read_power_mode(root: Path = ROOT, *, command: str = "nvpmodel") -> PowerMode | None:
    """The mode that nvpmodel tells, else the one that its files tell; None where it is no Jetson."""
    try:
        asked = subprocess.run([command, "-q"], capture_output=True, text=True, timeout=10, check=False)
        mode = parse_power_mode(asked.stdout)
    except (OSError, subprocess.SubprocessError):
        mode = None
    if mode is not None:
        return mode
    found = re.search(r"pmode:(\d+)", _read_text(root / "var/lib/nvpmodel/status") or "")
    if not found:
        return None
    number = int(found[1])
    conf = _read_text(root / "etc/nvpmodel.conf") or ""
    name = re.search(rf"POWER_MODEL\s+ID={number}\s+NAME=(\S+)", conf)
    return PowerMode(id=number, name=name[1] if name else None)


def parse_power_mode(text: str) -> PowerMode | None:
    """What `nvpmodel -q` printed: a line with the name, and the number on the next one."""
    found = re.search(r"NV Power Mode:\s*(\S+)(?:\s*\n\s*(\d+))?", text)
    return PowerMode(id=int(found[2]) if found[2] else None, name=found[1]) if found else None


def read_temperatures(root: Path = ROOT) -> dict[str, float] | None:
    """Degrees Celsius by thermal zone; zones that are switched off, and the PMIC's constant, are left out."""
    found: dict[str, float] = {}
    for zone in _find_folders(root / "sys/devices/virtual/thermal", "thermal_zone*"):
        name, value = _read_text(zone / "type") or zone.name, _read_number(zone / "temp")
        # Far below zero is no temperature: the zone is switched off.
        if value is not None and value > -200_000 and "PMIC" not in name:
            found[name if name not in found else f"{name} {zone.name}"] = value / 1000
    return found or None


def read_cpu_clocks(root: Path = ROOT) -> tuple[ClockReading, ...] | None:
    """One reading a cpufreq policy, which is a group of cores with one clock."""
    policies = _find_folders(root / "sys/devices/system/cpu/cpufreq", "policy*")
    names = ("scaling_cur_freq", "scaling_min_freq", "scaling_max_freq", "scaling_governor")
    return _read_clocks(policies, names, per_mhz=1e3)


def read_gpu_clocks(root: Path = ROOT) -> tuple[ClockReading, ...] | None:
    """One reading a clock of an integrated GPU."""
    devices = [
        device
        for device in _find_folders(root / "sys/class/devfreq", "*")
        if any(name in f"{device.name} {_read_text(device / 'device/of_node/name')}" for name in _GPU_NAMES)
    ]
    return _read_clocks(devices, ("cur_freq", "min_freq", "max_freq", "governor"), per_mhz=1e6)


def _read_clocks(
    folders: list[Path], names: tuple[str, str, str, str], *, per_mhz: float
) -> tuple[ClockReading, ...] | None:
    found = []
    for folder in folders:
        now, low, high = (_read_number(folder / name) for name in names[:3])
        if now is not None and low is not None and high is not None:
            found.append(
                ClockReading(
                    name=folder.name,
                    mhz=now / per_mhz,
                    min_mhz=low / per_mhz,
                    max_mhz=high / per_mhz,
                    governor=_read_text(folder / names[3]),
                )
            )
    return tuple(found) or None


def read_power(root: Path = ROOT) -> dict[str, float] | None:
    """Milliwatts by rail, from the board's INA3221 (volts and amperes) or, on Thor, INA238 (power)."""
    found: dict[str, float] = {}
    for folder in _find_power_monitors(root):
        for label in sorted(folder.glob("in*_label")):
            channel, rail = label.name[2:].partition("_")[0], _read_text(label) or ""
            # Channel 7 is the sum of the shunt voltages, which is no power; NC is a rail that is not connected.
            volts, amperes = (
                _read_number(folder / f"in{channel}_input"),
                _read_number(folder / f"curr{channel}_input"),
            )
            if channel != "7" and rail not in ("", "NC") and volts is not None and amperes is not None:
                found[rail] = volts * amperes / 1000
        watts = _read_number(folder / "power1_input")
        if watts is not None:
            found[_read_text(folder / "in1_label") or _read_text(folder / "name") or folder.name] = (
                watts / 1000
            )
    return found or None


def _find_power_monitors(root: Path) -> Iterator[Path]:
    for device in _find_folders(root / "sys/bus/i2c/devices", "*"):
        if any(chip in (_read_text(device / "name") or "") for chip in _POWER_CHIPS):
            yield from _find_folders(device / "hwmon", "hwmon*")


def read_cooling(root: Path = ROOT) -> dict[str, int] | None:
    """State of every cooling device that is engaged (fans left out); None where there are none to read."""
    found, seen = {}, False
    for device in _find_folders(root / "sys/class/thermal", "cooling_device*"):
        name, state = _read_text(device / "type") or device.name, _read_number(device / "cur_state")
        if state is None or "fan" in name.lower():
            continue
        seen = True
        if state > 0:
            found[f"{name} {device.name.removeprefix('cooling_device')}"] = int(state)
    return found if seen else None


def read_throttle_counts(root: Path = ROOT) -> dict[str, int] | None:
    """Events so far: over-current and under-voltage on Jetson, thermal throttling of cores on x86."""
    counters = [
        *_find_files(root / "sys/class/hwmon", "hwmon*/oc*_event_cnt"),
        *_find_files(root / "sys/devices/system/cpu", "cpu[0-9]*/thermal_throttle/*_throttle_count"),
    ]
    found = {}
    for path in counters:
        core = path.parent.parent.name + " " if path.parent.name == "thermal_throttle" else ""
        if (value := _read_number(path)) is not None:
            found[core + path.name] = int(value)
    return found or None


def _find_folders(parent: Path, pattern: str) -> list[Path]:
    return [path for path in _find_files(parent, pattern) if path.is_dir()]


def _find_files(parent: Path, pattern: str) -> list[Path]:
    try:
        return sorted(parent.glob(pattern))
    except OSError:
        return []


def _read_text(path: Path) -> str | None:
    """A small file's text; None if it is absent, forbidden, or its sensor is asleep (EAGAIN)."""
    try:
        return path.read_text(errors="replace").strip("\0\n\t ") or None
    except OSError:
        return None


def _read_number(path: Path) -> float | None:
    try:
        return float(_read_text(path) or "")
    except ValueError:
        return None
