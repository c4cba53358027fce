"""Training data of clips: some consecutive slices of a volume, and how their masks are judged."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from segcore.dataset.case import Case, volumes_of
from segcore.learn.augment import Sample, random_intensity, random_warp, sample_seed
from segcore.learn.loader import TrainingSet
from segcore.learn.losses import cross_entropy, dice_loss
from segcore.learn.transforms import Transform
from segcore.picture.preprocess import InputSpec
from teacher.memory.slice_memory import unstack
from teacher.promptable import SLOTS
from teacher.prompts.training import first_prompts, overlap

_LARGE = 0.25  # of the volume's largest area: a clip's first slice, which is prompted, shows at least so much


class ClipSet(Dataset[Sample]):
    """As `TrainingSet`, an item a clip, its slices one below the other: `image` C×(L·H)×W, `mask` (L·H)×W.

    A clip starts on a slice that shows the thing well, and goes up or down from there; at an end of the volume it turns
    round. One geometry and one contrast for all its slices, as of one scan. A volume is as many clips as its slices
    fill, so that an epoch shows about as many slices as there are.
    """

    def __init__(
        self,
        cases: Sequence[Case],
        spec: InputSpec,
        *,
        classes: int,
        seed: int,
        length: int,
        transforms: Sequence[Transform],
    ) -> None:
        self.slices = TrainingSet(cases, spec, classes=classes, seed=seed, augment=None)
        self.seed, self.length, self.transforms = seed, length, transforms
        areas = (self.slices.masks > 0).sum((1, 2))
        self.volumes = [v for v in volumes_of(cases) if areas[v].any()]
        self.starts = [np.flatnonzero(areas[v] >= _LARGE * areas[v].max()) for v in self.volumes]
        self.clips = [n for n, v in enumerate(self.volumes) for _ in range(max(1, len(v) // length))]

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, item: tuple[int, int]) -> Sample:
        epoch, i = item
        random = np.random.default_rng(sample_seed(self.seed, epoch, i))
        volume, starts = self.volumes[self.clips[i]], self.starts[self.clips[i]]
        places = walk(int(random.choice(starts)), len(volume), self.length, up=bool(random.random() < 0.5))
        picked = [self.slices[epoch, volume[place]] for place in places]
        images = torch.stack([sample["image"] for sample in picked])  # L C H W
        masks = torch.stack([sample["mask"] for sample in picked])  # L H W
        # What `Augmentation` does to a picture, to all slices alike.
        flat, masks, _ = random_warp(images.flatten(0, 1), masks, None, self.transforms, random)
        images = random_intensity(flat.view_as(images), self.transforms, random).clamp(0, 1)
        return {
            "image": images.transpose(0, 1).flatten(1, 2).contiguous(),  # C L·H W
            "mask": masks.flatten(0, 1),
            "labelled": torch.tensor(True),
        }


def walk(start: int, count: int, length: int, *, up: bool) -> list[int]:
    """Neighbouring numbers from `start` on, among 0 … count − 1, back from the ends: 3, 4, 3, 2 of five."""
    places, step = [start], 1 if up else -1
    while len(places) < length:
        if not 0 <= places[-1] + step < count:
            step = -step
        places.append(places[-1] + step)
    return places


def clip_loss(network: nn.Module, images: Tensor, sample: Sample) -> Tensor:
    """BCE + Dice over each clip as one volume + squared error of the estimated IoU; a point or a box on slice 1.

    Args:
        network: a `ClipTracker`.
        images: N×3×(L·H)×W normalised.
        sample: a batch of `ClipSet`.
    """
    masks = unstack(sample["mask"][:, None])[:, :, 0]  # N L H W
    truth, has_object = pick_object(masks)
    points, labels = first_prompts(truth[:, 0], SLOTS)
    logits, iou = network(images, points, labels)
    full = F.interpolate(logits.float(), truth.shape[2:], mode="bilinear", align_corners=False)
    counted = sample["labelled"] & has_object
    strip, target = full.flatten(1, 2)[:, None], truth.flatten(1, 2)  # N 1 L·H W, N L·H W
    estimate = (
        (iou.float() - agreement(full, truth)).square().mean(1) * counted
    ).sum() / counted.sum().clamp(1)
    return cross_entropy(strip, target, counted) + dice_loss(strip, target, counted) + estimate


def pick_object(masks: Tensor) -> tuple[Tensor, Tensor]:
    """One class of each clip at random, among those that its first slice shows.

    Args:
        masks: N×L×H×W class indices.

    Returns:
        The thing, N×L×H×W bool, and which clips have one, N bool.
    """
    numbers = torch.arange(1, max(1, int(masks.max())) + 1, device=masks.device)
    there = (masks[:, :1] == numbers[:, None, None]).flatten(2).any(2)  # N K
    picked = (torch.rand(there.shape, device=masks.device) + there).argmax(1) + 1
    return masks == picked[:, None, None, None], there.any(1)


def agreement(logits: Tensor, truth: Tensor) -> Tensor:
    """IoU of each slice's mask with the truth, 1 where both are empty: N×L×H×W → N×L. What the IoU head estimates."""
    both_empty = ~((logits > 0) | truth).flatten(2).any(2)
    return overlap(logits, truth) + both_empty.float()
