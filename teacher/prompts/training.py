"""How a promptable teacher is trained without a human: what it is asked, how answers are judged, and interaction.

* Prompts are simulated from a case's own mask (a box or a point that a reader could have given, a point where an answer
  is wrong), or drawn from the mean training masks, without the case's own.
* The losses take one candidate at a time: logits N×M×H×W and one truth N×H×W give N×M numbers.
* `InteractiveRounds` asks, looks where the answer is wrong, and asks again.

Points are (x, y) in pixels, the centre of the first pixel at (0, 0). Random numbers are torch's, on the masks' device:
the training loop seeds them with (seed, epoch).

Source: Kirillov et al., Segment Anything, ICCV 2023, appendix A; Cheng et al., SAM-Med2D, 2023.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segcore.learn.augment import Sample
from segcore.measure.shapes import connected_parts
from segcore.picture.prompts import BACKGROUND, BOX_BOTTOM_RIGHT, BOX_TOP_LEFT, FOREGROUND, MASK_CLIP, PADDING
from teacher.promptable import SLOTS, PromptedSam2, best
from teacher.prompts.mean_mask import core, core_box
from teacher.sam2_model import Answers
from teacher.settings import AutomaticPrompt
from teacher.system import Loss

SMALLEST_SHARE = 0.00153
"""Of the image: a smaller mask is no target. Source: Cheng et al., SAM-Med2D, 2023 (100 pixels of 256×256)."""
_JITTER, _JITTER_SHARE = 0.1, 20 / 1024
"""Standard deviation of a box's corner as a share of its side, and the most it moves as a share of the image's.

Source: Kirillov et al., Segment Anything, ICCV 2023, appendix A: 10 % of the side, at most 20 pixels of 1024.
"""
_FOCAL_ALPHA, _FOCAL_GAMMA = 0.25, 2.0
_TINY_SMOOTH = 1e-5  # what MONAI adds above and below a Dice
_FOCAL_WEIGHT, _DICE_WEIGHT, _IOU_WEIGHT = 20.0, 1.0, 1.0
"""Weights of the loss. Source: Kirillov et al. 2023, appendix A; SAM-Med2D keeps them."""


# What is asked.


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
    # 1 more for whoever may be picked, and a random number below 1: the largest is one of them by chance.
    picked = (torch.rand(areas.shape, device=mask.device) + large).argmax(1)  # N
    objects = mask == (picked + 1)[:, None, None]
    chance = torch.rand(len(mask), 2, device=mask.device).tolist()
    parts = [
        _large_part(one, which) if whole < 0.5 else one
        for one, (whole, which) in zip(objects, chance, strict=True)
    ]
    return torch.stack(parts), large.any(1)


def points_inside(mask: Tensor, count: int) -> Tensor:
    """Different pixels of each mask N×H×W bool, all as likely: N×count×2; beside it where it has too few."""
    order = (torch.rand(mask.shape, device=mask.device) + mask).flatten(1)  # N H·W, those inside over 1
    return _to_points(order.topk(count, dim=1).indices, mask.shape[2])


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
    return torch.cat([torch.stack([_first_true(mask.any(d)) for d in (1, 2)], 1),
                      torch.stack([_last_true(mask.any(d)) for d in (1, 2)], 1)], 1).float()  # fmt: skip


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
    point = F.pad(points_inside(truth, 1), (0, 0, 0, 1))
    points[:, :2] = torch.where(by_box[:, None, None], corners, point)
    of_box = labels.new_tensor([BOX_TOP_LEFT, BOX_BOTTOM_RIGHT])
    of_point = labels.new_tensor([FOREGROUND, PADDING])
    labels[:, :2] = torch.where(by_box[:, None], of_box, of_point)
    return points, labels


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
            points[:, k, :count] = _to_points(places, width)
        labels[:, :, :count] = FOREGROUND
        used = count
    if kind != "points":
        boxes = torch.stack([core_box(mean) for mean in means]).repeat(pictures, 1)  # N·K 4
        corners = jittered(boxes, (height, width)).view(pictures, classes, 2, 2)
        points[:, :, used : used + 2] = corners
        labels[:, :, used : used + 2] = labels.new_tensor([BOX_TOP_LEFT, BOX_BOTTOM_RIGHT])
    return points, labels


def _large_part(mask: Tensor, which: float) -> Tensor:
    """One of the large connected parts of a mask H×W bool; the mask where it has fewer than two. `which` is 0–1."""
    numbered = connected_parts(mask.cpu().numpy())
    areas = np.bincount(numbered.ravel())[1:]
    large = np.flatnonzero(areas >= SMALLEST_SHARE * mask.numel()) + 1
    if len(large) < 2:
        return mask
    return torch.from_numpy(numbered == large[int(which * len(large))]).to(mask.device)


def _to_points(flat: Tensor, width: int) -> Tensor:
    """Indices into H·W → (x, y), a last axis of 2."""
    return torch.stack([flat % width, flat // width], -1).float()


def _first_true(line: Tensor) -> Tensor:
    """Index of the first True of each row of N×L."""
    return line.int().argmax(1)


def _last_true(line: Tensor) -> Tensor:
    return torch.where(line.any(1), line.shape[1] - 1 - line.flip(1).int().argmax(1), 0)


# How one answer is judged.


def focal(logits: Tensor, truth: Tensor, *, alpha: float | None = _FOCAL_ALPHA) -> Tensor:
    """Mean over pixels of cross-entropy × (1 − p)^2, p the probability of what is true.

    Args:
        logits: N×M×H×W.
        truth: N×H×W bool, or N×M×H×W for a truth a candidate.
        alpha: weight of the foreground, and 1 − alpha of the background; None for 1 and 1.

    Source: Lin et al., Focal Loss for Dense Object Detection, ICCV 2017, with its 0.25 and 2.
    """
    target = _truth_per_candidate(logits, truth)
    entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    wrong = torch.sigmoid(logits * (1 - 2 * target))  # 1 − p
    pixel = entropy * wrong**_FOCAL_GAMMA
    if alpha is not None:
        pixel = pixel * (alpha * target + (1 - alpha) * (1 - target))
    return pixel.mean((2, 3))


def dice(logits: Tensor, truth: Tensor, *, smooth: float = 1.0) -> Tensor:
    """1 − soft Dice, `smooth` added above and below. Source: Milletari et al., V-Net, 3DV 2016, without squares."""
    p, t = torch.sigmoid(logits), _truth_per_candidate(logits, truth)
    both, total = (p * t).sum((2, 3)), (p + t).sum((2, 3))
    return 1 - (2 * both + smooth) / (total + smooth)


def dice_focal(logits: Tensor, truth: Tensor) -> Tensor:
    """MONAI's `DiceFocalLoss(sigmoid=True)`: focal without weights + Dice with hardly any smoothing."""
    return dice(logits, truth, smooth=_TINY_SMOOTH) + focal(logits, truth, alpha=None)


