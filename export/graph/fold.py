"""Computes at export what no picture has a part in: SAM 2's positional embeddings, for a static size.

torch's exporter leaves such nodes where the result is large.
"""

from __future__ import annotations

from typing import Any

import onnx
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator


def fold_constants(model: onnx.ModelProto) -> None:
    """Replaces, in place, every node whose inputs are all constants by its result; constants that nobody reads go."""
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    kept = []
    for node in graph.node:
        if any(name not in constants for name in node.input if name):
            kept.append(node)
            continue
        for name, value in zip(node.output, _compute_node(node, constants, model.opset_import), strict=True):
            constants[name] = numpy_helper.from_array(value, name)
    used = {name for node in kept for name in node.input} | {value.name for value in graph.output}
    del graph.node[:], graph.initializer[:]
    graph.node.extend(kept)
    graph.initializer.extend(tensor for name, tensor in constants.items() if name in used)


def _compute_node(
    node: onnx.NodeProto, constants: dict[str, onnx.TensorProto], opsets: list[onnx.OperatorSetIdProto]
) -> list[Any]:
    inputs = [name for name in dict.fromkeys(node.input) if name]
    # The evaluator wants types only for inputs that it is given; a graph of initialisers has none.
    outputs = [helper.make_empty_tensor_value_info(name) for name in node.output]
    graph = helper.make_graph([node], "constant", [], outputs, [constants[name] for name in inputs])
    return list(ReferenceEvaluator(helper.make_model(graph, opset_imports=opsets)).run(None, {}))
