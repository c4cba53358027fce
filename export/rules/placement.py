"""Rules about where Q/DQ pairs stand, so that TensorRT fuses what it can.

Source, where no other is named: NVIDIA's documentation, "Explicit Quantization", Q/DQ Layer-Placement Recommendations,
https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/quantized-types-explicit-quantization.html
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from onnx import TensorProto

from export.graph.view import DEQUANTIZE, QUANTIZE, WEIGHTED, Graph, Node
from export.rules.finding import Breach, Release
from export.rules.pairs import (
    ACTIVATIONS,
    COMMUTING,
    dequantiser,
    is_nearest,
    quantised_weight,
    quantisers,
    scale_of,
)

_FUSED = ACTIVATIONS | {"BatchNormalization"}
_UNWEIGHTED = ACTIVATIONS | {"Concat", "Add", "Sub", "Mul", "Max", "Min", "Resize"}


def nothing_before_the_activation(graph: Graph, release: Release) -> Iterator[Breach]:
    """P1: no Q/DQ between a weighted operator and its batch norm or activation."""
    for node in graph.of(QUANTIZE):
        before = graph.producer(node.input(0))
        if before is not None and before.op == "BatchNormalization":
            before = graph.producer(before.input(0))
        if before is None or before.op not in WEIGHTED:
            continue
        behind = [one for pair in graph.consumers(node.output) for one in graph.consumers(pair.output)]
        fused = next((one for one in behind if one.op in _FUSED), None)
        if fused is not None:
            yield _slow_breach(
                node,
                f"Q/DQ: must stand behind {fused.op} {fused.name}, got between {before.name} and it; move the pair",
            )


def both_inputs_or_none(graph: Graph, release: Release) -> Iterator[Breach]:
    """P2: both inputs of a weighted operator come from DQ, or neither does."""
    for node in graph.of(*WEIGHTED):
        data, weight = (_comes_from_int8(graph, node.input(place)) for place in (0, 1))
        if data == weight:
            continue
        if data:
            yield _slow_breach(
                node,
                f"inputs: must both come from {DEQUANTIZE}, or neither, got the data only; "
                "give the layer the tensor before the Q, or quantise its weight",
            )
        elif not _comes_through_resize(graph, node.input(0)):  # rule P10
            fixed = node.input(1) in graph.fixed
            got = "the weight only" if fixed else "the second only"
            yield Breach(
                node.name,
                f"inputs: must both come from {DEQUANTIZE}, or neither, got {got}; quantise the layer's data",
                "error" if fixed else "warning",
            )


def biases_are_float(graph: Graph, release: Release) -> Iterator[Breach]:
    """P3: no Q/DQ on a bias. Source: Model-Optimizer leaves biases in float; int32 is rule Q14."""
    for node in graph.of("Conv", "ConvTranspose", "Gemm"):
        pair = graph.producer(node.input(2))
        if pair is None or pair.op not in (QUANTIZE, DEQUANTIZE):
            continue
        if graph.dtype(pair.input(0)) != TensorProto.INT32:
            text = f"bias: must be a float constant, got Q/DQ ({pair.name}); leave biases in float"
            yield Breach(node.name, text)


def skips_are_quantised(graph: Graph, release: Release) -> Iterator[Breach]:
    """P4: the skip of a residual Add has Q/DQ, or the fused convolution writes float and the next Q stands alone.

    Source: Model-Optimizer, tests of its int8 rules: "only 1 input of Add is quantized".
    """
    for node, convs, skips in _residual_adds(graph):
        wanted = skips or convs  # of two convolutions, either
        if any(dequantiser(graph, name) for name in wanted) or _has_two_pairs(graph, node):
            continue
        if quantisers(graph, node.output, COMMUTING | ACTIVATIONS):
            yield _slow_breach(
                node,
                f"skip {wanted[0]}: must have Q/DQ, got none; quantise the input that no convolution makes",
            )


def convolutions_add_in_float(graph: Graph, release: Release) -> Iterator[Breach]:
    """P5: the convolution's side of a residual Add has no Q/DQ; with one, convolution and Add are two kernels."""
    for node, convs, _ in _residual_adds(graph):
        quantised = [name for name in convs if dequantiser(graph, name)]
        if _has_two_pairs(graph, node) or (quantised and len(convs) == 1):
            yield _slow_breach(
                node,
                f"input {quantised[0]}: must be the convolution's own output, got Q/DQ between; "
                "quantise the skip input alone",
            )


def concat_has_one_scale(graph: Graph, release: Release) -> Iterator[Breach]:
    """P6: quantised inputs of a Concat and the Q behind it share one scale, or each input is quantised again.

    Source: Model-Optimizer, modelopt/onnx/quantization/qdq_utils.py, get_concat_eliminated_tensors.
    """
    for node in graph.of("Concat"):
        pairs = [pair for name in node.inputs if (pair := dequantiser(graph, name))]
        pairs += quantisers(graph, node.output) if pairs else []
        scales = [scale for pair in pairs if (scale := scale_of(graph, pair)) is not None and scale.size == 1]
        different = sorted({float(np.float32(scale.reshape(())[()])) for scale in scales})
        if len(different) > 1:
            got = ", ".join(f"{scale:.6g}" for scale in different)
            yield _slow_breach(
                node, f"scales: must be one for the inputs and the Q behind, got {got}; give all the largest"
            )


