"""Transposed convolutions as 1×1 convolution and DepthToSpace: equal numbers, and weights that INT8 can say.

TensorRT's versions disagree on the axis of per-channel INT8 weights of a ConvTranspose (0 in 8.5 and 8.6, 1 in 10.3
and later: NVIDIA/TensorRT, tools/pytorch-quantization, tensor_quant.py of each release); a 1×1 convolution has one.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
from onnx import helper, numpy_helper


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
        own = all(readers[name] == 1 for name in node.input[1:])
        upscale = _upscale_stride(node, constants) if own else 0
        nodes += _rewrite_node(node, upscale, constants) if upscale else [node]
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]  # before they are deleted
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    # torch's exporter notes the shapes of weights too, which have changed.
    notes = [value for value in model.graph.value_info if value.name not in constants]
    del model.graph.value_info[:]
    model.graph.value_info.extend(notes)


def _upscale_stride(node: onnx.NodeProto, constants: dict[str, onnx.TensorProto]) -> int:
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


def _rewrite_node(
    node: onnx.NodeProto, upscale: int, constants: dict[str, onnx.TensorProto]
) -> tuple[onnx.NodeProto, onnx.NodeProto]:
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
