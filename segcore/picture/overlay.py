"""Draws masks over pictures, in colours that stay apart for colour-blind eyes."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

# Okabe and Ito, Color Universal Design, 2008, in an order that keeps neighbours apart.
COLOURS = (
    (0, 158, 115),
    (230, 159, 0),
    (86, 180, 233),
    (213, 94, 0),
    (204, 121, 167),
    (240, 228, 66),
    (0, 114, 178),
)
MISSED, EXTRA = (213, 94, 0), (86, 180, 233)


def as_rgb(image: np.ndarray) -> np.ndarray:
    """Any image that `read_image` gives, as H×W×3 uint8 for looking at."""
    if image.dtype != np.uint8:
        low, high = np.percentile(image, (0.5, 99.5))
        image = (np.clip((image - low) / max(high - low, 1e-6), 0, 1) * 255).astype(np.uint8)
    return np.repeat(image[..., None], 3, axis=2) if image.ndim == 2 else image


def overlay(image: np.ndarray, mask: np.ndarray, *, opacity: float = 0.35) -> np.ndarray:
    """The picture with each class filled lightly and outlined fully, H×W×3 uint8."""
    grey_bytes = image.ndim == 2 and image.dtype == np.uint8
    picture = Image.fromarray(image).convert("RGB") if grey_bytes else Image.fromarray(as_rgb(image))
    border = _borders(mask)
    grey = np.arange(256, dtype=np.float32)
    # A table of 256 entries a channel, instead of a sum for every pixel: this runs for every picture of an archive.
    for k in range(1, int(mask.max(initial=0)) + 1):
        area, colour = mask == k, COLOURS[(k - 1) % len(COLOURS)]
        filled = picture.point(
            [int(value) for c in colour for value in (grey + opacity * (c - grey)).round()]
        )
        picture.paste(filled, mask=Image.fromarray(area))
        picture.paste(colour, mask=Image.fromarray(area & border))
    return np.asarray(picture)


def error_map(image: np.ndarray, prediction: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """The picture, dimmed, missed pixels orange, extra or wrongly classed pixels blue; H×W×3 uint8."""
    picture = (as_rgb(image) * 0.5).astype(np.uint8)
    wrong = prediction != truth
    picture[wrong & (prediction == 0)] = MISSED
    picture[wrong & (prediction != 0)] = EXTRA
    return picture


def outlines(image: np.ndarray, prediction: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """The picture with the borders of the true classes in orange and of the predicted ones in blue, H×W×3 uint8."""
    picture = np.array(as_rgb(image))
    for mask, colour in ((truth, MISSED), (prediction, EXTRA)):
        picture[(mask > 0) & _borders(mask)] = colour
    return picture


def sheet(rows: list[list[np.ndarray]], titles: list[str], *, tile_px: int = 224) -> Image.Image:
    """Lays pictures out in rows under column titles, each fitted into a square tile."""
    columns, head, gap = max(len(r) for r in rows), 18 if titles else 0, 4
    canvas = Image.new(
        "RGB", (columns * (tile_px + gap) - gap, head + len(rows) * (tile_px + gap) - gap), (24, 24, 24)
    )
    draw = ImageDraw.Draw(canvas)
    for c, title in enumerate(titles):
        draw.text((c * (tile_px + gap) + 4, 3), title, fill=(235, 235, 235))
    for r, row in enumerate(rows):
        for c, picture in enumerate(row):
            tile = Image.fromarray(as_rgb(picture))
            tile.thumbnail((tile_px, tile_px))
            if max(tile.size) < tile_px:
                scale = tile_px / max(tile.size)
                tile = tile.resize(
                    (round(tile.width * scale), round(tile.height * scale)), Image.Resampling.NEAREST
                )
            x = c * (tile_px + gap) + (tile_px - tile.width) // 2
            canvas.paste(tile, (x, head + r * (tile_px + gap) + (tile_px - tile.height) // 2))
    return canvas


def _borders(mask: np.ndarray) -> np.ndarray:
    """Pixels beside one of another class, H×W bool; the picture's opposite edges count as beside each other."""
    border = np.zeros(mask.shape, bool)
    for axis in (0, 1):
        unlike = mask != np.roll(mask, 1, axis)
        border |= unlike | np.roll(unlike, -1, axis)
    return border
