"""The warp, gamma and blur against MONAI's, the geometry by hand, and how often each happens."""

import numpy as np
import pytest
import torch

from segcore.learn.augment import (
    OUTSIDE_LOGIT,
    Augmentation,
    adjust_gamma,
    blur,
    outside_logits,
    random_geometry,
    sampling_grid,
    warp,
)
from segcore.learn.transforms import PRESETS, Affine

SIZE = (48, 64)
FLIP = np.diag((1.0, -1.0, 1.0))
FILM = Affine(degrees=15, scale=0.15, shift=0.06, shear=0.05)


@pytest.fixture
def sample():
    generator = torch.Generator().manual_seed(0)
    return {
        "image": torch.rand(3, *SIZE, generator=generator),
        "mask": torch.randint(0, 4, SIZE, generator=generator).to(torch.uint8),
        "soft": 3 * torch.randn(4, *SIZE, generator=generator),
        "labelled": torch.tensor(True),
    }


def warped(sample, matrix, *, soft=True):
    return warp(
        sample["image"], sample["mask"], sample["soft"] if soft else None, sampling_grid(matrix, SIZE)
    )


@pytest.fixture
def monai():
    transforms = pytest.importorskip("monai.transforms")
    pytest.importorskip("monai.data").set_track_meta(False)
    return transforms


@pytest.mark.parametrize("seed", range(4))
def test_one_warp_does_what_monai_does_key_by_key(sample, monai, seed):
    matrix = random_geometry(np.random.default_rng(seed), SIZE, FILM) @ (FLIP if seed % 2 else np.eye(3))
    theirs = monai.Affine(affine=matrix, padding_mode="zeros", image_only=True)
    image, mask, soft = warped(sample, matrix)
    shift = outside_logits(4)
    assert torch.allclose(image, theirs(sample["image"], mode="bilinear"), atol=1e-4)
    assert torch.allclose(soft, theirs(sample["soft"] - shift, mode="bilinear") + shift, atol=1e-3)
    assert torch.equal(mask, theirs(sample["mask"][None].float(), mode="nearest")[0].to(torch.uint8))
    alone = warped(sample, matrix, soft=False)
    assert torch.equal(alone[0], image)
    assert torch.equal(alone[1], mask)
    assert alone[2] is None


def test_gamma_and_blur_are_monais(sample, monai):
    assert torch.allclose(
        adjust_gamma(sample["image"], 1.3), monai.AdjustContrast(1.3)(sample["image"]), atol=1e-6
    )
    for rows_px, columns_px in ((0.3, 1.2), (1.2, 0.3), (0.7, 0.8)):
        theirs = monai.GaussianSmooth((rows_px, columns_px))(sample["image"])
        assert torch.allclose(blur(sample["image"], rows_px, columns_px), theirs, atol=1e-6)


def test_a_shift_of_whole_pixels_pads_with_background(sample):
    matrix = np.eye(3)
    matrix[:2, 2] = 5, -3  # pixel (r, c) shows what was at (r + 5, c − 3)
    image, mask, soft = warped(sample, matrix)
    assert torch.allclose(image[:, :-5, 3:], sample["image"][:, 5:, :-3], atol=1e-4)
    assert torch.equal(mask[:-5, 3:], sample["mask"][5:, :-3])
    assert torch.allclose(soft[:, :-5, 3:], sample["soft"][:, 5:, :-3], atol=1e-3)
    assert not image[:, -5:].any()
    assert not mask[:, :3].any()
    assert torch.equal(soft[0, -5:], torch.full((5, 64), OUTSIDE_LOGIT))
    assert torch.equal(soft[1:, -5:], torch.full((3, 5, 64), -OUTSIDE_LOGIT))


def test_a_flip_mirrors_left_to_right(sample):
    image, mask, soft = warped(sample, FLIP)
    assert torch.allclose(image, sample["image"].flip(2), atol=1e-4)
    assert torch.equal(mask, sample["mask"].flip(1))
    assert torch.allclose(soft, sample["soft"].flip(2), atol=1e-3)


def test_geometry_stays_in_its_ranges():
    random = np.random.default_rng(0)
    matrices = np.stack([random_geometry(random, (100, 200), FILM) for _ in range(500)])
    areas = np.linalg.det(matrices[:, :2, :2])  # rotation and shear keep areas; two scales of 1 ± 0.15
    assert 0.85**2 <= areas.min() < 0.8
    assert 1.25 < areas.max() <= 1.15**2
    turns = np.degrees(np.arctan2(matrices[:, 1, 0], matrices[:, 0, 0]))
    assert 15 < np.abs(turns).max() < 15 + np.degrees(np.arctan(0.05)) + 1e-6  # a shear leans a little more
    longest = np.hypot(0.06 * 100, 0.06 * 200) * 1.1
    assert 10 < np.abs(matrices[:, :2, 2]).max() < longest


def test_each_change_happens_as_often_as_it_says():
    """8 × 8 pixels; what changed is read off the result."""
    flat = {"image": torch.full((1, 8, 8), 0.5), "mask": torch.zeros(8, 8, dtype=torch.uint8)}
    flat["mask"][:, 0] = 1
    augment = Augmentation(PRESETS["film"], with_soft=False)
    outs = [augment(flat, seed) for seed in range(600)]
    untouched = np.mean([torch.equal(out["mask"], flat["mask"]) for out in outs])
    mirrored = np.mean([torch.equal(out["mask"], flat["mask"].flip(1)) for out in outs])
    assert 0.06 < untouched < 0.3  # 0.2 are not warped, half of these not mirrored, and some warps are small
    assert 0.06 < mirrored < 0.3
    middles = torch.stack([out["image"][0, 4, 4] for out in outs])
    assert 0.3 < (middles == 0.5).float().mean() < 0.7  # 0.7³ have neither gamma nor brightness nor noise


def test_a_sample_is_not_changed_in_place(sample):
    kept = {key: value.clone() for key, value in sample.items()}
    augment = Augmentation(PRESETS["film"], with_soft=True)
    for seed in range(20):
        out = augment(sample, seed)
        assert out.keys() == sample.keys()
        assert (out["image"].dtype, out["mask"].dtype, out["soft"].dtype) == (
            torch.float32,
            torch.uint8,
            torch.float32,
        )
    assert all(torch.equal(kept[key], sample[key]) for key in sample)
