"""SAM2-UNet: SAM 2's encoder with adapters, receptive field blocks, a U-Net decoder with a supervised head a level.

Source: Xiong et al., SAM2-UNet: Segment Anything 2 Makes Strong Encoder for Natural and Medical Image Segmentation,
2024. There: 352 px, AdamW, 1e-3. Here differently: bilinear upsampling by pixel areas (`align_corners=False`), as
everywhere in this project.
"""

from __future__ import annotations

from torch import Tensor, nn

from segcore.learn.losses import boundary_loss
from segcore.manifest import Manifest
from teacher.decoders.receptive_field import ReceptiveField
from teacher.decoders.supervised_heads import open_supervised, supervised_system
from teacher.decoders.u_decoder import UpBlock, supervised_levels
from teacher.sam2_package import SAM2_MEAN_STD, build_encoder
from teacher.settings import EncoderSize, TeacherSettings
from teacher.system import System, Task

MEAN_STD = SAM2_MEAN_STD
_CHANNELS = 64  # of every level. Source: Xiong et al. 2024


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
        features = [reduce(f) for reduce, f in zip(self.reduce, self.encoder(x), strict=True)]
        return supervised_levels(features, self.decoder, self.heads)


def build_sam2_unet(*, encoder: EncoderSize, outputs: int) -> Sam2UNet:
    """The network with random weights."""
    trunk = build_encoder(encoder)
    channels: list[int] = list(trunk.channel_list)  # type: ignore[arg-type]
    return Sam2UNet(trunk, channels, outputs)


def build_system(settings: TeacherSettings, task: Task) -> System:
    """The teacher with its weights loaded and frozen as `--tune` says."""
    return supervised_system(build_sam2_unet, settings, task, head_loss=boundary_loss, name="SAM2-UNet")


def open_network(manifest: Manifest) -> nn.Module:
    """The plain form of a bundle, with random weights."""
    return open_supervised(build_sam2_unet, manifest)
