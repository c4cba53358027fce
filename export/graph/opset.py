"""Brings an opset 18 graph down to opset 17.

torch's exporter starts at opset 18, and onnx 1.23's own converter has no way down for Pad, Split and Reduce*:
the exporter then keeps 18 and only warns. The few operators that changed are rewritten here, by what ONNX's
operator changelog (docs/Changelog.md, version 18) lists; an operator that is not known here is an error.
"""

from __future__ import annotations

import onnx
from onnx import defs, helper, numpy_helper

_REDUCTIONS = frozenset(
    f"Reduce{kind}" for kind in ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "SumSquare")
)
# Attributes that opset 18 added, and the value that means what opset 17 does.
_ADDED: dict[str, dict[str, int | bytes | None]] = {
    "Resize": {"antialias": 0, "keep_aspect_ratio_policy": b"stretch"},
    "Split": {"num_outputs": None},  # says what the number of outputs says
    "ScatterElements": {},
    "ScatterND": {},
    "Pad": {},
    **{name: {"noop_with_empty_axes": 0} for name in _REDUCTIONS},
}


def to_opset_17(model: onnx.ModelProto) -> None:
    """Rewrites the graph in place; run the checker afterwards.

    Raises:
        RuntimeError: not an opset 18 graph, or an operator that cannot be said in opset 17.
    """
    found = {entry.domain: entry.version for entry in model.opset_import}
    if found != {"": 18} or model.functions:
        raise RuntimeError(f"ONNX graph: must be of opset 18 alone to be converted, got {found}")
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if not _is_unchanged(node.op_type):
            _rewrite_node(node, constants)
    model.opset_import[0].version = 17
    used = {name for node in model.graph.node for name in node.input}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)


def _is_unchanged(op_type: str) -> bool:
    try:
        return bool(defs.get_schema(op_type, 17).since_version == defs.get_schema(op_type, 18).since_version)
    except defs.SchemaError:
        raise RuntimeError(f"ONNX graph: {op_type} must exist in opset 17, does not") from None


def _rewrite_node(node: onnx.NodeProto, constants: dict[str, onnx.TensorProto]) -> None:
    if node.op_type not in _ADDED:
        raise RuntimeError(f"ONNX graph: {node.op_type} must be the same in opsets 17 and 18, is not")
    for name, neutral in _ADDED[node.op_type].items():
        for attribute in [a for a in node.attribute if a.name == name]:
            if neutral is not None and helper.get_attribute_value(attribute) != neutral:
                raise RuntimeError(f"ONNX graph: {node.op_type} with {name} must be of opset 18")
            node.attribute.remove(attribute)
    if any(attribute.name == "axes" for attribute in node.attribute) or (
        node.op_type == "Pad" and len(node.input) > 3
    ):
        raise RuntimeError(f"ONNX graph: {node.op_type} with axes must be of opset 18")
    if node.op_type in _REDUCTIONS and len(node.input) > 1:  # axes were an attribute
        name = node.input[1]
        if name not in constants:
            raise RuntimeError(f"ONNX graph: {node.op_type} must have constant axes, got {name or 'none'}")
        axes = numpy_helper.to_array(constants[name]).tolist()
        del node.input[1:]
        node.attribute.append(helper.make_attribute("axes", axes))
