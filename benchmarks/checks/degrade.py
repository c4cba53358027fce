"""What can happen to a picture: exposure, noise, blur, rotation, a lung that is not seen. Severity is drawn a case."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

FULL_PX = 512.0
"""Sizes below are pixels of a picture whose height this is; others scale."""


@dataclass(frozen=True)
class Sample:
    """A picture and its true mask.

    Attributes:
        image: H×W or H×W×3, of any depth.
        mask: H×W uint8 class indices.
    """

    image: np.ndarray
    mask: np.ndarray


Degradation = Callable[[Sample, np.random.Generator], Sample]


def exposure(sample: Sample, rng: np.random.Generator) -> Sample:
    """Gamma of 1.5 to 4, or its inverse: too dark or too bright, nothing clipped."""
    gamma = np.exp(rng.uniform(np.log(1.5), np.log(4.0)))
    unit, low, high = _to_unit(sample.image)
    return _from_unit(unit ** (gamma if rng.random() < 0.5 else 1.0 / gamma), low, high, sample, sample.mask)


def noise(sample: Sample, rng: np.random.Generator) -> Sample:
    """Gaussian noise whose standard deviation is 4 to 40 % of the picture's range."""
    unit, low, high = _to_unit(sample.image)
    spread = np.exp(rng.uniform(np.log(0.04), np.log(0.4)))
    return _from_unit(unit + rng.normal(0.0, spread, unit.shape), low, high, sample, sample.mask)


def blur(sample: Sample, rng: np.random.Generator) -> Sample:
    """Gaussian blur of 3 to 25 pixels (standard deviation), as of motion or a far focus."""
    unit, low, high = _to_unit(sample.image)
    radius = np.exp(rng.uniform(np.log(3.0), np.log(25.0))) * _relative_size(sample)
    return _from_unit(
        _each_channel(unit, lambda plane: _blurred(plane, radius)), low, high, sample, sample.mask
    )


def rotation(sample: Sample, rng: np.random.Generator) -> Sample:
    """Turns picture and mask by 20 to 180° either way; trainings turn by at most 15°."""
    degrees = float(rng.uniform(20, 180) * rng.choice([-1, 1]))
    unit, low, high = _to_unit(sample.image)

    def turned(plane: np.ndarray) -> np.ndarray:
        return np.asarray(Image.fromarray(plane).rotate(degrees, Image.Resampling.BILINEAR))

    mask = np.asarray(Image.fromarray(sample.mask).rotate(degrees))
    return _from_unit(_each_channel(unit, turned), low, high, sample, mask)


def missing_lung(sample: Sample, rng: np.random.Generator) -> Sample:
    """Fades one side's organ and its surroundings into body grey, as a white-out does; the mask stays whole.

    The true mask says where the lung is, as a reader would mark it; a model that marks one lung alone is wrong.
    """
    if not sample.mask.any():
        return sample
    unit, low, high = _to_unit(sample.image)
    columns = np.flatnonzero(sample.mask.any(axis=0))
    left = np.arange(sample.mask.shape[1]) < (columns[0] + columns[-1]) // 2
    side = (sample.mask > 0) & (left if rng.random() < 0.5 else ~left)
    scale = _relative_size(sample)
    wide = Image.fromarray(np.uint8(255 * side)).resize((128, 128)).filter(ImageFilter.MaxFilter(9))
    cover = np.asarray(wide.resize(sample.mask.shape[::-1]), np.float32) / 255.0
    cover = np.clip(1.3 * _blurred(cover, 12.0 * scale), 0.0, 1.0)
    body = float(np.percentile(unit[sample.mask == 0], 75)) if (sample.mask == 0).any() else 0.6
    grain = _blurred(rng.normal(0.0, 0.09, sample.mask.shape).astype(np.float32), 2.0 * scale + 0.5)

    def faded(plane: np.ndarray) -> np.ndarray:
        flat = 0.8 * body + 0.2 * _blurred(plane, 25.0 * scale) + grain
        return plane * (1.0 - cover) + flat * cover

    return _from_unit(_each_channel(unit, faded), low, high, sample, sample.mask)


DEGRADATIONS: dict[str, Degradation] = {
    "exposure": exposure,
    "noise": noise,
    "blur": blur,
    "rotation": rotation,
    "missing lung": missing_lung,
}
SEEN = ("noise",)
"""Kinds that the estimate was also fitted on (`segcore.learn.seal`: contrast, noise, occlusion)."""


def _to_unit(image: np.ndarray) -> tuple[np.ndarray, float, float]:
    """The picture as float32 0–1, and the range it had: all of uint8, else its own."""
    low, high = (0.0, 255.0) if image.dtype == np.uint8 else (float(image.min()), float(image.max()))
    return ((image - low) / max(high - low, 1e-6)).astype(np.float32), low, high


def _from_unit(unit: np.ndarray, low: float, high: float, sample: Sample, mask: np.ndarray) -> Sample:
    """A picture 0–1, clipped, in the range and depth of the sample's."""
    image = low + np.clip(unit, 0.0, 1.0) * (high - low)
    integral = np.issubdtype(sample.image.dtype, np.integer)
    return Sample((np.round(image) if integral else image).astype(sample.image.dtype), mask)


def _each_channel(image: np.ndarray, change: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Applies a function of H×W float32 to a grey picture or to each channel."""
    if image.ndim == 2:
        return change(image)
    return np.stack([change(np.ascontiguousarray(image[..., c])) for c in range(image.shape[2])], axis=-1)


def _blurred(plane: np.ndarray, radius: float) -> np.ndarray:
    """Gaussian blur of a float plane with the edge repeated; Pillow's own takes 8-bit pictures only."""
    reach = max(1, int(3 * radius))
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / radius) ** 2)
    kernel /= kernel.sum()
    for axis in (0, 1):
        padded = np.pad(plane, [(reach, reach) if a == axis else (0, 0) for a in (0, 1)], mode="edge")
        size = padded.shape[axis]
        spectrum = np.fft.rfft(padded, axis=axis) * np.fft.rfft(kernel, size).reshape(
            (-1, 1) if axis == 0 else (1, -1)
        )
        full = np.fft.irfft(spectrum, size, axis=axis)  # circular: the padding keeps the wrapped part outside
        plane = np.take(full, np.arange(2 * reach, size), axis=axis).astype(np.float32)
    return plane


def _relative_size(sample: Sample) -> float:
    return sample.mask.shape[0] / FULL_PX
