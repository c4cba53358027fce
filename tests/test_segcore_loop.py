"""The parts of a step: accumulated gradients, AdamW by hand, channels-last weights, and the allocator."""

import platform
from pathlib import Path

import pytest
import torch
from torch import nn

from segcore.learn.loop import add_gradient, keep_freed_memory, open_accelerator, open_run, update_weights
from segcore.learn.settings import TrainSettings

SETTINGS = TrainSettings(data="-", out=Path("-"), device="cpu", lr=0.01, weight_decay=0.1, ema=0.75)


def batch(images):
    return {"image": torch.randn(images, 2, 8, 8, generator=torch.Generator().manual_seed(images))}


def opened():
    torch.manual_seed(0)
    network = nn.Conv2d(2, 4, 3)

    def loss_of(network, batch):
        return network(batch["image"]).square().mean()

    return open_run(network, loss_of, SETTINGS, open_accelerator(SETTINGS))


def test_weights_and_features_are_channels_last():
    run = opened()
    seen = run.network(batch(2)["image"].contiguous(memory_format=torch.channels_last))
    assert run.network.weight.is_contiguous(memory_format=torch.channels_last)
    assert seen.is_contiguous(memory_format=torch.channels_last)


def test_two_halves_give_the_gradient_of_the_whole():
    whole, halves, images = opened(), opened(), batch(4)["image"]
    add_gradient(whole, {"image": images})
    add_gradient(halves, {"image": images[:2]}, accumulate=2, last=False)
    add_gradient(halves, {"image": images[2:]}, accumulate=2, last=True)
    assert torch.allclose(whole.network.weight.grad, halves.network.weight.grad, atol=1e-6)


@pytest.mark.parametrize("clip_norm", [1e9, 0.01])
def test_a_step_is_adamw_with_clipping_and_averaging(clip_norm):
    run = opened()
    before = run.network.bias.detach().clone()
    add_gradient(run, batch(2))
    norm = torch.cat([p.grad.flatten() for p in run.network.parameters()]).norm()
    assert norm > 0.01
    gradient = run.network.bias.grad * min(1.0, clip_norm / norm.item())
    update_weights(run, 0.5, clip_norm)
    # The first step of AdamW: both moments are the gradient's, so the step is its sign but for epsilon.
    expected = before * (1 - 0.5 * 0.1) - 0.5 * gradient / (gradient.abs() + 1e-8)
    assert torch.allclose(run.network.bias, expected, atol=1e-3)
    assert run.network.bias.grad is None
    assert torch.allclose(run.average.module.bias, run.network.bias)  # the first average is the weights


def test_the_average_follows_slowly():
    run = opened()
    bias = []
    for _ in range(2):
        add_gradient(run, batch(2))
        update_weights(run, 0.5, 1.0)
        bias.append(run.network.bias.detach().clone())
    assert torch.allclose(run.average.module.bias, 0.75 * bias[0] + 0.25 * bias[1], atol=1e-6)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_glibc_takes_the_allocators_settings():
    assert keep_freed_memory()
