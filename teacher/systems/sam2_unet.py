"""SAM2-UNet: SAM 2's encoder with adapters, receptive field blocks, a U-Net decoder with a supervised head a level.

Source: Xiong et al., SAM2-UNet: Segment Anything 2 Makes Strong Encoder for Natural and Medical Image Segmentation,
2024. There: 352 px, AdamW, 1e-3. Here differently: bilinear upsampling by pixel areas (`align_corners=False`), as
everywhere in this project.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from segcore.bundle import Manifest
from segcore.learn.losses import boundary_loss
from segcore.preprocess import output_spec
from teacher.decoders.receptive_field import ReceptiveField
from teacher.decoders.supervised_heads import FinestHead, deep_supervision, with_plain_encoder
from teacher.decoders.u_decoder import UpBlock, supervised_levels
from teacher.sam2_package import SAM2_MEAN_STD, build_encoder
from teacher.sam2_weights import load_encoder_weights
from teacher.settings import EncoderSize, TeacherSettings
from teacher.system import System, Task
from teacher.tuning.adapter_folder import save_adapters
from teacher.tuning.tune import adapted_encoder, tune_encoder, tuning_of

MEAN_STD = SAM2_MEAN_STD
STRIDE = 4
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
    output, tuning = output_spec(task.classes, stride=STRIDE), tuning_of(settings)
    network = build_sam2_unet(encoder=settings.encoder, outputs=output.channels)
    pretrained = load_encoder_weights(network.encoder, str(settings.weights), settings.encoder)
    encoder = network.encoder = tune_encoder(network.encoder, tuning)
    return System(
        network=network,
        output=output,
        loss=deep_supervision(boundary_loss),
        view=FinestHead,
        plain=lambda trained: FinestHead(with_plain_encoder(trained, tuning)),
        settings={"encoder": settings.encoder, **tuning.adapter_settings},
        title=f"SAM2-UNet {settings.encoder}",
        pretrained=pretrained,
        save_adapters=partial(save_adapters, encoder, tuning),
    )


def open_network(manifest: Manifest) -> nn.Module:
    """The plain form of a bundle, with random weights."""
    settings = manifest.architecture_settings
    network = build_sam2_unet(encoder=settings["encoder"], outputs=manifest.output.channels)
    network.encoder = adapted_encoder(network.encoder, settings)
    return FinestHead(network)
