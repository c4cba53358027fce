"""S2AgScUNet: SAM 2's encoder, ScConv and attention gates in the skips, a U-Net decoder with a supervised head a level.

Source: Li et al., Adapting SAM2 Model from Natural Images for Tooth Segmentation in Dental Panoramic X-Ray Images,
Entropy 26(12):1059, 2024. Attention gate: Oktay et al., Attention U-Net, MIDL 2018.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from segcore.learn.blocks import double_conv
from segcore.learn.losses import segmentation_loss
from segcore.manifest import Manifest
from teacher.decoders.scconv import ScConv
from teacher.decoders.supervised_heads import open_supervised, supervised_system
from teacher.decoders.u_decoder import supervised_levels
from teacher.sam2_package import SAM2_MEAN_STD, build_encoder
from teacher.settings import EncoderSize, TeacherSettings
from teacher.system import System, Task

MEAN_STD = SAM2_MEAN_STD


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
        up = self.up(x)
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


def build_s2agscunet(*, encoder: EncoderSize, outputs: int) -> S2AgScUNet:
    """The network with random weights."""
    trunk = build_encoder(encoder)
    channels: list[int] = list(trunk.channel_list)  # type: ignore[arg-type]
    return S2AgScUNet(trunk, channels, outputs)


def build_system(settings: TeacherSettings, task: Task) -> System:
    """The teacher with its weights loaded and frozen as `--tune` says."""
    return supervised_system(build_s2agscunet, settings, task, head_loss=segmentation_loss, name="S2AgScUNet")


def open_network(manifest: Manifest) -> nn.Module:
    """The plain form of a bundle, with random weights."""
    return open_supervised(build_s2agscunet, manifest)
