"""Prompts without a human: from the mean training mask of each class, or from a mask that another model predicted.

Points are (x, y) in pixels, the centre of the first pixel at (0, 0). Nothing here is random.

Source: point prompts from the mean training mask, as on chest X-rays with SAM (docs/teachers.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from segcore.dataset.case import Case
from segcore.picture.preprocess import resize_mask
from segcore.picture.prompts import BOX_BOTTOM_RIGHT, BOX_TOP_LEFT, FOREGROUND, PADDING
from teacher.settings import AutomaticPrompt

CORE = 0.5
"""Where a mean mask is at least this share of its maximum, the thing usually is."""
_AWAY = 0.999  # not 1: a mask of one pixel gives that pixel again
_SMOOTH = 8  # the window that favours the inside is this part of the image's side


def mean_masks(cases: Sequence[Case], classes: int, size_px: tuple[int, int]) -> Tensor:
    """How often each pixel is of each class, K×H×W float32, 0–1.

    Args:
        cases: labelled ones, of the training split alone.
        classes: how many foreground classes there are.
        size_px: height and width of the network's input, to which the masks are resized.
    """
    numbers = np.arange(1, classes + 1, dtype=np.uint8)[:, None, None]

    def read(case: Case) -> np.ndarray:
        return np.asarray(resize_mask(case.mask(), size_px) == numbers)

    total = np.zeros((classes, *size_px), np.float64)
    with ThreadPoolExecutor() as pool:
        for one in pool.map(read, cases):
            total += one
    return torch.from_numpy(total / len(cases)).float()


def automatic_prompts(
    masks: Tensor, kind: AutomaticPrompt, count: int, slots: int | None = None
) -> tuple[Tensor, Tensor]:
    """Prompts from masks, which need not be crisp.

    Args:
        masks: K×H×W, 0–1; none of them empty.
        kind: points, box, or both.
        count: points of a mask.
        slots: columns of what comes back; None for as many as are used.

    Returns:
        Points K×slots×2 and labels K×slots, `PADDING` where a slot is empty.
    """
    points, labels = list[Tensor](), list[int]()
    if kind != "box":
        points.append(torch.stack([peaks(mask, count) for mask in masks]))
        labels += [FOREGROUND] * count
    if kind != "points":
        points.append(torch.stack([core_box(mask) for mask in masks]).view(-1, 2, 2))
        labels += [BOX_TOP_LEFT, BOX_BOTTOM_RIGHT]
    free = 0 if slots is None else slots - len(labels)
    every = torch.tensor(labels, dtype=torch.float32).expand(len(masks), -1)
    return F.pad(torch.cat(points, 1), (0, 0, 0, free)), F.pad(every, (0, free), value=PADDING)


def core(mask: Tensor) -> Tensor:
    """Where a mask H×W, 0–1, is at least `CORE` of its maximum: bool."""
    return mask >= CORE * mask.max()


def core_box(mask: Tensor) -> Tensor:
    """Left, top, right, bottom of a mask's core, its outermost pixels' centres."""
    rows, columns = core(mask).any(1).nonzero()[:, 0], core(mask).any(0).nonzero()[:, 0]
    return torch.stack([columns[0], rows[0], columns[-1], rows[-1]]).float()


def peaks(mask: Tensor, count: int) -> Tensor:
    """Points deep inside a mask H×W, 0–1, and apart from each other: count×2.

    Greedy: where the mask, weighted with its mean in a window around, is highest; what is near a point then counts
    less. A mask of two parts gives points in both.
    """
    height, width = mask.shape
    window = max(height, width) // _SMOOTH // 2 * 2 + 1
    around = F.avg_pool2d(mask[None, None], window, stride=1, padding=window // 2)[0, 0]
    score = mask * around * core(mask)
    near = core(mask).sum() / count / torch.pi  # squared radius of a point's share of the area
    y, x = torch.arange(height)[:, None], torch.arange(width)[None]
    found = []
    for _ in range(count):
        place = int(score.argmax())
        row, column = divmod(place, width)
        found.append((float(column), float(row)))
        close = torch.exp(-((y - row) ** 2 + (x - column) ** 2) / (2 * near))
        score = score * (1 - _AWAY * close)
    return torch.tensor(found)
