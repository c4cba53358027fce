"""Rules about single operators, and about the 8-bit picture that the graph takes.

Source: onnx/onnx-tensorrt docs/operators.md (8.6-GA, 11.1) for Resize; NvInfer.h, DataType::kUINT8, and
ModelImporter.cpp of 8.6-GA for the picture.
"""

from __future__ import annotations

from collections.abc import Iterator

from onnx import TensorProto

from export.graph.view import QUANTIZE, Graph, type_name
from export.rules.finding import Breach, Release

_MODES = ("nearest", "linear")
_COORDINATES = ("half_pixel", "pytorch_half_pixel", "tf_half_pixel_for_nn", "asymmetric", "align_corners")
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16)


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
