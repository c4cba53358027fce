"""Prompts that a reader could have given, drawn from a mask at random: for training.

Points are (x, y) in pixels, the centre of the first pixel at (0, 0). Random numbers are torch's, on the masks' device.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from segcore.parts import connected_parts
from segcore.prompts import BACKGROUND, BOX_BOTTOM_RIGHT, BOX_TOP_LEFT, FOREGROUND, PADDING

SMALLEST_SHARE = 0.00153
"""Of the image: a smaller mask is no target. Source: Cheng et al., SAM-Med2D, 2023 (100 pixels of 256×256)."""
_JITTER, _JITTER_SHARE = 0.1, 20 / 1024
"""Standard deviation of a box's corner as a share of its side, and the most it moves as a share of the image's.

Source: Kirillov et al., Segment Anything, ICCV 2023, appendix A: 10 % of the side, at most 20 pixels of 1024.
"""


def pick_objects(mask: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """What a reader might mean in each picture: a class, or one connected part of it; at random.

    A class among those that are large enough; of a class with several large parts (two lungs, many teeth), half of the
    time one of them. Without parts, a network that knows one class would learn to answer it whatever it is asked.

    Args:
        mask: N×H×W class indices.
        classes: K, foreground classes.

    Returns:
        The objects, N×H×W bool, and which pictures have one, N bool.
    """
    numbers = torch.arange(1, classes + 1, device=mask.device)
    areas = (mask[:, None] == numbers[:, None, None]).flatten(2).sum(2)  # N K
    large = areas >= SMALLEST_SHARE * mask[0].numel()
    picked = (torch.rand(areas.shape, device=mask.device) + large).argmax(1)  # N
    objects = mask == (picked + 1)[:, None, None]
    chance = torch.rand(len(mask), 2, device=mask.device).tolist()
    parts = [
        _part(one, which) if whole < 0.5 else one for one, (whole, which) in zip(objects, chance, strict=True)
    ]
    return torch.stack(parts), large.any(1)


def _part(mask: Tensor, which: float) -> Tensor:
    """One of the large connected parts of a mask H×W bool; the mask where it has fewer than two. `which` is 0–1."""
    numbered = connected_parts(mask.cpu().numpy())
    areas = np.bincount(numbered.ravel())[1:]
    large = np.flatnonzero(areas >= SMALLEST_SHARE * mask.numel()) + 1
    if len(large) < 2:
        return mask
    return torch.from_numpy(numbered == large[int(which * len(large))]).to(mask.device)


def points_inside(mask: Tensor, count: int) -> Tensor:
    """Different pixels of each mask N×H×W bool, all as likely: N×count×2; beside it where it has too few."""
    order = (torch.rand(mask.shape, device=mask.device) + mask).flatten(1)
    return _places(order.topk(count, dim=1).indices, mask.shape[2])


def error_points(answer: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """A point where each answer is wrong, and which side it belongs to.

    Args:
        answer: N×H×W bool.
        truth: N×H×W bool.

    Returns:
        N×1×2, and labels N×1: `FOREGROUND` where something was missed, `BACKGROUND` where it was too much. Where an
        answer is right in every pixel: a point of the truth.
    """
    wrong = answer != truth
    region = torch.where(wrong.flatten(1).any(1)[:, None, None], wrong, truth)
    points = points_inside(region, 1)
    x, y = points[:, 0].long().unbind(1)
    inside = truth[torch.arange(len(truth), device=truth.device), y, x]
    return points, torch.where(inside, float(FOREGROUND), float(BACKGROUND))[:, None]


def boxes_of(mask: Tensor) -> Tensor:
    """Box of each mask N×H×W bool: N×4 float, left, top, right, bottom, the outermost pixels' centres; 0 if empty."""
    return torch.cat([torch.stack([_first(mask.any(d)) for d in (1, 2)], 1),
                      torch.stack([_last(mask.any(d)) for d in (1, 2)], 1)], 1).float()  # fmt: skip


def jittered(boxes: Tensor, size_px: tuple[int, int]) -> Tensor:
    """Boxes N×4 as a hurried hand draws them: each side moved by a tenth of the box, within the image.

    Gaussian, with the standard deviation and the bound that are cited above.
    """
    height, width = size_px
    far = torch.tensor([width - 1, height - 1] * 2, dtype=boxes.dtype, device=boxes.device)
    sides = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
    most = (far + 1) * _JITTER_SHARE
    moves = torch.randn(boxes.shape, device=boxes.device) * _JITTER * sides
    moved = (boxes + moves.clamp(-most, most)).clamp(min=torch.zeros_like(far), max=far)
    first, last = moved[:, :2], moved[:, 2:]
    return torch.cat([torch.minimum(first, last), torch.maximum(first, last)], 1)


def first_prompts(truth: Tensor, slots: int) -> tuple[Tensor, Tensor]:
    """A jittered box or a point inside, at random, of each mask N×H×W bool; in the first two of the slots.

    Returns:
        Points N×slots×2 and labels N×slots.
    """
    pictures, size_px = len(truth), (truth.shape[1], truth.shape[2])
    points = torch.zeros(pictures, slots, 2, device=truth.device)
    labels = torch.full((pictures, slots), float(PADDING), device=truth.device)
    by_box = torch.rand(pictures, device=truth.device) < 0.5
    corners = jittered(boxes_of(truth), size_px).view(-1, 2, 2)
    point = torch.nn.functional.pad(points_inside(truth, 1), (0, 0, 0, 1))
    points[:, :2] = torch.where(by_box[:, None, None], corners, point)
    of_box = labels.new_tensor([BOX_TOP_LEFT, BOX_BOTTOM_RIGHT])
    of_point = labels.new_tensor([FOREGROUND, PADDING])
    labels[:, :2] = torch.where(by_box[:, None], of_box, of_point)
    return points, labels


def _places(flat: Tensor, width: int) -> Tensor:
    """Indices into H·W → (x, y), a last axis of 2."""
    return torch.stack([flat % width, flat // width], -1).float()


def _first(line: Tensor) -> Tensor:
    """Index of the first True of each row of N×L."""
    return line.int().argmax(1)


def _last(line: Tensor) -> Tensor:
    return torch.where(line.any(1), line.shape[1] - 1 - line.flip(1).int().argmax(1), 0)