def overlap(logits: Tensor, truth: Tensor) -> Tensor:
    """IoU of each answer's mask, logits > 0, with the truth; 0 where both are empty. What the IoU head estimates."""
    mask, target = logits > 0, _truth_per_candidate(logits, truth) > 0
    both, either = (mask & target).sum((2, 3)), (mask | target).sum((2, 3))
    return both / either.clamp(min=1)


def _truth_per_candidate(logits: Tensor, truth: Tensor) -> Tensor:
    target = truth if truth.dim() == 4 else truth[:, None]
    return target.to(logits.dtype).expand_as(logits)


# Interaction: asking, and asking again where the answer was wrong.


class InteractiveRounds(nn.Module):
    """A promptable network in training: pictures N×3×H×W and objects N×H×W bool → the answers of each round.

    The features are made once; each round's prompt holds the points so far and the last answer's logits, both as data:
    no gradient flows back to the round before.
    """

    def __init__(self, model: PromptedSam2, rounds: int) -> None:
        super().__init__()
        self.model, self.rounds = model, rounds

    def forward(self, x: Tensor, truth: Tensor) -> list[Answers]:
        embedding = self.model.encode(x)
        points, labels = first_prompts(truth, SLOTS)
        answers = [self.model.sam.decode(embedding, points, labels)]
        # Slots 0 and 1 hold the first prompt, a box's corners or a point.
        for slot in range(2, self.rounds + 1):
            before = answers[-1]
            # As it is used later: the best of the three by estimated IoU; the single-mask answer (0) is not among them.
            last = (
                best(Answers(before.logits[:, 1:], before.iou[:, 1:])).detach().float()[:, None]
            )  # N 1 H/4 W/4
            last = last.clamp(-MASK_CLIP, MASK_CLIP)
            found = F.interpolate(last, truth.shape[1:], mode="bilinear", align_corners=False)[:, 0] > 0
            points, labels = points.clone(), labels.clone()  # autograd keeps those of the round before
            points[:, slot : slot + 1], labels[:, slot : slot + 1] = error_points(found, truth)
            answers.append(self.model.sam.decode(embedding, points, labels, last))
        return answers


def interactive_loss(classes: int) -> Loss:
    """Focal (20) + Dice (1) + squared error of the estimated IoU (1), mean over rounds, then pictures with an object.

    Of three candidates the one with the least focal + Dice counts, so that they may differ, and every candidate's
    estimate; the single-mask answer learns beside them, so that the decoder stays whole.
    """

    def loss(network: nn.Module, images: Tensor, sample: Sample) -> Tensor:
        truth, has_object = pick_objects(sample["mask"], classes)
        rounds = [_answers_loss(answers, truth) for answers in network(images, truth)]
        weight = (has_object & sample["labelled"]).float()
        return (torch.stack(rounds).mean(0) * weight).sum() / weight.sum().clamp(min=1)

    return loss


def _answers_loss(answers: Answers, truth: Tensor) -> Tensor:
    """The loss of one round's answers: N numbers."""
    logits = F.interpolate(answers.logits.float(), truth.shape[1:], mode="bilinear", align_corners=False)
    mask = _FOCAL_WEIGHT * focal(logits, truth) + _DICE_WEIGHT * dice(logits, truth)  # N 4
    estimate = _IOU_WEIGHT * (answers.iou.float() - overlap(logits, truth)).square()
    several = mask[:, 1:].min(1).values + estimate[:, 1:].mean(1)
    return (mask[:, 0] + estimate[:, 0] + several) / 2
