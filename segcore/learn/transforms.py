"""What `--augment` can ask for: transforms as checked data, the presets made of them, and the YAML form of both.

A preset and a user's YAML file are the same list of the same transforms; `segcore.learn.augment` carries them out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from segcore.errors import InputError
from segcore.text import read_yaml

Share = Annotated[float, Field(ge=0, lt=1)]
Degrees = Annotated[float, Field(ge=0, le=180)]
Axis = Literal["left-right", "up-down"]

_FOLDS_BEYOND = 0.4
"""Of the distance between control points: a displacement below 0.48 of it cannot fold the picture over itself.

Source: Choi and Lee, Injectivity conditions of 2D and 3D uniform cubic B-spline functions, Graphical Models 2000.
"""


class Transform(BaseModel):
    """One line of a list: what is done to some pictures, with an amount drawn evenly from its range."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    probability: float = Field(default=1.0, gt=0, le=1)
    """Share of the pictures to which it is done."""


class Affine(Transform):
    """Rotation, scale, shift and shear at once."""

    degrees: Degrees = 0.0
    """Largest angle, either way."""
    scale: Share = 0.0
    """0.2: height and width, each by itself, by a factor of 0.8 to 1.2."""
    shift: Share = 0.0
    """Largest shift up, down, left and right, as a share of the side."""
    shear: Share = 0.0
    """Largest shear along either axis, as the tangent of its angle."""

    @property
    def affine(self) -> Affine:
        """Itself."""
        return self


class Rotate(Transform):
    """Rotation about the centre, either way."""

    degrees: Degrees

    @property
    def affine(self) -> Affine:
        """As a matrix is drawn of it."""
        return Affine(degrees=self.degrees)


class Scale(Transform):
    """Height and width, each by itself, by a factor of 1 ± `by`."""

    by: Share

    @property
    def affine(self) -> Affine:
        """As a matrix is drawn of it."""
        return Affine(scale=self.by)


class Shift(Transform):
    """Shift along both axes by up to `by` of the side."""

    by: Share

    @property
    def affine(self) -> Affine:
        """As a matrix is drawn of it."""
        return Affine(shift=self.by)


class Shear(Transform):
    """Shear along both axes, by the tangent of the angle."""

    by: Share

    @property
    def affine(self) -> Affine:
        """As a matrix is drawn of it."""
        return Affine(shear=self.by)


class Flip(Transform):
    """Mirrors along each of the axes, independently."""

    probability: float = Field(default=0.5, gt=0, le=1)
    axes: tuple[Axis, ...] = Field(default=("left-right",), min_length=1)


class Elastic(Transform):
    """A smooth random displacement: cubic B-splines over a coarse lattice of control points."""

    by: Share
    """Largest displacement along either axis, as a share of the side."""
    cells: int = Field(default=5, ge=1, le=32)
    """Of the lattice, along each side: more of them bend smaller parts."""

    @model_validator(mode="after")
    def _check_folds(self) -> Elastic:
        if self.by > _FOLDS_BEYOND / self.cells:
            raise ValueError(
                f"by must be at most {_FOLDS_BEYOND}/cells = {_FOLDS_BEYOND / self.cells:g}, got {self.by:g}; "
                "more would fold the picture over itself"
            )
        return self


class Brightness(Transform):
    """Multiplies by 1 ± `by`."""

    by: Share


class Contrast(Transform):
    """Multiplies the distance from the picture's mean by 1 ± `by`."""

    by: Share


class Saturation(Transform):
    """Multiplies the distance from the pixel's own grey by 1 ± `by`; for colour pictures."""

    by: Share


class Hue(Transform):
    """Turns colours about the grey axis, either way; for colour pictures."""

    degrees: Degrees


class _Range(Transform):
    low: float = Field(gt=0)
    high: float = Field(gt=0, le=10)

    @model_validator(mode="after")
    def _check_order(self) -> _Range:
        if self.low > self.high:
            raise ValueError(f"low must be at most high, got {self.low:g} and {self.high:g}")
        return self


class Gamma(_Range):
    """Takes x to xᵞ between the picture's darkest and brightest value, γ from `low` to `high`."""


class Noise(Transform):
    """Adds Gaussian noise of a standard deviation up to `up_to`, where 1 is from black to white."""

    up_to: float = Field(gt=0, le=1)


class Blur(_Range):
    """Gaussian blur; its standard deviations along rows and columns are `low` to `high` pixels of the input."""


TRANSFORMS: dict[str, type[Transform]] = {
    kind.__name__.lower(): kind
    for kind in (
        Affine, Rotate, Scale, Shift, Shear, Flip, Elastic,
        Brightness, Contrast, Saturation, Hue, Gamma, Noise, Blur,
    )
}  # fmt: skip
"""What an entry of a list may be called."""

ColourTransform = Saturation | Hue
"""What a grey picture has no use for."""

_TWO_EXPOSURES = (
    Gamma(low=0.7, high=1.5, probability=0.3),
    Brightness(by=0.2, probability=0.3),
    Noise(up_to=0.05, probability=0.3),
    Blur(low=0.3, high=1.2, probability=0.15),
)

