"""Bottleneck adapters, and the ways to put one to a layer: before a block, after a layer, beside a layer.

Each starts as nothing: what it is put to computes bit for bit what it did.
"""

from __future__ import annotations

from typing import TypeVar

from torch import Tensor, nn

Layer = TypeVar("Layer", nn.Linear, nn.ConvTranspose2d)


class Bottleneck(nn.Module):
    """Down, activation, up: … ×D → … ×D; 0 at first."""

    def __init__(self, features: int, width: int, activation: type[nn.Module] = nn.ReLU) -> None:
        super().__init__()
        self.down = nn.Linear(features, width)
        self.activation = activation()
        self.up = zeroed(nn.Linear(width, features))

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.activation(self.down(x)))  # type: ignore[no-any-return]


class AdaptedBlock(nn.Module):
    """A block with an adapter before it: block(x + GELU(W_up GELU(W_down x))), x … ×D.

    Source: Xiong et al., SAM2-UNet, 2024; Li et al., Entropy 26(12):1059, 2024, place theirs there, too.
    """

    def __init__(self, block: nn.Module, features: int, width: int) -> None:
        super().__init__()
        self.block = block
        up = zeroed(nn.Linear(width, features))  # GELU(0) is 0
        # Not a Bottleneck: bundles of version 0.5 and before have these names.
        self.adapter = nn.Sequential(nn.Linear(features, width), nn.GELU(), up, nn.GELU())

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x + self.adapter(x))  # type: ignore[no-any-return]


class AdapterAfter(nn.Module):
    """A layer whose output y, … ×D, becomes y + adapter(y). All inputs are the layer's."""

    def __init__(self, layer: nn.Module, adapter: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.adapter = adapter

    def forward(self, *inputs: Tensor, **named: Tensor) -> Tensor:
        y = self.layer(*inputs, **named)
        return y + self.adapter(y)  # type: ignore[no-any-return]


class AdapterBeside(nn.Module):
    """A layer of one input x, … ×D, in parallel with an adapter: layer(x) + scale · adapter(x)."""

    def __init__(self, layer: nn.Module, adapter: nn.Module, scale: float = 1.0) -> None:
        super().__init__()
        self.layer = layer
        self.adapter = adapter
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + self.scale * self.adapter(x)  # type: ignore[no-any-return]


def zeroed(layer: Layer) -> Layer:
    """A layer that gives 0; in place."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
