"""The boundary-weighted loss against closed forms and a slow reference, and against the published code's mistake."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from segcore.learn.losses import boundary_loss, boundary_weights, cross_entropy, iou_loss

YES = torch.tensor([True])


def dot(size=41, at=(20, 20)):
    """A mask of one pixel, 1×H×W."""
    mask = torch.zeros(1, size, size, dtype=torch.uint8)
    mask[0, at[0], at[1]] = 1
    return mask


def slow_weights(mask):
    """The formula pixel by pixel: H×W array of 0 and 1 → H×W."""
    weights = np.zeros(mask.shape)
    for y, x in np.ndindex(mask.shape):
        around = mask[max(0, y - 15) : y + 16, max(0, x - 15) : x + 16]
        weights[y, x] = 1 + 5 * abs(around.sum() / 31**2 - mask[y, x])
    return weights


def slow_loss(probability, target):
    """(K+1)×H×W probabilities, background's first, and H×W classes → weighted cross-entropy + weighted IoU."""
    classes = range(1, len(probability))
    weights = {k: slow_weights((target == k).astype(float)) for k in classes}
    heaviest = np.max([weights[k] for k in classes], axis=0)
    right = np.take_along_axis(probability, target[None].astype(int), 0)[0]
    overlaps = []
    for k in classes:
        p, t, w = probability[k], target == k, weights[k]
        both = (w * p * t).sum()
        overlaps.append((both + 1) / ((w * (p + t)).sum() - both + 1))
    return (heaviest * -np.log(right)).sum() / heaviest.sum() + 1 - np.mean(overlaps)


def test_weights_of_one_pixel():
    weights = boundary_weights(dot()[:, None].float())[0, 0]
    assert weights[20, 20].item() == pytest.approx(1 + 5 * 960 / 961)
    assert weights[20, 21].item() == weights[5, 35].item() == pytest.approx(1 + 5 / 961)
    assert weights[20, 36].item() == weights[4, 20].item() == 1  # 16 pixels away


def test_weights_along_a_straight_boundary():
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., 32:] = 1
    row = boundary_weights(mask)[0, 0, 32]
    assert row[31].item() == pytest.approx(1 + 5 * 15 / 31)
    assert row[32].item() == pytest.approx(1 + 5 * 15 / 31)
    assert row[[16, 17]].tolist() == pytest.approx([1, 1 + 5 / 31])


def test_a_mask_ends_where_the_picture_ends():
    weights = boundary_weights(torch.ones(1, 1, 64, 64))[0, 0]
    assert weights[32, 32].item() == pytest.approx(1, abs=1e-5)
    assert weights[32, 0].item() == pytest.approx(1 + 5 * 15 / 31, abs=1e-5)


@pytest.mark.parametrize("size", [16, 96])
def test_the_window_is_31_pixels_at_every_input_size(size):
    """Also of pictures smaller than it."""
    mask = (torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(size)) > 0.7).float()
    published = 1 + 5 * (F.avg_pool2d(mask, 31, stride=1, padding=15) - mask).abs()
    assert torch.allclose(boundary_weights(mask), published, atol=1e-5)


def test_a_missed_pixel_costs_more_than_the_published_code_charges():
    """There the BCE is averaged before it is weighted; weights of a mean over pixels cancel."""
    size, z = 41, 3.0
    mask, logits = dot(size), torch.full((1, 1, 41, 41), -z)
    missed, background = math.log1p(math.exp(z)), math.log1p(math.exp(-z))
    heavy, near, far = 1 + 5 * 960 / 961, 1 + 5 / 961, 1.0
    seen, others = 31**2 - 1, size**2 - 31**2
    expected = (heavy * missed + (near * seen + far * others) * background) / (
        heavy + near * seen + far * others
    )
    weights = boundary_weights(mask[:, None].float())
    assert cross_entropy(logits, mask, YES, weights[:, 0]).item() == pytest.approx(expected, rel=1e-5)
    p = 1 / (1 + math.exp(z))
    both, total = heavy * p, heavy * (1 + p) + (near * seen + far * others) * p
    overlap = 1 - (both + 1) / (total - both + 1)
    assert iou_loss(logits, mask, YES, weights).item() == pytest.approx(overlap, rel=1e-5)
    assert boundary_loss(logits, mask, YES).item() == pytest.approx(expected + overlap, rel=1e-5)

    averaged = (missed + (size**2 - 1) * background) / size**2
    wrong = (weights * averaged).sum() / weights.sum()  # what `reduce="none"` makes of it
    assert wrong.item() == pytest.approx(averaged, rel=1e-5)
    assert cross_entropy(logits, mask, YES).item() == pytest.approx(averaged, rel=1e-5)
    assert expected - background > 5.9 * (averaged - background)


