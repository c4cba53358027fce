"""Rules about the file as a whole, about sizes, and about single operators: Resize and the 8-bit picture's Cast.

G1, G3, G4 and G5 look at the model itself, subgraphs and functions included, and before anything else does: what they
refuse no view of the graph can show. The others look at the view.

Source: onnx/onnx-tensorrt docs/operators.md (8.6-GA, 11.1); for the picture NvInfer.h, DataType::kUINT8, and
ModelImporter.cpp of 8.6-GA.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx
from onnx import TensorProto, defs

from export.graph.view import DEQUANTIZE, QUANTIZE, Graph, default_opset, is_external, node_name, type_name
from export.rules.finding import Breach, Release

_IMPLICIT = frozenset(
    {"ConvInteger", "MatMulInteger", "DynamicQuantizeLinear", "DynamicQuantizeMatMul", "FakeQuantize"}
)
_CONTROL = ("If", "Loop", "Scan")
_MODES = ("nearest", "linear")
_COORDINATES = ("half_pixel", "pytorch_half_pixel", "tf_half_pixel_for_nn", "asymmetric", "align_corners")
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16)


def opset_is_read(model: onnx.ModelProto, release: Release) -> Iterator[Breach]:
    """G1: the parser of this release reads the opset."""
    opset, most = default_opset(model), _newest_opset(release)
    version = ".".join(map(str, release))
    if opset > most:
        yield Breach(
            "graph",
            f"opset: must be at most {most} for TensorRT {version}, got {opset}; export it at opset 17",
        )
    elif opset < 9:
        yield Breach("graph", f"opset: must be at least 9, got {opset or 'none'}; export it at opset 17")


def operators_are_onnx_own(model: onnx.ModelProto, release: Release) -> Iterator[Breach]:
    """G3: every operator is one of ONNX's own, at the model's opset."""
    for function in model.functions:
        yield Breach(
            function.name, "operator: must be ONNX's own, got a function in the model; inline it at export"
        )
    opset = default_opset(model)
    for name, node in _all_nodes(model):
        if node.domain not in ("", "ai.onnx"):
            found = f"{node.op_type} of {node.domain}"
        elif opset <= defs.onnx_opset_version() and not defs.has(str(node.op_type), opset, ""):
            found = f"{node.op_type}, which opset {opset} does not have"
        else:
            continue
        yield Breach(
            name,
            f"operator: must be ONNX's own, got {found}; export without it, TensorRT has no plugin for it",
        )


def quantisation_is_explicit(model: onnx.ModelProto, release: Release) -> Iterator[Breach]:
    """G4: 8 bits are written as Q/DQ, not as integer operators."""
    for name, node in _all_nodes(model):
        if str(node.op_type).startswith("QLinear") or node.op_type in _IMPLICIT:
            yield Breach(
                name,
                f"operator: must be {QUANTIZE} or {DEQUANTIZE} for 8 bits, got {node.op_type}; "
                "quantise in the QDQ format",
            )


def weights_are_inside(model: onnx.ModelProto, release: Release) -> Iterator[Breach]:
    """G5: no tensor's data are in another file."""
    for tensor in _all_tensors(model):
        if is_external(tensor):
            yield Breach(
                tensor.name,
                "weights: must be in the file, got external data; save it as one file, within 2 GB",
            )


def opset_has_the_types(graph: Graph, release: Release) -> Iterator[Breach]:
    """G2: opset 13 for Q/DQ with an axis, 19 for Q/DQ of 16-bit numbers."""
    pairs = list(graph.of(QUANTIZE, DEQUANTIZE))
    half = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
    for node in pairs:
        types = [graph.dtype(node.input(1)), *([graph.dtype(node.input(0))] if node.op == QUANTIZE else [])]
        found = next((one for one in types if one in half), None)
        if found is not None and graph.opset < 19:
            yield Breach(
                node.name,
                f"opset: must be at least 19 for Q/DQ of {type_name(found)}, got {graph.opset}; "
                "write scales in float32, or the file at opset 19",
            )
    if pairs and graph.opset < 13:
        yield Breach(
            "graph",
            f"opset: must be at least 13 for Q/DQ with an axis, got {graph.opset}; export it at opset 17",
        )


