"""The blocks of the student family: N×C×H×W in, N×D×H×W out, size kept.

Each builder returns a list of modules, so that a stage of plain blocks is one flat sequence of convolution, batch
norm and activation, which every engine fuses into one operator.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from student.design import Design


def stage(design: Design, inputs: int, outputs: int, depth: int) -> nn.Sequential:
    """`depth` blocks; the first changes the width."""
    layers: list[nn.Module] = []
    for i in range(depth):
        layers += _BLOCKS[design.block](inputs if i == 0 else outputs, outputs, design)
    return nn.Sequential(*layers)


def conv_unit(inputs: int, outputs: int, kernel: int, design: Design, *, stride: int = 1) -> list[nn.Module]:
    """Convolution, batch norm, activation; padded so that the size is divided by the stride."""
    padding = (kernel - stride + 1) // 2
    return [
        nn.Conv2d(inputs, outputs, kernel, stride, padding),
        nn.BatchNorm2d(outputs),
        activation(design),
    ]


def activation(design: Design) -> nn.Module:
    """The design's activation, in place."""
    return nn.ReLU(inplace=True) if design.activation == "relu" else nn.Hardswish(inplace=True)


def _plain(inputs: int, outputs: int, design: Design) -> list[nn.Module]:
    return conv_unit(inputs, outputs, 3, design)


def _separable(inputs: int, outputs: int, design: Design) -> list[nn.Module]:
    """Depthwise 3×3, then 1×1. Source: Howard et al., MobileNets, 2017."""
    depthwise = nn.Conv2d(inputs, inputs, 3, padding=1, groups=inputs)
    return [
        depthwise,
        nn.BatchNorm2d(inputs),
        activation(design),
        *conv_unit(inputs, outputs, 1, design),
    ]


class Residual(nn.Module):
    """x + f(x) with a 1×1 convolution on the shortcut where the width changes; activation after the sum."""

    def __init__(self, body: nn.Sequential, inputs: int, outputs: int, last: nn.Module) -> None:
        super().__init__()
        self.body, self.last = body, last
        self.shortcut = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.body(x) + self.shortcut(x))


def _residual(inputs: int, outputs: int, design: Design) -> list[nn.Module]:
    """Two 3×3 convolutions. Source: He et al., Deep Residual Learning, CVPR 2016, the basic block."""
    body = [*conv_unit(inputs, outputs, 3, design), *conv_unit(outputs, outputs, 3, design)[:2]]
    return [Residual(nn.Sequential(*body), inputs, outputs, activation(design))]


def _inverted(inputs: int, outputs: int, design: Design, expansion: int = 4) -> list[nn.Module]:
    """1×1 wide, depthwise 3×3, 1×1 narrow without activation. Source: Sandler et al., MobileNetV2, CVPR 2018."""
    wide = expansion * inputs
    body = [
        *conv_unit(inputs, wide, 1, design),
        nn.Conv2d(wide, wide, 3, padding=1, groups=wide),
        nn.BatchNorm2d(wide),
        activation(design),
        *conv_unit(wide, outputs, 1, design)[:2],
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
        weight, bias = _folded(self.wide.get_parameter("0.weight"), self.wide[1])
        narrow = F.pad(self.narrow.get_parameter("0.weight"), (1, 1, 1, 1))
        narrow_weight, narrow_bias = _folded(narrow, self.narrow[1])
        weight, bias = weight + narrow_weight, bias + narrow_bias
        if self.keep is not None:
            channels = weight.shape[0]
            identity = torch.zeros_like(weight)
            identity[range(channels), range(channels), 1, 1] = 1.0
            kept_weight, kept_bias = _folded(identity, self.keep)
            weight, bias = weight + kept_weight, bias + kept_bias
        one = nn.Conv2d(weight.shape[1], weight.shape[0], 3, padding=1)
        one.weight.copy_(weight)
        one.bias.copy_(bias)  # type: ignore[union-attr]
        norm = nn.BatchNorm2d(weight.shape[0])
        norm.weight.fill_((1 + norm.eps) ** 0.5)  # undoes 1/√(running variance 1 + ε)
        return [one.to(weight.device), norm.to(weight.device), self.last]


def _reparam(inputs: int, outputs: int, design: Design) -> list[nn.Module]:
    return [Reparam(inputs, outputs, activation(design))]


def _folded(weight: Tensor, norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Weight and bias of a convolution without bias followed by a batch norm, as one convolution."""
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    return weight * scale.view(-1, 1, 1, 1), norm.bias - norm.running_mean * scale


_BLOCKS = {
    "plain": _plain,
    "residual": _residual,
    "reparam": _reparam,
    "separable": _separable,
    "inverted": _inverted,
}
