"""The student family: one builder for every `Design`, from the paper's LightUNet to the presets for 8-bit hardware."""

from __future__ import annotations

import copy
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segcore.bundle.folder import Bundle
from segcore.errors import reading
from segcore.learn.network import check_torch_bundle, load_weights
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
        self.stem = _build_stem(design, inputs)
        strided = design.down == "strided"
        pairs = list(pairwise(widths))  # (fine, coarse)
        shrink = [
            nn.Sequential(*_conv_unit(a, b, 3, design, stride=2)) if strided else nn.MaxPool2d(2)
            for a, b in pairs
        ]
        self.shrink = nn.ModuleList(shrink)
        before = [first, *(widths[1:] if strided else widths[:-1])]
        self.down = nn.ModuleList(
            _build_stage(design, a, b, n) for a, b, n in zip(before, widths, design.depths, strict=True)
        )
        ways = 2 if design.skip == "concat" else 1
        self.up = nn.ModuleList(_build_up(design, coarse, fine) for fine, coarse in reversed(pairs))
        self.merge = nn.ModuleList(
            _build_stage(design, ways * fine, fine, n)
            for (fine, _), n in reversed(list(zip(pairs, design.up_depths, strict=True)))
        )
        self.head = nn.Conv2d(widths[0], outputs * design.head_upscale**2, 1)

    def forward(self, x: Tensor) -> Tensor:
        """N×C×H×W normalised, H and W divisible by `design.stride` → logits N×K×h×w, h = H / logits_stride."""
        return self.decode(self.encode(x))

    def encode(self, x: Tensor) -> list[Tensor]:
        """Features of every level, finest first; the last is the deepest."""
        x = self.stem(x)  # N C H/stem_stride W/stem_stride
        levels = [self.down[0](x)]
        for shrink, down in zip(self.shrink, list(self.down)[1:], strict=True):
            levels.append(down(shrink(levels[-1])))  # half the size of the level before
        return levels

    def decode(self, levels: list[Tensor]) -> Tensor:
        """The encoder's features → logits."""
        *skips, x = levels
        for up, merge, skip in zip(self.up, self.merge, reversed(skips), strict=True):
            grown = up(x)
            x = merge(torch.cat([skip, grown], dim=1) if self.design.skip == "concat" else skip + grown)
        logits = self.head(x)  # N K·upscale² h w
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
    settings = f"one whose architecture_settings make a {manifest.architecture}"
    with reading(f"bundle {bundle.folder}", settings, remedy="copy the bundle again"):
        design = design_of(manifest.architecture, manifest.architecture_settings)
    network = build_student(design, channels=manifest.input.channels, outputs=manifest.output.channels)
    load_weights(network, bundle)
    return network


def design_of(architecture: str, settings: dict[str, object]) -> Design:
    """The design that a manifest names; `unet` with a base width is what bundles held before there was a family.

    Raises:
        ValueError: the settings make none.
    """
    if architecture == "unet":
        return unet(int(str(settings.get("base"))))
    return Design.model_validate(settings)


def _build_stem(design: Design, inputs: int) -> nn.Module:
    stride = design.stem_stride
    if design.stem == "strided":
        return nn.Sequential(*_conv_unit(inputs, design.widths[0], 2 * stride, design, stride=stride))
    return nn.PixelUnshuffle(stride) if design.stem == "unshuffle" else nn.Identity()


def _build_up(design: Design, coarse: int, fine: int) -> nn.Module:
    """Doubles height and width, coarse → fine channels."""
    if design.up == "transposed":
        return nn.ConvTranspose2d(coarse, fine, 2, stride=2)
    if design.up == "shuffle":
        return nn.Sequential(nn.Conv2d(coarse, 4 * fine, 1), nn.PixelShuffle(2))
    smooth = {"align_corners": False} if design.up == "bilinear" else {}
    return nn.Sequential(nn.Conv2d(coarse, fine, 1), nn.Upsample(scale_factor=2.0, mode=design.up, **smooth))


def _plain_layers(block: nn.Module) -> list[nn.Module]:
    return block.fused() if isinstance(block, Reparam) else [block]


# The blocks. Each builder returns a list of modules, N×C×H×W in, N×D×H×W out, size kept: so a stage of plain blocks is
# one flat sequence of convolution, batch norm and activation, which every engine fuses into one operator.


def _build_stage(design: Design, inputs: int, outputs: int, depth: int) -> nn.Sequential:
    """`depth` blocks; the first changes the width."""
    layers: list[nn.Module] = []
    for i in range(depth):
        layers += _BLOCKS[design.block](inputs if i == 0 else outputs, outputs, design)
    return nn.Sequential(*layers)


def _conv_unit(inputs: int, outputs: int, kernel: int, design: Design, *, stride: int = 1) -> list[nn.Module]:
    """Convolution, batch norm, activation; padded so that the size is divided by the stride."""
    padding = (kernel - stride + 1) // 2
    return [
        nn.Conv2d(inputs, outputs, kernel, stride, padding),
        nn.BatchNorm2d(outputs),
        _build_activation(design),
    ]


