"""The warp, gamma and blur against MONAI's, the geometry by hand, and how often each happens."""

import numpy as np
import pytest
import torch

from segcore.learn.augment import (
    OUTSIDE_LOGIT,
    Augmentation,
    ColourChange,
    adjust_gamma,
    blur,
    hue_matrix,
    outside_logits,
    random_displacement,
    random_geometry,
    random_intensity,
    sampling_grid,
    warp,
)
from segcore.learn.transforms import (
    PRESETS,
    TRANSFORMS,
    Affine,
    Brightness,
    Contrast,
    Elastic,
    Flip,
    Hue,
    Rotate,
    Saturation,
    Scale,
    transforms_of,
)

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


RANGES = (FILM, Rotate(degrees=180).affine, Scale(by=0.4).affine, FILM)


@pytest.mark.parametrize(("seed", "ranges"), enumerate(RANGES))
def test_one_warp_does_what_monai_does_key_by_key(sample, monai, seed, ranges):
    matrix = random_geometry(np.random.default_rng(seed), SIZE, ranges) @ (FLIP if seed % 2 else np.eye(3))
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


GEOMETRY = (Affine, Rotate, Scale, Flip, Elastic)


def disc_sample(side=96, radius=20):
    """A bright disc off the middle, its mask and its soft label."""
    rows, columns = np.mgrid[:side, :side]
    mask = torch.from_numpy(np.hypot(rows - 42, columns - 53) < radius).to(torch.uint8)
    return {"image": mask[None].float(), "mask": mask, "soft": mask[None].float() * 20 - 10}


def dice_of(a, b):
    return (2 * (a & b).sum() / (a.sum() + b.sum()).clamp(1)).item()


@pytest.mark.parametrize("name", ["film", "colour", "scan"])
def test_a_disc_its_mask_and_its_soft_label_stay_together(name):
    geometry = [t for t in PRESETS[name] if isinstance(t, GEOMETRY)]
    augment, sample = Augmentation(geometry, with_soft=True), disc_sample()
    for seed in range(40):
        out = augment(sample, seed)
        assert dice_of(out["mask"] > 0, out["image"][0] > 0.5) > 0.97
        assert dice_of(out["mask"] > 0, out["soft"][0] > 0) > 0.97


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_follows_from_its_seed_alone(sample, name, channels):
    sample["image"] = sample["image"][:channels]
    chosen = transforms_of(name, channels=channels, flip=True)
    augment, other = Augmentation(chosen, with_soft=True), Augmentation(chosen, with_soft=True)
    augment(sample, 5)
    for seed in range(9, 19):
        a, b = augment(sample, seed), other(sample, seed)
        assert all(torch.equal(a[key], b[key]) for key in a)
        assert 0 <= a["image"].min() <= a["image"].max() <= 1
    changed = not torch.equal(augment(sample, 1)["image"], augment(sample, 2)["image"])
    assert changed == (name != "none")


@pytest.mark.parametrize("axes", [("left-right",), ("up-down",), ("left-right", "up-down")])
def test_flips_are_exact(sample, axes):
    out = Augmentation([Flip(axes=axes, probability=1)], with_soft=True)(sample, 0)
    turned = [{"up-down": -2, "left-right": -1}[axis] for axis in axes]
    assert all(torch.equal(out[key], sample[key].flip(turned)) for key in ("image", "mask", "soft"))


@pytest.mark.parametrize("name", ["film", "colour", "scan"])
def test_without_flips_no_picture_is_a_mirror_image(name):
    """A picture of its own coordinates: how they run in the middle says whether it is mirrored."""
    ramp = torch.linspace(0, 1, 64)
    places = torch.stack([ramp[:, None].expand(64, 64), ramp[None].expand(64, 64)])
    sample = {"image": places, "mask": torch.zeros(64, 64, dtype=torch.uint8)}

    def mirrored(flip):
        chosen = [t for t in transforms_of(name, channels=3, flip=flip) if isinstance(t, GEOMETRY)]
        augment = Augmentation(chosen, with_soft=False)
        for seed in range(60):
            middle = augment(sample, seed)["image"][:, 28:36, 28:36]
            down, right = middle[:, 7, 4] - middle[:, 0, 4], middle[:, 4, 7] - middle[:, 4, 0]
            yield (down[0] * right[1] - down[1] * right[0]).item() < 0

    assert not any(mirrored(flip=False))
    assert 15 < sum(mirrored(flip=True)) < 45


def test_what_a_turn_uncovers_is_background(sample):
    augment = Augmentation([Rotate(degrees=45)], with_soft=True)
    outs = [augment({**sample, "image": torch.ones(3, *SIZE)}, seed) for seed in range(10)]
    corners = torch.stack([out["image"][:, 0, 0].sum() == 0 for out in outs])
    assert corners.sum() > 5
    for out, uncovered in zip(outs, corners, strict=True):
        if uncovered:
            assert out["mask"][0, 0] == 0
            assert out["soft"][:, 0, 0].tolist() == [OUTSIDE_LOGIT, *[-OUTSIDE_LOGIT] * 3]


