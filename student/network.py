"""The student family: one builder for every `Design`, from the paper's LightUNet to the presets for 8-bit hardware."""

from __future__ import annotations

import copy
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segcore.bundle import Bundle
from segcore.learn.weights import check_torch_bundle, load_weights
from student.blocks import Reparam, conv_unit, stage
from student.design import Design, unet

ARCHITECTURE = "student"
GREY_MEAN_STD = ((0.5,), (0.25,))
RGB_MEAN_STD = ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


class Student(nn.Module):
    """Encoder, decoder with skips, and a 1×1 head; see `Design` for what each part can be."""

    def __init__(self, design: Design, inputs: int, outputs: int) -> None:
        super().__init__()
        widths, stride = design.widths, design.stem_stride
        self.design = design
        first = widths[0] if design.stem == "strided" else inputs * stride**2
        self.stem = _stem(design, inputs)
        strided = design.down == "strided"
        pairs = list(pairwise(widths))  # (fine, coarse)
        shrink = [
            nn.Sequential(*conv_unit(a, b, 3, design, stride=2)) if strided else nn.MaxPool2d(2)
            for a, b in pairs
        ]
        self.shrink = nn.ModuleList(shrink)
        before = [first, *(widths[1:] if strided else widths[:-1])]
        self.down = nn.ModuleList(
            stage(design, a, b, n) for a, b, n in zip(before, widths, design.depths, strict=True)
        )
        ways = 2 if design.skip == "concat" else 1
        self.up = nn.ModuleList(_up(design, coarse, fine) for fine, coarse in reversed(pairs))
        self.merge = nn.ModuleList(
            stage(design, ways * fine, fine, n)
            for (fine, _), n in reversed(list(zip(pairs, design.up_depths, strict=True)))
        )
        self.head = nn.Conv2d(widths[0], outputs * design.head_upscale**2, 1)

    def forward(self, x: Tensor) -> Tensor:
        """N×C×H×W normalised, H and W divisible by `design.stride` → logits N×K×h×w, h = H / logits_stride."""
        return self.decode(self.encode(x))

    def encode(self, x: Tensor) -> list[Tensor]:
        """Features of every level, finest first; the last is the deepest."""
        x = self.stem(x)
        levels = [self.down[0](x)]
        for shrink, down in zip(self.shrink, list(self.down)[1:], strict=True):
            levels.append(down(shrink(levels[-1])))
        return levels

    def decode(self, levels: list[Tensor]) -> Tensor:
        """The encoder's features → logits."""
        *skips, x = levels
        for up, merge, skip in zip(self.up, self.merge, reversed(skips), strict=True):
            grown = up(x)
            x = merge(torch.cat([skip, grown], dim=1) if self.design.skip == "concat" else skip + grown)
        logits = self.head(x)
        return F.pixel_shuffle(logits, self.design.head_upscale) if self.design.head_upscale > 1 else logits


def build_student(design: Design, *, channels: int, outputs: int) -> Student:
    """Builds a member of the family.

    Args:
        design: what it looks like.
        channels: of the input, 1 or 3.
        outputs: logits a pixel, 1 for one class, K + 1 for K classes.
    """
    return Student(design, channels, outputs)


def sealed_form(network: Student) -> Student:
    """The network as it is deployed: RepVGG branches fused into plain convolutions; equal function in eval mode."""
    if network.design.block != "reparam":
        return network
    network = copy.deepcopy(network)
    for name in ("down", "merge"):
        stages = getattr(network, name)
        for i, one in enumerate(stages):
            stages[i] = nn.Sequential(*(layer for block in one for layer in _plain_layers(block)))
    network.design = network.design.model_copy(update={"block": "plain"})
    return network.eval()


def load_student(bundle: Bundle) -> Student:
    """Builds the network of a torch bundle and loads its weights; in eval mode.

    Raises:
        InputError: not a student in torch format.
    """
    check_torch_bundle(bundle, "student")
    manifest = bundle.manifest
    design = design_of(manifest.architecture, manifest.architecture_settings)
    network = build_student(design, channels=manifest.input.channels, outputs=manifest.output.channels)
    load_weights(network, bundle)
    return network


def design_of(architecture: str, settings: dict[str, object]) -> Design:
    """The design that a manifest names; `unet` with a base width is what bundles held before there was a family."""
    if architecture == "unet":
        return unet(int(str(settings["base"])))
    return Design.model_validate(settings)


def _stem(design: Design, inputs: int) -> nn.Module:
    stride = design.stem_stride
    if design.stem == "strided":
        return nn.Sequential(*conv_unit(inputs, design.widths[0], 2 * stride, design, stride=stride))
    return nn.PixelUnshuffle(stride) if design.stem == "unshuffle" else nn.Identity()


def _up(design: Design, coarse: int, fine: int) -> nn.Module:
    """Doubles height and width, coarse → fine channels."""
    if design.up == "transposed":
        return nn.ConvTranspose2d(coarse, fine, 2, stride=2)
    if design.up == "shuffle":
        return nn.Sequential(nn.Conv2d(coarse, 4 * fine, 1), nn.PixelShuffle(2))
    smooth = {"align_corners": False} if design.up == "bilinear" else {}
    return nn.Sequential(nn.Conv2d(coarse, fine, 1), nn.Upsample(scale_factor=2.0, mode=design.up, **smooth))


def _plain_layers(block: nn.Module) -> list[nn.Module]:
    return block.fused() if isinstance(block, Reparam) else [block]
