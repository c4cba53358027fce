"""Losses as functions of logits. One sigmoid channel (binary) or background and K softmax channels.

Shapes: logits N×K×H×W, target N×H×W class indices, labelled N bool (images without a mask do not count).
Every function returns a scalar, but `distillation_loss` a number an image; a mean over no labelled image is 0.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_BOUNDARY_PX = 31


def cross_entropy(logits: Tensor, target: Tensor, labelled: Tensor, weights: Tensor | None = None) -> Tensor:
    """Binary cross-entropy for one channel, cross-entropy for several; mean over the labelled images' pixels.

    `weights` N×H×W makes it each image's weighted mean.
    """
    return _labelled_mean(_image_entropy(logits, target, weights), labelled)


def iou_loss(logits: Tensor, target: Tensor, labelled: Tensor, weights: Tensor | None = None) -> Tensor:
    """1 − soft IoU, mean over foreground classes, then over labelled images; 1 is added above and below.

    `weights`, one number a pixel and foreground class (N×K×H×W), makes pixels count more or less.
    """
    p, t = _foreground_probabilities(logits, target)
    w = 1.0 if weights is None else weights
    both, total = (w * p * t).sum((2, 3)), (w * (p + t)).sum((2, 3))
    return _labelled_mean((1 - (both + 1) / (total - both + 1)).mean(1), labelled)


def dice_loss(logits: Tensor, target: Tensor, labelled: Tensor) -> Tensor:
    """1 − soft Dice, mean over foreground classes (absent ones too), then over labelled images.

    Source: Milletari et al., V-Net, 3DV 2016, without squares; 1 is added above and below.
    """
    p, t = _foreground_probabilities(logits, target)
    both, total = (p * t).sum((2, 3)), (p + t).sum((2, 3))
    return _labelled_mean((1 - (2 * both + 1) / (total + 1)).mean(1), labelled)


def segmentation_loss(
    logits: Tensor, target: Tensor, labelled: Tensor, weights: Tensor | None = None
) -> Tensor:
    """The teacher's: BCE + IoU for one class, CE + Dice for several; `weights` N×H×W are the cross-entropy's.

    Source: Li et al. 2024 for the binary case.
    """
    overlap = iou_loss if logits.shape[1] == 1 else dice_loss
    return cross_entropy(logits, target, labelled, weights) + overlap(logits, target, labelled)


def boundary_loss(logits: Tensor, target: Tensor, labelled: Tensor, weights: Tensor | None = None) -> Tensor:
    """SAM2-UNet's: cross-entropy + IoU, in which pixels near a boundary weigh up to six times as much.

    Of several classes, each one's IoU has the weights of its own mask, and the cross-entropy of a pixel the largest
    of them, times its `weights` N×H×W.

    Source: Wei et al., F3Net, AAAI 2020; Xiong et al., SAM2-UNet, 2024, both for one class. Their code lets PyTorch
    average the BCE before it is weighted (`reduce="none"` counts as true), which takes the weights out again.
    """
    near = boundary_weights(_class_masks(target, logits.shape[1]))
    of_pixel = near.amax(1) if weights is None else near.amax(1) * weights
    return cross_entropy(logits, target, labelled, of_pixel) + iou_loss(logits, target, labelled, near)


def boundary_weights(masks: Tensor) -> Tensor:
    """1 + 5·|mean of the mask around the pixel − mask|: 1 far from a boundary, 3.4 along a straight one.

    The mean is over 31×31 pixels of the network's input, whatever its size, and a mask is 0 beyond the picture.

    Args:
        masks: N×K×H×W float, 0 or 1.

    Source: as `boundary_loss`; there at 352 px.
    """
    reach = _BOUNDARY_PX // 2
    # rows, then columns: the same mean as of the square, in a fifteenth of the additions
    mean = F.avg_pool2d(masks, (_BOUNDARY_PX, 1), 1, (reach, 0))
    mean = F.avg_pool2d(mean, (1, _BOUNDARY_PX), 1, (0, reach))
    return 1 + 5 * (mean - masks).abs()


def distillation_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T² · KL(teacher/T ‖ student/T) of each image, mean over its pixels: N; of Bernoullis for one channel.

    The cross terms are taken from logits, so a confident teacher gives no logarithm of 0.

    Source: Hinton et al., Distilling the Knowledge in a Neural Network, 2015; Li et al. 2024 apply it to pixels.
    """
    s, t = student.float() / temperature, teacher.float() / temperature
    if s.shape[1] == 1:
        # p·log(p/q) + (1 − p)·log((1 − p)/(1 − q)) with fewer passes over the pixels
        kl = F.softplus(s) - F.softplus(t) + torch.sigmoid(t) * (t - s)
    else:
        log_t = F.log_softmax(t, dim=1)
        kl = (log_t.exp() * (log_t - F.log_softmax(s, dim=1))).sum(1, keepdim=True)
    return temperature**2 * kl.flatten(1).mean(1)


