"""U-Nets: the controls from random weights, without SAM 2, and one on a pretrained encoder.

Without `--encoder` the student family's builder makes them: U-Net, and LightUNet as the paper's student has it. With
an encoder, `unet` is the control that every claim about a SAM teacher needs: an ordinary decoder on ordinary
pretrained weights, all of it trained.

Source: Ronneberger et al., U-Net, MICCAI 2015; Li et al., Entropy 26(12):1059, 2024, for LightUNet.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segcore.bundle.manifest import Manifest
from segcore.bundle.story import NO_WEIGHTS
from segcore.learn.augment import Sample
from segcore.learn.losses import cross_entropy, dice_loss
from segcore.picture.preprocess import output_spec
from teacher.decoders.supervised_heads import double_conv
from teacher.encoder import STRIDE, build_encoder, load_encoder_weights
from teacher.settings import SystemName, TeacherSettings
from teacher.system import System, Task, unchanged
from teacher.tuning.adapter_folder import save_adapters
from teacher.tuning.tune import adapted_encoder, tune_encoder, tuning_of, with_plain_encoder

MEAN_STD = {1: ((0.5,), (0.25,)), 3: ((0.5,) * 3, (0.25,) * 3)}
"""The students', in `student.network`; an encoder has its own."""
_TITLES: dict[SystemName, str] = {"unet": "U-Net", "lightunet": "LightUNet"}
_BASES: dict[SystemName, int] = {"unet": 64, "lightunet": 8}
_WIDTHS = (128, 64, 32)
"""Of the decoder on an encoder, at strides 16, 8 and 4."""


class EncoderUNet(nn.Module):
    """A U-Net's way up on a pyramid: N×3×H×W normalised, H and W multiples of 32 → logits N×K×H/4×W/4."""

    def __init__(self, encoder: nn.Module, outputs: int) -> None:
        super().__init__()
        deepest, *skips = encoder.channel_list  # type: ignore[misc]
        self.encoder = encoder
        inputs = (deepest, *_WIDTHS[:-1])
        self.merges = nn.ModuleList(
            double_conv(a + skip, b) for a, skip, b in zip(inputs, skips, _WIDTHS, strict=True)
        )
        self.head = nn.Conv2d(_WIDTHS[-1], outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        *skips, x = self.encoder(x)  # the finest first
        for merge, skip in zip(self.merges, reversed(skips), strict=True):
            up = F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
            x = merge(torch.cat([up, skip], dim=1))  # N C 2h 2w
        return self.head(x)  # type: ignore[no-any-return]


def build_system(settings: TeacherSettings, task: Task) -> System:
    """The plain control with random weights, all of them trained; or the U-Net on the encoder that the flags name."""
    if settings.has_encoder:
        return _build_on_encoder(settings, task)
    base = settings.unet_width or _BASES[settings.system]
    output = output_spec(task.classes, stride=1)
    return System(
        network=_build_unet(base, task.spec.channels, output.channels),
        output=output,
        loss=control_loss,
        view=unchanged,
        plain=unchanged,
        settings={"base": base},
        title=f"{_TITLES[settings.system]} {base}",
        pretrained=NO_WEIGHTS,
    )


def open_network(manifest: Manifest) -> nn.Module:
    """The network of a bundle, with random weights."""
    settings, outputs = manifest.architecture_settings, manifest.output.channels
    if "encoder" in settings:
        return EncoderUNet(adapted_encoder(build_encoder(settings["encoder"]), settings), outputs)
    return _build_unet(settings["base"], manifest.input.channels, outputs)


def control_loss(network: nn.Module, images: Tensor, sample: Sample) -> Tensor:
    """Cross-entropy + Dice of the logits, resized to the mask, as a student's without a teacher."""
    logits, target, labelled = network(images).float(), sample["mask"], sample["labelled"]
    if logits.shape[2:] != target.shape[1:]:
        logits = F.interpolate(logits, target.shape[1:], mode="bilinear", align_corners=False)
    weighted = cross_entropy(logits, target, labelled, sample.get("weight"))
    return weighted + dice_loss(logits, target, labelled)


def _build_on_encoder(settings: TeacherSettings, task: Task) -> System:
    output, tuning, name = (
        output_spec(task.classes, stride=STRIDE),
        tuning_of(settings),
        settings.encoder_name,
    )
    encoder = build_encoder(name)
    pretrained = load_encoder_weights(encoder, str(settings.weights), name)
    network = EncoderUNet(encoder, output.channels)
    encoder = network.encoder = tune_encoder(encoder, tuning)
    return System(
        network=network,
        output=output,
        loss=control_loss,
        view=unchanged,
        plain=lambda trained: with_plain_encoder(trained, tuning),
        settings={"encoder": name, **tuning.adapter_settings},
        title=f"U-Net on {name}",
        pretrained=pretrained,
        encoder=encoder,
        save_adapters=partial(save_adapters, encoder, tuning),
    )


def _build_unet(base: int, channels: int, outputs: int) -> nn.Module:
    from student.design import unet  # here: student imports teacher for its live teacher
    from student.network import build_student

    return build_student(unet(base), channels=channels, outputs=outputs)
