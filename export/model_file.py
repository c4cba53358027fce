"""Writes a graph as the file that an engine opens: the one way, for bundles and for the candidates of a search."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from segcore.case import Case
from segcore.preprocess import InputSpec, OutputSpec

if TYPE_CHECKING:
    from segcore.learn.deploy import DeployGraph

MODEL_FILES = {"onnx": "model.onnx", "openvino": "model.xml"}
"""Format → name of the file that an engine opens."""


def write_model(
    graph: DeployGraph,
    spec: InputSpec,
    output: OutputSpec,
    folder: Path,
    *,
    to: str,
    precision: str,
    calibration: Sequence[Case] = (),
) -> None:
    """Writes `MODEL_FILES[to]`, and what belongs to it, in `folder`.

    Args:
        graph: in eval mode.
        spec: its input.
        output: its output.
        folder: is there.
        to: a key of `MODEL_FILES`.
        precision: fp32, fp16 or int8 (openvino only).
        calibration: cases that give int8 its ranges.
    """
    from export.onnx_export import halve_weights, write_onnx

    onnx_path = folder / MODEL_FILES["onnx"]
    write_onnx(graph, spec, output, onnx_path)
    if to == "onnx":
        if precision == "fp16":
            halve_weights(onnx_path, spec, output)
        return
    from export.openvino_export import write_int8_ir, write_ir

    if precision == "int8":
        write_int8_ir(onnx_path, folder, calibration, spec)
    else:
        write_ir(onnx_path, folder, half_weights=precision == "fp16")
    onnx_path.unlink()
