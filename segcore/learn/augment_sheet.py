"""What an augmentation does to a data set's own pictures, as a picture to look at before hours are spent on it."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from segcore.dataset.case import Case
from segcore.dataset.dataset import Dataset
from segcore.errors import InputError
from segcore.learn.augment import Augmentation
from segcore.learn.loader import TrainingSet, training_input
from segcore.learn.transforms import Transform, as_entries, transforms_of
from segcore.picture.overlay import overlay, sheet

CASES, VERSIONS = 6, 7
SIZE_PX = 224
"""Of the network's input and of a tile, so that nothing is resized twice."""
_CANDIDATES = 8 * CASES
"""Training cases among which those are looked for that show something."""
_UNSCALED = {1: ((0.0,), (1.0,)), 3: ((0.0,) * 3, (1.0,) * 3)}


def augment_sheet(
    dataset: Dataset, augment: str | Sequence[Any], *, label: str, flip: bool, window: str | None
) -> Image.Image:
    """Training cases in rows: as the network would get them, and augmented in several ways, with the mask's outline.

    The versions are those of epochs 1, 2, … of a training with the same images and `--seed 0`.

    Args:
        dataset: whose training split is shown.
        augment: from `segcore.learn.transforms.read_augment`.
        label: what the user called it.
        flip: as `--flip`.
        window: as `--window`.

    Raises:
        InputError: nothing to train on, or a list that is not for these pictures.
    """
    split = [case for case in dataset.split("train") if case.labelled]
    if not split:
        raise InputError(f"--data {dataset.name}: must have training cases with masks to augment, has none")
    spec = training_input(split, (SIZE_PX, SIZE_PX), _UNSCALED, window=window)
    transforms = transforms_of(augment, channels=spec.channels, flip=flip)
    cases = _showing_something(_spread(split, _CANDIDATES), CASES)
    data = TrainingSet(
        cases,
        spec,
        classes=len(dataset.classes),
        seed=0,
        augment=Augmentation(transforms, with_soft=False),
    )
    rows = []
    for i in range(len(cases)):
        row = [_outlined(data.images[i], data.masks[i])]
        for epoch in range(VERSIONS):
            sample = data[epoch, i]
            picture = (sample["image"].permute(1, 2, 0) * 255).round().byte().numpy()
            row.append(_outlined(picture, sample["mask"].numpy()))
        rows.append(row)
    heading = f"{dataset.name}: --augment {label}{'' if flip else ' --no-flip'}, {SIZE_PX} px"
    details = "; ".join(_in_words(t) for t in transforms) or "nothing is changed"
    return _with_heading(sheet(rows, [], tile_px=SIZE_PX), heading, details)


def _spread(cases: Sequence[Case], count: int) -> list[Case]:
    """So many of them, evenly over the list."""
    places = np.unique(np.linspace(0, len(cases) - 1, min(len(cases), count)).astype(int))
    return [cases[i] for i in places]


def _showing_something(cases: Sequence[Case], count: int) -> list[Case]:
    """Those with a mask that is not empty, as far as there are so many, and others."""
    shown = [case for case in cases if case.mask().any()]
    return _spread(shown if len(shown) >= count else cases, count)


def _outlined(picture: np.ndarray, mask: np.ndarray) -> np.ndarray:
    grey = picture.ndim == 3 and picture.shape[2] == 1
    return overlay(picture[..., 0] if grey else picture, mask, opacity=0)


def _in_words(transform: Transform) -> str:
    """ "rotate degrees 45, probability 0.8" """
    name, values = next(iter(as_entries([transform])[0].items()))
    texts = [f"{key} {' '.join(value) if isinstance(value, list) else f'{value:g}'}"
             for key, value in values.items() if key != "probability"]  # fmt: skip
    return f"{name} {', '.join(texts)} ({100 * values['probability']:g} %)"


def _with_heading(tiles: Image.Image, heading: str, details: str) -> Image.Image:
    """The tiles under what is done to them and the columns' titles, in letters larger than those of `sheet`."""
    large, small = ImageFont.load_default(size=20), ImageFont.load_default(size=15)
    lines = textwrap.wrap(details, tiles.width // 8)
    top = 34 + 20 * len(lines) + 26
    canvas = Image.new("RGB", (tiles.width, top + tiles.height), (24, 24, 24))
    draw = ImageDraw.Draw(canvas)
    draw.text((4, 4), heading, fill="white", font=large)
    for number, line in enumerate(lines):
        draw.text((4, 32 + 20 * number), line, fill=(200, 200, 200), font=small)
    for column, title in enumerate(["as it is", *(f"epoch {n}" for n in range(1, VERSIONS + 1))]):
        draw.text((4 + column * tiles.width / (VERSIONS + 1), top - 22), title, fill="white", font=small)
    canvas.paste(tiles, (0, top))
    return canvas