def _build_activation(design: Design) -> nn.Module:
    """The design's activation, in place."""
    return nn.ReLU(inplace=True) if design.activation == "relu" else nn.Hardswish(inplace=True)


def _plain_block(inputs: int, outputs: int, design: Design) -> list[nn.Module]:
    return _conv_unit(inputs, outputs, 3, design)


def _separable_block(inputs: int, outputs: int, design: Design) -> list[nn.Module]:
    """Depthwise 3×3, then 1×1. Source: Howard et al., MobileNets, 2017."""
    depthwise = nn.Conv2d(inputs, inputs, 3, padding=1, groups=inputs)
    return [
        depthwise,
        nn.BatchNorm2d(inputs),
        _build_activation(design),
        *_conv_unit(inputs, outputs, 1, design),
    ]


class Residual(nn.Module):
    """x + f(x) with a 1×1 convolution on the shortcut where the width changes; activation after the sum."""

    def __init__(self, body: nn.Sequential, inputs: int, outputs: int, last: nn.Module) -> None:
        super().__init__()
        self.body, self.last = body, last
        self.shortcut = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.body(x) + self.shortcut(x))


def _residual_block(inputs: int, outputs: int, design: Design) -> list[nn.Module]:
    """Two 3×3 convolutions. Source: He et al., Deep Residual Learning, CVPR 2016, the basic block."""
    body = [*_conv_unit(inputs, outputs, 3, design), *_conv_unit(outputs, outputs, 3, design)[:2]]
    return [Residual(nn.Sequential(*body), inputs, outputs, _build_activation(design))]


def _inverted_block(inputs: int, outputs: int, design: Design, expansion: int = 4) -> list[nn.Module]:
    """1×1 wide, depthwise 3×3, 1×1 narrow without activation. Source: Sandler et al., MobileNetV2, CVPR 2018."""
    wide = expansion * inputs
    body = [
        *_conv_unit(inputs, wide, 1, design),
        nn.Conv2d(wide, wide, 3, padding=1, groups=wide),
        nn.BatchNorm2d(wide),
        _build_activation(design),
        *_conv_unit(wide, outputs, 1, design)[:2],
    ]
    return [Residual(nn.Sequential(*body), inputs, outputs, nn.Identity())]


class Reparam(nn.Module):
    """While training: 3×3, 1×1 and, where the width stays, identity, each with batch norm, summed. Fused: one 3×3.

    Source: Ding et al., RepVGG, CVPR 2021.
    """

    def __init__(self, inputs: int, outputs: int, last: nn.Module) -> None:
        super().__init__()
        self.wide = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs)
        )
        self.narrow = nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs))
        self.keep = nn.BatchNorm2d(outputs) if inputs == outputs else None
        self.last = last

    def forward(self, x: Tensor) -> Tensor:
        y = self.wide(x) + self.narrow(x)
        return self.last(y if self.keep is None else y + self.keep(x))

    @torch.no_grad()
    def fused(self) -> list[nn.Module]:
        """One convolution of equal function, an identity batch norm and the activation: the layers of a plain block."""
        weight, bias = _fold_norm(self.wide.get_parameter("0.weight"), self.wide[1])
        narrow = F.pad(self.narrow.get_parameter("0.weight"), (1, 1, 1, 1))
        narrow_weight, narrow_bias = _fold_norm(narrow, self.narrow[1])
        weight, bias = weight + narrow_weight, bias + narrow_bias
        if self.keep is not None:
            channels = weight.shape[0]
            identity = torch.zeros_like(weight)
            identity[range(channels), range(channels), 1, 1] = 1.0
            kept_weight, kept_bias = _fold_norm(identity, self.keep)
            weight, bias = weight + kept_weight, bias + kept_bias
        one = nn.Conv2d(weight.shape[1], weight.shape[0], 3, padding=1)
        one.weight.copy_(weight)
        one.bias.copy_(bias)  # type: ignore[union-attr]
        norm = nn.BatchNorm2d(weight.shape[0])
        norm.weight.fill_((1 + norm.eps) ** 0.5)  # undoes 1/√(running variance 1 + ε)
        return [one.to(weight.device), norm.to(weight.device), self.last]


def _reparam_block(inputs: int, outputs: int, design: Design) -> list[nn.Module]:
    return [Reparam(inputs, outputs, _build_activation(design))]


def _fold_norm(weight: Tensor, norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Weight and bias of a convolution without bias followed by a batch norm, as one convolution."""
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    return weight * scale.view(-1, 1, 1, 1), norm.bias - norm.running_mean * scale


_BLOCKS = {
    "plain": _plain_block,
    "residual": _residual_block,
    "reparam": _reparam_block,
    "separable": _separable_block,
    "inverted": _inverted_block,
}
