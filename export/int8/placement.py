"""Where Q/DQ pairs go, so that TensorRT fuses what it can: decided on the float graph, before anything is inserted.

* The data of an operator with weights, and its weights; nothing between it and its activation, because a pair stands
  before the next reader.
* Of a residual Add, the skip alone: the convolution's side is added in the same kernel, before it is rounded.
* All inputs of a Concat and the tensor behind it, with one scale.
* Before a MaxPool rather than behind it: it only copies numbers.
* One pair a tensor, however many read it. The logits stay float, attention between activations too.

Sources: NVIDIA, Working with Quantized Types, Q/DQ Layer-Placement Recommendations; NVIDIA/Model-Optimizer,
modelopt/onnx/quantization/graph_utils.py, for the layers that are too narrow.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np

from export.graph.view import WEIGHTED, Graph, Node

# An activation that a kernel applies to what it has summed: Conv → Add → Relu is one.
_ACTIVATIONS = frozenset({"Relu", "LeakyRelu", "Clip", "HardSwish", "HardSigmoid", "Sigmoid", "Tanh", "Elu"})
# What may stand between a convolution and the Add that takes its result.
_PASSED = frozenset({"BatchNormalization", "Resize", "DepthToSpace", "Identity"})
# Channels that a kernel works on at a time, and what modelopt asks of the narrower side.
_KERNEL_CHANNELS, _VECTOR = 16, 8


@dataclass(frozen=True)
class Placement:
    """The pairs of one model.

    Attributes:
        reads: tensor → who reads it dequantised: (node, which of its inputs), in the graph's order.
        scale_of: tensor → the tensor whose scale it takes; itself, but around a Concat.
        members: the inverse: tensor that gives the scale → all that take it.
        weights: operator → axis of its weights' scales; None for one scale.
    """

    reads: Mapping[str, tuple[tuple[str, int], ...]]
    scale_of: Mapping[str, str]
    members: Mapping[str, tuple[str, ...]]
    weights: Mapping[str, int | None]


def place(graph: Graph, *, in_float: Collection[str] = ()) -> tuple[Placement, tuple[str, ...]]:
    """Decides where the pairs go.

    Args:
        graph: the float graph; its nodes have names of their own.
        in_float: nodes that are not to be quantised.

    Returns:
        The placement, and the names of the quantised layers in the graph's order.
    """
    weights = {
        node.name: axis_of_weights(graph, node)
        for node in graph.of(*WEIGHTED)
        if fits_int8(graph, node) and node.name not in in_float
    }
    reads: dict[str, set[tuple[str, int]]] = defaultdict(set)
    for node in graph.nodes:
        if node.name in weights:
            reader, place = _before_pools(graph, node, weights)
            reads[reader.input(place)].add((reader.name, place))
    layers, same = set(weights), []
    # Last first: whether a Concat or Add has quantised inputs depends on who reads it.
    for node in reversed(graph.nodes):
        if node.name in in_float or any(name in graph.fixed for name in node.inputs if name):
            continue
        if node.op == "Concat" and node.output in reads:
            for place, name in enumerate(node.inputs):
                reads[name].add((node.name, place))
            same.append((*node.inputs, node.output))
        elif (
            node.op == "Add"
            and (skip := _skip_input(graph, node)) is not None
            and _is_rounded(graph, node, reads)
        ):
            reads[node.input(skip)].add((node.name, skip))
        else:
            continue
        layers.add(node.name)
    order = {node.name: i for i, node in enumerate(graph.nodes)}
    scale_of, members = _scale_groups(reads, same)
    placement = Placement(
        reads={
            name: tuple(sorted(found, key=lambda r: (order[r[0]], r[1]))) for name, found in reads.items()
        },
        scale_of=scale_of,
        members=members,
        weights=weights,
    )
    return placement, tuple(sorted(layers, key=order.__getitem__))


def fits_int8(graph: Graph, node: Node) -> bool:
    """Whether TensorRT has a worthwhile INT8 kernel: weights that are constants, and channels enough.

    A kernel works on 16 channels at a time; below, modelopt allows a Conv only where one side has 16 and one is a
    multiple of 8 (grouped: outputs a multiple of 8, kernel 3 or more). NvInfer.h, setNbGroups, asks a grouped INT8
    convolution for multiples of 4 a group; depthwise ones have kernels of their own.
    """
    weight = graph.constant(node.input(1))
    if weight is None or node.input(0) in graph.fixed:
        return False
    if node.op in ("MatMul", "Gemm"):
        return weight.ndim == 2 and min(weight.shape) >= _KERNEL_CHANNELS and not node.integer("transA", 0)
    groups = node.integer("group", 1)
    if node.op == "ConvTranspose":
        return groups == 1 and min(weight.shape[:2]) >= _KERNEL_CHANNELS
    outputs, inputs = weight.shape[:2]  # of a group
    if groups > 1 and inputs > 1 and (inputs % 4 or outputs // groups % 4):
        return False
    if min(outputs, inputs) >= _KERNEL_CHANNELS:
        return True
    if groups > 1:
        return outputs % _VECTOR == 0 and min(weight.shape[2:]) >= 3
    even = outputs % _VECTOR == 0 or inputs % _VECTOR == 0
    return even and max(outputs, inputs) >= _KERNEL_CHANNELS and len(set(weight.shape[2:])) == 1


def axis_of_weights(graph: Graph, node: Node) -> int | None:
    """The output channels' axis; None, one scale, for ConvTranspose, on whose axis TensorRT's versions disagree."""
    if node.op == "ConvTranspose":
        return None
    if node.op == "Conv":
        return 0
    return 0 if node.integer("transB", 0) else 1


def _before_pools(graph: Graph, node: Node, weights: Collection[str]) -> tuple[Node, int]:
    """Who reads the pair: the operator, or the MaxPool before it if all that read that pool are quantised."""
    while True:
        pool = graph.producer(node.input(0))
        if pool is None or pool.op != "MaxPool" or len(pool.outputs) > 1:
            return node, 0
        if not all(
            reader.name in weights or reader.op == "MaxPool" for reader in graph.consumers(pool.output)
        ):
            return node, 0
        node = pool


def _is_rounded(graph: Graph, node: Node, reads: Collection[str]) -> bool:
    """Whether the node's result, behind its activation, is quantised."""
    if node.output in reads:
        return True
    return any(
        reader.op in (*_ACTIVATIONS, "Mul") and _is_rounded(graph, reader, reads)
        for reader in graph.consumers(node.output)
        if reader.op != "Mul" or _is_swish(graph, reader, node)
    )


