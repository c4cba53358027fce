"""How good a mask probably is: the student's own estimate of its Dice, from its logits alone.

A line of signs a class (how unsure, how ragged, how unlike the shapes of the validation cases) goes into a logistic
regression of the Dice: 13 weights for a model, fitted on validation cases by `segcore.learn.quality_fit`.
"""

from __future__ import annotations

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from segcore.picture.preprocess import OutputSpec, decide, probabilities, sigmoid

SIGNS = ("doubt", "soft_border", "unsure_inside", "leak", "ragged", "odd_shape")
"""What is taken of a class's probabilities p and mask m; each grows as the mask gets worse.

doubt: log of 1 − expected Dice, 2Σpm / Σ(p+m) under the model's own probabilities; soft_border: log of Σp(1−p) a pixel
of border; unsure_inside: 1 − mean p inside; leak: log of the p outside a pixel of area; ragged: log of border / √area;
odd_shape: log of how far `SHAPE` is from the validation cases', in their standard deviations.
"""
SHAPE = ("ragged", "log_area", "x", "y", "width", "height", "tilt")
_GRID_PX = 64
_FAR = 8.0  # standard deviations: farther is not told apart


class QualityModel(BaseModel):
    """What `quality_of` needs, and how far it can be trusted. Travels in the manifest.

    Attributes:
        weights: of the regression: 1, each of `SIGNS` standardised, and by how much each exceeds `high`.
        centre: mean of each sign over the undegraded validation cases.
        spread: their standard deviations.
        high: 95th percentile of each standardised sign; beyond it the regression has its own slope.
        shape_centre: mean of each of `SHAPE`, one tuple a class.
        shape_spread: their standard deviations.
        empty_right: share of the validation cases without any of the class, among those where none was marked; 0 to 1.
        cases: validation cases that it was fitted on.
        error: mean absolute error on cases that were left out of the fit, undegraded; points of 1.
        error_degraded: the same on degraded pictures.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    weights: tuple[float, ...] = Field(min_length=1 + 2 * len(SIGNS), max_length=1 + 2 * len(SIGNS))
    centre: tuple[float, ...] = Field(min_length=len(SIGNS), max_length=len(SIGNS))
    spread: tuple[float, ...] = Field(min_length=len(SIGNS), max_length=len(SIGNS))
    high: tuple[float, ...] = Field(min_length=len(SIGNS), max_length=len(SIGNS))
    shape_centre: tuple[tuple[float, ...], ...]
    shape_spread: tuple[tuple[float, ...], ...]
    empty_right: tuple[float, ...]
    cases: int = Field(gt=0)
    error: float
    error_degraded: float


def quality_of(logits: np.ndarray, spec: OutputSpec, model: QualityModel) -> float:
    """Estimates the Dice of one picture's mask, mean over classes.

    Args:
        logits: K×h×w float32 at the head's stride, as the engine gives them.
        spec: the model's output.
        model: the bundle's.

    Returns:
        0 to 1.
    """
    return float(estimate(*signs_of(logits, spec), model))


def estimate(
    confidence: np.ndarray, shape: np.ndarray, marked: np.ndarray, model: QualityModel
) -> np.ndarray:
    """The Dice that the signs of C classes promise, mean over classes; the arguments as `signs_of` gives them.

    Leading axes (pictures) are kept.
    """
    odd = odd_shape(shape, np.array(model.shape_centre), np.array(model.shape_spread))
    signs = np.concatenate([confidence, odd[..., None]], axis=-1)
    inputs = regressors(signs, np.array(model.centre), np.array(model.spread), np.array(model.high))
    dice = sigmoid(inputs @ np.array(model.weights))
    return np.asarray(np.where(marked, dice, np.array(model.empty_right)).mean(axis=-1))


def signs_of(logits: np.ndarray, spec: OutputSpec) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Measures one picture's logits.

    Args:
        logits: K×h×w.
        spec: the model's output.

    Returns:
        For C foreground classes: C×5 (`SIGNS` without the last), C×7 (`SHAPE`), and C booleans: whether any pixel is
        marked; where none is, the numbers mean nothing.
    """
    step = -(-max(logits.shape[1:]) // _GRID_PX)  # every n-th logit of a large head: enough, and quick
    small = logits[:, ::step, ::step]
    size = (small.shape[1], small.shape[2])
    p = probabilities(small, spec, size)
    mask = decide(p, spec)
    p = p[1:] if spec.activation == "softmax" else p
    m = mask == np.arange(1, len(p) + 1)[:, None, None]
    pixels, inside = p[0].size, m.astype(np.float32)
    area = inside.sum((1, 2))
    marked = area > 0
    n = np.maximum(area, 1.0)
    both, mass = (p * inside).sum((1, 2)), p.sum((1, 2))
    border = (m[:, 1:] != m[:, :-1]).sum((1, 2)) + (m[:, :, 1:] != m[:, :, :-1]).sum((1, 2)) + 1.0
    spread_out = (p * (1.0 - p)).sum((1, 2))
    ragged = np.log(border / np.sqrt(n))
    confidence = np.column_stack(
        [
            np.log(1.0 - 2.0 * both / np.maximum(mass + area, 1e-6) + 1e-3),
            np.log(spread_out / border + 1e-3),
            1.0 - both / n,
            np.log((mass - both) / n + 1e-3),
            ragged,
        ]
    )
    # Centre and standard deviation, as shares of the side.
    down, right = _along(inside.sum(2), n), _along(inside.sum(1), n)
    y, x = (np.arange(side, dtype=np.float32) / side for side in size)
    tilt = np.einsum("chw,h,w->c", inside, y, x) / n - down[0] * right[0]
    shape = np.column_stack([ragged, np.log(n / pixels), right[0], down[0], right[1], down[1], tilt])
    return confidence, shape, marked


def _along(profile: np.ndarray, n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Centre and standard deviation of profiles C×side, as shares of the side."""
    at = np.arange(profile.shape[1]) / profile.shape[1]
    centre = profile @ at / n
    return centre, np.sqrt(np.maximum(profile @ at**2 / n - centre**2, 0.0))


def odd_shape(shape: np.ndarray, centre: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """Log of 1 + the mean squared distance of shapes (…×7) from the validation cases', in standard deviations."""
    z = np.clip((shape - centre) / spread, -_FAR, _FAR)
    return np.asarray(np.log1p((z**2).mean(axis=-1)))


def regressors(signs: np.ndarray, centre: np.ndarray, spread: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Signs …×6 to the regression's inputs …×13: 1, the standardised signs, the log of 1 + what exceeds `high`."""
    z = np.clip((signs - centre) / spread, -2 * _FAR, 2 * _FAR)
    return np.concatenate([np.ones((*z.shape[:-1], 1)), z, np.log1p(np.maximum(z - high, 0.0))], axis=-1)
