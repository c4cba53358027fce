"""SAM2-UNet: SAM 2's encoder with adapters, receptive field blocks, a U-Net decoder with a supervised head a level.

Source: Xiong et al., SAM2-UNet: Segment Anything 2 Makes Strong Encoder for Natural and Medical Image Segmentation,
2024. There: 352 px, AdamW, 1e-3. Here differently: bilinear upsampling by pixel areas (`align_corners=False`), as
everywhere in this project. Receptive field block: Liu et al., Receptive Field Block Net, ECCV 2018; with
kernels of 3, 5 and 7 as in Fan et al., PraNet, MICCAI 2020, which SAM2-UNet takes over.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segcore.bundle.manifest import Manifest
from segcore.learn.losses import boundary_loss
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

_CHANNELS = 64  # of every level. Source: Xiong et al. 2024
_REACHES = (3, 5, 7)


class ReceptiveField(nn.Module):
    """A level's features through four branches that look ever further, into few channels: N×C×H×W → N×D×H×W."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        near = _conv_norm(inputs, outputs, 1)
        self.branches = nn.ModuleList([near, *(_far_branch(inputs, outputs, reach) for reach in _REACHES)])
        self.merge = _conv_norm(len(self.branches) * outputs, outputs, 3)
        self.shortcut = _conv_norm(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        seen = torch.cat([branch(x) for branch in self.branches], dim=1)  # N 4D H W
        return F.relu(self.merge(seen) + self.shortcut(x))


def _far_branch(inputs: int, outputs: int, reach: int) -> nn.Sequential:
    """A row, a column, then nine pixels `reach` apart. Linear between the norms, as published."""
    return nn.Sequential(
        _conv_norm(inputs, outputs, 1),
        _conv_norm(outputs, outputs, (1, reach)),
        _conv_norm(outputs, outputs, (reach, 1)),
        _conv_norm(outputs, outputs, 3, dilation=reach),
    )


def _conv_norm(
    inputs: int, outputs: int, kernel: int | tuple[int, int], *, dilation: int = 1
) -> nn.Sequential:
    """Size kept."""
    conv = nn.Conv2d(inputs, outputs, kernel, padding="same", dilation=dilation, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))


class UpBlock(nn.Module):
    """Doubles the resolution and merges the skip: bilinear, concat, (Conv-BN-ReLU)×2. N×C×h×w and N×C×2h×2w in."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.merge = double_conv(2 * channels, channels)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        up = F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
        return self.merge(torch.cat([skip, up], dim=1))  # type: ignore[no-any-return]


class Sam2UNet(nn.Module):
    """N×3×H×W normalised, H and W multiples of 32 → logits N×K×h×w at strides 16, 8 and 4, the finest last."""

    def __init__(self, encoder: nn.Module, channels: list[int], outputs: int) -> None:
        super().__init__()
        self.encoder = encoder
        levels = len(channels) - 1
        self.reduce = nn.ModuleList(ReceptiveField(c, _CHANNELS) for c in reversed(channels))  # finest first
        self.decoder = nn.ModuleList(UpBlock(_CHANNELS) for _ in range(levels))
        self.heads = nn.ModuleList(nn.Conv2d(_CHANNELS, outputs, 1) for _ in range(levels))

    def forward(self, x: Tensor) -> list[Tensor]:
        # Each level N C h w → N 64 h w.
        features = [reduce(f) for reduce, f in zip(self.reduce, self.encoder(x), strict=True)]
        return supervised_levels(features, self.decoder, self.heads)


build_sam2_unet = partial(build_supervised, Sam2UNet)
"""(encoder=, outputs=) → the network with random weights."""


def build_system(settings: TeacherSettings, task: Task) -> System:
    """The teacher with its weights loaded and frozen as `--tune` says."""
    return supervised_system(build_sam2_unet, settings, task, head_loss=boundary_loss, name="SAM2-UNet")


def open_network(manifest: Manifest) -> nn.Module:
    """The plain form of a bundle, with random weights."""
    return open_supervised(build_sam2_unet, manifest)
