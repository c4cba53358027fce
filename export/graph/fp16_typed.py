"""Tensors of 16 bits, for TensorRT's strongly typed networks (10.13 and later), which compute as the file is typed.

Our own conversion: onnxruntime's `convert_float_to_float16` cuts weights beyond 65504 to it without a word, rounds
between two operators that both stay in 32 bits, puts Casts between a DequantizeLinear and its convolution, and leaves
the nodes out of order.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper, version_converter

from export.graph.onnx_export import INPUT, OUTPUT
from export.graph.ranges import session_with_outputs
from export.graph.view import DEQUANTIZE, QUANTIZE, WEIGHTED, Graph, view_graph
from segcore.errors import GateError

OPSET, IR = 19, 9
"""The first opset whose Q/DQ have scales of 16 bits."""
_FLOAT, _HALF = TensorProto.FLOAT, TensorProto.FLOAT16
_LARGEST = float(np.finfo(np.float16).max)
# Their sums over a row lose digits, or overflow, in 16 bits.
_SINGLE_OPS = frozenset({"LayerNormalization", "InstanceNormalization", "GroupNormalization", "Softmax"})
# What may stand between the picture and the first layer, and between the head's layer and the logits.
_PICTURE_OPS = frozenset({"Cast", "Transpose", "Expand", "Sub", "Mul", "Div", "Add"})
_ALWAYS_FLOAT = {"Resize": (1, 2)}  # inputs that ONNX types float whatever the data are


def to_fp16_typed(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph with tensors of 16 bits; picture and logits keep their types.

    In 32 bits stay the picture's normalisation, normalisation layers and Softmax, and the head (the last operator with
    weights and what follows it), with Casts around them. Q/DQ follow their tensors: a scale becomes float16, rounded
    up so that nothing is cut that was not; where a float32 operator reads the pair, it has a DQ with the same scale in
    float32 instead of a Cast, which would part it from its int8.

    Args:
        model: opset 17, float32, with or without Q/DQ; stays as it is.

    Raises:
        GateError: a constant that 16 bits cannot hold; the node that reads it is named. Activations show only when
            pictures run: `check_fp16_range`.
    """
    converted = version_converter.convert_version(model, OPSET)
    converted.ir_version = IR
    graph = view_graph(converted)
    typed = _TypeConverter(graph, _single_nodes(graph))
    nodes = [part for node in converted.graph.node for part in typed.convert(node)]
    nodes = _needed_nodes(nodes, [value.name for value in converted.graph.output])
    read = {name for node in nodes for name in node.input}
    initializers = [t for t in [*converted.graph.initializer, *typed.constants.values()] if t.name in read]
    del converted.graph.node[:], converted.graph.initializer[:], converted.graph.value_info[:]
    converted.graph.node.extend(nodes)
    converted.graph.initializer.extend({t.name: t for t in initializers}.values())
    onnx.checker.check_model(converted, full_check=True)
    return converted


def check_fp16_range(model: onnx.ModelProto, pictures: Iterable[np.ndarray]) -> None:
    """Runs the float graph on pictures and checks that 16 bits can hold what it computes.

    Args:
        model: float32 graph, with or without Q/DQ.
        pictures: each 1×H×W×C uint8; one at a time.

    Raises:
        GateError: a value beyond 65504, or one that is not finite; the first node that gives it is named.
    """
    graph = view_graph(model)
    single = _single_nodes(graph)
    makers = {
        node.output: node
        for node in graph.nodes
        if node.name not in single and graph.dtype(node.output) == _FLOAT and node.output not in graph.fixed
    }
    session, names = session_with_outputs(model, list(makers)), list(makers)
    for picture in pictures:
        for name, values in zip(names, session.run(names, {INPUT: picture}), strict=True):
            largest = float(np.abs(values).max(initial=0.0))
            if not largest <= _LARGEST:
                raise GateError(
                    f"node {makers[name].name}: must give values within ±{_LARGEST:g} for 16 bits, "
                    f"gives {largest:g}; use --precision fp32"
                )


