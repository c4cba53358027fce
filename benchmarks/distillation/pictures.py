"""Ten test images as pictures: the teacher's mask, the student's alone and the distilled student's, over the truth."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.distillation.plan import Arm
from benchmarks.distillation.record import DistillationRecord
from benchmarks.distillation.results import Outcome, precision_of
from benchmarks.measuring import read_masks
from benchmarks.report.pictures import TILE_PX, Example, PictureTile
from segcore.dataset.case import Case
from segcore.picture.overlay import as_rgb, overlay, sheet

CASES = 10
_TITLES = ("truth", "teacher", "student alone", "distilled student")
_QUALITY = 88
_LINE = 130
"""Pixels of a picture's shorter side for each of the line's width."""
TRUTH = (240, 228, 66)
"""Colour of the line around the truth: none of the first classes'."""


@dataclass(frozen=True)
class CasePictures:
    """A test image: why it was chosen, and the picture with the truth's outline and with each mask.

    Attributes:
        pictures: H×W×3 uint8, in the order of the titles.
        dice: of the three masks.
    """

    why: str
    case: str
    patient: str
    pictures: tuple[np.ndarray, ...]
    dice: tuple[float, ...]


def draw_cases(
    record: DistillationRecord, finished: Sequence[Outcome], cases: Sequence[Case]
) -> list[CasePictures]:
    """The worst, the middle and the best test images of the first distilled student, with the first seed.

    Args:
        record: whose first share and student are shown.
        finished: tested bundles, some with masks.
        cases: the test images.
    """
    three = _shown_outcomes(record, finished)
    if three is None:
        return []
    masks = [read_masks(one.stage.masks) for one in three]
    distilled = three[-1]
    known = {case.id: case for case in cases if all(case.id in of for of in masks)}
    order = sorted(known, key=lambda name: (distilled.scores[name].dice, name))
    found = []
    for why, name in pick_cases(order):
        case = known[name]
        image, truth = case.image(), case.mask()
        shown = [as_rgb(image), *(overlay(image, of[name]) for of in masks)]
        drawn = [outline(picture, truth) for picture in shown]
        dice = tuple(one.scores[name].dice for one in three)
        found.append(CasePictures(why, name, case.patient, tuple(drawn), dice))
    return found


def pick_cases(order: Sequence[str]) -> list[tuple[str, str]]:
    """(why, case): three worst, four around the median, three best; each case once, of few cases all.

    Args:
        order: the worst first.
    """
    if len(order) <= CASES:
        return [(f"{k + 1} of {len(order)}, the worst first", name) for k, name in enumerate(order)]
    middle = len(order) // 2 - 2
    return [
        *(("one of the three worst", name) for name in order[:3]),
        *(("one of the four around the median", name) for name in order[middle : middle + 4]),
        *(("one of the three best", name) for name in order[-3:]),
    ]


def outline(picture: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """The picture with a line around what is marked in truth, wide enough to be seen when the picture is small.

    Args:
        picture: H×W×3 uint8.
        truth: H×W class indices.
    """
    drawn = picture.copy()
    for _ in range(max(1, min(truth.shape) // _LINE)):
        # One pixel wider inwards: a pixel is on the line where a neighbour is of another class.
        padded = np.pad(truth, 1, mode="edge")
        neighbours = (padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:])
        line = (truth > 0) & np.logical_or.reduce([truth != other for other in neighbours])
        drawn[line] = TRUTH
        truth = np.where(line, 0, truth)
    return drawn


def as_examples(drawn: Sequence[CasePictures]) -> list[Example]:
    """For the page."""
    found = []
    for one in drawn:
        details = ("", *(f"Dice {dice:.3f}" for dice in one.dice))
        tiles = tuple(
            PictureTile(title, detail, f"{title} on {one.case} {detail}".strip(), _jpeg_uri(picture))
            for title, detail, picture in zip(_TITLES, details, one.pictures, strict=True)
        )
        found.append(Example(one.why, one.case, one.patient, tiles))
    return found


def save_sheet(drawn: Sequence[CasePictures], path: Path) -> None:
    """All of them on one picture, a row a case."""
    sheet([list(one.pictures) for one in drawn], list(_TITLES)).save(path)


def shown_words(record: DistillationRecord) -> str:
    """Whose masks the pictures show."""
    gap = record.gaps[0]
    return f"{gap.gain.first}, seed 0, beside {gap.gap.first} and {gap.gain.second}"


def _shown_outcomes(record: DistillationRecord, finished: Sequence[Outcome]) -> list[Outcome] | None:
    """Teacher, student alone and distilled student of the first gap, with masks; None where one has none."""
    if not record.gaps:
        return None
    gap = record.gaps[0]
    arms = (
        Arm("teacher", gap.share, gap.teacher),
        Arm("alone", gap.share, "", gap.design),
        Arm("distilled", gap.share, gap.teacher, gap.design),
    )
    found = []
    for arm in arms:
        kept = [
            one
            for one in finished
            if one.stage.arm == arm and precision_of(one.stage) == "fp32" and one.stage.masks.exists()
        ]
        if not kept:
            return None
        found.append(kept[0])
    return found


def _jpeg_uri(picture: np.ndarray) -> str:
    """H×W×3 uint8 inside a URI, small enough that a page may hold forty."""
    small = Image.fromarray(picture)
    small.thumbnail((TILE_PX, TILE_PX), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    small.save(stream, "JPEG", quality=_QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()
