"""Worst, median and best cases as pictures inside the page: image, truth, each model's mask and errors."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from benchmarks.record import CaseRecord
from segcore.case import Case
from segcore.overlay import as_rgb, error_map, overlay

MODELS = 3
TILE_PX = 288


@dataclass(frozen=True)
class Tile:
    """One picture: what it shows, and a data URI."""

    title: str
    detail: str
    uri: str


@dataclass(frozen=True)
class Example:
    """One case: why it was chosen, its name, and rows of pictures."""

    why: str
    case: str
    patient: str
    tiles: tuple[Tile, ...]


def choose_cases(scores: Sequence[CaseRecord]) -> list[tuple[str, int]]:
    """Why, and the index of, the worst, the median and the best case by Dice; each case once."""
    order = sorted(range(len(scores)), key=lambda i: (scores[i].dice_mean, scores[i].case))
    chosen: dict[int, str] = {}
    for why, i in (("worst", order[0]), ("median", order[len(order) // 2]), ("best", order[-1])):
        chosen.setdefault(i, why)
    return [(why, i) for i, why in chosen.items()]


def draw_example(
    why: str, case: Case, models: Sequence[tuple[str, Callable[[np.ndarray], np.ndarray], float]]
) -> Example:
    """Draws one case.

    Args:
        why: what the case is an example of.
        case: labelled.
        models: name, picture → mask, and the Dice of this case, of each model to show.
    """
    image, truth = case.image(), case.mask()
    tiles = [Tile("picture", "", data_uri(as_rgb(image))), Tile("truth", "", data_uri(overlay(image, truth)))]
    for name, predict, dice in models:
        mask = predict(image)
        tiles.append(Tile(name, f"Dice {dice:.3f}", data_uri(overlay(image, mask))))
        tiles.append(Tile("its errors", "", data_uri(error_map(image, mask, truth))))
    return Example(why, case.id, case.patient, tuple(tiles))


def data_uri(picture: np.ndarray) -> str:
    """H×W×3 uint8 as a PNG inside a URI, at most 288 pixels a side."""
    small = Image.fromarray(picture)
    small.thumbnail((TILE_PX, TILE_PX), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    small.save(stream, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()
