"""The pictures of the case page: outlines that are told apart without their colour, too."""

from __future__ import annotations

import numpy as np

from demo.compare import fit
from segcore.overlay import COLOURS
from segcore.preprocess import resize_mask

SIDE_PX = 640
"""Longest side of a printed picture: 60 mm at 270 dots an inch."""
LINES = ("solid", "dashed", "dotted")
_DASH_PX = (0, 16, 6)  # length of a dash and of a gap, of each of `LINES`
_WIDTH_PX = 3


def outlined(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The picture with each class outlined in its colour and its kind of line, H×W×3 uint8, at most `SIDE_PX` a side.

    A small picture is enlarged first, so that the line is as thin in print.

    Args:
        image: H×W or H×W×3 uint8.
        mask: class indices H×W.
    """
    shown = fit(image, SIDE_PX)
    scale = SIDE_PX // max(shown.shape[:2])
    picture = np.repeat(np.repeat(shown, scale, 0), scale, 1) if scale > 1 else shown.copy()
    size = (picture.shape[0], picture.shape[1])
    drawn = resize_mask(mask, size)
    y, x = np.ogrid[: size[0], : size[1]]
    for k in np.unique(drawn[drawn > 0]):
        line = _border(drawn == k)
        if dash := _DASH_PX[(k - 1) % len(LINES)]:
            # Slanted stripes: no edge of an organ runs along them for long.
            line &= ((2 * x + 3 * y) // (2 * dash)) % 2 == 0
        picture[line] = COLOURS[(k - 1) % len(COLOURS)]
    return picture


def line_of(k: int) -> str:
    """The kind of line of class k, 1 the first."""
    return LINES[(k - 1) % len(LINES)]


def _border(area: np.ndarray) -> np.ndarray:
    """The outermost `_WIDTH_PX` pixels of an area H×W; the picture's own edge counts as outside."""
    inner = np.pad(area, 1)
    for _ in range(_WIDTH_PX):
        shrunk = inner.copy()
        for axis in (0, 1):
            for step in (1, -1):
                shrunk &= np.roll(inner, step, axis)
        inner = shrunk
    return np.asarray(area & ~inner[1:-1, 1:-1])
