"""The worst, the median and the best cases as pictures inside the page: image, truth, each model's mask and errors."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from benchmarks.report.record import CaseRecord
from segcore.dataset.case import Case
from segcore.picture.overlay import as_rgb, error_map, overlay
from segcore.picture.preprocess import InputSpec, through_window

MODELS = 3
"""Most models that an example shows."""
TILE_PX = 288
WORST = ("worst", "second worst", "third worst")


@dataclass(frozen=True)
class PictureTile:
    """One picture: what it shows, in short for the eye and in full for a screen reader, and a data URI."""

    title: str
    detail: str
    alt: str
    uri: str


@dataclass(frozen=True)
class Example:
    """One case: why it was chosen, its name, and rows of pictures."""

    why: str
    case: str
    patient: str
    tiles: tuple[PictureTile, ...]


def choose_cases(scores: Sequence[CaseRecord]) -> list[tuple[str, int]]:
    """Why, and the index of, the three worst cases by Dice, the median and the best; each case once."""
    order = sorted(range(len(scores)), key=lambda i: (scores[i].dice_mean, scores[i].case))
    chosen: dict[int, str] = {}
    worst = zip(WORST, order, strict=False)
    for why, i in (*worst, ("median", order[len(order) // 2]), ("best", order[-1])):
        chosen.setdefault(i, why)
    return [(why, i) for i, why in chosen.items()]


def draw_example(
    why: str,
    case: Case,
    models: Sequence[tuple[str, Callable[[np.ndarray], np.ndarray], float]],
    spec: InputSpec,
) -> Example:
    """Draws one case.

    Args:
        why: what the case is an example of.
        case: labelled.
        models: name, picture → mask, and the Dice of this case, of each model to show.
        spec: the input of the model that the case was chosen for: the picture is shown through its window.
    """
    image = case.image()
    masks = [(name, predict(image), dice) for name, predict, dice in models]
    return show_masks(why, case, through_window(image, spec), case.mask(), masks)


def show_masks(
    why: str,
    case: Case,
    seen: np.ndarray,
    truth: np.ndarray,
    masks: Sequence[tuple[str, np.ndarray, float]],
) -> Example:
    """The picture, the truth, and each model's mask with its errors beside it.

    Args:
        why: what the case is an example of.
        case: whose name and patient are told.
        seen: the picture as people should see it, H×W or H×W×3.
        truth: H×W class indices.
        masks: name of a model, its mask, the Dice of it.
    """
    tiles = [
        PictureTile("picture", "", f"the picture of {case.id}", data_uri(as_rgb(seen))),
        PictureTile("truth", "", f"the true mask of {case.id}", data_uri(overlay(seen, truth))),
    ]
    for name, mask, dice in masks:
        said = f"Dice {dice:.3f}"
        marked, wrong = data_uri(overlay(seen, mask)), data_uri(error_map(seen, mask, truth))
        tiles.append(PictureTile(name, said, f"the mask of {name} on {case.id}, {said}", marked))
        tiles.append(PictureTile("its errors", "", f"the errors of {name} on {case.id}", wrong))
    return Example(why, case.id, case.patient, tuple(tiles))


def data_uri(picture: np.ndarray) -> str:
    """H×W×3 uint8 as a PNG inside a URI, at most 288 pixels a side."""
    small = Image.fromarray(picture)
    small.thumbnail((TILE_PX, TILE_PX), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    small.save(stream, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()
