"""Systems with a U-Net's way up and a supervised head on every level of it; the finest is what is deployed."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segcore.bundle.manifest import Manifest
from segcore.learn.augment import Sample
from segcore.picture.preprocess import output_spec
from teacher.encoder import STRIDE, build_encoder, load_encoder_weights
from teacher.settings import EncoderName, TeacherSettings
from teacher.system import Loss, System, Task
from teacher.tuning.adapter_folder import save_adapters
from teacher.tuning.tune import adapted_encoder, tune_encoder, tuning_of, with_plain_encoder

HeadLoss = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
"""(logits N×K×H×W, target N×H×W, labelled N, pixels' weights N×H×W or None) → scalar, as those of
`segcore.learn.losses`."""


class NetworkBuilder(Protocol):
    """Builds a network with random weights; its `encoder` is a pyramid, and called it gives logits, the finest last."""

    def __call__(self, *, encoder: EncoderName, outputs: int) -> nn.Module: ...


NetworkClass = Callable[[nn.Module, list[int], int], nn.Module]
"""(encoder, its channels, the deepest level's first, outputs) → such a network."""


def build_supervised(kind: NetworkClass, *, encoder: EncoderName, outputs: int) -> nn.Module:
    """A network over a new encoder; all weights are random."""
    trunk = build_encoder(encoder)
    channels: list[int] = list(trunk.channel_list)  # type: ignore[arg-type]
    return kind(trunk, channels, outputs)


def double_conv(inputs: int, outputs: int) -> nn.Sequential:
    """(Conv 3×3, BN, ReLU) twice, size kept. Source: U-Net's block, with padding and batch normalisation."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
        nn.Conv2d(outputs, outputs, 3, padding=1),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


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
        x = block(x, skip)  # N C' h w → N C 2h 2w
        logits.append(head(x))  # N K 2h 2w
    return logits


class FinestHead(nn.Module):
    """The trained network as it is deployed: N×3×H×W → logits N×K×H/4×W/4. The other heads fall out of the graph."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)[-1]  # type: ignore[no-any-return]


def deep_supervision(head_loss: HeadLoss) -> Loss:
    """The loss of each head, upsampled to the mask, summed."""

    def loss(network: nn.Module, images: Tensor, sample: Sample) -> Tensor:
        target = sample["mask"]
        total = torch.zeros((), device=images.device)
        for logits in network(images):
            # In 32 bits: with --amp bf16 the network's logits have 8 bits of precision.
            full = F.interpolate(logits.float(), target.shape[1:], mode="bilinear", align_corners=False)
            total = total + head_loss(full, target, sample["labelled"], sample.get("weight"))
        return total

    return loss


def supervised_system(
    build: NetworkBuilder, settings: TeacherSettings, task: Task, *, head_loss: HeadLoss, name: str
) -> System:
    """A teacher of such a network, with its weights loaded and frozen as `--tune` says."""
    output, tuning = output_spec(task.classes, stride=STRIDE), tuning_of(settings)
    network = build(encoder=settings.encoder_name, outputs=output.channels)
    pretrained = load_encoder_weights(network.encoder, str(settings.weights), settings.encoder_name)  # type: ignore[arg-type]
    encoder = network.encoder = tune_encoder(network.encoder, tuning)  # type: ignore[arg-type]
    return System(
        network=network,
        output=output,
        loss=deep_supervision(head_loss),
        view=FinestHead,
        plain=lambda trained: FinestHead(with_plain_encoder(trained, tuning)),
        settings={"encoder": settings.encoder_name, **tuning.adapter_settings},
        title=f"{name} {settings.encoder_name}",
        pretrained=pretrained,
        encoder=encoder,
        save_adapters=partial(save_adapters, encoder, tuning),
    )


def open_supervised(build: NetworkBuilder, manifest: Manifest) -> nn.Module:
    """The plain form of such a teacher's bundle, with random weights."""
    settings = manifest.architecture_settings
    network = build(encoder=settings["encoder"], outputs=manifest.output.channels)
    network.encoder = adapted_encoder(network.encoder, settings)  # type: ignore[arg-type]
    return FinestHead(network)
