"""Prompts drawn at random from the mean training masks: for training without each case's own mask.

Random numbers are torch's, on the masks' device.
"""

from __future__ import annotations

import torch
from torch import Tensor

from segcore.prompts import BOX_BOTTOM_RIGHT, BOX_TOP_LEFT, FOREGROUND, PADDING
from teacher.prompts.mean_mask import core, core_box
from teacher.prompts.simulated import jittered
from teacher.settings import AutomaticPrompt


def drawn_prompts(
    means: Tensor, kind: AutomaticPrompt, count: int, pictures: int, slots: int
) -> tuple[Tensor, Tensor]:
    """Other prompts for every picture: points as likely as the mean mask is high, in its core; its box, jittered.

    Args:
        means: K×H×W, 0–1, from `mean_masks`.
        kind: points, box, or both.
        count: points of a class; fewer are different where its core is smaller.
        pictures: N.
        slots: points a question.

    Returns:
        Points N×K×slots×2 and labels N×K×slots.
    """
    classes, height, width = means.shape
    points = torch.zeros(pictures, classes, slots, 2, device=means.device)
    labels = torch.full((pictures, classes, slots), float(PADDING), device=means.device)
    used = 0
    if kind != "box":
        for k, mean in enumerate(means):
            weight = (mean * core(mean)).flatten().expand(pictures, -1)
            places = torch.multinomial(weight, count, replacement=bool((weight[0] > 0).sum() < count))
            points[:, k, :count] = torch.stack([places % width, places // width], -1).float()
        labels[:, :, :count] = FOREGROUND
        used = count
    if kind != "points":
        boxes = torch.stack([core_box(mean) for mean in means]).repeat(pictures, 1)  # N·K 4
        corners = jittered(boxes, (height, width)).view(pictures, classes, 2, 2)
        points[:, :, used : used + 2] = corners
        labels[:, :, used : used + 2] = labels.new_tensor([BOX_TOP_LEFT, BOX_BOTTOM_RIGHT])
    return points, labels
