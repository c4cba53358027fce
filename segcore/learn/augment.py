"""Augmentation: one geometry for image, mask and soft label; intensity for the image alone.

`segcore.learn.transforms` says what may be asked for; this carries it out. All geometry of a list is one matrix, and a
displacement where it is elastic, so that a picture is sampled once; it comes first, whatever its place in the list.
Then the intensities in the list's order, where colour transforms in a row are one matrix too.

Own code, because it is the inner loop: MONAI's dictionary transforms with the same settings took as long as a small
student's forward and backward pass. Its functions are the reference that the tests compare with.

Where a warp leaves the picture, the image and the mask are background, and so is the soft label: a logit of 0 would
teach the student to be unsure there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from segcore.learn.transforms import (
    Affine,
    Blur,
    Brightness,
    Contrast,
    Elastic,
    Flip,
    Gamma,
    Hue,
    Noise,
    Rotate,
    Saturation,
    Scale,
    Shear,
    Shift,
    Transform,
)

OUTSIDE_LOGIT = 10.0
Sample = dict[str, Tensor]

_LINEAR = (Affine, Rotate, Scale, Shift, Shear)
_COLOUR = (Brightness, Contrast, Saturation, Hue)
_LUMA = np.array([0.299, 0.587, 0.114])
"""Of red, green and blue in a pixel's grey. Source: ITU-R BT.601."""


class Augmentation:
    """Callable (sample, seed) → sample. The same seed gives the same result in any process, at any epoch.

    A sample holds `image` C×H×W float 0–1, `mask` H×W class indices and, if `with_soft`, `soft` K×H×W logits; none of
    them is changed in place.
    """

    def __init__(self, transforms: Sequence[Transform], *, with_soft: bool) -> None:
        self.transforms, self.with_soft = tuple(transforms), with_soft

    def __call__(self, sample: Sample, seed: int) -> Sample:
        random = np.random.default_rng(seed)
        soft = sample["soft"] if self.with_soft else None
        image, mask, soft = random_warp(sample["image"], sample["mask"], soft, self.transforms, random)
        moved = {"image": random_intensity(image, self.transforms, random).clamp(0, 1), "mask": mask}
        return {**sample, **moved, **({} if soft is None else {"soft": soft})}


