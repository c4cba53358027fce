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
    return temperature**2 * _pixel_kl(student.float() / temperature, teacher.float() / temperature).mean()


def boundary_loss(
    student: Tensor, teacher: Tensor, temperature: float, *, extra: float = 5.0, window_px: int = 31
) -> Tensor:
    """`distillation_loss` with pixels near the teacher's boundaries weighted up to 1 + `extra`.

    The weight is 1 + extra·|mean of the mask in the window − mask|, of the foreground class where that is largest.

    Source: the weights of Wei et al., F3Net, AAAI 2020, which SAM2-UNet takes for its loss; here the mask is the
    teacher's, so that images without one count too, and a window at the picture's edge means over what is inside.
    """
    hard = (teacher > 0).float() if teacher.shape[1] == 1 else _one_hot(teacher.argmax(1), teacher.shape[1])
    # rows, then columns: the same mean as of the square window, in a fifteenth of the sums
    rows = F.avg_pool2d(hard, (window_px, 1), 1, (window_px // 2, 0), count_include_pad=False)
    near = F.avg_pool2d(rows, (1, window_px), 1, (0, window_px // 2), count_include_pad=False)
    weight = 1 + extra * (near - hard).abs().amax(1)
    kl = _pixel_kl(student.float() / temperature, teacher.float() / temperature)
    return temperature**2 * ((weight * kl).sum((1, 2)) / weight.sum((1, 2))).mean()


def channel_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Channel-wise distillation: T² · KL(teacher ‖ student) of softmaxes over each channel's positions, mean over all.

    A pixel's mean over the channels is taken off first: it changes no probability of a pixel, but would change this
    loss. One sigmoid channel z is seen as its two softmax channels, −z/2 and z/2.

    Source: Shu et al., Channel-wise Knowledge Distillation for Dense Prediction, ICCV 2021.
    """
    s, t = (_centred(x.float()).flatten(2) / temperature for x in (student, teacher))
    log_t = F.log_softmax(t, dim=2)
    return temperature**2 * (log_t.exp() * (log_t - F.log_softmax(s, dim=2))).sum(2).mean()


def soft_dice_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Dice loss against probabilities: 1 − (Σp + Σt − Σ|p − t|) / (Σp + Σt), mean over foreground classes and images.

    It is `dice_loss` where the teacher is certain and, unlike that, 0 for an equal teacher that is not. 1 is added
    above and below.

    Source: Wang et al., Dice Semimetric Losses: Optimizing the Dice Score with Soft Labels, MICCAI 2023.
    """
    p, t = _foreground_of(student), _foreground_of(teacher)
    total, apart = (p + t).sum((2, 3)), (p - t).abs().sum((2, 3))
    return (1 - (total - apart + 1) / (total + 1)).mean()


def feature_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared distance of the features' directions, 0 (equal) to 4 (opposite), mean over positions and images.

    Args:
        student: N×D×h×w, projected to the teacher's D.
        teacher: N×D×H×W; the student's are resized to it.
    """
    s = F.interpolate(student.float(), teacher.shape[2:], mode="bilinear", align_corners=False)
    return (F.normalize(s, dim=1) - F.normalize(teacher.float(), dim=1)).square().sum(1).mean()


def _pixel_kl(s: Tensor, t: Tensor) -> Tensor:
    """KL(teacher ‖ student) of each pixel, N×H×W, from logits."""
    if s.shape[1] == 1:
        # p·log(p/q) + (1 − p)·log((1 − p)/(1 − q)) with fewer passes over the pixels
        return (F.softplus(s) - F.softplus(t) + torch.sigmoid(t) * (t - s))[:, 0]
    log_t = F.log_softmax(t, dim=1)
    return (log_t.exp() * (log_t - F.log_softmax(s, dim=1))).sum(1)


def _centred(logits: Tensor) -> Tensor:
    two = torch.cat([torch.zeros_like(logits), logits], 1) if logits.shape[1] == 1 else logits
    return two - two.mean(1, keepdim=True)


def _foreground(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities and one-hot truth of the foreground classes, both N×K×H×W float32."""
    truth = target[:, None].float() if logits.shape[1] == 1 else _one_hot(target, logits.shape[1])
    return _foreground_of(logits), truth


def _foreground_of(logits: Tensor) -> Tensor:
    """Probabilities of the foreground classes, N×K×H×W float32."""
    return torch.sigmoid(logits.float()) if logits.shape[1] == 1 else logits.float().softmax(1)[:, 1:]


def _one_hot(target: Tensor, channels: int) -> Tensor:
    """Class indices N×H×W to the foreground classes' masks, N×K×H×W float32."""
    return F.one_hot(target.long(), channels).permute(0, 3, 1, 2)[:, 1:].float()


def _labelled_mean(per_image: Tensor, labelled: Tensor) -> Tensor:
    weight = labelled.to(per_image.dtype)
    return (per_image * weight).sum() / weight.sum().clamp(min=1)
