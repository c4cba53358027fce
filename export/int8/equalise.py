"""Levels the ranges of a student's channels before INT8, without data and without changing its function.

One scale serves all channels of an activation, so a channel with large numbers takes the steps away from the others.
A channel that is divided by s > 0 where it is written and multiplied by s where it is read computes the same as before:
ReLU, max-pooling, upsampling and sums of channels scaled alike all pass a positive factor on. s = √(r₁/r₂) makes the
largest weight that writes the channel, r₁, equal the largest that reads it, r₂.

What hangs together is scaled together: the ways into a sum and out of it, skips, the channels of a pixel shuffle. What
cannot be scaled stays: the picture, the logits, and whatever passes a hardswish.

Source: Nagel et al., Data-Free Quantization Through Weight Equalization and Bias Correction, ICCV 2019.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from export.int8.traced import WEIGHTED, fold_norms, is_add, is_concat, layer_of, trace
from student.network import Student

ROUNDS = 40
"""Passes over the channels: each changes what its neighbours should be; the preset students settle in about 20."""
_PASS_ON = (
    nn.ReLU,
    nn.MaxPool2d,
    nn.Upsample,
    nn.Identity,
    nn.BatchNorm2d,
)  # norms are identities once folded
_FIXED = 0


@torch.no_grad()
def equalise(network: Student) -> Student:
    """A student of the same design and function (to FP32's rounding) whose channels have levelled ranges.

    Args:
        network: left as it is.
    """
    network = fold_norms(network)
    device = next(network.parameters()).device
    layers, channels = _tied_channels(trace(network), device)
    for _ in range(ROUNDS):
        written, read = torch.zeros(channels, device=device), torch.zeros(channels, device=device)
        for layer, inputs, outputs in layers:
            written.scatter_reduce_(0, outputs, _largest_weights(layer, 0), "amax")
            read.scatter_reduce_(0, inputs, _largest_weights(layer, 1), "amax")
        scale = (written / read).sqrt()
        scale[~(scale.isfinite() & (scale > 0))] = 1.0  # a channel that nobody writes, or reads
        scale[_FIXED] = 1.0
        for layer, inputs, outputs in layers:
            _rescale_layer(layer, scale[inputs], scale[outputs])
    return network


def _largest_weights(layer: nn.Conv2d | nn.ConvTranspose2d, side: int) -> Tensor:
    """The largest |weight| of each output channel (side 0) or input channel (side 1)."""
    axis = side if isinstance(layer, nn.Conv2d) and layer.groups == 1 else 0
    if isinstance(layer, nn.ConvTranspose2d):
        axis = 1 - side  # its weights are input × output
    return layer.weight.abs().amax(dim=[a for a in range(4) if a != axis])


def _rescale_layer(layer: nn.Conv2d | nn.ConvTranspose2d, inputs: Tensor, outputs: Tensor) -> None:
    """Undoes the inputs' division by their scale, and divides the outputs by theirs."""
    ways_in, ways_out = inputs.view(1, -1, 1, 1), outputs.view(-1, 1, 1, 1)
    if isinstance(layer, nn.ConvTranspose2d):
        ways_in, ways_out = ways_in.transpose(0, 1), ways_out.transpose(0, 1)
    elif layer.groups > 1:  # depthwise: one input each
        ways_in = ways_in.transpose(0, 1)
    layer.weight.mul_(ways_in / ways_out)
    if layer.bias is not None:
        layer.bias.div_(outputs)


def _tied_channels(
    graph: fx.GraphModule, device: torch.device
) -> tuple[list[tuple[nn.Conv2d | nn.ConvTranspose2d, Tensor, Tensor]], int]:
    """Every weighted layer with the numbers of its input and output channels, and how many numbers there are.

    Channels with one number must have one scale; those with `_FIXED` have none.
    """
    root = [_FIXED]

    def find(channel: int) -> int:
        while root[channel] != channel:
            channel = root[channel]
        return channel

    def tie(groups: Sequence[Sequence[int]]) -> None:
        for group in groups:
            lowest = min(find(c) for c in group)
            for channel in group:
                root[find(channel)] = lowest

    def new(count: int) -> list[int]:
        root.extend(range(len(root), len(root) + count))
        return list(range(len(root) - count, len(root)))

    of: dict[fx.Node, list[int]] = {}
    layers = []
    for node in graph.graph.nodes:
        layer = layer_of(graph, node)
        sources = [of[source] for source in node.all_input_nodes]
        upscale = _shuffle_factor(layer, node)
        if isinstance(layer, WEIGHTED):
            inputs = sources[0] or new(layer.in_channels)
            of[node] = new(layer.out_channels)
            layers.append((layer, inputs, of[node]))
            if not sources[0]:  # the picture: nobody scales it
                tie([[_FIXED, *inputs]])
            if layer.groups not in (1, layer.in_channels) or (
                layer.groups > 1 and layer.out_channels != layer.in_channels
            ):
                tie([[_FIXED, *inputs, *of[node]]])
        elif node.op == "placeholder":
            of[node] = []  # as many as its first layer takes, all fixed
        elif is_add(node):
            tie(list(zip(*sources, strict=True)))
            of[node] = sources[0]
        elif is_concat(node):
            of[node] = [channel for source in sources for channel in source]
        elif upscale:
            groups = [sources[0][i : i + upscale**2] for i in range(0, len(sources[0]), upscale**2)]
            tie(groups)
            of[node] = [group[0] for group in groups]
        elif isinstance(layer, nn.PixelUnshuffle):
            of[node] = [channel for channel in sources[0] for _ in range(layer.downscale_factor**2)]
        else:
            of[node] = sources[0]
            if not isinstance(layer, _PASS_ON):
                tie([[_FIXED, *sources[0]]])

    def roots(side: Sequence[int]) -> Tensor:
        return torch.tensor([find(channel) for channel in side], device=device)

    numbered = [(layer, roots(inputs), roots(outputs)) for layer, inputs, outputs in layers]
    return numbered, len(root)


def _shuffle_factor(layer: nn.Module | None, node: fx.Node) -> int:
    """The factor of a pixel shuffle; 0 for any other node."""
    if isinstance(layer, nn.PixelShuffle):
        return layer.upscale_factor
    return int(str(node.args[1])) if node.target is F.pixel_shuffle else 0
