"""The one path from a picture to the network's input, and from logits to a mask at the picture's own size.

Training, calibration, runtime, demo and benchmarks all call these functions: there is no second path.

    picture ──window, resize, round──► uint8 N×H×W×C ──graph: cast, normalise, network──► logits N×K×h×w
    logits ──resize to the picture's size──► activation ──threshold or argmax──► mask
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
from PIL import Image
from pydantic import (
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from segcore.errors import InputError
from segcore.record import Record

Activation = Literal["sigmoid", "softmax"]
MAX_INPUT_PX = 8192
"""Side of a network's input, far above what anything here trains at."""
Depth = Literal["uint8", "uint16", "float32"]
_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "area": Image.Resampling.BOX}


# The window: the range of values that becomes black to white.


@dataclass(frozen=True)
class Window:
    """Values up to `low` are black, from `high` on white, in the picture's own values (Hounsfield units in CT)."""

    name: str
    low: float
    high: float


# Usual centres and widths in Hounsfield units: lung -600/1500, soft tissue 40/400, bone 400/1800.
# Source: Radiopaedia.org, "Windowing (CT)".

CT_WINDOWS = (
    Window("lung", -1350.0, 150.0),
    Window("soft-tissue", -160.0, 240.0),
    Window("bone", -500.0, 1300.0),
)


def window_named(text: str, *, name: str = "--window") -> Window:
    """A window from what a user typed: a name of `CT_WINDOWS`, or LOW,HIGH.

    Raises:
        InputError: neither.
    """
    for window in CT_WINDOWS:
        if text == window.name:
            return window
    low, _, high = text.partition(",")
    try:
        own = Window("own", float(low), float(high))
    except ValueError:
        own = Window("own", 0.0, 0.0)
    if not (own.low < own.high and abs(own.low) < float("inf") and abs(own.high) < float("inf")):
        names = ", ".join(w.name for w in CT_WINDOWS)
        raise InputError(f"{name}: must be {names} or LOW,HIGH with LOW < HIGH, got {text}")
    return own


def training_window(
    images: Iterable[tuple[str, np.ndarray]], window: Window | None = None
) -> tuple[Depth, tuple[float, float], str]:
    """Depth, window and the window's name, from named training images.

    Without `window` it is all of 8 bits, else the 0.5 and 99.5 percentiles over all images.

    Args:
        images: (name, H×W or H×W×3, or the pixels alone that count).
        window: what the user asked for; one with a name is in Hounsfield units.

    Raises:
        InputError: the images do not share one depth, or cannot hold Hounsfield units where a window is in them.
    """
    first: dict[str, str] = {}  # depth → an image of it
    samples = []  # of each image two numbers: the data set need not fit into memory
    for name, image in images:
        first.setdefault(image.dtype.name, name)
        samples.append(np.percentile(image, (0.5, 99.5)))
    if len(first) != 1:
        found = ", ".join(f"{depth} ({name})" for depth, name in sorted(first.items()))
        raise InputError(f"--data: images must share one depth, got {found}; convert them to one")
    ((text, name),) = first.items()
    depth = cast(Depth, text)
    if window is not None:
        _check_hounsfield(window, depth, name)
        return depth, (window.low, window.high), window.name if window in CT_WINDOWS else ""
    if depth == "uint8":
        return depth, (0.0, 255.0), ""
    low, high = float(np.min([s[0] for s in samples])), float(np.max([s[1] for s in samples]))
    return depth, (low, max(high, low + 1.0)), ""


def _check_hounsfield(window: Window, depth: Depth, name: str) -> None:
    """Grey values that were stored as they are have no unit: a window in Hounsfield units means nothing on them."""
    if window in CT_WINDOWS and depth != "float32":
        raise InputError(
            f"--window {window.name}: must be used on Hounsfield units, got {depth} images ({name}), whose grey "
            "values have no unit; leave --window away, or give LOW,HIGH in their own values"
        )


# What a model takes and gives.


