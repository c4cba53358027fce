"""Rules about Q and DQ nodes: types, scales, zero points, and what 8-bit tensors are for."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from onnx import TensorProto

from export.graph.view import DEQUANTIZE, QUANTIZE, Graph, Node, type_name
from export.rules.finding import Breach, Release, Severity
from export.rules.pairs import axis_of, is_per_channel, scale_of, zero_point_of


def scale_is_constant(graph: Graph, release: Release) -> Iterator[Breach]:
    """Q1: the file holds the scale as a number; newer releases may compute it, but no rule here can then see it."""
    severity: Severity = "error" if release < (10, 13) else "warning"
    for node in _quantising_nodes(graph):
        if scale_of(graph, node) is None:
            got = _origin_text(graph, node.input(1))
            yield Breach(
                node.name, f"scale: must be a constant of the file, got {got}; fold constants", severity
            )


def scale_is_positive(graph: Graph, release: Release) -> Iterator[Breach]:
    """Q2: every scale is above 0 and finite."""
    for node in _quantising_nodes(graph):
        scale = scale_of(graph, node)
        if scale is None:
            continue
        numbers = scale.astype(np.float64)
        bad = numbers[~(np.isfinite(numbers) & (numbers > 0))]
        if bad.size:
            yield Breach(
                node.name, f"scale: must be above 0 and finite, got {bad.flat[0]:g}; calibrate on more cases"
            )


def scale_is_float32(graph: Graph, release: Release) -> Iterator[Breach]:
    """Q3: the 8.6 parser reads scales as 32-bit floats, whatever they are."""
    if release >= (10, 0):
        return
    for node in _quantising_nodes(graph):
        dtype = graph.dtype(node.input(1))
        if dtype not in (TensorProto.FLOAT, TensorProto.UNDEFINED):
            yield Breach(
                node.name,
                f"scale: must be float32 for TensorRT 8.6, got {type_name(dtype)}; use the file typed fp32",
            )


def zero_point_is_given(graph: Graph, release: Release) -> Iterator[Breach]:
    """Q4: the 8.6 parser asserts three inputs."""
    if release >= (10, 0):
        return
    for node in _quantising_nodes(graph):
        if not node.input(2):
            yield Breach(
                node.name, "zero point: must be given for TensorRT 8.6, got none; write an int8 zero"
            )


def zero_point_is_constant(graph: Graph, release: Release) -> Iterator[Breach]:
    """Q5: the file holds the zero point as a number."""
    for node in _quantising_nodes(graph):
        if node.input(2) and zero_point_of(graph, node) is None:
            got = _origin_text(graph, node.input(2))
            yield Breach(node.name, f"zero point: must be a constant of the file, got {got}; fold constants")


def values_are_int8(graph: Graph, release: Release) -> Iterator[Breach]:
    """Q6: signed. uint8 is not refused, but read as int8, and all above 127 is cut off."""
    for node in _quantising_nodes(graph):
        dtype = _quantised_type(graph, node)
        if dtype not in (TensorProto.INT8, TensorProto.INT32, TensorProto.UNDEFINED):  # int32: rule Q14
            yield Breach(
                node.name,
                f"type: must be int8, got {type_name(dtype)}, which TensorRT reads as int8 and so cuts off what is "
                "above 127; quantise activations symmetrically",
            )


def zero_point_is_zero(graph: Graph, release: Release) -> Iterator[Breach]:
    """Q7: symmetric, in every channel."""
    for node in _quantising_nodes(graph):
        point = zero_point_of(graph, node)
        if point is not None and point.any():
            worst = point.flat[int(np.argmax(np.abs(point.astype(np.int64))))]
            yield Breach(node.name, f"zero point: must be 0, got {worst}; quantise symmetrically")


def zero_points_match_scales(graph: Graph, release: Release) -> Iterator[Breach]:
    """Q8: as many zero points as scales."""
    for node in _quantising_nodes(graph):
        scale, point = scale_of(graph, node), zero_point_of(graph, node)
        if scale is not None and point is not None and scale.size != point.size:
            yield Breach(
                node.name,
                f"zero point: must have {scale.size} numbers as the scale, got {point.size}; write as many",
            )


def activations_have_one_scale(graph: Graph, release: Release) -> Iterator[Breach]:
    """Q9: per-channel is for weights."""
    for node in _quantising_nodes(graph):
        if node.input(0) not in graph.fixed and is_per_channel(graph, node):
            size = scale_of(graph, node).size  # type: ignore[union-attr]
            yield Breach(
                node.name, f"scale: must be one number for an activation, got {size}; quantise it per tensor"
            )


def axis_is_given(graph: Graph, release: Release) -> Iterator[Breach]:
    """Q10: left out, it means 0 to the parsers of 8.6 and 10.1, and 1 from 10.13 on."""
    for node in _quantising_nodes(graph):
        if is_per_channel(graph, node) and "axis" not in node.attributes:
            yield Breach(
                node.name,
                "axis: must be given with a scale a channel, got none, which is 0 or 1 by TensorRT's version; write it",
            )


def scales_fit_the_axis(graph: Graph, release: Release) -> Iterator[Breach]:
    """Q11: one scale in all, or one for each entry of the axis."""
    for node in _quantising_nodes(graph):
        scale, shape = scale_of(graph, node), graph.shape(node.input(0))
        if scale is None or scale.size == 1 or shape is None:
            continue
        axis = axis_of(graph, node)
        size = shape[axis] if 0 <= axis < len(shape) else 0
        if scale.ndim > 1 or size not in (None, scale.size):
            got = "×".join(map(str, scale.shape))
            yield Breach(
                node.name, f"scale: must have 1 number, or {size} as axis {axis}, got {got}; mind the axis"
            )


def eight_bits_feed_dequantise(graph: Graph, release: Release) -> Iterator[Breach]:
    """Q12: no operator but DequantizeLinear reads an int8 tensor."""
    for node in graph.nodes:
        if node.op == DEQUANTIZE:
            continue
        data = node.inputs[:1] if node.op == QUANTIZE else node.inputs
        for name in data:
            if _is_quantised_tensor(graph, name):
                yield Breach(
                    node.name,
                    f"input {name}: must be float, got 8-bit, which only {DEQUANTIZE} reads; "
                    f"put {node.op} before {QUANTIZE} or behind {DEQUANTIZE}",
                )


def outputs_are_float(graph: Graph, release: Release) -> Iterator[Breach]:
    """Q13: no int8 tensor leaves the graph."""
    for name in graph.outputs:
        if _is_quantised_tensor(graph, name):
            yield Breach(name, f"output: must be float, got 8-bit; end the graph with {DEQUANTIZE}")


def nothing_is_int32(graph: Graph, release: Release) -> Iterator[Breach]:
    """Q14: TensorRT dequantises no int32, which is how onnxruntime writes biases."""
    for node in _quantising_nodes(graph):
        if _quantised_type(graph, node) == TensorProto.INT32:
            what = "bias" if _is_bias(graph, node) else "tensor"
            yield Breach(
                node.name,
                f"{what}: must be a float constant, got int32 behind {node.op}; leave biases in float",
            )


def weights_are_stored_in_float(graph: Graph, release: Release) -> Iterator[Breach]:
    """Q15: 8.6 takes float32 → Q → DQ; weights stored in int8 are documented for newer releases only."""
    if release >= (10, 0):
        return
    for node in _quantising_nodes(graph):
        name = node.input(0)
        if name not in graph.fixed or graph.dtype(name) == TensorProto.INT32:
            continue
        if node.op == DEQUANTIZE:
            before = graph.producer(name)
            wrong = before is None or before.op != QUANTIZE
        else:
            wrong = graph.constant(name) is None or graph.dtype(name) != TensorProto.FLOAT
        if wrong:
            got = _origin_text(graph, name)
            yield Breach(
                node.name,
                f"weight: must be a float32 constant, then {QUANTIZE}, then {DEQUANTIZE} for TensorRT 8.6, got {got}; "
                "add the Q/DQ pair to the weight",
            )


def data_have_axes(graph: Graph, release: Release) -> Iterator[Breach]:
    """Q16: what is quantised is no scalar."""
    for node in _quantising_nodes(graph):
        if graph.shape(node.input(0)) == ():
            yield Breach(
                node.name,
                f"input {node.input(0)}: must have at least one axis, got a scalar; leave it in float",
            )


def _quantising_nodes(graph: Graph) -> Iterator[Node]:
    return graph.of(QUANTIZE, DEQUANTIZE)


def _quantised_type(graph: Graph, node: Node) -> int:
    """The 8-bit side's type, as ONNX has it: a Q without a zero point writes uint8."""
    if node.input(2):
        return graph.dtype(node.input(2))
    if node.op == DEQUANTIZE:
        return graph.dtype(node.input(0))
    return node.integer("output_dtype", 0) or TensorProto.UINT8


def _is_quantised_tensor(graph: Graph, name: str) -> bool:
    producer = graph.producer(name)
    made = producer is not None and producer.op == QUANTIZE
    return bool(name) and (made or graph.dtype(name) == TensorProto.INT8)


def _is_bias(graph: Graph, node: Node) -> bool:
    return any(one.input(2) == node.output for one in graph.consumers(node.output))


def _origin_text(graph: Graph, name: str) -> str:
    """Where a tensor comes from, in words."""
    producer = graph.producer(name)
    if producer is not None:
        return f"the output of {producer.op} {producer.name}"
    return f"{type_name(graph.dtype(name))} {name}" if graph.dtype(name) else name