def test_a_mistake_at_the_boundary_costs_more_than_one_far_from_it():
    target = torch.zeros(1, 64, 64, dtype=torch.uint8)
    target[:, :, 32:] = 1
    right = (target[:, None].float() * 2 - 1) * 4
    near, far = right.clone(), right.clone()
    near[0, 0, 32, 31] = far[0, 0, 32, 10] = 4.0
    assert boundary_loss(near, target, YES) > 1.003 * boundary_loss(far, target, YES)
    assert cross_entropy(near, target, YES).item() == pytest.approx(cross_entropy(far, target, YES).item())


def random_case(channels, size=40):
    generator = torch.Generator().manual_seed(channels)
    logits = 2 * torch.randn(2, channels, size, size, generator=generator)
    target = torch.zeros(2, size, size, dtype=torch.uint8)
    for k in range(1, max(2, channels)):
        target[:, 9 * k : 9 * k + 9, 5 * k : 30] = k
    return logits, target


def test_one_class_equals_the_slow_reference():
    logits, target = random_case(1)
    p = torch.sigmoid(logits.double()).numpy()
    expected = np.mean(
        [slow_loss(np.stack([1 - a[0], a[0]]), t) for a, t in zip(p, target.numpy(), strict=True)]
    )
    assert boundary_loss(logits, target, torch.tensor([True, True])).item() == pytest.approx(
        expected, rel=1e-4
    )


def test_several_classes_equal_the_slow_reference():
    logits, target = random_case(4)
    p = logits.double().softmax(1).numpy()
    expected = np.mean([slow_loss(a, t) for a, t in zip(p, target.numpy(), strict=True)])
    assert boundary_loss(logits, target, torch.tensor([True, True])).item() == pytest.approx(
        expected, rel=1e-4
    )


def test_two_softmax_channels_cost_what_one_sigmoid_channel_does():
    logits, target = random_case(1)
    both = torch.tensor([True, True])
    two = boundary_loss(torch.cat([torch.zeros_like(logits), logits], 1), target, both)
    assert two.item() == pytest.approx(boundary_loss(logits, target, both).item(), rel=1e-5)


@pytest.mark.parametrize("channels", [1, 4])
def test_a_perfect_answer_costs_nothing(channels):
    _, target = random_case(channels)
    sure = F.one_hot(target.long(), max(2, channels)).permute(0, 3, 1, 2).float() * 80 - 40
    sure = sure[:, 1:] if channels == 1 else sure
    assert boundary_loss(sure, target, torch.tensor([True, True])).item() == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("channels", [1, 4])
def test_images_without_a_mask_do_not_count(channels):
    logits, target = random_case(channels)
    target[1] = 0
    alone = boundary_loss(logits[:1], target[:1], YES).item()
    assert boundary_loss(logits, target, torch.tensor([True, False])).item() == pytest.approx(alone)
    assert boundary_loss(logits, target, torch.tensor([False, False])).item() == 0


@pytest.mark.parametrize("channels", [1, 4])
def test_equal_weights_are_no_weights(channels):
    logits, target = random_case(channels)
    both, same = torch.tensor([True, True]), torch.full((2, 40, 40), 3.0)
    weighted = cross_entropy(logits, target, both, same).item()
    assert weighted == pytest.approx(cross_entropy(logits, target, both).item(), rel=1e-5)
    one = torch.ones(2, max(1, channels - 1), 40, 40)
    assert iou_loss(logits, target, both, one).item() == pytest.approx(iou_loss(logits, target, both).item())
