"""S2AgScUNet: SAM 2's encoder, ScConv and attention gates in the skips, a U-Net decoder with a supervised head a level.

Source: Li et al., Adapting SAM2 Model from Natural Images for Tooth Segmentation in Dental Panoramic X-Ray Images,
Entropy 26(12):1059, 2024. Attention gate: Oktay et al., Attention U-Net, MIDL 2018. ScConv: Li, Wen and He,
SCConv: Spatial and Channel Reconstruction Convolution for Feature Redundancy, CVPR 2023; group norm of 16
groups and gate 0.5, split 1/2, squeeze 2, groups 2 as there.
"""

from __future__ import annotations

import math
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn

from segcore.bundle.manifest import Manifest
from segcore.learn.losses import segmentation_loss
from teacher.decoders.supervised_heads import (
    build_supervised,
    double_conv,
    open_supervised,
    supervised_levels,
    supervised_system,
)
from teacher.sam2_model import MEAN_STD as MEAN_STD
from teacher.settings import TeacherSettings
from teacher.system import System, Task

_NORM_GROUPS = 16
_GATE = 0.5


class SpatialReconstruction(nn.Module):
    """Separates informative from redundant features by their group-norm scale and crosses the two. N×C×H×W kept."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(math.gcd(_NORM_GROUPS, channels), channels)

    def forward(self, x: Tensor) -> Tensor:
        share = (self.norm.weight / self.norm.weight.sum()).view(1, -1, 1, 1)
        # Contiguous: torch 2.13's CPU GroupNorm crashes in the backward of a channels-last input that needs no
        # gradient (a frozen encoder's features); native_group_norm_backward, cf. pytorch#115940
        weight = torch.sigmoid(self.norm(x.contiguous()) * share)
        informative = torch.where(weight > _GATE, torch.ones_like(weight), weight) * x
        redundant = torch.where(weight > _GATE, torch.zeros_like(weight), weight) * x
        a1, a2 = informative.chunk(2, dim=1)  # N C/2 H W each
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
        rich, cheap = self.squeeze_rich(rich), self.squeeze_cheap(cheap)  # N C/4 H W each
        rich = self.group(rich) + self.point(rich)  # N C H W
        cheap = torch.cat([self.cheap(cheap), cheap], dim=1)  # N C H W
        both = torch.cat([rich, cheap], dim=1)  # N 2C H W
        weighed = both.mean(dim=(2, 3), keepdim=True).softmax(dim=1) * both
        first, second = weighed.chunk(2, dim=1)
        return first + second


class ScConv(nn.Sequential):
    """Fewer redundant features, in space and then in channels. C must be a multiple of 16."""

    def __init__(self, channels: int) -> None:
        super().__init__(SpatialReconstruction(channels), ChannelReconstruction(channels))


class AttentionGate(nn.Module):
    """Weighs a skip's pixels by what the decoder has found so far. Both N×C×H×W; the skip, weighed, comes back."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = channels // 2
        self.of_gate = nn.Sequential(nn.Conv2d(channels, inner, 1, bias=False), nn.BatchNorm2d(inner))
        self.of_skip = nn.Sequential(nn.Conv2d(channels, inner, 1, bias=False), nn.BatchNorm2d(inner))
        self.weigh = nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(inner, 1, 1), nn.Sigmoid())

    def forward(self, gate: Tensor, skip: Tensor) -> Tensor:
        return skip * self.weigh(self.of_gate(gate) + self.of_skip(skip))


class DecoderBlock(nn.Module):
    """Doubles the resolution and merges the gated skip: ConvTranspose, attention gate, concat, (Conv-BN-ReLU)×2."""

    def __init__(self, inputs: int, skip: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(inputs, skip, 2, stride=2)
        self.reduce = ScConv(skip)
        self.gate = AttentionGate(skip)
        self.merge = double_conv(2 * skip, skip)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        up = self.up(x)  # N C h w → N C' 2h 2w, as the skip
        return self.merge(torch.cat([self.gate(up, self.reduce(skip)), up], dim=1))  # type: ignore[no-any-return]


class S2AgScUNet(nn.Module):
    """N×3×H×W normalised, H and W multiples of 32 → logits N×K×h×w at strides 16, 8 and 4, the finest last."""

    def __init__(self, encoder: nn.Module, channels: list[int], outputs: int) -> None:
        super().__init__()
        self.encoder = encoder
        pairs = list(pairwise(channels))  # deepest first: (768, 384), (384, 192), (192, 96)
        self.decoder = nn.ModuleList(DecoderBlock(a, b) for a, b in pairs)
        self.heads = nn.ModuleList(nn.Conv2d(b, outputs, 1) for _, b in pairs)

    def forward(self, x: Tensor) -> list[Tensor]:
        return supervised_levels(self.encoder(x), self.decoder, self.heads)


build_s2agscunet = partial(build_supervised, S2AgScUNet)
"""(encoder=, outputs=) → the network with random weights."""


def build_system(settings: TeacherSettings, task: Task) -> System:
    """The teacher with its weights loaded and frozen as `--tune` says."""
    return supervised_system(build_s2agscunet, settings, task, head_loss=segmentation_loss, name="S2AgScUNet")


def open_network(manifest: Manifest) -> nn.Module:
    """The plain form of a bundle, with random weights."""
    return open_supervised(build_s2agscunet, manifest)
