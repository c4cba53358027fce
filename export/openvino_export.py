"""Converts ONNX to OpenVINO IR, and quantises it to INT8 with NNCF's OpenVINO back end.

NNCF's ONNX back end is not used: OpenVINO 2026.4.1 computes Q/DQ graphs with a Concat wrongly (28–36 % error
for signed ones; Dice p5 of a U-Net 0.867 instead of 0.909).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from export.quiet import quiet
from runtime.openvino_engine import import_openvino
from segcore.case import Case
from segcore.preprocess import InputSpec, prepare

MODEL_FILE = "model.xml"  # with model.bin beside it


def write_ir(onnx_path: Path, folder: Path, *, half_weights: bool) -> None:
    """Converts to IR in `folder`; `half_weights` stores them in 16 bits (engines still compute in 32)."""
    openvino = import_openvino()
    with quiet():
        model = openvino.Core().read_model(str(onnx_path))
        openvino.save_model(model, str(folder / MODEL_FILE), compress_to_fp16=half_weights)


def write_int8_ir(onnx_path: Path, folder: Path, cases: Sequence[Case], spec: InputSpec) -> None:
    """Quantises weights and activations to 8 bits and writes IR in `folder`.

    Args:
        onnx_path: the FP32 graph.
        folder: where model.xml and model.bin go.
        cases: calibration cases of the train split; read one by one, each as often as NNCF asks.
        spec: the model's input.
    """
    openvino = import_openvino()
    with quiet():
        import nncf

        model = openvino.Core().read_model(str(onnx_path))
        quantised = nncf.quantize(
            model,
            nncf.Dataset(cases, _feed(spec)),
            # Symmetric: the family's activations are ReLU and start at zero, asymmetric ranges gain nothing.
            preset=nncf.QuantizationPreset.PERFORMANCE,
            target_device=nncf.TargetDevice.CPU,
            subset_size=len(cases),
        )
        openvino.save_model(quantised, str(folder / MODEL_FILE), compress_to_fp16=False)


def _feed(spec: InputSpec) -> Callable[[Case], np.ndarray]:
    """Case → 1×H×W×C uint8: the one preprocessing, batch 1 because scales change with the batch."""
    return lambda case: prepare(case.image(), spec, name=f"case {case.id}")[None]
