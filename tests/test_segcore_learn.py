"""Losses against closed forms, augmentation, order, learning rate, and what a graph is fed."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from segcore.dataset.dataset import open_dataset
from segcore.errors import InputError
from segcore.learn.augment import OUTSIDE_LOGIT, Augmentation, sample_seed
from segcore.learn.loader import EpochOrder, TrainingSet, training_input
from segcore.learn.loop import learning_rate
from segcore.learn.losses import cross_entropy, dice_loss, distillation_loss, iou_loss, segmentation_loss
from segcore.learn.network import DeployGraph, count_macs
from segcore.learn.transforms import PRESETS
from segcore.picture.preprocess import InputSpec, prepare

YES = torch.tensor([True])


def mean_divergence(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    return distillation_loss(student, teacher, temperature).mean()


def sure(target: torch.Tensor, channels: int) -> torch.Tensor:
    """Logits that are right and almost certain."""
    if channels == 1:
        return (target[:, None].float() * 2 - 1) * 40
    return torch.nn.functional.one_hot(target.long(), channels).permute(0, 3, 1, 2).float() * 40


def test_cross_entropy_of_no_opinion_is_the_entropy_of_a_coin():
    target = torch.randint(0, 2, (1, 8, 8))
    assert cross_entropy(torch.zeros(1, 1, 8, 8), target, YES).item() == pytest.approx(math.log(2))
    assert cross_entropy(torch.zeros(1, 5, 8, 8), target, YES).item() == pytest.approx(math.log(5))


@pytest.mark.parametrize("channels", [1, 4])
def test_a_perfect_answer_costs_nothing(channels):
    target = torch.zeros(1, 8, 8, dtype=torch.uint8)
    for k in range(1, max(2, channels)):
        target[0, :, 2 * k] = k
    for loss in (cross_entropy, dice_loss, iou_loss, segmentation_loss):
        assert loss(sure(target, channels), target, YES).item() == pytest.approx(0, abs=1e-5)


def test_overlap_losses_by_hand():
    # prediction covers 4 pixels, truth 2 of them: Dice (2·2+1)/(6+1), IoU (2+1)/(4+1)
    target = torch.zeros(1, 4, 4, dtype=torch.uint8)
    target[0, 0, :2] = 1
    guess = torch.zeros(1, 4, 4, dtype=torch.uint8)
    guess[0, 0, :] = 1
    assert dice_loss(sure(guess, 1), target, YES).item() == pytest.approx(1 - 5 / 7)
    assert iou_loss(sure(guess, 1), target, YES).item() == pytest.approx(1 - 3 / 5)


def test_images_without_a_mask_do_not_count():
    logits, target = torch.randn(2, 1, 8, 8), torch.randint(0, 2, (2, 8, 8))
    for loss in (cross_entropy, dice_loss, iou_loss):
        both = loss(logits, target, torch.tensor([True, False]))
        assert both.item() == pytest.approx(loss(logits[:1], target[:1], YES).item())
        assert loss(logits, target, torch.tensor([False, False])).item() == 0


def test_distillation_is_a_tempered_kl():
    p, q, t = 0.9, 0.4, 3.0
    teacher, student = (torch.full((1, 1, 2, 2), math.log(x / (1 - x))) for x in (p, q))
    pt, qt = (1 / (1 + math.exp(-math.log(x / (1 - x)) / t)) for x in (p, q))
    kl = pt * math.log(pt / qt) + (1 - pt) * math.log((1 - pt) / (1 - qt))
    assert mean_divergence(student, teacher, t).item() == pytest.approx(t**2 * kl, rel=1e-4)
    assert mean_divergence(teacher, teacher, t).item() == pytest.approx(0, abs=1e-7)


@pytest.mark.parametrize("channels", [1, 4])
def test_an_equal_teacher_costs_nothing_and_another_one_pulls(channels):
    teacher = torch.randn(2, channels, 8, 8)
    assert mean_divergence(teacher, teacher, 2.0).item() == pytest.approx(0, abs=1e-6)
    student = torch.randn(2, channels, 8, 8, requires_grad=True)
    before = mean_divergence(student, teacher, 2.0)
    before.backward()
    gradient = student.grad
    assert before > 0.01
    assert (gradient.flatten(1).abs().sum(1) > 0).all()
    assert mean_divergence(student.detach() - 0.1 * gradient / gradient.norm(), teacher, 2.0) < before


@pytest.mark.parametrize("channels", [1, 4])
def test_a_certain_teacher_gives_finite_gradients(channels):
    teacher = torch.randn(1, channels, 8, 8).sign() * 6e4  # what float16 labels can hold
    student = torch.zeros(1, channels, 8, 8, requires_grad=True)
    mean_divergence(student, teacher, 2.0).backward()
    assert student.grad.isfinite().all()


def test_two_softmax_channels_distil_as_one_sigmoid_channel():
    student, teacher = torch.randn(1, 1, 6, 6), torch.randn(1, 1, 6, 6)
    zero = torch.zeros_like(student)
    one = mean_divergence(student, teacher, 2.0)
    two = mean_divergence(torch.cat([zero, student], 1), torch.cat([zero, teacher], 1), 2.0)
    assert one.item() == pytest.approx(two.item(), rel=1e-5)


def test_what_changes_no_softmax_changes_no_loss():
    student, teacher = torch.randn(1, 3, 6, 6), torch.randn(1, 3, 6, 6)
    moved = teacher + 5 * torch.randn(1, 1, 6, 6)
    loss = mean_divergence(student, teacher, 2.0).item()
    assert mean_divergence(student, moved, 2.0).item() == pytest.approx(loss, rel=1e-4)


@pytest.fixture
def sample():
    mask = np.zeros((64, 64), np.uint8)
    mask[16:48, 20:44] = 1
    image = torch.from_numpy(mask[None] * 0.5 + 0.25).float()
    soft = torch.from_numpy(mask[None] * 20.0 - 10.0).float()
    return {"image": image, "mask": torch.from_numpy(mask), "soft": soft, "labelled": torch.tensor(True)}


def test_augmentation_follows_from_its_seed_alone(sample):
    augment, other = (Augmentation(PRESETS["film"], with_soft=True) for _ in range(2))
    augment(sample, 5)
    a, b, c = augment(sample, 9), other(sample, 9), other(sample, 10)
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert not torch.equal(a["image"], c["image"])


def test_mask_and_soft_label_move_together_and_leave_background(sample):
    augment = Augmentation(PRESETS["film"], with_soft=True)
    moved = 0
    for seed in range(20):
        out = augment(sample, seed)
        assert set(out["mask"].unique().tolist()) <= {0, 1}
        assert (out["mask"] != (out["soft"][0] > 0)).float().mean() < 0.02  # nearest against bilinear edges
        assert out["soft"].max() <= 10.001
        assert out["soft"].min() >= -OUTSIDE_LOGIT - 0.001
        assert 0 <= out["image"].min() <= out["image"].max() <= 1
        moved += not torch.equal(out["mask"], sample["mask"])
    assert moved > 10


def test_several_classes_are_padded_with_background():
    sample = {
        "image": torch.ones(1, 64, 64),
        "mask": torch.full((64, 64), 2, dtype=torch.uint8),
        "soft": torch.stack([torch.full((64, 64), x) for x in (-5.0, -5.0, 5.0)]),
        "labelled": torch.tensor(True),
    }
    augment = Augmentation(PRESETS["film"], with_soft=True)
    outs = [augment(sample, seed) for seed in range(8)]
    assert any((out["mask"] == 0).any() for out in outs)
    for out in outs:
        outside = out["mask"] == 0
        assert (out["soft"].argmax(0)[outside] == 0).float().mean() > 0.9 if outside.sum() > 50 else True


def test_sample_seeds_differ():
    seeds = {sample_seed(s, e, i) for s in range(3) for e in range(5) for i in range(50)}
    assert len(seeds) == 3 * 5 * 50


def test_each_process_takes_its_own_share_of_a_new_order_each_epoch():
    shares = [EpochOrder(11, seed=3, rank=r, processes=2) for r in range(2)]
    indices = [[i for _, i in share] for share in shares]
    assert len(set(indices[0]) | set(indices[1])) == 10
    assert len(indices[0]) == len(indices[1]) == 5
    order = EpochOrder(11, seed=3)
    first = list(order)
    assert first == list(order)
    order.epoch = 1
    assert [i for _, i in order] != [i for _, i in first]
    assert sorted(i for _, i in order) == list(range(11))


def test_learning_rate_rises_and_falls():
    rates = [learning_rate(s, steps=100, warmup=10, highest=1.0) for s in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == rates[10] == pytest.approx(1.0)
    assert rates[99] == pytest.approx(0.01)
    assert all(a >= b for a, b in pairwise(rates[10:]))


def test_graph_normalises_as_documented_and_repeats_grey():
    spec = InputSpec(height_px=4, width_px=4, channels=1, mean=(0.2, 0.4, 0.6), std=(0.5, 0.25, 0.1))
    picture = torch.randint(0, 256, (1, 4, 4, 1), dtype=torch.uint8)
    out = DeployGraph(nn.Identity(), spec)(picture)
    for c in range(3):
        expected = (picture[0, ..., 0] / 255 - spec.mean[c]) / spec.std[c]
        assert torch.allclose(out[0, c], expected, atol=1e-5)


def test_macs_of_one_convolution_by_hand():
    spec = InputSpec(height_px=8, width_px=8, channels=1, mean=(0.5,), std=(0.5,))
    assert count_macs(nn.Conv2d(1, 5, 3, padding=1), spec) == 8 * 8 * 9 * 5


def test_training_set_holds_the_pictures_that_deployment_sees():
    dataset = open_dataset("phantom:cxr:12")
    cases = dataset.split("train")
    spec = training_input(cases, (64, 64), {1: ((0.5,), (0.25,)), 3: ((0.5,) * 3, (0.25,) * 3)})
    assert (spec.channels, spec.depth, spec.window) == (1, "uint8", (0.0, 255.0))
    data = TrainingSet(cases, spec, classes=1, seed=0, augment=None)
    for i, case in enumerate(cases):
        picture = prepare(case.image(), spec)
        item = data[0, i]
        assert torch.equal(
            (item["image"] * 255).round().to(torch.uint8).permute(1, 2, 0), torch.from_numpy(picture.copy())
        )
        assert item["labelled"]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(bad):
    from segcore.learn.network import check_finite

    network = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2))
    check_finite(network, "training", "lower --lr")
    with torch.no_grad():
        network[1].running_var[1] = bad
    expected = (
        r"^training: must have finite weights, has 1 of 2 NaN or infinite in 1\.running_var; lower --lr$"
    )
    with pytest.raises(InputError, match=expected):
        check_finite(network, "training", "lower --lr")
