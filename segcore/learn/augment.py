"""Augmentation: one geometry for image, mask and soft label; intensity for the image alone.

Own code, because it is the inner loop: MONAI's dictionary transforms with the same settings took as long as a small
student's forward and backward pass. Its functions are the reference that the tests compare with.

Where a warp leaves the picture, the image and the mask are background, and so is the soft label: a logit of 0 would
teach the student to be unsure there.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

OUTSIDE_LOGIT = 10.0
Sample = dict[str, Tensor]

_TURN_RAD, _SCALE, _SHIFT, _SHEAR = math.radians(15), 0.15, 0.06, 0.05


class Augmentation:
    """Callable (sample, seed) → sample. The same seed gives the same result in any process, at any epoch.

    A sample holds `image` C×H×W float 0–1, `mask` H×W class indices and, if `with_soft`, `soft` K×H×W logits; none of
    them is changed in place. Rotation to 15°, scale and shift to 15 and 6 %, gamma 0.7–1.5, noise and blur: what
    differs between two exposures of one patient, not between two organs.
    """

    def __init__(self, size_px: tuple[int, int], *, with_soft: bool, flip: bool) -> None:
        self.size_px, self.with_soft, self.flip = size_px, with_soft, flip

    def __call__(self, sample: Sample, seed: int) -> Sample:
        random = np.random.default_rng(seed)
        matrix = random_geometry(random, self.size_px) if random.random() < 0.8 else np.eye(3)
        if self.flip and random.random() < 0.5:
            matrix = matrix @ np.diag((1.0, -1.0, 1.0))
        soft = sample["soft"] if self.with_soft else None
        image, mask = sample["image"], sample["mask"]
        if not np.array_equal(matrix, np.eye(3)):
            image, mask, soft = warp(image, mask, soft, sampling_grid(matrix, self.size_px))
        moved = {"image": random_intensity(image, random).clamp(0, 1), "mask": mask}
        return {**sample, **moved, **({} if soft is None else {"soft": soft})}


def random_geometry(random: np.random.Generator, size_px: tuple[int, int]) -> np.ndarray:
    """A rotation, shear, shift and scale: 3×3, from (row, column, 1) in pixels from the centre to where to look."""
    angle = random.uniform(-_TURN_RAD, _TURN_RAD)
    shear = random.uniform(-_SHEAR, _SHEAR, 2)
    shift = random.uniform(-_SHIFT, _SHIFT, 2) * size_px
    scale = 1 + random.uniform(-_SCALE, _SCALE, 2)
    cos, sin = math.cos(angle), math.sin(angle)
    rotated = np.array([[cos, -sin], [sin, cos]]) @ [[1, 0], [shear[1], 1]] @ [[1, shear[0]], [0, 1]]
    matrix = np.eye(3)
    matrix[:2, :2], matrix[:2, 2] = rotated * scale, rotated @ shift
    return matrix


def sampling_grid(matrix: np.ndarray, size_px: tuple[int, int]) -> Tensor:
    """The matrix as `grid_sample` wants it: 1×H×W×2, (x, y) of every pixel, −1 to 1 from edge to edge."""
    height, width = size_px
    rows, columns = np.arange(height) - (height - 1) / 2, np.arange(width) - (width - 1) / 2
    grid = torch.empty(1, height, width, 2)
    for place, axis, side in ((0, 1, width), (1, 0, height)):
        by_row = torch.from_numpy(((matrix[axis, 0] * rows + matrix[axis, 2]) * 2 / side).astype(np.float32))
        by_column = torch.from_numpy((matrix[axis, 1] * columns * 2 / side).astype(np.float32))
        torch.add(by_row[:, None], by_column[None, :], out=grid[0, :, :, place])
    return grid


def warp(
    image: Tensor, mask: Tensor, soft: Tensor | None, grid: Tensor
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Image and soft label bilinear, in one call; the mask nearest; background beyond the picture.

    Args:
        image: C×H×W float.
        mask: H×W uint8.
        soft: K×H×W float logits, or None.
        grid: from `sampling_grid`.
    """
    # As float, which is all that grid_sample takes: nearest keeps the class numbers whole.  1 1 H W
    turned = F.grid_sample(mask[None, None].float(), grid, mode="nearest", align_corners=False)
    mask = turned[0, 0].to(torch.uint8)
    if soft is None:
        return F.grid_sample(image[None], grid, align_corners=False)[0], mask, None
    shift = outside_logits(soft.shape[0])
    planes = torch.cat([image, soft - shift])  # C+K H W; grid_sample pads with 0, which is then background
    planes = F.grid_sample(planes[None], grid, align_corners=False)[0]
    return planes[: len(image)], mask, planes[len(image) :] + shift


def random_intensity(image: Tensor, random: np.random.Generator) -> Tensor:
    """Gamma, brightness and noise, each for three in ten images, and blur for three in twenty."""
    if random.random() < 0.3:
        image = adjust_gamma(image, random.uniform(0.7, 1.5))
    if random.random() < 0.3:
        image = image * random.uniform(0.8, 1.2)
    if random.random() < 0.3:
        generator = torch.Generator().manual_seed(int(random.integers(2**63)))
        image = image + random.uniform(0, 0.05) * torch.randn(image.shape, generator=generator)
    if random.random() < 0.15:
        image = blur(image, random.uniform(0.3, 1.2), random.uniform(0.3, 1.2))
    return image


def adjust_gamma(image: Tensor, gamma: float) -> Tensor:
    """Takes x to xᵞ between the image's own darkest and brightest value."""
    low, high = image.aminmax()
    span = high - low
    return ((image - low) / (span + 1e-7)) ** gamma * span + low


def blur(image: Tensor, rows_px: float, columns_px: float) -> Tensor:
    """Gaussian blur with standard deviations in pixels along rows' and columns' axis; black beyond the picture."""
    planes = image[:, None]  # C 1 H W: every channel by itself
    for sigma, shape in ((rows_px, (1, 1, -1, 1)), (columns_px, (1, 1, 1, -1))):
        reach = int(4 * sigma + 0.5)
        edges = torch.arange(-reach - 0.5, reach + 1) / (math.sqrt(2) * sigma)
        kernel = torch.diff(torch.erf(edges)) / 2  # the Gaussian's share within each pixel
        planes = F.conv2d(planes, kernel.view(shape), padding="same")
    return planes[:, 0]


def outside_logits(channels: int) -> Tensor:
    """Logits that say background, K×1×1: −10 for one sigmoid channel, +10 for the first of several."""
    logits = torch.full((channels, 1, 1), -OUTSIDE_LOGIT)
    if channels > 1:
        logits[0] = OUTSIDE_LOGIT
    return logits


def sample_seed(seed: int, epoch: int, index: int) -> int:
    """A seed for one image in one epoch, independent of workers, batches and processes."""
    return int(np.random.SeedSequence([seed, epoch, index]).generate_state(1)[0])