class InputSpec(Record):
    """What a model takes. Travels in the manifest.

    `mean` and `std` are in units of the 8-bit input divided by 255, one number a network channel; they are
    applied inside the graph, and are recorded here for a reader. `window` is in the picture's own values, Hounsfield
    units in CT; `window_name` is what `segcore.picture.preprocess.CT_WINDOWS` calls it, "" where it was measured or
    given as numbers.
    """

    model_config = ConfigDict(allow_inf_nan=False)

    height_px: int = Field(gt=0, le=MAX_INPUT_PX)
    width_px: int = Field(gt=0, le=MAX_INPUT_PX)
    channels: Literal[1, 3]
    depth: Depth = "uint8"
    window: tuple[float, float] = (0.0, 255.0)
    window_name: str = ""
    resize_filter: Literal["bilinear", "area"] = "bilinear"
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @model_validator(mode="after")
    def _means_what_it_says(self) -> InputSpec:
        if not self.window[0] < self.window[1]:
            raise ValueError(
                f"window must rise from black to white, got {self.window[0]:g} to {self.window[1]:g}"
            )
        if len(self.mean) != len(self.std) or len(self.mean) not in (1, 3) or min(self.std) <= 0:
            raise ValueError(
                f"mean and std must be 1 or 3 numbers each, std above 0, got {self.mean} and {self.std}"
            )
        return self

    @property
    def size_px(self) -> tuple[int, int]:
        return self.height_px, self.width_px

    @model_serializer(mode="wrap")
    def _without_an_empty_name(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A manifest without a named window stays byte for byte what versions before the name wrote and can read."""
        fields: dict[str, Any] = write(self)
        if not self.window_name:
            fields.pop("window_name", None)
        return fields


class OutputSpec(Record):
    """What a model gives: `sigmoid` one logit for one class, `softmax` one a class after the background's.

    Logits are divided by `temperature` before they become probabilities, which `threshold` is compared with.
    """

    model_config = ConfigDict(allow_inf_nan=False)

    activation: Activation
    channels: int = Field(gt=0, le=256)
    stride: int = Field(gt=0, le=64)
    threshold: float = Field(default=0.5, gt=0, lt=1)
    temperature: float = Field(default=1.0, gt=0, le=1000)

    @model_validator(mode="after")
    def _activation_fits(self) -> OutputSpec:
        if (self.activation == "sigmoid") != (self.channels == 1):
            wanted = "1 channel" if self.activation == "sigmoid" else "2 channels or more"
            raise ValueError(f"{self.activation} must have {wanted}, got {self.channels}")
        return self

    @model_serializer(mode="wrap")
    def _without_a_temperature_of_1(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A manifest without one stays byte for byte what versions before it wrote and can read."""
        fields: dict[str, Any] = write(self)
        if self.temperature == 1:
            fields.pop("temperature", None)
        return fields


def output_spec(classes: Sequence[str], stride: int) -> OutputSpec:
    """One sigmoid channel for one class; background and K softmax channels for several."""
    if len(classes) == 1:
        return OutputSpec(activation="sigmoid", channels=1, stride=stride)
    return OutputSpec(activation="softmax", channels=len(classes) + 1, stride=stride)


# From a picture to the network's input.


def prepare(image: np.ndarray, spec: InputSpec, *, name: str = "image") -> np.ndarray:
    """Windows at the image's own depth, resizes, rounds.

    Args:
        image: H×W or H×W×3; uint8, uint16 or float32.
        spec: the model's input.
        name: what an error calls the image.

    Returns:
        height_px×width_px×channels, uint8.

    Raises:
        InputError: the image's depth is not the one whose window the model knows, or it has no such shape.
    """
    if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (1, 3)) or 0 in image.shape:
        raise InputError(f"{name}: must be H×W or H×W×3, got shape {'×'.join(map(str, image.shape))}")
    if image.dtype.name != spec.depth:
        raise InputError(
            f"{name}: must be {spec.depth} as the model was trained on "
            f"(window {spec.window[0]:g} to {spec.window[1]:g}), "
            f"got {image.dtype.name}; convert it the way the training images were"
        )
    image = _match_channels(image, spec.channels)
    size = (spec.width_px, spec.height_px)
    # The usual picture: Pillow resizes bytes several times as fast as floats, and rounds by itself.
    if image.dtype == np.uint8 and spec.window == (0.0, 255.0):
        resized = np.asarray(Image.fromarray(image).resize(size, _FILTERS[spec.resize_filter]))
        return resized.reshape(spec.height_px, spec.width_px, spec.channels)
    low, high = spec.window
    windowed = np.clip((image.astype(np.float32) - low) * (255.0 / (high - low)), 0.0, 255.0)
    planes = windowed[..., None] if windowed.ndim == 2 else windowed
    resized = np.stack(
        [_resize_plane(planes[..., c], size, spec.resize_filter) for c in range(planes.shape[2])], axis=-1
    )
    return np.clip(np.round(resized), 0, 255).astype(np.uint8)


