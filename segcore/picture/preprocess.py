"""The one path from a picture to the network's input, and from logits to a mask at the picture's own size.

Training, calibration, runtime, demo and benchmarks all call these functions: there is no second path.

    picture ──window, resize, round──► uint8 N×H×W×C ──graph: cast, normalise, network──► logits N×K×h×w
    logits ──resize to the picture's size──► threshold or argmax──► mask
                                         └─► activation ──► probabilities, for those who look at them
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
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
ResizeFilter = Literal["bilinear", "area"]


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
    given as numbers. `resize_filter` is how a picture is shrunk: "bilinear" weighs neighbours by their distance; "area"
    takes means of whole pixels first, which is several times as fast.
    """

    model_config = ConfigDict(allow_inf_nan=False)

    height_px: int = Field(gt=0, le=MAX_INPUT_PX)
    width_px: int = Field(gt=0, le=MAX_INPUT_PX)
    channels: Literal[1, 3]
    depth: Depth = "uint8"
    window: tuple[float, float] = (0.0, 255.0)
    window_name: str = ""
    resize_filter: ResizeFilter = "bilinear"
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
        resized = np.asarray(_resize(Image.fromarray(image), size, spec.resize_filter))
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
    """The mask of one image at its own size, as `resize_logits` and a threshold give it, to the pixel.

    Most of the picture is not interpolated: between two neighbouring logits that are decided alike every pixel is
    decided so, too, and only what lies between unlike ones is computed.

    Args:
        logits: K×h×w at the head's stride.
        spec: of the model.
        size_px: height and width of the image.

    Returns:
        H×W uint8 class indices, 0 background: logits from T·log(threshold / (1 − threshold)) on, T the temperature;
        of several classes the largest logit.
    """
    if size_px[0] < logits.shape[1] or size_px[1] < logits.shape[2]:
        return _decide_logits(resize_logits(logits, size_px), spec)
    rows, columns = _upscaling_taps(logits.shape[1], size_px[0]), _upscaling_taps(logits.shape[2], size_px[1])
    # Columns first and in double precision, as Pillow does, so that each number is the same.
    wide = columns.between(logits.take(columns.low, axis=2), logits.take(columns.high, axis=2))
    decided = _decide_logits(wide, spec)
    mask = decided.take(rows.low, axis=0)
    # Each column where two neighbouring rows are unlike, and there every row of the picture between them.
    pair, column = np.nonzero(decided[:-1] != decided[1:])
    begin, end = (np.searchsorted(rows.low, pair, side) for side in ("left", "right"))
    many = end - begin
    if 4 * many.sum() > mask.size:  # of noise little is decided by its neighbours
        return _decide_logits(resize_logits(logits, size_px), spec)
    row = np.arange(many.sum()) + np.repeat(begin - np.cumsum(many) + many, many)
    column = np.repeat(column, many)
    flat = wide.reshape(len(wide), -1)
    low, high = (flat.take(side[row] * size_px[1] + column, axis=1) for side in (rows.low, rows.high))
    mask.ravel()[row * size_px[1] + column] = _decide_logits(rows.between(low, high, row), spec)
    return mask


@dataclass(frozen=True)
class _Taps:
    """The two neighbours that each pixel of a longer side lies between, and their shares."""

    low: np.ndarray
    high: np.ndarray
    low_share: np.ndarray
    high_share: np.ndarray

    def between(
        self, low: np.ndarray, high: np.ndarray, where: np.ndarray | slice = slice(None)
    ) -> np.ndarray:
        """Logits …×n at the pixels `where`, from those of their neighbours, float32."""
        between = low * self.low_share[where] + high * self.high_share[where]
        return np.asarray(between, np.float32)


@lru_cache(maxsize=64)
def _upscaling_taps(few: int, many: int) -> _Taps:
    """Of a bilinear filter, where a side of `few` becomes one of `many`. Source: Pillow, Resample.c."""
    centre = (np.arange(many) + 0.5) * (few / many)
    low = np.maximum((centre - 0.5).astype(int), 0)
    high = low + 1
    low_share = 1.0 - np.abs(low - centre + 0.5)
    high_share = np.maximum(1.0 - np.abs(high - centre + 0.5), 0.0)
    alone = (centre < 0.5) | (high == few)  # at the ends there is one neighbour
    low_share[alone], high_share[alone], high[alone] = 1.0, 0.0, low[alone]
    whole = low_share + high_share
    return _Taps(low, high, low_share / whole, high_share / whole)


def _decide_logits(logits: np.ndarray, spec: OutputSpec) -> np.ndarray:
    """Logits K×… to class indices, uint8."""
    if spec.activation == "sigmoid":
        reached = logits[0] >= np.float32(_least_logit(spec.threshold, spec.temperature))
        return np.asarray(reached).view(np.uint8)
    return np.asarray(logits.argmax(axis=0), np.uint8)


@lru_cache(maxsize=64)
def _least_logit(threshold: float, temperature: float) -> float:
    """The smallest logit whose probability reaches the threshold.

    It is searched for, as T·log(threshold / (1 − threshold)) may be beside it by the last bit: a mask from
    probabilities and one from logits are then the same.
    """
    spec = OutputSpec(
        activation="sigmoid", channels=1, stride=1, threshold=threshold, temperature=temperature
    )

    def reaches(logit: np.float32) -> bool:
        return bool(decide(activate(np.full((1, 1, 1), logit, np.float32), spec), spec)[0, 0])

    low, high = np.float32(-61 * temperature), np.float32(61 * temperature)  # `sigmoid` is flat beyond 60
    if reaches(low):
        return -math.inf
    while low < (middle := np.float32((float(low) + float(high)) / 2)) < high:
        low, high = (low, middle) if reaches(middle) else (middle, high)
    return float(high)


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


def _resize_plane(plane: np.ndarray, size: tuple[int, int], resize_filter: ResizeFilter) -> np.ndarray:
    image = Image.fromarray(np.ascontiguousarray(plane, dtype=np.float32))
    return np.asarray(_resize(image, size, resize_filter))


def _resize(image: Image.Image, size: tuple[int, int], resize_filter: ResizeFilter) -> Image.Image:
    """To width and height `size`; by area, where no side grows: the mean of whole pixels, and bilinear by what is left
    of the factor."""
    shrinks = size[0] <= image.width and size[1] <= image.height
    whole_pixels_first = 1.0 if resize_filter == "area" and shrinks else None
    return image.resize(size, Image.Resampling.BILINEAR, reducing_gap=whole_pixels_first)
