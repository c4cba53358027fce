"""INT8 for TensorRT, made and measured on a CPU: an ONNX graph with symmetric Q/DQ pairs, and its unsigned form.

Every pair is int8 with zero point 0: activations one scale a tensor, weights one a channel (float weights → Q → DQ,
because TensorRT 8.6 reads no int8 weights), biases in float. The pairs are inserted here and not by onnxruntime's
quantiser: that puts them between a convolution and its ReLU and on both inputs of an Add, so that a second pass would
take out most of what the first put in, and it would have to be run, on the file, for every model that the guard tries.
A test holds the scales against onnxruntime's.

Two rewrites belong to it. Before: `rewrite_transposed`, because TensorRT's versions disagree on the axis of the scales
of a transposed convolution's weights. After: `to_uint8`, for OpenVINO, which computes signed graphs with a Concat
wrongly, and for onnxruntime.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from export.graph.ranges import activation_ranges
from export.graph.view import DEQUANTIZE, WEIGHTED, Graph, view_graph
from export.int8.placement import Placement, place
from segcore.dataset.case import Case
from segcore.picture.preprocess import InputSpec, prepare

_STEPS = 127
_LEAST_SCALE = 2.0**-16
"""Of a channel against the layer's largest. onnxruntime rounds biases to int32, in steps of activation scale · weight
scale: that overflows for a channel that training has emptied; and its scale would be lost in 16 bits."""
_ZERO, _UNSIGNED_ZERO = "int8_zero", "uint8_zero"
_UNSIGNED_ZERO_POINT = 128


@dataclass(frozen=True)
class QdqModel:
    """A float graph and its ranges; see `export.model_file.CalibratedGraph`.

    Attributes:
        layers: that can be quantised, in the graph's order.
        model: the float graph, with transposed convolutions rewritten.
        graph: a view of it.
        ranges: tensor → r, where it is rounded within ±r.
    """

    layers: tuple[str, ...]
    model: onnx.ModelProto = field(repr=False)
    graph: Graph = field(repr=False)
    ranges: Mapping[str, float] = field(repr=False)

    def write(self, path: Path, *, in_float: Collection[str] = ()) -> None:
        """Writes the model as ONNX with the named layers in float; see `export.model_file.CalibratedGraph`."""
        onnx.save(self.quantised(in_float=in_float), path)

    def quantised(self, *, in_float: Collection[str] = ()) -> onnx.ModelProto:
        """The model with the named layers in float, all other `layers` in INT8.

        Raises:
            ValueError: a name that is not in `layers`.
        """
        unknown = sorted(set(in_float) - set(self.layers))
        if unknown:
            raise ValueError(f"in_float: must name layers of the graph, got {', '.join(unknown)}")
        placement, _ = place(self.graph, in_float=in_float)
        return _insert_pairs(self.model, placement, self.ranges)


def calibrate_qdq(fp32: Path, cases: Sequence[Case], spec: InputSpec) -> QdqModel:
    """Reads a float graph and the ranges of its activations over calibration cases.

    A range is the one with the least squared error over all values of the tensor. Of five students and a teacher, on 64
    validation cases each, the logits were off by 0.7 to 0.8 % and 3.5 % with it, by 0.8 to 1.2 % and 5.0 % with the
    largest value, by 0.7 to 0.9 % and 3.5 % with the 99.99th percentile, and by 1.6 to 3.7 % and 7.6 % with the
    entropy rule.

    Args:
        fp32: ONNX file from `export.graph.onnx_export.write_onnx`.
        cases: of the train split; read one by one, once, batch 1, prepared as the runtime does.
        spec: the model's input.

    Raises:
        ValueError: no cases, or a graph whose values are not finite.
    """
    model = onnx.load(fp32, load_external_data=False)
    rewrite_transposed(model)
    graph = view_graph(model)
    placement, layers = place(graph)
    pictures = (prepare(case.image(), spec, name=f"case {case.id}")[None] for case in cases)
    # All that may carry a pair, whichever layers are returned to float: then a MaxPool's result may, say.
    inputs = {node.input(0) for node in graph.nodes if node.name in layers}
    ranges = activation_ranges(model, sorted(inputs | set(placement.reads)), pictures)
    return QdqModel(layers, model, graph, ranges)


def int8_nodes(path: Path) -> tuple[str, ...]:
    """Names of the convolutions and matrix products of a Q/DQ graph whose data and weights are both in INT8."""
    graph = view_graph(onnx.load(path, load_external_data=False))

    def dequantised(name: str) -> bool:
        maker = graph.producer(name)
        return maker is not None and maker.op == DEQUANTIZE

    return tuple(node.name for node in graph.of(*WEIGHTED) if all(map(dequantised, node.inputs[:2])))


def _insert_pairs(
    model: onnx.ModelProto, placement: Placement, ranges: Mapping[str, float]
) -> onnx.ModelProto:
    """The model with Q/DQ pairs; the argument stays as it is.

    Args:
        model: float graph.
        placement: of its tensors.
        ranges: tensor → r, for each tensor that the placement names.
    """
    made = onnx.ModelProto()
    made.CopyFrom(model)
    constants = {tensor.name: tensor for tensor in made.graph.initializer}
    wanted = {reader: tensor for tensor, readers in placement.reads.items() for reader in readers}
    pairs: set[str] = set()
    nodes: list[onnx.NodeProto] = []
    new = [helper.make_tensor(_ZERO, onnx.TensorProto.INT8, [], [0])] if wanted else []
    for of, names in placement.members.items():
        # TensorRT refuses a scale of 0, which a tensor of zeros would have.
        scale = max(ranges[name] for name in names) / _STEPS or 1.0
        new.append(numpy_helper.from_array(np.array(scale, np.float32), f"{of}_scale"))
    for node in model.graph.node:
        node = onnx.NodeProto.FromString(node.SerializeToString())
        for i, name in enumerate(node.input):
            if (node.name, i) in wanted:
                if name not in pairs:
                    nodes += _make_pair(name, f"{placement.scale_of[name]}_scale", _ZERO)
                    pairs.add(name)
                node.input[i] = f"{name}_dequantized"
        if node.name in placement.weights:
            name, axis = node.input[1], placement.weights[node.name]
            if name not in pairs:
                new += _weight_scales(numpy_helper.to_array(constants[name]), name, axis)
                nodes += _make_pair(name, f"{name}_scale", f"{name}_zero_point", axis)
                pairs.add(name)
            node.input[1] = f"{name}_dequantized"
        nodes.append(node)
    del made.graph.node[:]
    made.graph.node.extend(nodes)
    made.graph.initializer.extend(new)
    return made


def _make_pair(name: str, scale: str, zero: str, axis: int | None = None) -> Iterator[onnx.NodeProto]:
    """NAME → NAME_quantized, in int8 → NAME_dequantized."""
    for kind, source, target in (
        ("QuantizeLinear", name, f"{name}_quantized"),
        ("DequantizeLinear", f"{name}_quantized", f"{name}_dequantized"),
    ):
        node = helper.make_node(kind, [source, scale, zero], [target], name=f"{name}.{kind}")
        if axis is not None:  # its default changed from 0 to 1 in TensorRT 10.13
            node.attribute.append(helper.make_attribute("axis", axis))
        yield node


def _weight_scales(weight: np.ndarray, name: str, axis: int | None) -> list[onnx.TensorProto]:
    others = tuple(i for i in range(weight.ndim) if i != axis)
    scale = np.asarray(np.abs(weight).max(axis=others) / _STEPS, np.float32)
    least = float(scale.max(initial=0.0)) * _LEAST_SCALE
    scale = np.maximum(scale, least if least > 0 else 1.0)
    return [
        numpy_helper.from_array(scale, f"{name}_scale"),
        numpy_helper.from_array(np.zeros(scale.shape, np.int8), f"{name}_zero_point"),
    ]


# Transposed convolutions as 1×1 convolution and DepthToSpace: equal numbers, and weights with one axis of outputs.
#
# TensorRT's versions disagree on the axis of per-channel INT8 weights of a ConvTranspose (0 in 8.5 and 8.6, 1 in 10.3
# and later: NVIDIA/TensorRT, tools/pytorch-quantization, tensor_quant.py of each release); a 1×1 convolution has one.


def rewrite_transposed(model: onnx.ModelProto) -> None:
    """Rewrites, in place, every ConvTranspose whose kernel is its stride; others stay as they are.

    With kernel r and stride r no two inputs meet in one output: each input pixel becomes r×r output pixels by
    r·r·C channels of a 1×1 convolution, which DepthToSpace in CRD mode (torch's pixel shuffle) puts in place.
    Weights and biases keep their names.
    """
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    readers = Counter(name for node in model.graph.node for name in node.input)
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        shared = any(readers[name] > 1 for name in node.input[1:])  # weights that others read must stay
        upscale = 0 if shared else _pixel_factor(node, constants)
        nodes += _as_convolution(node, upscale, constants) if upscale else [node]
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]  # before they are deleted
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    # The exporter notes the shapes of weights too, and those have changed.
    notes = [value for value in model.graph.value_info if value.name not in constants]
    del model.graph.value_info[:]
    model.graph.value_info.extend(notes)


def _pixel_factor(node: onnx.NodeProto, constants: dict[str, onnx.TensorProto]) -> int:
    """The stride of a ConvTranspose that can be rewritten, else 0."""
    if node.op_type != "ConvTranspose" or node.input[1] not in constants:
        return 0
    has = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    kernel = list(constants[node.input[1]].dims[2:])
    strides = list(has.get("strides", [1] * len(kernel)))
    plain = (
        has.get("group", 1) == 1
        and not any([*has.get("pads", []), *has.get("output_padding", [])])
        and has.get("auto_pad", b"NOTSET") == b"NOTSET"
        and "output_shape" not in has
        and all(one == 1 for one in has.get("dilations", []))
    )
    square = len(kernel) == 2 and kernel == strides and kernel[0] == kernel[1]
    return strides[0] if plain and square else 0


def _as_convolution(
    node: onnx.NodeProto, upscale: int, constants: dict[str, onnx.TensorProto]
) -> tuple[onnx.NodeProto, onnx.NodeProto]:
    """The ConvTranspose as two nodes; its weights, and a bias, are rewritten where they are."""
    weight = constants[node.input[1]]
    values = numpy_helper.to_array(weight)  # C_in, C_out, r, r
    inputs, outputs = values.shape[:2]
    # DepthToSpace CRD reads channel (c·r + i)·r + j for sub-pixel (i, j) of channel c.
    point = values.transpose(1, 2, 3, 0).reshape(outputs * upscale**2, inputs, 1, 1)
    weight.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(point), weight.name))
    for name in node.input[2:]:
        bias = np.repeat(numpy_helper.to_array(constants[name]), upscale**2)
        constants[name].CopyFrom(numpy_helper.from_array(bias, name))
    between = f"{node.output[0]}_channels"
    return (
        helper.make_node("Conv", node.input, [between], name=node.name, kernel_shape=[1, 1]),
        helper.make_node(
            "DepthToSpace",
            [between],
            node.output,
            name=f"{node.name}_shuffle",
            blocksize=upscale,
            mode="CRD",
        ),
    )


# Signed Q/DQ as unsigned: the same steps and the same numbers.
#
# OpenVINO (2025.4.1 to 2026.4.1) computes Concat → Q/DQ in int8 → Conv wrongly, by 28 to 36 %: its low-precision passes
# split the quantisation over the Concat. With uint8 and zero point 128 it computes the same graph right, with the same
# 8-bit kernels; on a processor without VNNI they saturate with either (docs/int8.md). tests/test_export_qdq.py notices
# when this is no longer needed.


def to_uint8(model: onnx.ModelProto) -> onnx.ModelProto:
    """Rewrites the activations' pairs from int8, zero point 0, to uint8, zero point 128, and stores weights in int8.

    q + 128 runs over 0…255 where q runs over −128…127, so every dequantised number is the same. Weights keep int8, as
    every CPU kernel wants them, but rounded once and for all: a quarter of the file. TensorRT must not see such a
    graph: its parser reads uint8 as int8, and 8.6 takes weights in float only.

    Args:
        model: from `export.int8.qdq`; stays as it is.

    Raises:
        ValueError: an activation that is not int8 with zero point 0, one for the whole tensor.
    """
    made = onnx.ModelProto()
    made.CopyFrom(model)
    constants = {tensor.name: tensor for tensor in made.graph.initializer}
    activations: set[str] = set()
    nodes, initializers = [], list(made.graph.initializer)
    for node in made.graph.node:
        if node.op_type == "QuantizeLinear" and node.input[0] in constants:
            initializers.append(_round_weights(node, constants))
            continue
        if node.op_type == "QuantizeLinear" or (
            node.op_type == "DequantizeLinear" and node.input[0] in activations
        ):
            zero = constants.get(node.input[2]) if len(node.input) > 2 else None
            if (
                zero is None
                or zero.data_type != TensorProto.INT8
                or zero.dims
                or numpy_helper.to_array(zero).any()
            ):
                raise ValueError(f"{node.name}: must be int8 with zero point 0 for the whole tensor, is not")
            activations.add(node.output[0])
            node.input[2] = _UNSIGNED_ZERO
        nodes.append(onnx.NodeProto.FromString(node.SerializeToString()))
    initializers.append(helper.make_tensor(_UNSIGNED_ZERO, TensorProto.UINT8, [], [_UNSIGNED_ZERO_POINT]))
    read = {name for node in nodes for name in node.input}
    initializers = [
        onnx.TensorProto.FromString(t.SerializeToString()) for t in initializers if t.name in read
    ]
    del made.graph.node[:], made.graph.initializer[:], made.graph.value_info[:]
    made.graph.node.extend(nodes)
    made.graph.initializer.extend(initializers)
    return made


def _round_weights(node: onnx.NodeProto, constants: dict[str, TensorProto]) -> TensorProto:
    """The weights that a QuantizeLinear gives, by ONNX's rule: to the nearest, ties to even, cut to int8."""
    weight, scale = (numpy_helper.to_array(constants[name]) for name in node.input[:2])
    axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 1)
    if scale.ndim:
        scale = scale.reshape([-1 if i == axis else 1 for i in range(weight.ndim)])
    steps = np.clip(np.rint(weight / scale), -128, 127).astype(np.int8)
    return numpy_helper.from_array(steps, node.output[0])
