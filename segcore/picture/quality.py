"""How far a mask and its probabilities can be trusted; what is found on validation cases travels in the manifest.

The estimate: a student tells the Dice of its own mask from its logits alone. A line of signs a class (how unsure, how
ragged, how unlike the shapes of the validation cases) goes into a logistic regression of the Dice: 13 weights for a
model, fitted by `segcore.learn.seal`.

The calibration: the threshold, and the temperature that logits are divided by, found by `segcore.learn.evaluate`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pydantic import ConfigDict, Field, model_validator

from segcore.picture.preprocess import OutputSpec, decide, probabilities, sigmoid
from segcore.record import Record

SIGNS = ("doubt", "soft_border", "unsure_inside", "leak", "ragged", "odd_shape")
"""What is taken of a class's probabilities p and mask m; each grows as the mask gets worse.

doubt: log of 1 − expected Dice, 2Σpm / Σ(p+m) under the model's own probabilities; soft_border: log of Σp(1−p) a pixel
of border; unsure_inside: 1 − mean p inside; leak: log of the p outside a pixel of area; ragged: log of border / √area;
odd_shape: log of how far `SHAPE` is from the validation cases', in their standard deviations.
"""
SHAPE = ("ragged", "log_area", "x", "y", "width", "height", "tilt")
_GRID_PX = 64
_FAR = 8.0  # standard deviations: farther is not told apart
BINS = 15
THRESHOLDS: tuple[float, ...] = tuple(round(float(t), 3) for t in np.linspace(0.05, 0.95, 37))
_PLATEAU = 0.0005  # Dice: 0.05 points are no reason to leave 0.5, which needs no explanation


# The estimate of Dice.


class QualityModel(Record):
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

    model_config = ConfigDict(allow_inf_nan=False)

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

    @model_validator(mode="after")
    def _means_what_it_says(self) -> QualityModel:
        rows = (*self.shape_centre, *self.shape_spread)
        classes = {len(self.shape_centre), len(self.shape_spread), len(self.empty_right)}
        if len(classes) > 1 or any(len(row) != len(SHAPE) for row in rows):
            raise ValueError(
                f"shape_centre, shape_spread and empty_right must have {len(SHAPE)} numbers a class"
            )
        if min((*self.spread, *(one for row in self.shape_spread for one in row)), default=1.0) <= 0:
            raise ValueError("spread and shape_spread must be above 0")
        return self


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
    down, right = _centre_and_spread(inside.sum(2), n), _centre_and_spread(inside.sum(1), n)
    y, x = (np.arange(side, dtype=np.float32) / side for side in size)
    tilt = np.einsum("chw,h,w->c", inside, y, x) / n - down[0] * right[0]
    shape = np.column_stack([ragged, np.log(n / pixels), right[0], down[0], right[1], down[1], tilt])
    return confidence, shape, marked


def odd_shape(shape: np.ndarray, centre: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """Log of 1 + the mean squared distance of shapes (…×7) from the validation cases', in standard deviations."""
    z = np.clip((shape - centre) / spread, -_FAR, _FAR)
    return np.asarray(np.log1p((z**2).mean(axis=-1)))


