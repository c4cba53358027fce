"""The pictures of the case page: outlines that are told apart without their colour, too."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from demo.session.answers import fit
from segcore.picture.overlay import COLOURS
from segcore.picture.preprocess import resize_mask
from segcore.picture.prompts import Prompt

SIDE_PX = 640
"""Longest side of a printed picture: 60 mm at 270 dots an inch."""
LINES = ("solid", "dashed", "dotted")
_DASH_PX = (0, 16, 6)  # length of a dash and of a gap, of each of `LINES`
_WIDTH_PX = 3
INSIDE, BESIDE = (0, 114, 178), (213, 94, 0)
"""Colours of a prompt's points, as the viewer's (`viewer_prompts.js`); their shapes and signs tell them apart alone."""
_MARK_PX = 11


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
        line = _border_pixels(drawn == k)
        if dash := _DASH_PX[(k - 1) % len(LINES)]:
            # Slanted stripes: no edge of an organ runs along them for long.
            line &= ((2 * x + 3 * y) // (2 * dash)) % 2 == 0
        picture[line] = COLOURS[(k - 1) % len(COLOURS)]
    return picture


def draw_prompt(picture: np.ndarray, prompt: Prompt, image_px: tuple[int, int]) -> np.ndarray:
    """What was asked, over a picture H×W×3 uint8: a disc with + on the thing, a diamond with − beside it, the box.

    Args:
        picture: as `outlined` gives it.
        prompt: in the pixels of the image.
        image_px: the image's height and width.
    """
    drawn = Image.fromarray(picture)
    pen, white = ImageDraw.Draw(drawn), (255, 255, 255)
    scale = np.array([picture.shape[1] / image_px[1], picture.shape[0] / image_px[0]])
    if prompt.box is not None:
        corners = (np.array(prompt.box).reshape(2, 2) + np.array([[0, 0], [1, 1]])) * scale
        for colour, width in ((white, 4), (INSIDE, 2)):
            pen.rectangle(tuple(corners.round().ravel()), outline=colour, width=width)
    for column, row, inside in prompt.points:
        (x, y), r = (np.array([column, row]) + 0.5) * scale, _MARK_PX
        if inside:
            pen.ellipse((x - r, y - r, x + r, y + r), fill=INSIDE, outline=white, width=2)
            pen.line((x, y - r / 2, x, y + r / 2), fill=white, width=3)
        else:
            pen.polygon(((x - r, y), (x, y - r), (x + r, y), (x, y + r)), fill=BESIDE, outline=white, width=2)
        pen.line((x - r / 2, y, x + r / 2, y), fill=white, width=3)
    return np.asarray(drawn)


def line_of(k: int) -> str:
    """The kind of line of class k, 1 the first."""
    return LINES[(k - 1) % len(LINES)]


def _border_pixels(area: np.ndarray) -> np.ndarray:
    """The outermost `_WIDTH_PX` pixels of an area H×W; the picture's own edge counts as outside."""
    inner = np.pad(area, 1)
    for _ in range(_WIDTH_PX):
        shrunk = inner.copy()
        for axis in (0, 1):
            for step in (1, -1):
                shrunk &= np.roll(inner, step, axis)
        inner = shrunk
    return np.asarray(area & ~inner[1:-1, 1:-1])