def taught_loss(
    student: Tensor,
    target: Tensor,
    labelled: Tensor,
    teacher: Tensor,
    *,
    alpha: float,
    temperature: float,
    dice_weight: float,
    weights: Tensor | None = None,
) -> Tensor:
    """A student's loss with a teacher: each image has one target, mixed of its mask and the teacher's answer.

    Of an image with a mask, a·CE(mask) + (1−a)·T²·KL(teacher/T ‖ student/T) with a = α, and of one without, a = 0: the
    teacher alone. At T = 1 the two terms are, but for a constant, the cross-entropy against a·mask + (1−a)·teacher;
    the Dice loss is taken against that mixture, too, so that an image without a mask teaches shapes as well.

    Args:
        student: logits N×K×H×W.
        target: masks N×H×W, of which those of unlabelled images do not count.
        labelled: N bool.
        teacher: logits N×K×H×W.
        alpha: the mask's share of a labelled image's target.
        temperature: softens both sides of the KL term.
        dice_weight: of the Dice term.
        weights: N×H×W, of the pixels in the masks' cross-entropy.

    Source: Hinton et al. 2015 and Li et al. 2024 for the first two terms, there with one α for all images, which are
    all labelled.
    """
    share = alpha * labelled.to(torch.float32)  # N
    ce = _image_entropy(student, target, weights)  # N
    kl = distillation_loss(student, teacher, temperature)  # N
    p, truth = _foreground_probabilities(student, target)
    taught = torch.sigmoid(teacher.float()) if teacher.shape[1] == 1 else teacher.float().softmax(1)[:, 1:]
    mixed = share.view(-1, 1, 1, 1) * truth + (1 - share).view(-1, 1, 1, 1) * taught  # N K H W
    both, total = (p * mixed).sum((2, 3)), (p + mixed).sum((2, 3))
    dice = (1 - (2 * both + 1) / (total + 1)).mean(1)  # N
    return (share * ce + (1 - share) * kl + dice_weight * dice).mean()


def _image_entropy(logits: Tensor, target: Tensor, weights: Tensor | None = None) -> Tensor:
    """Cross-entropy of each image, (weighted) mean over its pixels: N."""
    if logits.shape[1] == 1:
        pixel = F.binary_cross_entropy_with_logits(logits[:, 0], target.to(logits.dtype), reduction="none")
    else:
        pixel = F.cross_entropy(logits, target.long(), reduction="none")
    if weights is None:
        return pixel.mean(dim=(1, 2))
    return (pixel * weights).sum((1, 2)) / weights.sum((1, 2))


def _foreground_probabilities(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities and one-hot truth of the foreground classes, both N×K×H×W float32."""
    truth = _class_masks(target, logits.shape[1])
    if logits.shape[1] == 1:
        return torch.sigmoid(logits.float()), truth
    return logits.float().softmax(1)[:, 1:], truth


def _class_masks(target: Tensor, channels: int) -> Tensor:
    """The foreground classes' masks, N×K×H×W float32, for logits of so many channels."""
    if channels == 1:
        return target[:, None].float()
    return F.one_hot(target.long(), channels).permute(0, 3, 1, 2)[:, 1:].float()


def _labelled_mean(per_image: Tensor, labelled: Tensor) -> Tensor:
    weight = labelled.to(per_image.dtype)
    return (per_image * weight).sum() / weight.sum().clamp(min=1)
