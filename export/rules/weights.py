"""Rules about quantised weights: the axis of their scales, their range, and channels that 8-bit kernels can use."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from export.graph.view import QUANTIZE, WEIGHTED, Graph, Node
from export.rules.finding import Breach, Release
from export.rules.pairs import Weight, axis_of, is_per_channel, quantised_layers, scale_of

FEWEST = 16
"""Channels below which 8-bit kernels are slow; Source: Model-Optimizer, modelopt/onnx/quantization/graph_utils.py."""


def conv_scales_run_over_outputs(graph: Graph, release: Release) -> Iterator[Breach]:
    """W1: Conv's weight is K×C×R×S, with a scale for each K: axis 0, also where K and C are equal."""
    for node, weight in quantised_layers(graph):
        if node.op == "Conv":
            yield from _check_axis(graph, node, weight, 0)


def matrix_scales_run_over_outputs(graph: Graph, release: Release) -> Iterator[Breach]:
    """W2: a matrix has a scale for each column that it makes: axis 0 of Gemm's with transB, else the last."""
    for node, weight in quantised_layers(graph):
        if node.op in ("Gemm", "MatMul"):
            rank = len(graph.shape(node.input(1)) or (0, 0))
            yield from _check_axis(graph, node, weight, 0 if node.integer("transB", 0) else rank - 1)


def transposed_conv_has_one_scale(graph: Graph, release: Release) -> Iterator[Breach]:
    """W3: ConvTranspose per tensor; per channel, 8.6 wants axis 0 and 10 on axis 1, and builds fail.

    Source: NVIDIA/TensorRT tools/pytorch-quantization tensor_quant.py of each branch; TensorRT#1694, #2380.
    """
    wanted = 0 if release < (10, 0) else 1
    for node, weight in quantised_layers(graph):
        axes = {axis for axis in weight.axes if axis is not None}
        if node.op != "ConvTranspose" or not axes:
            continue
        text = "weight scale: must be one number, got one a channel along axis {}; quantise the weight per tensor"
        wrong = axes - {wanted}
        if wrong:
            yield Breach(node.name, text.format(min(wrong)))
        else:
            yield Breach(node.name, text.format(wanted) + " (releases differ about the axis)", "warning")


def transposed_conv_has_one_group(graph: Graph, release: Release) -> Iterator[Breach]:
    """W4: a grouped ConvTranspose is refused in 8 bits (TensorRT#1934)."""
    for node, _ in quantised_layers(graph):
        groups = node.integer("group", 1)
        if node.op == "ConvTranspose" and groups != 1:
            yield Breach(node.name, f"group: must be 1 in 8 bits, got {groups}; leave the layer in float")


def weights_leave_out_the_lowest(graph: Graph, release: Release) -> Iterator[Breach]:
    """W5: quantised weights are in −127…127, as TensorRT's own range is."""
    for node, weight in quantised_layers(graph):
        if weight.stored is None:
            continue
        lowest = _lowest_value(graph, weight)
        if lowest is not None and lowest < -127:
            yield Breach(
                node.name,
                f"weight: must be at least −127 in 8 bits, got {lowest}; take the scale as max |w| / 127",
                "warning",
            )


def channels_fill_a_kernel(graph: Graph, release: Release) -> Iterator[Breach]:
    """C1: at least 16 channels in and out, or what modelopt quantises below that.

    Below 16, an ungrouped Conv with a square kernel, channels in or out a multiple of 8, and either 16 on one side
    or nothing weighted before it; a grouped one with outputs a multiple of 8 and a kernel of 3 or more.

    Source: Model-Optimizer, modelopt/onnx/quantization/graph_utils.py, find_nodes_from_convs_to_exclude.
    """
    for node, _ in quantised_layers(graph):
        shape = graph.shape(node.input(1))
        if shape is None or None in shape or node.op == "ConvTranspose":
            continue
        sizes = [size for size in shape if size is not None]
        if node.op in ("Gemm", "MatMul"):
            fits, what = min(sizes[-2:]) >= FEWEST, f"{sizes[-2]}×{sizes[-1]}"
        else:
            fits, what = _conv_fits(graph, node, sizes), f"{sizes[1]} in, {sizes[0]} out"
        if not fits:
            yield Breach(
                node.name,
                f"channels: must be at least {FEWEST} in and out for a fast 8-bit kernel, got {what}; "
                "leave the layer in float",
                "warning",
            )


