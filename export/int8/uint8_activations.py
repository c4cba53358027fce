"""Signed Q/DQ as unsigned: the same steps and the same numbers, for OpenVINO and onnxruntime.

OpenVINO (2025.4.1 to 2026.4.1) computes Concat → Q/DQ in int8 → Conv wrongly, by 28 to 36 %: its low-precision passes
split the quantisation over the Concat. With uint8 and zero point 128 it computes the same graph right, with the same
8-bit kernels. tests/test_export_qdq.py notices when this is no longer needed.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

_ZERO = "uint8_zero"
_ZERO_POINT = 128


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
            node.input[2] = _ZERO
        nodes.append(onnx.NodeProto.FromString(node.SerializeToString()))
    initializers.append(helper.make_tensor(_ZERO, TensorProto.UINT8, [], [_ZERO_POINT]))
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
