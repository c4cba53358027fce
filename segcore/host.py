"""What a result was made on: the machine, the versions, the commit, the command."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path

from pydantic import BaseModel, ConfigDict

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


class Made(BaseModel):
    """How a bundle or a report was made."""

    model_config = ConfigDict(frozen=True, extra="forbid")

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
    return f"{_processor_name()}, {os.cpu_count()} cores, {platform.system()} {platform.machine()}"


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


def _processor_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
