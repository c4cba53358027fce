"""Accuracy of masks: overlap, surface distance and small parts found, a case and class."""

from __future__ import annotations

import numpy as np

from segcore.measure.shapes import connected_parts


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
    both, a, b = _count_overlaps(prediction, truth, classes)
    return np.where(a + b == 0, 1.0, 2.0 * both / np.maximum(a + b, 1))


def iou_per_class(prediction: np.ndarray, truth: np.ndarray, classes: int) -> np.ndarray:
    """Intersection over union of each foreground class, K numbers, 0–1; both empty 1, one empty 0."""
    both, a, b = _count_overlaps(prediction, truth, classes)
    union = a + b - both
    return np.where(union == 0, 1.0, both / np.maximum(union, 1))


def precision_recall_per_class(
    prediction: np.ndarray, truth: np.ndarray, classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Share of what is marked that is right, and share of what is there that is marked, of each foreground class.

    Returns:
        Precision and recall, K numbers each, 0–1; both masks empty 1, one of the two empty 0 for both.
    """
    both, a, b = _count_overlaps(prediction, truth, classes)
    nothing = a + b == 0
    return np.where(nothing, 1.0, both / np.maximum(a, 1)), np.where(nothing, 1.0, both / np.maximum(b, 1))


def _count_overlaps(
    prediction: np.ndarray, truth: np.ndarray, classes: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    _check_shapes(prediction, truth)
    k = classes + 1
    pairs = np.bincount(prediction.ravel().astype(np.intp) * k + truth.ravel(), minlength=k * k).reshape(k, k)
    return pairs.diagonal()[1:].astype(float), pairs.sum(1)[1:].astype(float), pairs.sum(0)[1:].astype(float)


def disagreement(a: np.ndarray, b: np.ndarray) -> float:
    """Share of pixels, 0–1, whose class differs."""
    return float((a != b).mean())


def hd95_per_class(
    prediction: np.ndarray, truth: np.ndarray, classes: int, *, spacing: tuple[float, float] = (1.0, 1.0)
) -> np.ndarray:
    """95th percentile Hausdorff distance of each foreground class: both empty 0, one empty the image's diagonal.

    From every border pixel of one mask to the nearest border pixel of the other: the 95th percentile, and of the
    two directions the larger. A border pixel is of the mask and has one of its 4 neighbours outside (beyond the
    image's edge counts as outside).

    Args:
        prediction: class indices, H×W.
        truth: class indices, H×W.
        classes: K, the number of foreground classes.
        spacing: of rows and columns; 1 gives pixels, millimetres give millimetres.

    Returns:
        K distances in the unit of `spacing`.

    Source: Maier-Hein et al., Metrics reloaded, Nature Methods 21, 2024, HD95.
    """
    _check_shapes(prediction, truth)
    diagonal = float(np.hypot(prediction.shape[0] * spacing[0], prediction.shape[1] * spacing[1]))
    found = []
    for k in range(1, classes + 1):
        a, b = prediction == k, truth == k
        if not (a.any() and b.any()):
            found.append(diagonal if a.any() or b.any() else 0.0)
            continue
        a, b = _border_pixels(a), _border_pixels(b)
        found.append(max(np.percentile(_nearest_distances(*pair, spacing), 95) for pair in ((a, b), (b, a))))
    return np.array(found, float)


def _border_pixels(mask: np.ndarray) -> np.ndarray:
    padded = np.pad(mask, 1)
    inside = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return np.asarray(mask & ~inside)


def _nearest_distances(origin: np.ndarray, target: np.ndarray, spacing: tuple[float, float]) -> np.ndarray:
    """Distance from every pixel of `origin` to the nearest of `target`, both H×W bool and not empty.

    Exact and separable: first along each column, then, for the pixels asked for, over all columns.
    Source: Felzenszwalb and Huttenlocher, Distance transforms of sampled functions, Theory of Computing 8, 2012.
    """
    height, width = target.shape
    rows = np.arange(height)[:, None]
    above = np.maximum.accumulate(np.where(target, rows, -np.inf), axis=0)
    below = np.minimum.accumulate(np.where(target, rows, np.inf)[::-1], axis=0)[::-1]
    along = (
        spacing[0] * np.minimum(rows - above, below - rows)
    ) ** 2  # H×W, infinite in columns without target
    y, x = np.nonzero(origin)
    across = (spacing[1] * (np.arange(width)[:, None] - np.arange(width))) ** 2  # W×W
    # By row of the origin, so that no array is larger than W×W however long the border is.
    squared = [(along[row] + across[x[y == row]]).min(axis=1) for row in np.unique(y)]
    return np.asarray(np.sqrt(np.concatenate(squared)))


def small_parts_found(
    prediction: np.ndarray, truth: np.ndarray, classes: int, *, below_px: int
) -> tuple[np.ndarray, np.ndarray]:
    """How many of the truth's small parts are found, each class.

    A part is a set of pixels of one class that touch, diagonally too; it is small if it has fewer pixels than
    `below_px`, and found if at least half of them are predicted as its class.

    Args:
        prediction: class indices, H×W.
        truth: class indices, H×W.
        classes: K, the number of foreground classes.
        below_px: area in pixels.

    Returns:
        K numbers of parts found, and K numbers of parts.
    """
    _check_shapes(prediction, truth)
    found, total = np.zeros(classes, int), np.zeros(classes, int)
    for k in range(1, classes + 1):
        part = connected_parts(truth == k)
        area = np.bincount(part.ravel())[1:]
        hit = np.bincount(part[prediction == k], minlength=len(area) + 1)[1:]
        small = area < below_px
        total[k - 1], found[k - 1] = small.sum(), (2 * hit >= area)[small].sum()
    return found, total


def _check_shapes(prediction: np.ndarray, truth: np.ndarray) -> None:
    if prediction.shape != truth.shape:
        raise ValueError(f"prediction {prediction.shape} and truth {truth.shape} must have one shape")
