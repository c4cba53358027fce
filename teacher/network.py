"""S2AgScUNet: SAM 2's encoder, ScConv and attention gates in the skips, a U-Net decoder with a supervised head a level.

Source: Li et al., Adapting SAM2 Model from Natural Images for Tooth Segmentation in Dental Panoramic X-Ray Images,
Entropy 26(12):1059, 2024. Attention gate: Oktay et al., Attention U-Net, MIDL 2018.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn

from segcore.bundle import Bundle
from segcore.learn.blocks import double_conv
from segcore.learn.weights import check_torch_bundle, load_weights
from teacher.adapter import add_adapters
from teacher.lora import merge_lora
from teacher.sam2_encoder import EncoderSize, build_encoder
from teacher.scconv import ScConv

Tune = Literal["lora", "adapter", "decoder", "all"]
STRIDE = 4


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
        *skips, x = self.encoder(x)
        logits = []
        for block, head, skip in zip(self.decoder, self.heads, reversed(skips), strict=True):
            x = block(x, skip)
            logits.append(head(x))
        return logits


class FinestHead(nn.Module):
    """The trained network as it is deployed: N×3×H×W → logits N×K×H/4×W/4. The other heads fall out of the graph."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)[-1]  # type: ignore[no-any-return]


def build_s2agscunet(*, encoder: EncoderSize, outputs: int, adapter_width: int | None = None) -> S2AgScUNet:
    """Builds the teacher with random weights, with adapters before the blocks if a width is given."""
    trunk = build_encoder(encoder)
    channels: list[int] = list(trunk.channel_list)  # type: ignore[arg-type]
    if adapter_width is not None:
        add_adapters(trunk, adapter_width)
    return S2AgScUNet(trunk, channels, outputs)


def deployed(network: S2AgScUNet, tune: Tune) -> FinestHead:
    """The plain module that a bundle holds: LoRA merged into the weights, in place."""
    if tune == "lora":
        network.encoder = merge_lora(network.encoder)
    return FinestHead(network)


def load_teacher(bundle: Bundle) -> nn.Module:
    """Builds the network of a torch bundle and loads its weights; in eval mode, without peft.

    Raises:
        InputError: not a teacher in torch format.
    """
    check_torch_bundle(bundle, "teacher")
    settings: dict[str, Any] = bundle.manifest.architecture_settings
    network = build_s2agscunet(
        encoder=settings["encoder"],
        outputs=bundle.manifest.output.channels,
        adapter_width=settings["adapter_width"],
    )
    return load_weights(FinestHead(network), bundle)
