"""What the device kit installs on a device, and a check that it can: `python -m export.kit_requirements`.

pip resolves every list for the Python and the CUDA of each JetPack on aarch64, without installing or keeping a file.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from segcore.command import Settings, log, print_result, run_command
from segcore.errors import InputError

# As in pyproject.toml; tests/test_export_kit.py holds the two together.
BASE = (
    "numpy>=1.26",
    "pillow>=10.3",
    "pydantic>=2.9",
    "pydantic-settings>=2.7",
    "pyyaml>=6",
    "tqdm>=4.66",
)
# TensorRT itself comes with JetPack. cuda-python must be of the device's CUDA: run_on_device.sh adds it, in the version
# that it finds, unless the device has it or pycuda.
OF_ENGINE: dict[str, tuple[str, ...]] = {
    "tensorrt": (),
    "openvino": ("openvino>=2025.2",),
    "onnxruntime": ("onnxruntime>=1.20",),
}


@dataclass(frozen=True)
class JetPack:
    """A JetPack's Python and CUDA.

    Source: developer.nvidia.com/embedded/jetpack-archive; Ubuntu 22.04 has Python 3.10, 24.04 has 3.12.
    """

    jetpack: str
    python: str
    cuda: str


PLATFORMS = (
    JetPack("6.0", "3.10", "12.2"),
    JetPack("6.1 to 6.2.2", "3.10", "12.6"),
    JetPack("7.0 and 7.1", "3.12", "13.0"),
    JetPack("7.2", "3.12", "13.2"),
)
# glibc 2.35 of Ubuntu 22.04, which both JetPack 6 and 7 have at least.
_GLIBC_MINORS = range(17, 36)


class CheckSettings(Settings):
    """Resolves the kit's requirements with pip for every JetPack's Python and CUDA on aarch64."""

    engine: tuple[str, ...] = tuple(OF_ENGINE)
    """Engine whose list is resolved; repeat for several. Default: all."""


def list_requirements(engine: str, *, cuda: str | None = None) -> list[str]:
    """One requirement a line; for TensorRT with `cuda` ("12.6") also the cuda-python of that CUDA."""
    lines = [*BASE, *OF_ENGINE[engine]]
    return [*lines, f"cuda-python=={cuda}.*"] if cuda and engine == "tensorrt" else lines


def resolve_wheels(lines: Sequence[str], *, python: str) -> dict[str, str]:
    """The versions that pip would install on aarch64, by name, wheels only.

    Environment markers are read for the Python that runs this (a limit of `pip install --python-version`), so a
    requirement that only an older Python has may be missing from the answer.

    Raises:
        InputError: there is no such set of wheels, or no package index can be reached.
    """
    platforms = [
        *(f"manylinux_2_{minor}_aarch64" for minor in _GLIBC_MINORS),
        "manylinux2014_aarch64",
    ]
    command = [
        *(sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"),
        *("--dry-run", "--ignore-installed", "--only-binary", ":all:", "--report", "-", "--target", "unused"),
        *("--implementation", "cp", "--python-version", python),
        *(word for name in platforms for word in ("--platform", name)),
        *lines,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1].removeprefix("ERROR: ")
        raise InputError(
            f"requirements for Python {python} on aarch64: must resolve, do not ({last}); "
            "reach a package index, or mend the list in export/kit_requirements.py"
        )
    found = json.loads(done.stdout)["install"]
    return {one["metadata"]["name"].lower(): one["metadata"]["version"] for one in found}


def main(settings: CheckSettings) -> None:
    """Prints the versions, a line a JetPack and engine, and one JSON line."""
    checked = []
    for engine in settings.engine:
        if engine not in OF_ENGINE:
            raise InputError(f"--engine {engine}: must be one of {', '.join(OF_ENGINE)}, got {engine}")
        # Without CUDA the list depends on the Python alone.
        platforms = PLATFORMS if engine == "tensorrt" else {p.python: p for p in PLATFORMS}.values()
        for platform in platforms:
            log(f"resolving {engine} for Python {platform.python}")
            found = resolve_wheels(list_requirements(engine, cuda=platform.cuda), python=platform.python)
            where = f"JetPack {platform.jetpack}, " if engine == "tensorrt" else ""
            print(f"{engine}, {where}Python {platform.python}, aarch64")
            print("    " + ", ".join(f"{name} {version}" for name, version in sorted(found.items())))
            checked.append({"engine": engine, "python": platform.python, "cuda": platform.cuda, **found})
    print_result(checked=checked)


if __name__ == "__main__":
    run_command(main, CheckSettings, "python -m export.kit_requirements")
