"""What a student looks like: one frozen description of every member of the family, and the designs that have names.

`student.network` builds any of them. Two are the literature's: `lightunet` (U-Net, base width 8) and `unet64`. The
others were found with `student.search`. README.md has a table of the names, which `--design NAME` takes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from segcore.errors import InputError
from segcore.text import read_yaml

Block = Literal["plain", "residual", "reparam", "separable", "inverted"]
_Depth = Annotated[int, Field(ge=0, le=32)]
_MOST_WEIGHTS = 300_000_000
"""Of a network that its maker may have meant: the largest preset has 31 million."""


class Design(BaseModel):
    """An encoder and decoder of `len(widths)` levels, finest first.

    Level 0 works at the stem's stride, each further level at half the resolution of the one before.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    stem: Literal["none", "strided", "unshuffle"] = "none"
    """none: level 0 sees the picture; strided: one convolution of kernel 2·stride; unshuffle: space to depth."""
    stem_stride: Literal[1, 2, 4] = 1
    """Pixels of the picture that level 0 takes as one, each way."""
    widths: tuple[Annotated[int, Field(ge=1, le=4096)], ...] = Field(min_length=2, max_length=8)
    """Channels of each level. Multiples of 16 fill a vector unit's 8-bit instruction."""
    depths: tuple[_Depth, ...]
    """Blocks of each level on the way down, besides what shrinks; 0 is allowed where the stem or a stride precedes."""
    up_depths: tuple[_Depth, ...]
    """Blocks after the skip of each level but the last."""
    block: Block = "plain"
    """plain: convolution 3×3, batch norm, activation. residual: two with a shortcut. reparam: RepVGG's branches,
    one convolution when it is sealed. separable, inverted: depthwise, slow in INT8 on TensorRT (OpenVINO only)."""
    down: Literal["pool", "strided"] = "strided"
    """How a level shrinks: max-pooling, or a 3×3 convolution of stride 2."""
    up: Literal["transposed", "nearest", "bilinear", "shuffle"] = "nearest"
    """How a level grows; all but transposed put a 1×1 convolution before it."""
    skip: Literal["concat", "add"] = "add"
    """How the way up meets the way down."""
    head_upscale: Literal[1, 2, 4] = 1
    """Sub-pixels of the head, each way: its 1×1 convolution makes upscale² logits of a pixel of level 0."""
    activation: Literal["relu", "hardswish"] = "relu"
    """relu fuses into every engine's INT8 convolution; hardswish is two layers in TensorRT."""

    @model_validator(mode="after")
    def _check_shape(self) -> Design:
        levels = len(self.widths)
        if len(self.depths) != levels or len(self.up_depths) != levels - 1:
            raise ValueError(
                f"depths must have {levels} entries and up_depths {levels - 1} for {levels} widths, "
                f"got {len(self.depths)} and {len(self.up_depths)}"
            )
        if (self.stem == "none") != (self.stem_stride == 1):
            raise ValueError(f"stem_stride must be 1 with stem none, 2 or 4 else, got {self.stem_stride}")
        if self.head_upscale > self.stem_stride:
            raise ValueError(
                f"head_upscale must be at most the stem's stride {self.stem_stride}, got {self.head_upscale}"
            )
        blocks = [down + up + 1 for down, up in zip(self.depths, (*self.up_depths, 0), strict=True)]
        weights = sum(9 * n * width**2 for n, width in zip(blocks, self.widths, strict=True))
        if weights > _MOST_WEIGHTS:
            raise ValueError(
                f"widths and depths must make at most {_MOST_WEIGHTS // 10**6} million weights, got about "
                f"{weights // 10**6} million"
            )
        changes = self.depths if self.down == "pool" else () if self.stem == "strided" else self.depths[:1]
        if 0 in changes:
            raise ValueError("depths must be at least 1 where nothing before changes the width")
        if self.skip == "concat" and 0 in self.up_depths:
            raise ValueError("up_depths must be at least 1 with skip concat, whose width a block halves")
        return self

    @property
    def stride(self) -> int:
        """The input's height and width must be divisible by it."""
        return self.stem_stride * 2 ** (len(self.widths) - 1)

    @property
    def logits_stride(self) -> int:
        """Pixels of the picture per logit, each way."""
        return self.stem_stride // self.head_upscale

    @property
    def openvino_only(self) -> bool:
        """Depthwise convolutions: TensorRT has no fast INT8 kernel for them that we could verify."""
        return self.block in ("separable", "inverted")


def unet(base: int) -> Design:
    """The classic U-Net; base 8 is LightUNet (0.49 M parameters), base 64 the original's width (31 M).

    Source: Li et al., Entropy 26(12):1059, 2024: "the same architecture as U-Net" with 0.49 M parameters, which base
    width 8 gives. Ronneberger et al., U-Net, MICCAI 2015 (here with padding and batch norm, so sizes match).
    """
    return Design(
        widths=tuple(base * 2**level for level in range(5)),
        depths=(2,) * 5,
        up_depths=(2,) * 4,
        down="pool",
        up="transposed",
        skip="concat",
    )


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
        return _validate_fields(choice, "--design")
    if choice in PRESETS:
        return PRESETS[choice]
    path = Path(choice)
    if not path.is_file():
        raise InputError(
            f"--design {choice}: must be one of {', '.join(PRESETS)}, or a YAML file that holds a design; "
            "student.search writes one"
        )
    fields = read_yaml(path, f"--design {choice}")
    if not isinstance(fields, dict):
        raise InputError(f"--design {choice}: must hold `name: value` lines, got {type(fields).__name__}")
    return _validate_fields(fields.get("design", fields), f"--design {choice}")


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


def _validate_fields(fields: dict[str, Any], name: str) -> Design:
    try:
        return Design.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "design"
        message = str(first["msg"]).removeprefix("Value error, ")
        raise InputError(
            f"{name}: {where}: {message}; student/design.py says what each field means"
        ) from None
