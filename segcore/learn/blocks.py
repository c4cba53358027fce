"""Layers that teacher and student networks share, and what a network costs."""

from __future__ import annotations

import torch
from torch import nn

from segcore.learn.deploy import DeployGraph
from segcore.preprocess import InputSpec


def double_conv(inputs: int, outputs: int) -> nn.Sequential:
    """(Conv 3×3, BN, ReLU) twice, size kept. Source: U-Net's block, with padding and batch normalisation."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
        nn.Conv2d(outputs, outputs, 3, padding=1),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


def count_macs(network: nn.Module, spec: InputSpec) -> int:
    """Multiply-accumulates of one picture: convolutions, matrix products and attention, as PyTorch counts them."""
    from torch.utils.flop_counter import FlopCounterMode

    graph = DeployGraph(network, spec).to(next(network.parameters()).device).eval()
    picture = torch.zeros(1, *spec.size_px, spec.channels, dtype=torch.uint8, device=graph.mean.device)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        graph(picture)
    return int(counter.get_total_flops()) // 2