def _is_swish(graph: Graph, mul: Node, node: Node) -> bool:
    """Whether a Mul is x · activation(x) of the node's result x."""
    makers = [graph.producer(name) for name in mul.inputs]
    return any(
        maker is not None and maker.op in _ACTIVATIONS and node.output in maker.inputs for maker in makers
    )


def _skip_input(graph: Graph, add: Node) -> int | None:
    """Which input of an Add is the skip: the one that no convolution gives.

    Where two convolutions are added, the one with the smaller kernel, as of a widened shortcut, else the earlier one.
    None where neither comes from a convolution: nothing there can be fused.
    """
    convolutions = [_convolution_of(graph, name) for name in add.inputs]
    if len(convolutions) != 2 or convolutions == [None, None]:
        return None
    if None in convolutions:
        return convolutions.index(None)
    order = {node.name: i for i, node in enumerate(graph.nodes)}
    cost = [(_kernel_size(graph, conv), order[conv.name]) for conv in convolutions if conv is not None]
    return cost.index(min(cost))


def _convolution_of(graph: Graph, tensor: str) -> Node | None:
    """The convolution whose result a tensor is, resized perhaps, but before any activation."""
    node = graph.producer(tensor)
    while node is not None and node.op in _PASSED:
        node = graph.producer(node.input(0))
    return node if node is not None and node.op in ("Conv", "ConvTranspose") else None


def _kernel_size(graph: Graph, conv: Node) -> int:
    weight = graph.constant(conv.input(1))
    return 0 if weight is None else int(np.prod(weight.shape[2:]))


def _scale_groups(
    reads: Collection[str], same: list[tuple[str, ...]]
) -> tuple[dict[str, str], dict[str, tuple[str, ...]]]:
    """Joins tensors that must share a scale; those of one Concat may meet in another."""
    scale_of = {name: name for name in reads}
    for names in same:
        joined = {scale_of[name] for name in names}
        first = min(joined)
        scale_of = {name: first if of in joined else of for name, of in scale_of.items()}
    members: dict[str, tuple[str, ...]] = {}
    for name, of in scale_of.items():
        members[of] = (*members.get(of, ()), name)
    return scale_of, members
