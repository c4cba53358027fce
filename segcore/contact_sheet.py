"""Some cases of every split side by side, with their masks: what a person looks at before a training."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from segcore.case import Case
from segcore.dataset import Dataset
from segcore.overlay import overlay, sheet
from segcore.scan_cases import ScanSource
from segcore.split import SPLITS

SHEET_CASES, TILE_PX = 24, 224


def contact_sheet(dataset: Dataset, count: int = SHEET_CASES) -> Image.Image:
    """About `count` masks over their images, in columns by split."""
    groups = {name: dataset.split(name) for name in SPLITS} | {"unlabelled": dataset.unlabelled}
    groups = {name: cases for name, cases in groups.items() if cases}
    columns = [name for name in groups for _ in range(max(1, 6 // len(groups)))]
    height = -(-count // len(columns))
    rows: list[list[np.ndarray]] = [[] for _ in range(height)]
    for column, name in enumerate(columns):
        place, wide = columns[:column].count(name), columns.count(name)
        for row in range(height):
            index, shown = row * wide + place, min(height * wide, len(groups[name]))
            if index < shown:
                rows[row].append(_tile(groups[name][index * len(groups[name]) // shown]))
            else:
                rows[row].append(np.full((TILE_PX, TILE_PX), 24, np.uint8))
    return sheet(rows, columns, tile_px=TILE_PX)


def _tile(case: Case) -> np.ndarray:
    image = _picture(case)
    mask = case.mask() if case.labelled else np.zeros(image.shape[:2], np.uint8)
    tile = Image.fromarray(overlay(image, mask))
    scale = TILE_PX / max(tile.size)
    tile = tile.resize((max(1, round(tile.width * scale)), max(1, round(tile.height * scale))))
    ImageDraw.Draw(tile).text(
        (4, tile.height - 14), case.id, fill="white", stroke_width=1, stroke_fill="black"
    )
    return np.asarray(tile)


def _picture(case: Case) -> np.ndarray:
    """A slice of a scan as a viewer shows it: through the file's own window."""
    return case.source.display() if isinstance(case.source, ScanSource) else case.image()
