"""ScConv: fewer redundant features, in space and in channels.

Source: Li, Wen and He, SCConv: Spatial and Channel Reconstruction Convolution for Feature Redundancy, CVPR 2023; group
norm of 16 groups and gate 0.5, split 1/2, squeeze 2, groups 2 as there.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

_NORM_GROUPS = 16
_GATE = 0.5


class SpatialReconstruction(nn.Module):
    """Separates informative from redundant features by their group-norm scale and crosses the two. N×C×H×W kept."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(_NORM_GROUPS, channels)

    def forward(self, x: Tensor) -> Tensor:
        share = (self.norm.weight / self.norm.weight.sum()).view(1, -1, 1, 1)
        # contiguous: torch 2.13's CPU GroupNorm crashes in the backward of a channels-last input that needs no
        # gradient (a frozen encoder's features); native_group_norm_backward, cf. pytorch#115940
        weight = torch.sigmoid(self.norm(x.contiguous()) * share)
        informative = torch.where(weight > _GATE, torch.ones_like(weight), weight) * x
        redundant = torch.where(weight > _GATE, torch.zeros_like(weight), weight) * x
        a1, a2 = informative.chunk(2, dim=1)
        b1, b2 = redundant.chunk(2, dim=1)
        return torch.cat([a1 + b2, a2 + b1], dim=1)


class ChannelReconstruction(nn.Module):
    """Half of the channels through rich, half through cheap convolutions, weighed against each other. N×C×H×W kept."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        squeezed = channels // 4
        self.squeeze_rich = nn.Conv2d(channels // 2, squeezed, 1, bias=False)
        self.squeeze_cheap = nn.Conv2d(channels // 2, squeezed, 1, bias=False)
        self.group = nn.Conv2d(squeezed, channels, 3, padding=1, groups=2)
        self.point = nn.Conv2d(squeezed, channels, 1, bias=False)
        self.cheap = nn.Conv2d(squeezed, channels - squeezed, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        rich, cheap = x.chunk(2, dim=1)
        rich, cheap = self.squeeze_rich(rich), self.squeeze_cheap(cheap)
        rich = self.group(rich) + self.point(rich)
        cheap = torch.cat([self.cheap(cheap), cheap], dim=1)
        both = torch.cat([rich, cheap], dim=1)  # N 2C H W
        weighed = both.mean(dim=(2, 3), keepdim=True).softmax(dim=1) * both
        first, second = weighed.chunk(2, dim=1)
        return first + second


class ScConv(nn.Sequential):
    """Spatial, then channel reconstruction. C must be a multiple of 16."""

    def __init__(self, channels: int) -> None:
        super().__init__(SpatialReconstruction(channels), ChannelReconstruction(channels))
