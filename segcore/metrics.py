"""Accuracy of masks: Dice and IoU a case and class, and how sure a mean of them is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def dice_per_class(prediction: np.ndarray, truth: np.ndarray, classes: int) -> np.ndarray:
    """Dice of each foreground class, 2|A∩B| / (|A|+|B|); both empty 1, one empty 0.

    Args:
        prediction: class indices, H×W.
        truth: class indices, H×W.
        classes: K, the number of foreground classes.

    Returns:
        K numbers, 0–1.

    Source: Dice, Measures of the Amount of Ecologic Association Between Species, Ecology 26(3), 1945.
    """
    both, a, b = _overlap(prediction, truth, classes)
    return np.where(a + b == 0, 1.0, 2.0 * both / np.maximum(a + b, 1))


def iou_per_class(prediction: np.ndarray, truth: np.ndarray, classes: int) -> np.ndarray:
    """Intersection over union of each foreground class, K numbers, 0–1; both empty 1, one empty 0."""
    both, a, b = _overlap(prediction, truth, classes)
    union = a + b - both
    return np.where(union == 0, 1.0, both / np.maximum(union, 1))


def _overlap(
    prediction: np.ndarray, truth: np.ndarray, classes: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    if prediction.shape != truth.shape:
        raise ValueError(f"prediction {prediction.shape} and truth {truth.shape} must have one shape")
    k = classes + 1
    pairs = np.bincount(prediction.ravel().astype(np.intp) * k + truth.ravel(), minlength=k * k).reshape(k, k)
    return pairs.diagonal()[1:].astype(float), pairs.sum(1)[1:].astype(float), pairs.sum(0)[1:].astype(float)


def disagreement(a: np.ndarray, b: np.ndarray) -> float:
    """Share of pixels, 0–1, whose class differs."""
    return float((a != b).mean())


def bootstrap_interval(
    values: Sequence[float], patients: Sequence[str], *, draws: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """95 % percentile interval of the mean over cases, resampling patients.

    Cases of one patient are not independent: resampling cases would make the interval too narrow.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13.
    """
    names, group = np.unique(np.asarray(patients), return_inverse=True)
    sums = np.bincount(group, weights=np.asarray(values, float))
    counts = np.bincount(group)
    picks = np.random.default_rng(seed).integers(0, len(names), size=(draws, len(names)))
    means = sums[picks].sum(1) / counts[picks].sum(1)
    low, high = np.percentile(means, (2.5, 97.5))
    return float(low), float(high)
