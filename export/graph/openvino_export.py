"""Converts ONNX to OpenVINO IR, and quantises it to INT8 with NNCF's OpenVINO back end.

NNCF's ONNX back end is not used: OpenVINO 2026.4.1 computes Q/DQ graphs with a Concat wrongly (28–36 % error
for signed ones; Dice p5 of a U-Net 0.867 instead of 0.909).
"""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from runtime.engines.openvino_engine import import_openvino
from segcore.dataset.case import Case
from segcore.picture.preprocess import InputSpec, prepare

_FQ = "FakeQuantize"
_BIASED = "/WithoutBiases"  # what the ONNX front end adds to the name of a convolution that it splits


def write_ir(onnx_path: Path, path: Path, *, half_weights: bool) -> None:
    """Converts to IR, `path` with a .bin beside it; `half_weights` stores 16 bits (engines still compute in 32)."""
    openvino = import_openvino()
    with quiet():
        model = openvino.Core().read_model(str(onnx_path))
        openvino.save_model(model, str(path), compress_to_fp16=half_weights)


def rebatch_ir(path: Path, out: Path, batch: int) -> None:
    """Writes the IR of `path` for `batch` pictures a call."""
    openvino = import_openvino()
    model = openvino.Core().read_model(str(path))
    model.reshape([batch, *list(model.input(0).shape)[1:]])
    openvino.save_model(model, str(out), compress_to_fp16=False)


@dataclass(frozen=True)
class CalibratedIr:
    """An IR whose every layer that can compute in 8 bits has FakeQuantize; see `export.model_file.CalibratedGraph`.

    Attributes:
        layers: names of the operations that take an 8-bit input.
    """

    layers: tuple[str, ...]
    _quantised: Any  # openvino.Model
    _original: Any

    def write(self, path: Path, *, in_float: Collection[str] = ()) -> None:
        """Writes `path` and its .bin; 8-bit weights are stored in 8 bits."""
        openvino = import_openvino()
        from openvino._offline_transformations import compress_quantize_weights_transformation

        if unknown := sorted(set(in_float) - set(self.layers)):
            raise ValueError(f"in_float: must be of this graph's layers, got {unknown[0]}")
        model = self._quantised.clone()
        if in_float:
            _return_to_float(model, self._original, frozenset(in_float))
        compress_quantize_weights_transformation(model)  # what nncf.quantize ends with
        openvino.save_model(model, str(path), compress_to_fp16=False)


def calibrate_ir(
    onnx_path: Path, cases: Sequence[Case], spec: InputSpec, *, transformer: bool = False
) -> CalibratedIr:
    """Finds the 8-bit ranges of weights and activations.

    Args:
        onnx_path: the FP32 graph.
        cases: calibration cases of the train split; read one by one, each as often as NNCF asks.
        spec: the model's input.
        transformer: NNCF's preset for attention: SmoothQuant, and residual sums stay in float.
    """
    openvino = import_openvino()
    with quiet():
        import nncf
        from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters

        original = openvino.Core().read_model(str(onnx_path))
        quantised = nncf.quantize(
            original,
            nncf.Dataset(cases, _prepare_with(spec)),
            # Symmetric: the family's activations are ReLU and start at zero, asymmetric ranges gain nothing.
            preset=nncf.QuantizationPreset.PERFORMANCE,
            target_device=nncf.TargetDevice.CPU,
            subset_size=len(cases),
            model_type=nncf.ModelType.TRANSFORMER if transformer else None,
            # Weights stay as they are until `write`: a layer can then go back to float without its old weights.
            advanced_parameters=AdvancedQuantizationParameters(backend_params={"compress_weights": False}),
        )
        original = openvino.Core().read_model(str(onnx_path))
    layers = tuple(_layer_name(op) for op in _quantised_operations(quantised))
    return CalibratedIr(layers, quantised, original)


def _prepare_with(spec: InputSpec) -> Callable[[Case], np.ndarray]:
    """Case → 1×H×W×C uint8: the one preprocessing, batch 1 because scales change with the batch."""
    return lambda case: prepare(case.image(), spec, name=f"case {case.id}")[None]


def _quantised_operations(model: Any) -> list[Any]:
    """Operations that take the output of a FakeQuantize, in the graph's order."""
    return [
        op
        for op in model.get_ordered_ops()
        if op.get_type_name() not in {_FQ, "Result"} and any(_quantised_inputs(op))
    ]


def _quantised_inputs(op: Any) -> Iterator[Any]:
    return (port for port in op.inputs() if _source_node(port).get_type_name() == _FQ)


def _return_to_float(model: Any, original: Any, layers: Collection[str]) -> None:
    """Takes the FakeQuantize operations off the inputs of these layers, and NNCF's correction off their biases."""
    biases = {op.get_friendly_name(): op for op in original.get_ordered_ops() if op.get_type_name() == "Add"}
    for op in _quantised_operations(model):
        if _layer_name(op) not in layers:
            continue
        for port in list(_quantised_inputs(op)):
            port.replace_source_output(_source_node(port).input_value(0))
        for sum_ in (target.get_node() for target in op.output(0).get_target_inputs()):
            if sum_.get_type_name() == "Add" and sum_.get_friendly_name() in biases:
                _restore_bias(sum_, biases[sum_.get_friendly_name()])


def _restore_bias(sum_: Any, before: Any) -> None:
    """NNCF moves the bias of a quantised layer by its mean error; a layer in float has no such error."""
    for index in range(2):
        new, old = _constant_behind(sum_.input(index)), _constant_behind(before.input(index))
        if new is None or old is None or np.array_equal(new.data, old.data) or new.data.size != old.data.size:
            continue
        restored = type(new)(old.data.reshape(new.data.shape).copy())
        for target in new.output(0).get_target_inputs():
            target.replace_source_output(restored.output(0))


def _constant_behind(port: Any) -> Any | None:
    """The constant behind an input, also through the Reshape that the ONNX front end puts on a bias."""
    source = _source_node(port)
    if source.get_type_name() == "Reshape":
        source = source.input_value(0).get_node()
    return source if source.get_type_name() == "Constant" else None


def _layer_name(op: Any) -> str:
    return str(op.get_friendly_name()).removesuffix(_BIASED)


def _source_node(port: Any) -> Any:
    return port.get_source_output().get_node()


# What exporters print would land on stdout, which belongs to results.
_TALKATIVE = ("torch.onnx", "torch.export", "onnxscript", "onnx_ir", "nncf")


@contextmanager
def quiet() -> Iterator[None]:
    """Sends what is printed to stderr, and hides the libraries' warnings (errors still show)."""
    before = {name: logging.getLogger(name).level for name in _TALKATIVE}
    try:
        for name in _TALKATIVE:
            logging.getLogger(name).setLevel(logging.ERROR)
        with redirect_stdout(sys.stderr), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)