def sizes_are_static(graph: Graph, release: Release) -> Iterator[Breach]:
    """G6: inputs and outputs have fixed sizes, and no branch or loop decides what is computed."""
    for name in (*graph.inputs, *graph.outputs):
        shape = graph.shape(name)
        if shape is None or not all(shape):
            got = "no shape" if shape is None else "×".join(str(size or "?") for size in shape)
            yield Breach(name, f"shape: must be static, got {got}; export it for one size and batch")
    for node in graph.of(*_CONTROL):
        yield Breach(
            node.name,
            f"operator: must not be {', '.join(_CONTROL)} (these rules do not look inside), got {node.op}; "
            "export without control flow",
        )


def resize_is_nearest_or_linear(graph: Graph, release: Release) -> Iterator[Breach]:
    """R1: no cubic interpolation."""
    for node in graph.of("Resize"):
        if (mode := node.text("mode", "nearest")) not in _MODES:
            yield Breach(
                node.name, f"mode: must be {' or '.join(_MODES)}, got {mode}; resize so in the model"
            )


def resize_maps_pixels_as_known(graph: Graph, release: Release) -> Iterator[Breach]:
    """R2: a coordinate transformation that the parser has."""
    for node in graph.of("Resize"):
        found = node.text("coordinate_transformation_mode", "half_pixel")
        if found not in _COORDINATES:
            yield Breach(
                node.name,
                f"coordinate_transformation_mode: must be one of {', '.join(_COORDINATES)}, got {found}; "
                "resize so in the model",
            )


def resize_is_plain(graph: Graph, release: Release) -> Iterator[Breach]:
    """R3: the policy is stretch, and there is no antialiasing."""
    for node in graph.of("Resize"):
        policy = node.text("keep_aspect_ratio_policy", "stretch")
        if policy != "stretch":
            yield Breach(
                node.name, f"keep_aspect_ratio_policy: must be stretch, got {policy}; give the sizes"
            )
        if node.integer("antialias", 0):
            yield Breach(node.name, "antialias: must be 0, got 1; resize without it in the model")


def picture_is_cast_first(graph: Graph, release: Release) -> Iterator[Breach]:
    """U1: an 8-bit input goes to one Cast to float, and no other tensor is of 8 bits without sign."""
    for name in graph.inputs:
        if graph.dtype(name) != TensorProto.UINT8:
            continue
        readers = graph.consumers(name)
        if [node.op for node in readers] != ["Cast"]:
            wrong = next((node for node in readers if node.op != "Cast"), None)
            got = ", ".join(f"{node.op} {node.name}" for node in readers) or "none"
            yield Breach(
                wrong.name if wrong else name,
                f"input {name}: must be read by one Cast to float, as it is uint8, got {got}; cast it first",
            )
        elif readers[0].integer("to", 0) not in _FLOATS:
            to = type_name(readers[0].integer("to", 0))
            yield Breach(
                readers[0].name, f"to: must be float or float16 for a uint8 input, got {to}; cast to float"
            )
    for node in graph.nodes:
        inner = [name for name in node.outputs if name not in graph.outputs]
        if node.op != QUANTIZE and any(graph.dtype(name) == TensorProto.UINT8 for name in inner):  # rule Q6
            yield Breach(
                node.name, "output: must be float inside the graph, got uint8; keep uint8 to the input"
            )


def _newest_opset(release: Release) -> int:
    """The newest opset that a release's parser documents.

    Source: onnx/onnx-tensorrt docs/operators.md at 8.6-GA (17), 10.1-GA (20) and 11.1 (24). The pages of 10.3 to
    10.16 were not found: 20 is assumed.
    """
    if release < (10, 0):
        return 17
    return 20 if release < (11, 0) else 24


def _all_nodes(model: onnx.ModelProto) -> Iterator[tuple[str, onnx.NodeProto]]:
    """Every node with its name, those of subgraphs and functions too."""
    waiting = [model.graph.node, *(function.node for function in model.functions)]
    while waiting:
        for place, node in enumerate(waiting.pop()):
            yield node_name(node, place), node
            waiting += [graph.node for a in node.attribute for graph in (a.g, *a.graphs) if graph.node]


def _all_tensors(model: onnx.ModelProto) -> Iterator[TensorProto]:
    """Every tensor that may have data elsewhere: weights, attributes of nodes, and both parts of sparse ones."""
    graphs = [model.graph]
    for _, node in _all_nodes(model):
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            graphs += [attribute.g, *attribute.graphs]
            sparse = (attribute.sparse_tensor, *attribute.sparse_tensors)
            yield from (part for one in sparse for part in (one.values, one.indices))
    for graph in graphs:
        yield from graph.initializer
        yield from (part for one in graph.sparse_initializer for part in (one.values, one.indices))