def no_pair_meets_a_pair(graph: Graph, release: Release) -> Iterator[Breach]:
    """P7: an operator stands between a DQ and the next Q."""
    for node in graph.of(QUANTIZE):
        before = graph.producer(node.input(0))
        if before is not None and before.op == DEQUANTIZE:
            yield _slow_breach(
                node, f"input: must come from an operator, got {DEQUANTIZE} {before.name}; drop one pair"
            )


def int8_in_int8_out(graph: Graph, release: Release) -> Iterator[Breach]:
    """P8: an operator without weights whose inputs are int8 needs a Q behind it, or it runs in float."""
    for node in graph.of(*_UNWEIGHTED):
        if is_nearest(node):  # rule P10
            continue
        data = [name for name in node.inputs if name and name not in graph.fixed]
        pairs = [dequantiser(graph, name) is not None for name in data]
        quantised = any(pairs) if node.op == "Concat" else bool(pairs) and all(pairs)
        if quantised and not quantisers(graph, node.output, COMMUTING | ACTIVATIONS):
            yield _slow_breach(
                node,
                f"output: must have Q/DQ as the inputs of {node.op} have, got none; quantise it, or leave all in float",
            )


def pooling_has_the_pairs_it_needs(graph: Graph, release: Release) -> Iterator[Breach]:
    """P9: MaxPool commutes, and needs one pair, before or behind; an average needs one on both sides."""
    for node in graph.of("MaxPool", "AveragePool", "GlobalAveragePool"):
        before, behind = dequantiser(graph, node.input(0)) is not None, bool(quantisers(graph, node.output))
        if node.op == "MaxPool" and before and behind:
            yield _slow_breach(
                node, "Q/DQ: must be one pair, before or behind MaxPool, got both; drop the one behind"
            )
        elif node.op != "MaxPool" and before != behind:
            got = "before only" if before else "behind only"
            yield _slow_breach(
                node, f"Q/DQ: must be on both sides of {node.op}, or on none, got {got}; quantise both sides"
            )


def nearest_resize_is_quantised_behind(graph: Graph, release: Release) -> Iterator[Breach]:
    """P10: Resize by nearest → Q/DQ → Conv runs in 8 bits without a pair before it (NVIDIA in TensorRT#2976)."""
    for node in graph.of("Resize"):
        if is_nearest(node) and (pair := dequantiser(graph, node.input(0))):
            yield _slow_breach(
                node,
                f"Q/DQ: must stand behind a nearest Resize only, got {pair.name} before it; move the pair",
            )


def one_tensor_one_quantiser(graph: Graph, release: Release) -> Iterator[Breach]:
    """P11: however many read a tensor, one Q does; two are two copies in memory."""
    for tensor in dict.fromkeys(node.input(0) for node in graph.of(QUANTIZE)):
        found = [node for node in graph.consumers(tensor) if node.op == QUANTIZE and node.input(0) == tensor]
        if len(found) > 1 and tensor not in graph.fixed:
            names = ", ".join(node.name for node in found)
            yield _slow_breach(
                found[0], f"tensor {tensor}: must have one {QUANTIZE}, got {len(found)} ({names}); share one"
            )


def _slow_breach(node: Node, text: str) -> Breach:
    return Breach(node.name, text, "warning")


def _residual_adds(graph: Graph) -> Iterator[tuple[Node, list[str], list[str]]]:
    """Adds of two tensors of one size, with the inputs that 8-bit convolutions make, and the others."""
    for node in graph.of("Add"):
        if len(set(node.inputs) - graph.fixed) != 2:
            continue
        first, second = (graph.shape(name) for name in node.inputs)
        convs = [name for name in node.inputs if _is_of_int8_conv(graph, name)]
        if convs and first == second:
            yield node, convs, [name for name in node.inputs if name not in convs]


def _has_two_pairs(graph: Graph, node: Node) -> bool:
    return all(dequantiser(graph, name) for name in node.inputs)


def _is_of_int8_conv(graph: Graph, tensor: str) -> bool:
    """Whether a tensor is what a quantised weighted operator writes, with its batch norm, Q/DQ looked through."""
    node = graph.producer(tensor)
    while node is not None and node.op in (QUANTIZE, DEQUANTIZE, "BatchNormalization"):
        node = graph.producer(node.input(0))
    return node is not None and node.op in WEIGHTED and quantised_weight(graph, node) is not None


def _comes_from_int8(graph: Graph, tensor: str) -> bool:
    """As `dequantiser`, and through a Concat of dequantised tensors too."""
    node = graph.producer(tensor)
    while node is not None and node.op in COMMUTING:
        node = graph.producer(node.input(0))
    if node is not None and node.op == "Concat":
        return all(_comes_from_int8(graph, name) for name in node.inputs)
    return node is not None and node.op == DEQUANTIZE


def _comes_through_resize(graph: Graph, tensor: str) -> bool:
    node = graph.producer(tensor)
    return node is not None and is_nearest(node) and dequantiser(graph, node.input(0)) is not None
