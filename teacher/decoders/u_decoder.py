"""A U-Net's way up with a head on every level."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segcore.learn.blocks import double_conv


class UpBlock(nn.Module):
    """Doubles the resolution and merges the skip: bilinear, concat, (Conv-BN-ReLU)×2. N×C×h×w and N×C×2h×2w in."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.merge = double_conv(2 * channels, channels)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        up = F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
        return self.merge(torch.cat([skip, up], dim=1))  # type: ignore[no-any-return]


def supervised_levels(features: list[Tensor], blocks: nn.ModuleList, heads: nn.ModuleList) -> list[Tensor]:
    """From the deepest level up: the logits of every level but that, the finest last.

    Args:
        features: of each level, the finest first.
        blocks: (deeper level, skip) → this level, one less than features, the deepest first.
        heads: a level's features → its logits.
    """
    *skips, x = features
    logits = []
    for block, head, skip in zip(blocks, heads, reversed(skips), strict=True):
        x = block(x, skip)
        logits.append(head(x))
    return logits
