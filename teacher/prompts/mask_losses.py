"""Losses of answers to prompts, a candidate at a time: logits N×M×H×W and one truth N×H×W give N×M numbers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_ALPHA, _GAMMA = 0.25, 2.0
_TINY = 1e-5  # what MONAI adds above and below a Dice


def focal(logits: Tensor, truth: Tensor, *, alpha: float | None = _ALPHA) -> Tensor:
    """Mean over pixels of cross-entropy × (1 − p)^2, p the probability of what is true.

    Args:
        logits: N×M×H×W.
        truth: N×H×W bool, or N×M×H×W for a truth a candidate.
        alpha: weight of the foreground, and 1 − alpha of the background; None for 1 and 1.

    Source: Lin et al., Focal Loss for Dense Object Detection, ICCV 2017, with its 0.25 and 2.
    """
    target = _each(logits, truth)
    entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    wrong = torch.sigmoid(logits * (1 - 2 * target))  # 1 − p
    pixel = entropy * wrong**_GAMMA
    if alpha is not None:
        pixel = pixel * (alpha * target + (1 - alpha) * (1 - target))
    return pixel.mean((2, 3))


def dice(logits: Tensor, truth: Tensor, *, smooth: float = 1.0) -> Tensor:
    """1 − soft Dice, `smooth` added above and below. Source: Milletari et al., V-Net, 3DV 2016, without squares."""
    p, t = torch.sigmoid(logits), _each(logits, truth)
    both, total = (p * t).sum((2, 3)), (p + t).sum((2, 3))
    return 1 - (2 * both + smooth) / (total + smooth)


def dice_focal(logits: Tensor, truth: Tensor) -> Tensor:
    """MONAI's `DiceFocalLoss(sigmoid=True)`: focal without weights + Dice with hardly any smoothing."""
    return dice(logits, truth, smooth=_TINY) + focal(logits, truth, alpha=None)


def overlap(logits: Tensor, truth: Tensor) -> Tensor:
    """IoU of each answer's mask, logits > 0, with the truth; 0 where both are empty. What the IoU head estimates."""
    mask, target = logits > 0, _each(logits, truth) > 0
    both, either = (mask & target).sum((2, 3)), (mask | target).sum((2, 3))
    return both / either.clamp(min=1)


def _each(logits: Tensor, truth: Tensor) -> Tensor:
    target = truth if truth.dim() == 4 else truth[:, None]
    return target.to(logits.dtype).expand_as(logits)
