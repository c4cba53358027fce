"""Augmentation from MONAI: one geometry for image, mask and soft label; intensity for the image alone.

Where a warp leaves the picture, the image and the mask are background, and so is the soft label: a logit of 0 would
teach the student to be unsure there.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

OUTSIDE_LOGIT = 10.0
Sample = dict[str, Tensor]


class Augmentation:
    """Callable (sample, seed) → sample. The same seed gives the same result in any process, at any epoch.

    A sample holds `image` C×H×W float 0–1, `mask` H×W class indices and, if `with_soft`, `soft` K×H×W logits.
    Rotation to 15°, scale and shift to 15 and 6 %, gamma 0.7–1.5, noise and blur: what differs between two exposures
    of one patient, not between two organs.
    """

    def __init__(self, size_px: tuple[int, int], *, with_soft: bool, flip: bool) -> None:
        from monai import transforms as mt
        from monai.data import set_track_meta

        set_track_meta(False)
        self.with_soft = with_soft
        keys = ["image", "mask", *(["soft"] if with_soft else [])]
        affine = mt.RandAffined(
            keys=keys,
            prob=0.8,
            rotate_range=math.radians(15),
            scale_range=(0.15, 0.15),
            translate_range=tuple(0.06 * side for side in size_px),
            shear_range=(0.05, 0.05),
            mode=["bilinear", "nearest", *(["bilinear"] if with_soft else [])],
            padding_mode="zeros",
        )
        mirror = [mt.RandFlipd(keys=keys, prob=0.5, spatial_axis=1)] if flip else []
        intensity = [
            mt.RandAdjustContrastd(keys="image", prob=0.3, gamma=(0.7, 1.5)),
            mt.RandScaleIntensityd(keys="image", prob=0.3, factors=0.2),
            mt.RandGaussianNoised(keys="image", prob=0.3, std=0.05),
            mt.RandGaussianSmoothd(keys="image", prob=0.15, sigma_x=(0.3, 1.2), sigma_y=(0.3, 1.2)),
        ]
        self.chain = mt.Compose([affine, *mirror, *intensity])

    def __call__(self, sample: Sample, seed: int) -> Sample:
        self.chain.set_random_state(seed=seed)
        moved = {"image": sample["image"], "mask": sample["mask"][None].float()}
        if self.with_soft:
            shift = outside_logits(sample["soft"].shape[0])
            moved["soft"] = sample["soft"] - shift  # the warp pads with 0, which is then background
        moved = self.chain(moved)
        if self.with_soft:
            moved["soft"] = moved["soft"] + shift
        return {
            **sample,
            **moved,
            "image": moved["image"].clamp(0, 1),
            "mask": moved["mask"][0].round().to(torch.uint8),
        }


def outside_logits(channels: int) -> Tensor:
    """Logits that say background, K×1×1: −10 for one sigmoid channel, +10 for the first of several."""
    logits = torch.full((channels, 1, 1), -OUTSIDE_LOGIT)
    if channels > 1:
        logits[0] = OUTSIDE_LOGIT
    return logits


def sample_seed(seed: int, epoch: int, index: int) -> int:
    """A seed for one image in one epoch, independent of workers, batches and processes."""
    return int(np.random.SeedSequence([seed, epoch, index]).generate_state(1)[0])
