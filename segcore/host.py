"""What a result was made on: the machine, the versions, the commit, the command."""

from __future__ import annotations

import os
import platform
import re
import shlex
import subprocess
import sys
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path

from segcore.record import Record

_LIBRARIES = (
    "numpy",
    "torch",
    "sam2",
    "peft",
    "onnx",
    "onnxruntime",
    "openvino",
    "nncf",
    "tensorrt",
)

_ARM_CORES = {
    ("0x41", "0xd03"): "ARM Cortex-A53",
    ("0x41", "0xd05"): "ARM Cortex-A55",
    ("0x41", "0xd07"): "ARM Cortex-A57",
    ("0x41", "0xd08"): "ARM Cortex-A72",
    ("0x41", "0xd09"): "ARM Cortex-A73",
    ("0x41", "0xd0a"): "ARM Cortex-A75",
    ("0x41", "0xd0b"): "ARM Cortex-A76",
    ("0x41", "0xd0c"): "ARM Neoverse-N1",
    ("0x41", "0xd40"): "ARM Neoverse-V1",
    ("0x41", "0xd41"): "ARM Cortex-A78",
    ("0x41", "0xd42"): "ARM Cortex-A78AE",
    ("0x41", "0xd49"): "ARM Neoverse-N2",
    ("0x41", "0xd4f"): "ARM Neoverse-V2",
    ("0x41", "0xd83"): "ARM Neoverse-V3AE",
    ("0x4e", "0x004"): "NVIDIA Carmel",
}
"""CPU implementer and part, as /proc/cpuinfo has them → name. Source: the tables of util-linux's lscpu-arm.c."""


class Made(Record):
    """How a bundle or a report was made."""

    command: str
    time: str
    commit: str
    python: str
    host: str
    versions: dict[str, str]


def made_now(command: str | None = None) -> Made:
    """Describes this process, now. The host's name is left out: a bundle may travel outside the hospital."""
    return Made(
        command=command or _command_line(),
        time=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        commit=_source_commit(),
        python=platform.python_version(),
        host=describe_host(),
        versions=library_versions(),
    )


def describe_host() -> str:
    """Processor, cores, system; no host or user name."""
    return f"{processor_name()}, {os.cpu_count()} cores, {platform.system()} {platform.machine()}"


def read_l4t(path: Path = Path("/etc/nv_tegra_release")) -> str:
    """Jetson Linux release, "36.4.3"; empty where this is no Jetson.

    The file's first line reads `# R36 (release), REVISION: 4.3, GCID: ...`.
    """
    try:
        found = re.search(r"R(\d+) \(release\), REVISION: ([\d.]+)", path.read_text())
    except OSError:
        return ""
    return f"{found[1]}.{found[2]}" if found else ""


def library_versions() -> dict[str, str]:
    """Versions of the libraries that decide a result, as far as they are installed."""
    found = {}
    for name in _LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _command_line() -> str:
    module = getattr(sys.modules.get("__main__"), "__spec__", None)
    name = module.name.removesuffix(".__main__") if module else Path(sys.argv[0]).name
    return f"python -m {name} {shlex.join(sys.argv[1:])}".strip()


def _source_commit() -> str:
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        )
        return done.stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def processor_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The processor's name; on ARM by implementer and part, where kernels say "ARMv8 Processor rev 1 (v8l)" at most."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        lines = []
    facts = {
        name.strip(): value.strip() for name, _, value in (line.partition(":") for line in reversed(lines))
    }
    maker, part = facts.get("CPU implementer"), facts.get("CPU part")
    if maker and part:
        return _ARM_CORES.get((maker, part)) or f"ARM, implementer {maker}, part {part}"
    if named := facts.get("model name"):
        return named
    return platform.processor() or platform.machine()