def groups_are_whole_vectors(graph: Graph, release: Release) -> Iterator[Breach]:
    """C2: channels a group are multiples of 4, in and out.

    Source: NvInfer.h, IConvolutionLayer::setNbGroups. Depthwise has kernels of its own: a warning, not verified.
    """
    for node, _ in quantised_layers(graph):
        shape, groups = graph.shape(node.input(1)), node.integer("group", 1)
        if node.op != "Conv" or groups == 1 or shape is None or shape[0] is None or shape[1] is None:
            continue
        ins, outs = shape[1], shape[0] // groups
        if ins % 4 or outs % 4:
            depthwise = ins == outs == 1
            yield Breach(
                node.name,
                f"channels a group: must be multiples of 4 in 8 bits, got {ins} in, {outs} out; "
                "leave the layer in float" + (", or time it on the device" if depthwise else ""),
                "warning" if depthwise else "error",
            )


def _check_axis(graph: Graph, node: Node, weight: Weight, wanted: int) -> Iterator[Breach]:
    shape = graph.shape(node.input(1))
    for one, axis in zip(weight.pair, weight.axes, strict=True):
        if axis is not None and axis != wanted:
            yield Breach(
                node.name,
                f"axis of the weight's scale: must be {wanted}, its outputs, got {axis} (at {one.name}); "
                "quantise it along the right axis",
            )
            return
    channels = shape[wanted] if shape and wanted < len(shape) else None
    if channels not in (None, 1) and not any(is_per_channel(graph, one) for one in weight.pair):
        yield Breach(
            node.name,
            f"weight scale: must be one for each of {channels} outputs, got one in all, which loses accuracy; "
            "quantise per channel",
            "warning",
        )


def _lowest_value(graph: Graph, weight: Weight) -> int | None:
    """The lowest 8-bit value that the weight takes."""
    stored, first = weight.stored, weight.pair[-1]
    if stored is None or not stored.size:
        return None
    if first.op != QUANTIZE:
        return int(stored.min())
    scale = scale_of(graph, first)
    if scale is None:
        return None
    scale = scale.astype(np.float32)
    if scale.size > 1:
        axis = axis_of(graph, first)
        if not 0 <= axis < stored.ndim or scale.shape != (stored.shape[axis],):
            return None  # rule Q11
        scale = scale.reshape([-1 if i == axis else 1 for i in range(stored.ndim)])
    with np.errstate(all="ignore"):  # rule Q2
        values = np.rint(stored / scale)
    return int(np.clip(np.nan_to_num(values), -128, 127).min())


def _conv_fits(graph: Graph, node: Node, sizes: list[int]) -> bool:
    outs, ins, kernel = sizes[0], sizes[1], sizes[2:]
    if min(outs, ins) >= FEWEST:
        return True
    if node.integer("group", 1) > 1:
        return outs % 8 == 0 and min(kernel) >= 3
    wide = max(outs, ins) >= FEWEST or _is_first(graph, node)
    return wide and (outs % 8 == 0 or ins % 8 == 0) and len(set(kernel)) == 1


def _is_first(graph: Graph, node: Node) -> bool:
    """Whether nothing weighted comes before a node."""
    waiting, seen = [node.input(0)], set()
    while waiting:
        tensor = waiting.pop()
        producer = graph.producer(tensor)
        if producer is None or tensor in seen or tensor in graph.fixed:
            continue
        if producer.op in WEIGHTED:
            return False
        seen.add(tensor)
        waiting += producer.inputs
    return True