def through_window(image: np.ndarray, spec: InputSpec) -> np.ndarray:
    """A picture as `spec`'s model sees its values, at the picture's own size: uint8, to look at.

    Args:
        image: as for `prepare`; one of 8 bits under the full window comes back as it is.
        spec: the model's input.
    """
    if image.dtype == np.uint8 and spec.window == (0.0, 255.0):
        return image
    channels = 3 if image.ndim == 3 else 1
    own = {"height_px": image.shape[0], "width_px": image.shape[1], "channels": channels}
    seen = prepare(image, spec.model_copy(update=own))
    return seen if channels == 3 else seen[..., 0]


def _match_channels(image: np.ndarray, channels: int) -> np.ndarray:
    if image.ndim == 3 and image.shape[2] == 1:
        image = image[..., 0]
    if channels == 1 and image.ndim == 3:  # ITU-R 601 luma, as Pillow's "L"
        return np.asarray((image @ np.array([0.299, 0.587, 0.114], np.float32)).round().astype(image.dtype))
    if channels == 3 and image.ndim == 2:
        return np.repeat(image[..., None], 3, axis=2)
    return np.ascontiguousarray(image)


# From logits to a mask.


def mask_of_logits(logits: np.ndarray, spec: OutputSpec, size_px: tuple[int, int]) -> np.ndarray:
    """`decide(probabilities(...))` for one image."""
    return decide(probabilities(logits, spec, size_px), spec)


def probabilities(logits: np.ndarray, spec: OutputSpec, size_px: tuple[int, int]) -> np.ndarray:
    """Logits of one image, K×h×w, to probabilities at the image's own size, K×H×W float32."""
    return activate(resize_logits(logits, size_px), spec)


def activate(logits: np.ndarray, spec: OutputSpec) -> np.ndarray:
    """Logits K×H×W to probabilities."""
    if spec.temperature != 1:
        logits = logits / np.float32(spec.temperature)
    if spec.activation == "sigmoid":
        return sigmoid(logits)
    shifted = np.exp(logits - logits.max(axis=0, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=0, keepdims=True))


def sigmoid(x: np.ndarray) -> np.ndarray:
    """1 / (1 + e^−x), without overflow."""
    return np.asarray(1.0 / (1.0 + np.exp(-np.clip(x, -60.0, 60.0))))


def decide(probability: np.ndarray, spec: OutputSpec) -> np.ndarray:
    """Probabilities K×H×W to a mask of class indices, H×W uint8."""
    if spec.activation == "sigmoid":
        return np.asarray(probability[0] >= spec.threshold, np.uint8)
    return np.asarray(probability.argmax(axis=0), np.uint8)


def resize_logits(logits: np.ndarray, size_px: tuple[int, int]) -> np.ndarray:
    """Resizes logits K×h×w to K×H×W, bilinear (area-weighted where it shrinks)."""
    if logits.shape[1:] == tuple(size_px):
        return logits.astype(np.float32, copy=False)
    size = (size_px[1], size_px[0])
    return np.stack(
        [_resize_plane(plane, size, "bilinear") for plane in logits.astype(np.float32, copy=False)]
    )


def resize_mask(mask: np.ndarray, size_px: tuple[int, int]) -> np.ndarray:
    """Resizes a mask of class indices, nearest neighbour."""
    return np.asarray(Image.fromarray(mask).resize((size_px[1], size_px[0]), Image.Resampling.NEAREST))


def _resize_plane(plane: np.ndarray, size: tuple[int, int], resize_filter: str) -> np.ndarray:
    return np.asarray(
        Image.fromarray(np.ascontiguousarray(plane, dtype=np.float32)).resize(size, _FILTERS[resize_filter])
    )
