"""A student that computes as INT8 will: symmetric fake quantisation where both of our quantisers round.

* every input of a convolution, per tensor, int8 with zero point 0; nothing between a convolution and its ReLU;
* of a sum, the skip alone: the convolution's side is added before it is rounded;
* one scale around a Concat, and around what only copies numbers (max-pooling, nearest upsampling, pixel shuffles);
* weights per output channel, those of a transposed convolution per tensor (TensorRT's versions disagree on its axis);
* biases, and the head's output, in float.

NNCF rounds the other side of a sum too, and has twice the steps where nothing is negative; TensorRT's graph leaves
layers of very few channels in float. The guard measures what each of them makes of the result.

Rounding has no gradient; torch's own operators pass it straight through within the range.

Source: Jacob et al., Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference,
CVPR 2018; Bengio et al., 2013, for the straight-through gradient.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, fx, nn

from export.int8.traced import (
    WEIGHTED,
    is_add,
    is_concat,
    is_copy,
    layer_of,
    norms_behind_convolutions,
    trace,
)
from student.network import Student

_DECAY = 0.99
"""What remains of a range's maximum from one batch to the next that does not reach it."""
_SMALLEST = 1e-8
"""Of a range: a tensor of zeros has a scale too."""


class FakeQuantiser(nn.Module):
    """Rounds a tensor to 255 steps of its own range, ± a moving maximum of |x| over the training batches."""

    amax: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("amax", torch.zeros(()))
        self.follows = False
        """In training mode, whether the range follows the activations; else it is frozen."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training and self.follows:
            with torch.no_grad():
                self.amax.copy_(torch.maximum(_DECAY * self.amax, x.abs().amax()))
        scale = self.amax.clamp(min=_SMALLEST) / 127
        zero = torch.zeros((), dtype=torch.int32, device=x.device)
        return torch.fake_quantize_per_tensor_affine(x, scale, zero, -128, 127)


class FakeQuantisedWeights(nn.Module):
    """A convolution that computes with rounded weights; the layer itself keeps, and learns, the float ones."""

    def __init__(self, layer: nn.Conv2d | nn.ConvTranspose2d) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        rounded = {"weight": round_weight(self.layer)}
        return torch.func.functional_call(self.layer, rounded, (x,))  # type: ignore[no-any-return]


def round_weight(layer: nn.Conv2d | nn.ConvTranspose2d) -> Tensor:
    """The layer's weights, rounded to 255 steps between ± their largest: of each output channel, or of all."""
    weight = layer.weight
    if isinstance(layer, nn.ConvTranspose2d):
        scale = weight.detach().abs().amax().clamp(min=_SMALLEST) / 127
        zero = torch.zeros((), dtype=torch.int32, device=weight.device)
        return torch.fake_quantize_per_tensor_affine(weight, scale, zero, -127, 127)
    scale = weight.detach().abs().amax(dim=(1, 2, 3)).clamp(min=_SMALLEST) / 127
    zeros = torch.zeros(len(scale), dtype=torch.int32, device=weight.device)
    return torch.fake_quantize_per_channel_affine(weight, scale, zeros, 0, -127, 127)


def observe_ranges(graph: fx.GraphModule, batches: Iterable[Tensor]) -> None:
    """Finds the ranges of the activations: what calibration is to post-training quantisation.

    Args:
        graph: from `fake_quantise`; left in eval mode, its ranges frozen.
        batches: normalised pictures, N×C×H×W each.
    """
    follow_ranges(graph, True)
    graph.train()
    with torch.no_grad():
        for batch in batches:
            graph(batch)
    graph.eval()
    follow_ranges(graph, False)


def follow_ranges(graph: fx.GraphModule, follow: bool) -> None:
    """Whether ranges follow the activations of what is trained, or are frozen."""
    for layer in graph.modules():
        if isinstance(layer, FakeQuantiser):
            layer.follows = follow


def fake_quantise(network: Student) -> fx.GraphModule:
    """The network with fake quantisation, whose ranges `observe_ranges` must find before it is of use.

    It shares the network's convolutions: to train it is to train them.

    Args:
        network: from `export.int8.traced.fold_norms`; its batch norms, then identities, are left out.
    """
    graph = trace(network)
    for node, _ in norms_behind_convolutions(graph):
        node.replace_all_uses_with(node.all_input_nodes[0])
        graph.graph.erase_node(node)
    shared = _shared_scales(graph)
    quantisers: dict[fx.Node, str] = {}  # of each group of nodes, by one of them
    made: dict[fx.Node, fx.Node] = {}  # a tensor is rounded once, however many read it

    def round_input(user: fx.Node, source: fx.Node) -> None:
        group = shared[source]
        if group not in quantisers:
            quantisers[group] = f"quantise_{group.name}"
            graph.add_submodule(quantisers[group], FakeQuantiser())
        if source not in made:
            with graph.graph.inserting_after(source):
                made[source] = graph.graph.call_module(quantisers[group], (source,))
        user.replace_input_with(source, made[source])

    for node in list(graph.graph.nodes):
        layer = layer_of(graph, node)
        if isinstance(layer, WEIGHTED):
            round_input(node, node.all_input_nodes[0])
            graph.add_submodule(str(node.target), FakeQuantisedWeights(layer))
        elif is_add(node):
            round_input(node, _skip_of(graph, node))
    graph.graph.lint()
    graph.delete_all_unused_submodules()
    graph.recompile()
    return graph


def _shared_scales(graph: fx.GraphModule) -> dict[fx.Node, fx.Node]:
    """Node → the node that stands for all whose tensors must have one scale."""
    group = {node: node for node in graph.graph.nodes}

    def join(a: fx.Node, b: fx.Node) -> None:
        a, b = group[a], group[b]
        if a is not b:
            group.update({node: a for node, of in group.items() if of is b})

    for node in graph.graph.nodes:
        if is_concat(node) or is_copy(graph, node):
            for source in node.all_input_nodes:
                join(source, node)
    return group


def _skip_of(graph: fx.GraphModule, add: fx.Node) -> fx.Node:
    """The input of a sum that is not straight from a convolution; the second where both or neither are."""
    first, second = add.all_input_nodes
    return first if _from_convolution(graph, second) and not _from_convolution(graph, first) else second


def _from_convolution(graph: fx.GraphModule, node: fx.Node) -> bool:
    layer = layer_of(graph, node)
    if isinstance(layer, (*WEIGHTED, FakeQuantisedWeights)):
        return True
    return (isinstance(layer, nn.Upsample) or is_copy(graph, node)) and _from_convolution(
        graph, node.all_input_nodes[0]
    )
