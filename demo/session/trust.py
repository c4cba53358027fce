"""How far to trust a mask: its scores against a reference mask, and the model's own estimate as a traffic light."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from segcore.errors import InputError
from segcore.measure.metrics import dice_per_class, hd95_per_class, iou_per_class
from segcore.picture.quality import QualityModel

SCORE_HINT = (
    "Dice and IoU are the shared area of the two masks: 1 is the same, 0 is apart. HD95 is how far apart the two "
    "borders are at worst, leaving out the farthest 5 %: 0 is the same border."
)


def against_truth(
    mask: np.ndarray,
    truth: np.ndarray,
    classes: Sequence[str],
    spacing_mm: tuple[float, float] | None = None,
) -> list[list[str]]:
    """Scores a mask against a reference mask: a heading row, a row a class, and for several classes their mean.

    Args:
        mask: class indices H×W, 0 background.
        truth: the same of the reference.
        classes: names of the K foreground classes.
        spacing_mm: of neighbouring rows and columns; None gives distances in pixels, and the heading says so.

    Returns:
        Rows of text; dashes where the reference holds more classes than the model knows, and so cannot be compared.

    Raises:
        ValueError: the masks differ in size.
    """
    unit, spacing = ("px", (1.0, 1.0)) if spacing_mm is None else ("mm", spacing_mm)
    head, k = ["Structure", "Dice", "IoU", f"HD95 ({unit})"], len(classes)
    if truth.max(initial=0) > k:
        return [head, *([name, "–", "–", "–"] for name in classes)]
    values = np.stack(
        [
            dice_per_class(mask, truth, k),
            iou_per_class(mask, truth, k),
            hd95_per_class(mask, truth, k, spacing=spacing),
        ],
        axis=1,
    )
    named = [*zip(classes, values, strict=True)]
    if k > 1:
        named.append(("mean", values.mean(axis=0)))
    rows = [[name, f"{dice:.3f}", f"{iou:.3f}", f"{hd95:.1f}"] for name, (dice, iou, hd95) in named]
    return [head, *rows]


def class_indices(stored: np.ndarray, name: str, classes: int) -> np.ndarray:
    """A reference mask's stored values as class indices: 0/255 is one class, as in a dataset.

    Args:
        stored: integers, N×H×W.
        name: the file's own.
        classes: how many the models know.

    Raises:
        InputError: higher indices than that.
    """
    values = set(np.unique(stored).tolist())
    if values <= {0, 255}:
        return (stored // 255).astype(np.uint8)
    if max(values) > classes:
        raise InputError(
            f"reference mask {name}: must hold 0/255 or class indices 0 to {classes}, got up to {max(values)}; "
            "save class indices"
        )
    return stored


# The traffic light: a model's estimate of its own mask as a colour, a word, and what neither can promise.

GREEN_FROM = 0.9
"""Expected Dice from which the light is green; `runtime.predict --below` passes on what is less."""
RED_BELOW = 0.8
"""Expected Dice below which it is red: parts of the organ are likely missed, or something else is marked."""


@dataclass(frozen=True)
class Light:
    """One state of the light; `colour` is also its style on the page."""

    colour: str
    word: str
    advice: str


GREEN = Light("green", "likely good", "The outline probably fits; look at it all the same.")
AMBER = Light("amber", "check the outline", "Part of the outline may be off; compare it with the picture.")
RED = Light(
    "red", "do not rely on it", "The outline is probably wrong, or this is no picture for this model."
)


def light_of(quality: float) -> Light:
    """The light for an expected Dice, 0–1, as the card shows it: to two decimals."""
    shown = round(quality, 2)
    if shown >= GREEN_FROM:
        return GREEN
    return AMBER if shown >= RED_BELOW else RED


def light_limits(model: QualityModel) -> str:
    """What the estimate is, and what it is not."""
    return (
        f"The model's own estimate, fitted on {model.cases} validation cases; mean error ±{model.error:.3f} on "
        f"pictures like those, ±{model.error_degraded:.3f} on degraded ones. "
        "A picture unlike the training pictures can still fool it."
    )