def random_warp(
    image: Tensor,
    mask: Tensor,
    soft: Tensor | None,
    transforms: Sequence[Transform],
    random: np.random.Generator,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Draws the list's geometry and moves everything by it; shapes as in `warp`."""
    size_px = (image.shape[-2], image.shape[-1])
    matrix = np.eye(3)
    displacement: Tensor | None = None
    for transform in transforms:
        if isinstance(transform, Flip):
            signs = [-1.0 if axis in transform.axes and random.random() < transform.probability else 1.0
                     for axis in ("left-right", "up-down")]  # fmt: skip
            if signs != [1.0, 1.0]:
                matrix = matrix @ np.diag((signs[1], signs[0], 1.0))
        elif isinstance(transform, _LINEAR):
            if random.random() < transform.probability:
                matrix = matrix @ random_geometry(random, size_px, transform.affine)
        elif isinstance(transform, Elastic) and random.random() < transform.probability:
            drawn = random_displacement(random, size_px, transform)
            displacement = drawn if displacement is None else displacement + drawn
    if displacement is None and np.array_equal(np.abs(matrix), np.eye(3)):
        # Nothing, or mirrored: copied, which is exact.
        axes = [axis for axis in (0, 1) if matrix[axis, axis] < 0]
        return (
            _flip_planes(image, axes),
            _flip_planes(mask, axes),
            None if soft is None else _flip_planes(soft, axes),
        )
    grid = sampling_grid(matrix, size_px)
    return warp(image, mask, soft, grid if displacement is None else grid + displacement)


def _flip_planes(planes: Tensor, axes: Sequence[int]) -> Tensor:
    """Mirrors the last two axes, of which 0 is up-down; the tensor itself where there are none."""
    return planes.flip([axis - 2 for axis in axes]) if axes else planes


def random_geometry(random: np.random.Generator, size_px: tuple[int, int], ranges: Affine) -> np.ndarray:
    """A rotation, shear, shift and scale: 3×3, from (row, column, 1) in pixels from the centre to where to look."""
    most = math.radians(ranges.degrees)
    angle = random.uniform(-most, most)
    shear = random.uniform(-ranges.shear, ranges.shear, 2)
    shift = random.uniform(-ranges.shift, ranges.shift, 2) * size_px
    scale = 1 + random.uniform(-ranges.scale, ranges.scale, 2)
    cos, sin = math.cos(angle), math.sin(angle)
    rotated = np.array([[cos, -sin], [sin, cos]]) @ [[1, 0], [shear[1], 1]] @ [[1, shear[0]], [0, 1]]
    matrix = np.eye(3)
    matrix[:2, :2], matrix[:2, 2] = rotated * scale, rotated @ shift
    return matrix


def random_displacement(random: np.random.Generator, size_px: tuple[int, int], elastic: Elastic) -> Tensor:
    """Where each pixel looks, relative to where it would: 1×H×W×2, (x, y) in the grid's units of half a side.

    Cubic B-splines are weighted means of their control points: no displacement is larger than the largest of those.

    Source: Rueckert et al., Nonrigid Registration Using Free-Form Deformations, IEEE TMI 1999.
    """
    points = elastic.cells + 3
    # A half side is 1 in the grid, so a share of the whole side is twice that.
    lattice = random.uniform(-2 * elastic.by, 2 * elastic.by, (2, points, points)).astype(np.float32)
    rows, columns = (_spline_weights(side, elastic.cells) for side in size_px)  # H P, W P
    return (rows @ torch.from_numpy(lattice) @ columns.T).permute(1, 2, 0)[None]


@lru_cache(maxsize=16)
def _spline_weights(side_px: int, cells: int) -> Tensor:
    """Weights of `cells` + 3 control points at every pixel's middle, H×P; each row sums to 1."""
    place = (np.arange(side_px) + 0.5) / side_px * cells
    first = np.floor(place).astype(int)
    u = place - first
    weights = np.zeros((side_px, cells + 3), np.float32)
    parts = ((1 - u) ** 3, 3 * u**3 - 6 * u**2 + 4, -3 * u**3 + 3 * u**2 + 3 * u + 1, u**3)
    for offset, part in enumerate(parts):
        weights[np.arange(side_px), first + offset] = part / 6
    return torch.from_numpy(weights)


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
        mask: H×W uint8, or L×H×W: those of several slices.
        soft: K×H×W float logits, or None.
        grid: from `sampling_grid`.
    """
    # As float, which is all that grid_sample takes: nearest keeps the class numbers whole.
    planes = mask.reshape(1, -1, *mask.shape[-2:])  # 1 L H W
    turned = F.grid_sample(planes.float(), grid, mode="nearest", align_corners=False)
    mask = turned.to(torch.uint8).view(mask.shape)
    if soft is None:
        return F.grid_sample(image[None], grid, align_corners=False)[0], mask, None
    shift = outside_logits(soft.shape[0])
    planes = torch.cat([image, soft - shift])  # C+K H W; grid_sample pads with 0, which is then background
    planes = F.grid_sample(planes[None], grid, align_corners=False)[0]
    return planes[: len(image)], mask, planes[len(image) :] + shift


def random_intensity(image: Tensor, transforms: Sequence[Transform], random: np.random.Generator) -> Tensor:
    """Colour, gamma, noise and blur, those of the list, in its order; not clamped.

    Args:
        image: C×H×W float, or L×C×H×W: slices that are changed alike.
        transforms: the list; its geometry is passed over.
        random: what is drawn from.
    """
    pending = ColourChange(image)
    for transform in transforms:
        if isinstance(transform, (*_LINEAR, Flip, Elastic)) or random.random() >= transform.probability:
            continue
        if isinstance(transform, _COLOUR):
            pending.add(transform, random)
            continue
        image = pending.apply()
        if isinstance(transform, Gamma):
            image = adjust_gamma(image, random.uniform(transform.low, transform.high))
        elif isinstance(transform, Noise):
            generator = torch.Generator().manual_seed(int(random.integers(2**63)))
            amount = random.uniform(0, transform.up_to)
            image = image + amount * torch.randn(image.shape, generator=generator)
        elif isinstance(transform, Blur):
            sigmas = random.uniform(transform.low, transform.high, 2)
            image = blur(image, sigmas[0], sigmas[1])
        pending = ColourChange(image)
    return pending.apply()


class ColourChange:
    """Brightness, contrast, saturation and hue of one picture, gathered into one matrix and an offset.

    Attributes:
        image: …×C×H×W.
        matrix: C×C, from the picture's colours to the new ones.
        offset: of each channel.
    """

    def __init__(self, image: Tensor) -> None:
        self.image = image
        self.matrix, self.offset = np.eye(image.shape[-3]), np.zeros(image.shape[-3])

    def add(self, transform: Transform, random: np.random.Generator) -> None:
        """Draws an amount and takes it up."""
        if isinstance(transform, Hue):
            most = math.radians(transform.degrees)
            self._follow(hue_matrix(random.uniform(-most, most)))
            return
        assert isinstance(transform, Brightness | Contrast | Saturation)
        factor = random.uniform(1 - transform.by, 1 + transform.by)
        if isinstance(transform, Saturation):
            self._follow(factor * np.eye(3) + (1 - factor) * _LUMA)
            return
        mean = self._mean_grey() if isinstance(transform, Contrast) else 0.0
        self.matrix, self.offset = factor * self.matrix, factor * self.offset + (1 - factor) * mean

    def _mean_grey(self) -> float:
        """Of the picture as the changes so far leave it."""
        means = self.image.mean(dim=(-2, -1)).reshape(-1, len(self.offset)).mean(0).double().numpy()
        return float((self.matrix @ means + self.offset).mean())

    def _follow(self, matrix: np.ndarray) -> None:
        self.matrix, self.offset = matrix @ self.matrix, matrix @ self.offset

    def apply(self) -> Tensor:
        """The picture with its new colours; itself where nothing was added."""
        scale = float(self.matrix[0, 0])
        if not self.offset.any() and np.array_equal(self.matrix, scale * np.eye(len(self.matrix))):
            return self.image if scale == 1 else self.image * scale
        matrix = torch.from_numpy(self.matrix.astype(np.float32))
        offset = torch.from_numpy(self.offset.astype(np.float32))
        colours = torch.matmul(matrix, self.image.flatten(-2))  # … C H·W
        return colours.add_(offset[:, None]).view(self.image.shape)


def hue_matrix(angle_rad: float) -> np.ndarray:
    """A rotation of colours about the grey axis, 3×3: greys and every colour's mean of R, G, B stay as they are."""
    cos, sin = math.cos(angle_rad), math.sin(angle_rad)
    cross = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / math.sqrt(3)
    return cos * np.eye(3) + (1 - cos) / 3 + sin * cross


def adjust_gamma(image: Tensor, gamma: float) -> Tensor:
    """Takes x to xᵞ between the image's own darkest and brightest value."""
    low, high = image.aminmax()
    span = high - low
    scaled = (image - low) / (span + 1e-7)
    # 2 to the γ·log2 x: half the time of torch's power; log2 0 is −∞, and back it is 0.
    return scaled.log2_().mul_(gamma).exp2_().mul_(span).add_(low)


def blur(image: Tensor, rows_px: float, columns_px: float) -> Tensor:
    """Gaussian blur with standard deviations in pixels along rows' and columns' axis; black beyond the picture.

    A weighted sum of the picture and its shifted copies: a third of the time of a convolution with so few channels.
    """
    for sigma, axis in ((rows_px, -2), (columns_px, -1)):
        side = image.shape[axis]
        reach = min(int(4 * sigma + 0.5), side - 1)
        edges = torch.arange(-0.5, reach + 1) / (math.sqrt(2) * sigma)
        kernel = (
            torch.diff(torch.erf(edges)) / 2
        ).tolist()  # the Gaussian's share of each pixel, from the middle on
        blurred = image * kernel[0]
        for step, weight in enumerate(kernel[1:], 1):
            near, far = (0, side - step), (step, side - step)
            blurred.narrow(axis, *far).add_(image.narrow(axis, *near), alpha=weight)
            blurred.narrow(axis, *near).add_(image.narrow(axis, *far), alpha=weight)
        image = blurred
    return image


def outside_logits(channels: int) -> Tensor:
    """Logits that say background, K×1×1: −10 for one sigmoid channel, +10 for the first of several."""
    logits = torch.full((channels, 1, 1), -OUTSIDE_LOGIT)
    if channels > 1:
        logits[0] = OUTSIDE_LOGIT
    return logits


def sample_seed(seed: int, epoch: int, index: int) -> int:
    """A seed for one image in one epoch, independent of workers, batches and processes."""
    return int(np.random.SeedSequence([seed, epoch, index]).generate_state(1)[0])
