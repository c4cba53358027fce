"""The pictures that the page offers before a reader has one: a dataset's test cases, procedural ones by default."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from segcore.dataset.case import Case
from segcore.dataset.dataset import open_dataset
from segcore.picture.overlay import as_rgb
from segcore.picture.scan import Scan

EXAMPLES = 6


@dataclass(frozen=True)
class Example:
    """A picture that the page offers, with its reference mask.

    Attributes:
        scan: one slice, as the models take it.
        truth: class indices 1×H×W, or None.
        thumbnail: PNG for the gallery.
    """

    scan: Scan
    truth: np.ndarray | None
    thumbnail: Path


def make_examples(data: str, folder: Path) -> list[Example]:
    """Takes a few test cases of a dataset (any, where none is labelled); writes thumbnails to `folder`.

    Raises:
        InputError: the dataset cannot be opened.
    """
    dataset = open_dataset(data, need_masks=False)
    cases = dataset.split("test", limit=EXAMPLES) or dataset.cases[:EXAMPLES]
    return [_make_example(case, folder / f"example-{i}.png") for i, case in enumerate(cases)]


def _make_example(case: Case, thumbnail: Path) -> Example:
    image = case.image()
    shown = as_rgb(image)
    small = Image.fromarray(shown)
    small.thumbnail((256, 256))
    small.save(thumbnail)
    scan = Scan(
        name=case.id,
        kind="image",
        slices=1,
        size_px=(image.shape[0], image.shape[1]),
        values=lambda _: image,
        display=lambda _: shown,
        spacing_mm=case.spacing_mm,
    )
    return Example(scan, case.mask()[None] if case.labelled else None, thumbnail)
