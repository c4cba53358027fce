"""The designs that have names; `--design NAME`. README.md has their table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from segcore.errors import InputError
from student.design import Design, unet

_QUARTER: dict[str, Any] = {"stem": "strided", "stem_stride": 4}

PRESETS: dict[str, Design] = {
    "nano": Design(**_QUARTER, widths=(16, 32, 48, 64), depths=(1, 1, 1, 1), up_depths=(1, 1, 1)),
    "small": Design(**_QUARTER, widths=(16, 32, 64, 96), depths=(1, 1, 1, 1), up_depths=(1, 2, 2)),
    "base": Design(
        stem="strided",
        stem_stride=2,
        widths=(16, 16, 32, 64, 96),
        depths=(0, 1, 1, 1, 1),
        up_depths=(1, 1, 1, 1),
    ),
    "lightunet": unet(8),
    "unet16": unet(16),
    "unet64": unet(64),
}
TITLES = {"lightunet": "LightUNet", "unet16": "U-Net 16", "unet64": "U-Net 64"}


def find_design(choice: str | dict[str, Any]) -> Design:
    """The design that `--design` or a config's `design:` names.

    Args:
        choice: a preset's name, the path of a YAML file with the fields of `Design`, or those fields themselves.

    Raises:
        InputError: no such preset or file, or its fields do not make a design.
    """
    if isinstance(choice, dict):
        return _validated(choice, "--design")
    if choice in PRESETS:
        return PRESETS[choice]
    path = Path(choice)
    if not path.is_file():
        raise InputError(
            f"--design {choice}: must be one of {', '.join(PRESETS)}, or a YAML file that holds a design; "
            "student.search writes one"
        )
    try:
        fields = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"--design {choice}: must be YAML, got {str(error).splitlines()[0]}") from None
    if not isinstance(fields, dict):
        raise InputError(f"--design {choice}: must hold `name: value` lines, got {type(fields).__name__}")
    return _validated(fields.get("design", fields), f"--design {choice}")


def check_size(design: Design, size: int) -> None:
    """Checks `--size` against the design's stride.

    Raises:
        InputError: it is not divisible by it.
    """
    stride = design.stride
    if size % stride:
        raise InputError(
            f"--size {size}: must be divisible by {stride}, the stride of --design, is not; "
            f"use {-(-size // stride) * stride}"
        )


def title_of(choice: str | dict[str, Any], parameters: int) -> str:
    """What tables call a student: `Student small`, `LightUNet`, or `Student 0.31 M` for a design without a name."""
    if isinstance(choice, str) and choice in PRESETS:
        return TITLES.get(choice, f"Student {choice}")
    return f"Student {parameters / 1e6:.2f} M"


def _validated(fields: dict[str, Any], name: str) -> Design:
    try:
        return Design.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "design"
        message = str(first["msg"]).removeprefix("Value error, ")
        raise InputError(
            f"{name}: {where}: {message}; student/design.py says what each field means"
        ) from None