@pytest.mark.parametrize(
    "elastic", [Elastic(by=0.04, cells=5), Elastic(by=0.4, cells=1), Elastic(by=0.05, cells=8)]
)
def test_a_displacement_is_bounded_and_never_folds(elastic):
    size = (96, 128)
    look = sampling_grid(np.eye(3), size)[0].double()
    for seed in range(20):
        moved = random_displacement(np.random.default_rng(seed), size, elastic)[0].double()
        assert 0.1 * elastic.by < moved.abs().max() <= 2 * elastic.by
        place = look + moved
        down, right = place.diff(dim=0)[:, :-1], place.diff(dim=1)[:-1]
        assert (right[..., 0] * down[..., 1] - right[..., 1] * down[..., 0]).min() > 0


def test_a_displacement_moves_a_picture_as_it_says():
    """A sixteenth of the side at every control point is that everywhere: splines of equal points are constant."""

    class AllLargest:
        def uniform(self, low, high, shape):
            return np.full(shape, high)

    moved = random_displacement(AllLargest(), (64, 64), Elastic(by=1 / 16, cells=5))
    image, mask, _ = warp(
        disc_sample(64)["image"], disc_sample(64)["mask"], None, sampling_grid(np.eye(3), (64, 64)) + moved
    )
    assert torch.equal(mask[:-4, :-4], disc_sample(64)["mask"][4:, 4:])
    assert torch.allclose(image[0, :-4, :-4], disc_sample(64)["image"][0, 4:, 4:], atol=1e-4)


def test_a_turn_of_hue_keeps_grey_and_a_third_of_it_swaps_the_channels():
    for angle in np.linspace(-3, 3, 7):
        assert np.allclose(hue_matrix(angle) @ np.full(3, 0.4), 0.4)
        assert np.allclose(hue_matrix(angle).sum(0), 1)  # every colour's mean stays
    assert np.allclose(
        hue_matrix(2 * np.pi / 3), [[0, 0, 1], [1, 0, 0], [0, 1, 0]]
    )  # red to green to blue to red
    grey = torch.rand(1, 8, 8, generator=torch.Generator().manual_seed(0)).expand(3, 8, 8)
    for kind in (Hue(degrees=180), Saturation(by=0.9)):
        assert torch.allclose(random_intensity(grey, [kind], np.random.default_rng(0)), grey, atol=1e-6)


def test_colours_in_one_matrix_are_colours_one_by_one(sample):
    image = sample["image"]
    chain = [Brightness(by=0.3), Contrast(by=0.5), Saturation(by=0.6), Hue(degrees=60), Contrast(by=0.5)]
    together = random_intensity(image, chain, np.random.default_rng(3))
    random, alone = np.random.default_rng(3), image
    for transform in chain:
        alone = random_intensity(alone, [transform], random)
    assert torch.allclose(together, alone, atol=1e-5)
    assert (together - image).abs().max() > 0.1


def test_colours_by_hand():
    class Fixed:
        def __init__(self, amount):
            self.amount = amount

        def uniform(self, low, high):
            assert low <= self.amount <= high
            return self.amount

    image = torch.tensor([0.2, 0.4, 0.9])[:, None, None] * torch.tensor([[1.0, 0.5]])  # 3 1 2
    for transform, by_hand in (
        (Brightness(by=0.5), image * 1.5),
        (Contrast(by=0.5), 0.375 + (image - 0.375) * 1.5),  # 0.75 · (0.2 + 0.4 + 0.9) / 3 is the mean
        (
            Saturation(by=0.5),
            -0.5 * (0.299 * image[:1] + 0.587 * image[1:2] + 0.114 * image[2:]) + 1.5 * image,
        ),
    ):
        change = ColourChange(image)
        change.add(transform, Fixed(1.5))
        assert torch.allclose(change.apply(), by_hand, atol=1e-6)


def test_slices_of_a_clip_change_alike(sample):
    """Without noise, equal slices stay equal; and each is what the picture alone becomes."""
    image = sample["image"]
    chain = [t for t in PRESETS["colour"] if type(t).__name__ != "Noise"]
    for seed in range(5):
        clip = random_intensity(torch.stack([image, image]), chain, np.random.default_rng(seed))  # L C H W
        alone = random_intensity(image, chain, np.random.default_rng(seed))
        assert torch.allclose(clip, torch.stack([alone, alone]), atol=1e-6)


def test_every_transform_changes_a_picture(sample):
    some = {"degrees": 90, "by": 0.05, "low": 1.5, "high": 2, "up_to": 0.2, "scale": 0.3}
    for kind in TRANSFORMS.values():
        values = {key: value for key, value in some.items() if key in kind.model_fields}
        augment = Augmentation([kind(**{**values, "probability": 1})], with_soft=True)
        assert (augment(sample, 3)["image"] - sample["image"]).abs().max() > 0.01, kind
