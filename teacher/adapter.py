"""Bottleneck adapters before the encoder's blocks.

Source: Xiong et al., SAM2-UNet, 2024: x + GELU(W_up GELU(W_down x)), width 32, before each block; Li et al. 2024 place
theirs there too.
"""

from __future__ import annotations

from torch import Tensor, nn


class AdaptedBlock(nn.Module):
    """A block of the encoder with an adapter before it. N×H×W×D features, channels last, as Hiera passes them."""

    def __init__(self, block: nn.Module, features: int, width: int) -> None:
        super().__init__()
        self.block = block
        up = nn.Linear(width, features)
        nn.init.zeros_(up.weight)  # starts as the unchanged encoder: GELU(0) is 0
        nn.init.zeros_(up.bias)
        self.adapter = nn.Sequential(nn.Linear(features, width), nn.GELU(), up, nn.GELU())

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x + self.adapter(x))  # type: ignore[no-any-return]


def add_adapters(encoder: nn.Module, width: int) -> nn.Module:
    """Freezes the encoder and puts a trainable adapter before every block; in place."""
    encoder.requires_grad_(False)
    blocks: nn.ModuleList = encoder.blocks  # type: ignore[assignment]
    encoder.blocks = nn.ModuleList(AdaptedBlock(block, block.dim, width) for block in blocks)  # type: ignore[arg-type]
    return encoder
