"""What Q/DQ nodes say, and what TensorRT moves them through."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from export.graph.view import DEQUANTIZE, QUANTIZE, WEIGHTED, Graph, Node

COPIES = frozenset(
    {"Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Slice", "Split", "Gather", "Identity"}
    | {"DepthToSpace", "SpaceToDepth"}
)
COMMUTING = COPIES | {"MaxPool"}
"""Operators that Q and DQ may stand before or behind alike; TensorRT moves them. Source: docs, "Explicit
Quantization": Q/DQ propagation; MaxPool is NVIDIA's example."""

ACTIVATIONS = frozenset(
    {"Relu", "LeakyRelu", "PRelu", "Clip", "Sigmoid", "HardSigmoid", "HardSwish", "Tanh", "Elu", "Gelu"}
)


@dataclass(frozen=True)
class Weight:
    """The quantised weight of a node.

    Attributes:
        pair: DQ, and the Q before it where the file stores the weight in float.
        axes: that each of the pair's scales runs along, as the node counts axes; None for one scale in all, or
            where it cannot be followed.
        stored: what the file holds: float behind a Q, else 8-bit.
    """

    pair: tuple[Node, ...]
    axes: tuple[int | None, ...]
    stored: np.ndarray | None


def scale_of(graph: Graph, node: Node) -> np.ndarray | None:
    """The scale of a Q or DQ; None where it is no constant."""
    return graph.constant(node.input(1))


def zero_point_of(graph: Graph, node: Node) -> np.ndarray | None:
    """The zero point of a Q or DQ; None where it is left out, or no constant."""
    return graph.constant(node.input(2))


def is_per_channel(graph: Graph, node: Node) -> bool:
    """Whether a Q or DQ has more than one scale."""
    scale = scale_of(graph, node)
    return scale is not None and scale.size > 1


def axis_of(graph: Graph, node: Node) -> int:
    """The axis of a Q or DQ, counted from 0; ONNX's default is 1."""
    axis = node.integer("axis", 1)
    shape = graph.shape(node.input(0))
    return axis + len(shape) if axis < 0 and shape is not None else axis


def quantised_weight(graph: Graph, node: Node) -> Weight | None:
    """The weight of a node that computes in 8 bits; None if it comes from no DQ, or is no constant."""
    tensor, permutations = node.input(1), []
    producer = graph.producer(tensor)
    while producer is not None and producer.op in ("Transpose", "Identity"):
        if producer.op == "Transpose":
            rank = len(graph.shape(producer.input(0)) or ())
            permutations.append(list(producer.attributes.get("perm", range(rank)[::-1])))
        producer = graph.producer(producer.input(0))
    if producer is None or producer.op != DEQUANTIZE or producer.output not in graph.fixed:
        return None
    before = graph.producer(producer.input(0))
    pair = (producer, before) if before is not None and before.op == QUANTIZE else (producer,)
    axes = tuple(_seen_axis(graph, one, permutations) for one in pair)
    return Weight(pair, axes, graph.constant(pair[-1].input(0)))


def _seen_axis(graph: Graph, node: Node, permutations: list[list[int]]) -> int | None:
    if not is_per_channel(graph, node):
        return None
    axis = axis_of(graph, node)
    for permutation in reversed(permutations):  # the one next to the DQ first
        axis = permutation.index(axis)
    return axis


def quantised_layers(graph: Graph) -> Iterator[tuple[Node, Weight]]:
    """The weighted operators whose weights are quantised."""
    for node in graph.of(*WEIGHTED):
        weight = quantised_weight(graph, node)
        if weight is not None:
            yield node, weight


def dequantiser(graph: Graph, tensor: str) -> Node | None:
    """The DQ that a tensor comes from, straight or through operators that it commutes with."""
    node = graph.producer(tensor)
    while node is not None and node.op in COMMUTING:
        node = graph.producer(node.input(0))
    return node if node is not None and node.op == DEQUANTIZE else None


def quantisers(graph: Graph, tensor: str, through: frozenset[str] = COMMUTING) -> list[Node]:
    """The Qs that read a tensor, straight or behind the operators of `through`."""
    found = []
    waiting = [tensor]
    while waiting:
        for node in graph.consumers(waiting.pop()):
            if node.op == QUANTIZE:
                found.append(node)
            elif node.op in through:
                waiting += node.outputs
    return found


def is_nearest(node: Node) -> bool:
    """Whether a node is a Resize that copies pixels."""
    return node.op == "Resize" and node.text("mode", "nearest") == "nearest"
