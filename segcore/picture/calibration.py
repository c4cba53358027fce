"""From which probability on a pixel is marked, and how far probabilities mean what they say.

Both are found on validation cases when a model is sealed (`segcore.learn.evaluate`) and travel in the manifest.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict

BINS = 15
THRESHOLDS: tuple[float, ...] = tuple(round(float(t), 3) for t in np.linspace(0.05, 0.95, 37))
_PLATEAU = 0.0005  # Dice: 0.05 points are no reason to leave 0.5, which needs no explanation


class Calibration(BaseModel):
    """What was found on the validation cases.

    Attributes:
        thresholds: that were tried; empty for models of several classes, which take the likeliest.
        dice: mean Dice of the validation cases at each, after the temperature.
        temperature: that the logits are divided by; 1 where none was asked for.
        ece_before: expected calibration error without the temperature, over sampled pixels.
        ece: with it.
        cases: validation cases.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

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
    reached = np.searchsorted(np.asarray(thresholds, probability.dtype), probability.ravel(), side="right")
    wanted = truth.ravel() == 1
    marked = _at_least(reached, None, len(thresholds))
    both = _at_least(reached, wanted, len(thresholds))
    total = marked + np.count_nonzero(wanted)
    return np.asarray(np.where(total > 0, 2 * both / np.maximum(total, 1), 1.0))


def _at_least(reached: np.ndarray, weights: np.ndarray | None, thresholds: int) -> np.ndarray:
    """How many pixels reach each threshold, from how many thresholds each pixel reaches."""
    counts = np.bincount(reached, weights=weights, minlength=thresholds + 1)
    return np.asarray(counts[::-1].cumsum()[::-1][1:])


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
        if _surprise(logits / np.exp(left), truth) < _surprise(logits / np.exp(right), truth):
            high = right
        else:
            low = left
    return float(np.exp((low + high) / 2))


def _surprise(logits: np.ndarray, truth: np.ndarray) -> float:
    """Mean negative log likelihood."""
    if logits.shape[1] == 1:
        signed = np.where(truth == 1, logits[:, 0], -logits[:, 0])
        return float(np.logaddexp(0, -signed).mean())
    chosen = np.take_along_axis(logits, truth[:, None].astype(np.intp), axis=1)[:, 0]
    return float((np.logaddexp.reduce(logits, axis=1) - chosen).mean())
