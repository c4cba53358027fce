"""LightUNet: its size, its shapes, its gradients, and that it can learn."""

import pytest
import torch

from segcore.learn.losses import dice_loss
from student.network import build_unet


@pytest.mark.parametrize(
    ("channels", "base", "parameters"), [(1, 8, 487_145), (3, 8, 487_289), (1, 64, 31_042_369)]
)
def test_parameters_are_the_papers(channels, base, parameters):
    network = build_unet(channels=channels, outputs=1, base=base)
    assert sum(p.numel() for p in network.parameters()) == parameters


def test_output_has_the_inputs_size():
    network = build_unet(channels=1, outputs=5, base=8).eval()
    assert network(torch.zeros(2, 1, 48, 80)).shape == (2, 5, 48, 80)


def test_every_parameter_gets_a_gradient():
    network = build_unet(channels=1, outputs=1, base=8)
    network(torch.randn(2, 1, 32, 32)).square().mean().backward()
    # a bias before batch normalisation has a gradient of (almost) nothing, but it has one
    assert all(p.grad is not None for p in network.parameters())
    weights = [p for n, p in network.named_parameters() if n.endswith("weight")]
    assert all(p.grad.abs().sum() > 0 for p in weights)


def test_it_learns_one_case_by_heart():
    torch.manual_seed(0)
    network = build_unet(channels=1, outputs=1, base=8)
    target = torch.zeros(1, 32, 32, dtype=torch.uint8)
    target[0, 8:20, 5:28] = 1
    image = target[:, None].float() + 0.3 * torch.randn(1, 1, 32, 32)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    for _ in range(80):
        loss = dice_loss(network(image), target, torch.tensor([True]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05
