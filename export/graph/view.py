"""A read-only view of an ONNX graph: who makes a tensor, who reads it, what it holds, its shape and type.

Nothing outside the model is read: tensors whose data are in another file have no value here.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper, shape_inference

QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})


@dataclass(frozen=True, eq=False)
class Node:
    """An operator. A missing optional input is the empty name."""

    name: str
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]

    def input(self, place: int) -> str:
        """Name of an input, empty where it is left out."""
        return self.inputs[place] if place < len(self.inputs) else ""

    @property
    def output(self) -> str:
        return self.outputs[0] if self.outputs else ""

    def integer(self, name: str, default: int) -> int:
        """An integer attribute."""
        return int(self.attributes.get(name, default))

    def text(self, name: str, default: str) -> str:
        """A string attribute."""
        value = self.attributes.get(name, default)
        return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


@dataclass(frozen=True, eq=False)
class Graph:
    """The view; every mapping is from a tensor's name.

    Attributes:
        opset: of the default domain.
        nodes: in the file's order, which is one in which they can be computed.
        inputs: names, weights left out.
        fixed: tensors that follow from constants alone: weights, also behind a Cast or Q/DQ.
    """

    opset: int
    nodes: tuple[Node, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    fixed: frozenset[str]
    _constants: Mapping[str, TensorProto]
    _producers: Mapping[str, Node]
    _consumers: Mapping[str, tuple[Node, ...]]
    _dtypes: Mapping[str, int]
    _shapes: Mapping[str, tuple[int | None, ...]]
    _values: dict[str, np.ndarray] = field(default_factory=dict)

    def of(self, *ops: str) -> Iterator[Node]:
        """The nodes of these operators."""
        return (node for node in self.nodes if node.op in ops)

    def producer(self, tensor: str) -> Node | None:
        """The node that computes a tensor; None for inputs and constants."""
        return self._producers.get(tensor)

    def consumers(self, tensor: str) -> tuple[Node, ...]:
        """The nodes that read a tensor."""
        return self._consumers.get(tensor, ())

    def constant(self, tensor: str) -> np.ndarray | None:
        """What a tensor holds that the file holds as it is."""
        if tensor not in self._constants:
            return None
        if tensor not in self._values:
            self._values[tensor] = numpy_helper.to_array(self._constants[tensor])
        return self._values[tensor]

    def dtype(self, tensor: str) -> int:
        """ONNX's code of the element type; UNDEFINED where it is not known."""
        return self._dtypes.get(tensor, TensorProto.UNDEFINED)

    def shape(self, tensor: str) -> tuple[int | None, ...] | None:
        """Sizes, None for one that is not fixed; None as a whole where the rank is not known."""
        return self._shapes.get(tensor)


def type_name(dtype: int) -> str:
    """ONNX's element type in words: int8, float, float16."""
    return str(TensorProto.DataType.Name(dtype)).lower()


def is_external(tensor: TensorProto) -> bool:
    """Whether a tensor's data are in another file."""
    return bool(tensor.data_location == TensorProto.EXTERNAL)


def view_graph(model: onnx.ModelProto) -> Graph:
    """Indexes a model; shapes and types are those of onnx's shape inference."""
    inferred = shape_inference.infer_shapes(model, data_prop=True)
    proto = model.graph
    constants = {t.name: t for t in proto.initializer if not is_external(t)}
    nodes, producers, consumers = [], {}, defaultdict(list)
    fixed = {t.name for t in proto.initializer}
    for place, one in enumerate(proto.node):
        node = _view_node(one, place)
        if one.op_type == "Constant":
            fixed.update(node.outputs)
            value = _constant_value(one)
            if value is not None:
                constants[node.output] = value
            continue
        nodes.append(node)
        producers.update(dict.fromkeys(node.outputs, node))
        read = [name for name in node.inputs if name]
        for name in dict.fromkeys(read):
            consumers[name].append(node)
        if read and fixed.issuperset(read):
            fixed.update(node.outputs)
    dtypes, shapes = _element_types(inferred.graph)
    for name, tensor in constants.items():
        dtypes[name], shapes[name] = tensor.data_type, tuple(tensor.dims)
    return Graph(
        opset=default_opset(model),
        nodes=tuple(nodes),
        inputs=tuple(value.name for value in proto.input if value.name not in fixed),
        outputs=tuple(value.name for value in proto.output),
        fixed=frozenset(fixed),
        _constants=MappingProxyType(constants),
        _producers=MappingProxyType(producers),
        _consumers=MappingProxyType({name: tuple(found) for name, found in consumers.items()}),
        _dtypes=MappingProxyType(dtypes),
        _shapes=MappingProxyType(shapes),
    )


def default_opset(model: onnx.ModelProto) -> int:
    """Version of ONNX's own operators; 0 if the model does not say."""
    return max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0)


def node_name(node: onnx.NodeProto, place: int) -> str:
    """A node's name, or what to find it by."""
    return node.name or f"{node.op_type} {place} ({', '.join(node.output)})"


def _view_node(node: onnx.NodeProto, place: int) -> Node:
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    return Node(
        name=node_name(node, place),
        op=node.op_type,
        inputs=tuple(node.input),
        outputs=tuple(node.output),
        attributes=MappingProxyType(attributes),
    )


def _constant_value(node: onnx.NodeProto) -> TensorProto | None:
    """The tensor of a Constant node; its number where it is written as one."""
    for attribute in node.attribute:
        value = helper.get_attribute_value(attribute)
        if attribute.name == "value":
            return None if is_external(value) else value
        if attribute.name in ("value_float", "value_floats"):
            return numpy_helper.from_array(np.asarray(value, np.float32), node.output[0])
        if attribute.name in ("value_int", "value_ints"):
            return numpy_helper.from_array(np.asarray(value, np.int64), node.output[0])
    return None


def _element_types(graph: onnx.GraphProto) -> tuple[dict[str, int], dict[str, tuple[int | None, ...]]]:
    dtypes: dict[str, int] = {}
    shapes: dict[str, tuple[int | None, ...]] = {}
    for value in (*graph.value_info, *graph.input, *graph.output):
        tensor = value.type.tensor_type
        dtypes[value.name] = tensor.elem_type
        if tensor.HasField("shape"):
            shapes[value.name] = tuple(
                d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim
            )
    for one in graph.initializer:
        dtypes[one.name], shapes[one.name] = one.data_type, tuple(one.dims)
    return dtypes, shapes