PRESETS: dict[str, tuple[Transform, ...]] = {
    # What differs between two exposures of one patient, not between two organs.
    "film": (
        Affine(degrees=15, scale=0.15, shift=0.06, shear=0.05, probability=0.8),
        Flip(),
        *_TWO_EXPOSURES,
    ),
    # Endoscopes and dermatoscopes have no up and down, and every lamp and camera has its own colours.
    "colour": (
        Affine(degrees=180, scale=0.25, shift=0.1, shear=0.05, probability=0.9),
        Flip(axes=("left-right", "up-down")),
        Brightness(by=0.25, probability=0.5),
        Contrast(by=0.25, probability=0.5),
        Saturation(by=0.3, probability=0.5),
        Hue(degrees=12, probability=0.5),
        Gamma(low=0.7, high=1.5, probability=0.3),
        Noise(up_to=0.05, probability=0.3),
        Blur(low=0.3, high=1.2, probability=0.15),
    ),
    # Slices of CT and MR: patients lie askew, soft tissue bends, and MR has no fixed scale of grey.
    "scan": (
        Affine(degrees=30, scale=0.2, shift=0.08, shear=0.05, probability=0.9),
        Flip(),
        Elastic(by=0.04, cells=5, probability=0.5),
        Brightness(by=0.2, probability=0.3),
        Contrast(by=0.25, probability=0.3),
        Gamma(low=0.7, high=1.5, probability=0.3),
        Noise(up_to=0.05, probability=0.3),
        Blur(low=0.3, high=1.2, probability=0.15),
    ),
    "none": (),
}
AUTO = "auto"
"""colour for pictures of three channels, film for grey ones: the channels are what is known of any picture."""


def transforms_of(augment: str | Sequence[Any], *, channels: int, flip: bool) -> tuple[Transform, ...]:
    """The transforms that `--augment` means for pictures of so many channels.

    Args:
        augment: "auto", a preset's name, or a list as `read_augment` gives it.
        channels: of the network's input, 1 or 3.
        flip: `--flip`; without it nothing mirrors.

    Raises:
        InputError: an explicit list asks for saturation or hue of grey pictures.
    """
    if isinstance(augment, str):
        name = ("colour" if channels == 3 else "film") if augment == AUTO else augment
        chosen = tuple(t for t in PRESETS[name] if channels == 3 or not isinstance(t, ColourTransform))
    else:
        chosen = parse_transforms(augment, "--augment")
        for number, transform in enumerate(chosen, 1):
            if channels == 1 and isinstance(transform, ColourTransform):
                raise InputError(
                    f"--augment: entry {number} ({name_of(transform)}): must be for colour pictures, "
                    "got grey ones; take it out"
                )
    return tuple(t for t in chosen if flip or not isinstance(t, Flip))


def was_mirrored(settings: Mapping[str, Any]) -> bool:
    """Whether a training with these settings, a bundle's, saw left-right mirror images of its pictures."""
    # Bundles from before there was a choice are of film. (Whether a list fits grey pictures is not asked here.)
    chosen = transforms_of(settings.get("augment", "film"), channels=3, flip=settings.get("flip", False))
    return any(isinstance(transform, Flip) and "left-right" in transform.axes for transform in chosen)


def name_of(transform: Transform) -> str:
    """What an entry of a list calls it."""
    return type(transform).__name__.lower()


def as_entries(transforms: Sequence[Transform]) -> list[dict[str, Any]]:
    """The list with every value in full, as YAML holds it; the opposite of `parse_transforms`."""
    return [{name_of(t): t.model_dump(mode="json")} for t in transforms]


def read_augment(value: object) -> str | list[dict[str, Any]]:
    """What a user gave `--augment` or `augment:`: the name of a preset as it is, a file or a list in full.

    Raises:
        InputError: neither, or an entry of the list is wrong.
    """
    if not isinstance(value, str | Path):
        return as_entries(parse_transforms(value, "--augment"))
    if str(value) in (AUTO, *PRESETS):
        return str(value)
    path = Path(value)
    if not path.is_file():
        raise InputError(
            f"--augment: must be {', '.join((AUTO, *PRESETS))} or a YAML file, got {str(value)!r}; no such file"
        )
    entries = read_yaml(path, f"--augment {path}")
    return as_entries(parse_transforms(entries, f"--augment {path}"))


def parse_transforms(entries: object, name: str) -> tuple[Transform, ...]:
    """The transforms of a list whose entries are `name: {key: value, …}`, or a name alone.

    Args:
        entries: what YAML gave.
        name: what the user calls the list, for messages.

    Raises:
        InputError: an entry is none, or a value is out of its range.
    """
    if not isinstance(entries, Sequence) or isinstance(entries, str):
        raise InputError(
            f"{name}: must be a list of transforms, got {type(entries).__name__}; "
            "write lines such as `- rotate: {degrees: 45, probability: 0.8}`"
        )
    return tuple(_parse_entry(entry, f"{name}: entry {n}") for n, entry in enumerate(entries, 1))


def _parse_entry(entry: object, place: str) -> Transform:
    kind, values = entry, None
    if isinstance(entry, dict) and len(entry) == 1:
        kind, values = next(iter(entry.items()))
    if not isinstance(kind, str) or kind not in TRANSFORMS:
        raise InputError(f"{place}: must be one of {', '.join(TRANSFORMS)}, got {kind!r}")
    try:
        return TRANSFORMS[kind].model_validate({} if values is None else values)
    except ValidationError as error:
        raise InputError(f"{place} ({kind}): {_first_problem(error, TRANSFORMS[kind])}") from None


def _first_problem(error: ValidationError, kind: type[Transform]) -> str:
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "missing":
        return f"{key} must be given"
    if first["type"] == "extra_forbidden":
        return f"must have {', '.join(kind.model_fields)} only, got {key}"
    message = first["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    if first["type"] == "value_error":
        return message
    return f"{key + ' ' if key else ''}must be {message}, got {first['input']!r}"