def regressors(signs: np.ndarray, centre: np.ndarray, spread: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Signs …×6 to the regression's inputs …×13: 1, the standardised signs, the log of 1 + what exceeds `high`."""
    z = np.clip((signs - centre) / spread, -2 * _FAR, 2 * _FAR)
    return np.concatenate([np.ones((*z.shape[:-1], 1)), z, np.log1p(np.maximum(z - high, 0.0))], axis=-1)


def _centre_and_spread(profile: np.ndarray, n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Centre and standard deviation of profiles C×side, as shares of the side."""
    at = np.arange(profile.shape[1]) / profile.shape[1]
    centre = profile @ at / n
    return centre, np.sqrt(np.maximum(profile @ at**2 / n - centre**2, 0.0))


# From which probability on a pixel is marked, and how far probabilities mean what they say.


class Calibration(Record):
    """What was found on the validation cases.

    Attributes:
        thresholds: that were tried; empty for models of several classes, which take the likeliest.
        dice: mean Dice of the validation cases at each, after the temperature.
        temperature: that the logits are divided by; 1 where none was asked for.
        ece_before: expected calibration error without the temperature, over sampled pixels.
        ece: with it.
        cases: validation cases.
    """

    thresholds: tuple[float, ...] = ()
    dice: tuple[float, ...] = ()
    temperature: float = 1.0
    ece_before: float
    ece: float
    cases: int


def dice_at(probability: np.ndarray, truth: np.ndarray, thresholds: Sequence[float]) -> np.ndarray:
    """Dice of `probability >= threshold` against a mask, for every threshold in one pass.

    Args:
        probability: H×W, 0–1.
        truth: H×W, 1 where the class is.
        thresholds: T, ascending.

    Returns:
        T numbers; both empty is 1, one of them 0.
    """
    # Counting by bins passes over the pixels once, not once a threshold.
    reached = np.searchsorted(np.asarray(thresholds, probability.dtype), probability.ravel(), side="right")
    wanted = truth.ravel() == 1
    marked = _count_reached(reached, None, len(thresholds))
    both = _count_reached(reached, wanted, len(thresholds))
    total = marked + np.count_nonzero(wanted)
    return np.asarray(np.where(total > 0, 2 * both / np.maximum(total, 1), 1.0))


def choose_threshold(thresholds: Sequence[float], dice: Sequence[float]) -> float:
    """The threshold with the best mean Dice; of those within 0.05 points of it, the nearest to 0.5."""
    good = [t for t, d in zip(thresholds, dice, strict=True) if d >= max(dice) - _PLATEAU]
    return min(good, key=lambda t: (abs(t - 0.5), t))


def reliability_rows(given: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Pixels by their probability.

    Args:
        given: n probabilities of what was decided, 0–1.
        right: n booleans, whether it was right.

    Returns:
        3×`BINS`: pixels, the sum of their probabilities, how many were right.
    """
    given = np.clip(given.ravel(), 0.0, 1.0)
    bins = np.minimum((given * BINS).astype(np.intp), BINS - 1)
    return np.stack([np.bincount(bins, weights=w, minlength=BINS) for w in (None, given, right.ravel())])


def expected_calibration_error(rows: np.ndarray) -> float:
    """By how much a pixel's probability misses how often such pixels are right, on average over pixels.

    Args:
        rows: from `reliability_rows`; those of several pictures may be added.

    Source: Guo et al., On Calibration of Modern Neural Networks, ICML 2017; 15 bins.
    """
    pixels, given, right = rows
    return float(np.abs(right - given).sum() / max(pixels.sum(), 1))


def fit_temperature(logits: np.ndarray, truth: np.ndarray) -> float:
    """The temperature whose probabilities make the truth likeliest.

    The logarithm of the likelihood is smooth with one minimum in log T; golden sections find it to 0.1 %.

    Args:
        logits: n×K; one column for sigmoid, else softmax over K.
        truth: n class indices.

    Source: Guo et al. 2017, temperature scaling.
    """
    low, high = np.log(0.1), np.log(10.0)
    share = (np.sqrt(5) - 1) / 2
    while high - low > 1e-3:
        left, right = high - share * (high - low), low + share * (high - low)
        if _log_loss(logits / np.exp(left), truth) < _log_loss(logits / np.exp(right), truth):
            high = right
        else:
            low = left
    return float(np.exp((low + high) / 2))


def _count_reached(reached: np.ndarray, weights: np.ndarray | None, thresholds: int) -> np.ndarray:
    """How many pixels reach each threshold, from how many thresholds each pixel reaches."""
    counts = np.bincount(reached, weights=weights, minlength=thresholds + 1)
    return np.asarray(counts[::-1].cumsum()[::-1][1:])


def _log_loss(logits: np.ndarray, truth: np.ndarray) -> float:
    """Mean negative log likelihood."""
    if logits.shape[1] == 1:
        signed = np.where(truth == 1, logits[:, 0], -logits[:, 0])
        return float(np.logaddexp(0, -signed).mean())
    chosen = np.take_along_axis(logits, truth[:, None].astype(np.intp), axis=1)[:, 0]
    return float((np.logaddexp.reduce(logits, axis=1) - chosen).mean())