def run_fp16_typed(model: onnx.ModelProto, pictures: Iterable[np.ndarray]) -> np.ndarray:
    """Logits N×K×h×w of a typed graph in onnxruntime, one at a time; `runtime.engines.seam` does not do for it.

    onnxruntime (1.31) rounds biases to int32 when it opens Q/DQ graphs; with scales of 16 bits it multiplies them in 16
    bits, which gives 0: the logits of our students were off by 10 %, those of the teacher by all. Without that pass
    they are as ONNX's reference computes them.

    Args:
        model: from `to_fp16_typed`.
        pictures: each 1×H×W×C uint8.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        model.SerializeToString(),
        options,
        providers=["CPUExecutionProvider"],
        disabled_optimizers=["WeightBiasQuantization"],
    )
    return np.concatenate([session.run([OUTPUT], {INPUT: picture})[0] for picture in pictures])


def _single_nodes(graph: Graph) -> set[str]:
    """Names of the nodes that stay in 32 bits."""
    single = {node.name for node in graph.of(*_SINGLE_OPS)}
    reached = {INPUT}
    for node in graph.nodes:
        data = [name for name in node.inputs if name and name not in graph.fixed]
        if node.op in _PICTURE_OPS and data and reached.issuperset(data):
            reached.update(node.outputs)
            single.add(node.name)
    behind = [OUTPUT]
    while behind:
        last = graph.producer(behind.pop())
        if last is not None:
            single.add(last.name)
            behind += [] if last.op in WEIGHTED else [n for n in last.inputs if n not in graph.fixed]
    return single


class _TypeConverter:
    """Converts the nodes of one graph, in their order."""

    def __init__(self, graph: Graph, single: set[str]) -> None:
        self.graph, self.single = graph, single
        self.types: dict[str, int] = {}  # of what the converted nodes give
        self.pairs: dict[str, onnx.NodeProto] = {}  # what a DQ gives → the DQ
        self.given: dict[tuple[str, int], str] = {}  # a tensor in the other type → its name
        self.constants: dict[str, TensorProto] = {}

    def convert(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        """The node, typed, with the Casts that it needs before it."""
        made = onnx.NodeProto()
        made.CopyFrom(node)
        wanted: int = _FLOAT if node.name in self.single else _HALF
        if node.op_type == QUANTIZE:
            wanted = self.types.get(node.input[0], _HALF)
        before: list[onnx.NodeProto] = []
        for i, name in enumerate(node.input):
            if not name or self.graph.dtype(name) != _FLOAT:
                continue
            as_float = i in _ALWAYS_FLOAT.get(node.op_type, ())
            made.input[i] = self._typed_input(name, _FLOAT if as_float else wanted, made, i, before)
        if node.op_type == "Cast" and wanted == _HALF:
            for attribute in made.attribute:
                attribute.i = _HALF if attribute.name == "to" and attribute.i == _FLOAT else attribute.i
        for name in node.output:
            self.types[name] = wanted if self.graph.dtype(name) == _FLOAT else self.graph.dtype(name)
        if node.op_type == DEQUANTIZE:
            self.pairs[node.output[0]] = node
        return [*before, made]

    def _typed_input(
        self, name: str, wanted: int, reader: onnx.NodeProto, place: int, before: list[onnx.NodeProto]
    ) -> str:
        """Name of a tensor in the wanted type; what makes it is appended to `before`."""
        value = self.graph.constant(name)
        if value is not None:
            is_scale = reader.op_type in (QUANTIZE, DEQUANTIZE) and place == 1
            return self._typed_constant(name, value, wanted, reader.name, is_scale=is_scale)
        if self.types[name] == wanted:
            return name
        if (name, wanted) not in self.given:
            suffix = "fp32" if wanted == _FLOAT else "fp16"
            other = f"{name}_{suffix}"
            self.given[name, wanted] = other
            if name in self.pairs:
                before.append(self._dequantise_as(self.pairs[name], other, wanted))
            else:
                before.append(
                    helper.make_node("Cast", [name], [other], name=f"{name}.to_{suffix}", to=wanted)
                )
        return self.given[name, wanted]

    def _dequantise_as(self, pair: onnx.NodeProto, output: str, wanted: int) -> onnx.NodeProto:
        """A second DQ of the same 8-bit tensor, in the other type."""
        made = onnx.NodeProto()
        made.CopyFrom(pair)
        made.name, made.output[0] = f"{pair.name}_{'fp32' if wanted == _FLOAT else 'fp16'}", output
        made.input[1] = self._typed_input(pair.input[1], wanted, pair, 1, [])
        return made

    def _typed_constant(
        self, name: str, value: np.ndarray, wanted: int, reader: str, *, is_scale: bool
    ) -> str:
        """Name of a constant in the wanted type; a scale in float32 holds what it is in 16 bits, so that both agree."""
        if wanted == _FLOAT and not is_scale:
            return name
        typed = f"{name}_{'fp32' if wanted == _FLOAT else 'fp16'}"
        if typed not in self.constants:
            with np.errstate(over="ignore"):  # it is looked for below
                half = _round_up(value) if is_scale else value.astype(np.float16)
            if np.isfinite(value).all() and not np.isfinite(half).all():
                largest = np.abs(value).max()
                raise GateError(
                    f"node {reader}: must have constants within ±{_LARGEST:g} for 16 bits, {name} has {largest:g}; "
                    "use --precision fp32"
                )
            if value.size == 1 and value.any() and not half.any():
                raise GateError(
                    f"node {reader}: must have constants of at least 6e-8 for 16 bits, {name} is {value.item():g}; "
                    "use --precision fp32"
                )
            kept = half if wanted == _HALF else half.astype(np.float32)
            self.constants[typed] = numpy_helper.from_array(kept, typed)
        return typed


def _round_up(scale: np.ndarray) -> np.ndarray:
    half = scale.astype(np.float16)
    return np.where(half < scale, np.nextafter(half, np.float16(np.inf)), half).astype(np.float16)


def _needed_nodes(nodes: Sequence[onnx.NodeProto], outputs: Sequence[str]) -> list[onnx.NodeProto]:
    """The nodes that the outputs need: of two DQ of one tensor perhaps one."""
    needed, kept = set(outputs), []
    for node in reversed(nodes):
        if needed.intersection(node.output):
            kept.append(node)
            needed.update(node.input)
    return kept[::-1]
