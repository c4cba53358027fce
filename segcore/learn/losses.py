"""Losses as functions of logits. One sigmoid channel (binary) or background and K softmax channels.

Shapes: logits N×K×H×W, target N×H×W class indices, labelled N bool (images without a mask do not count).
Every function returns a scalar; a mean over no labelled image is 0.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def cross_entropy(logits: Tensor, target: Tensor, labelled: Tensor) -> Tensor:
    """Binary cross-entropy for one channel, cross-entropy for several; mean over the labelled images' pixels."""
    if logits.shape[1] == 1:
        pixel = F.binary_cross_entropy_with_logits(logits[:, 0], target.to(logits.dtype), reduction="none")
    else:
        pixel = F.cross_entropy(logits, target.long(), reduction="none")
    return _labelled_mean(pixel.mean(dim=(1, 2)), labelled)


def iou_loss(logits: Tensor, target: Tensor, labelled: Tensor) -> Tensor:
    """1 − soft IoU, mean over foreground classes, then over labelled images; 1 is added above and below."""
    p, t = _foreground(logits, target)
    both, total = (p * t).sum((2, 3)), (p + t).sum((2, 3))
    return _labelled_mean((1 - (both + 1) / (total - both + 1)).mean(1), labelled)


def dice_loss(logits: Tensor, target: Tensor, labelled: Tensor) -> Tensor:
    """1 − soft Dice, mean over foreground classes (absent ones too), then over labelled images.

    Source: Milletari et al., V-Net, 3DV 2016, without squares; 1 is added above and below.
    """
    p, t = _foreground(logits, target)
    both, total = (p * t).sum((2, 3)), (p + t).sum((2, 3))
    return _labelled_mean((1 - (2 * both + 1) / (total + 1)).mean(1), labelled)


def segmentation_loss(logits: Tensor, target: Tensor, labelled: Tensor) -> Tensor:
    """The teacher's: BCE + IoU for one class, CE + Dice for several. Source: Li et al. 2024 for the binary case."""
    overlap = iou_loss if logits.shape[1] == 1 else dice_loss
    return cross_entropy(logits, target, labelled) + overlap(logits, target, labelled)


def distillation_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T² · KL(teacher/T ‖ student/T), mean over pixels and images; of Bernoullis for one channel.

    The cross terms are taken from logits, so a confident teacher gives no logarithm of 0.

    Source: Hinton et al., Distilling the Knowledge in a Neural Network, 2015; Li et al. 2024 apply it to pixels.
    """
    s, t = student.float() / temperature, teacher.float() / temperature
    if s.shape[1] == 1:
        # p·log(p/q) + (1 − p)·log((1 − p)/(1 − q)) with fewer passes over the pixels
        kl = F.softplus(s) - F.softplus(t) + torch.sigmoid(t) * (t - s)
    else:
        log_t = F.log_softmax(t, dim=1)
        kl = (log_t.exp() * (log_t - F.log_softmax(s, dim=1))).sum(1)
    return temperature**2 * kl.mean()


def _foreground(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities and one-hot truth of the foreground classes, both N×K×H×W float32."""
    if logits.shape[1] == 1:
        return torch.sigmoid(logits.float()), target[:, None].float()
    truth = F.one_hot(target.long(), logits.shape[1]).permute(0, 3, 1, 2)[:, 1:]
    return logits.float().softmax(1)[:, 1:], truth.float()


def _labelled_mean(per_image: Tensor, labelled: Tensor) -> Tensor:
    weight = labelled.to(per_image.dtype)
    return (per_image * weight).sum() / weight.sum().clamp(min=1)
