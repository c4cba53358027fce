"""Graphs of several named tensors in and out, on the CPU: what a promptable model's encoder and decoder need.

`runtime.engines.seam.Engine` is for one image in and one logits tensor out; this is its plain sibling, with no
streams.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from runtime.engines import onnxruntime_engine, openvino_engine
from runtime.engines.openvino_engine import cpu_settings, import_openvino
from runtime.engines.seam import EXTRAS, GraphTensor, installed, open_error, run_error
from segcore.errors import InputError, need

Tensors = dict[str, GraphTensor]


class TensorSession(Protocol):
    """An opened graph of static shapes.

    Attributes:
        version: of the library, "2026.4.1".
        inputs: what it takes, by name; a tensor may have several.
        outputs: what it gives, by name; a tensor may have several.
    """

    version: str
    inputs: Tensors
    outputs: Tensors

    def run(self, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Every input by its name → every output by its name; the arrays are the caller's own."""
        ...

    def close(self) -> None:
        """Lets go of the graph's memory; it cannot run afterwards."""
        ...


def open_session(engine: str, path: Path, *, threads: int) -> TensorSession:
    """Opens a graph.

    Args:
        engine: openvino or onnxruntime; TensorRT engines take one image and give one logits tensor.
        path: of the .onnx or .xml file.
        threads: CPU threads it may use.

    Raises:
        InputError: the engine is not installed, or cannot open the file.
    """
    if engine not in _SESSIONS:
        raise InputError(
            f"--engine {engine}: must be {' or '.join(_SESSIONS)} for prompts, got {engine}; leave --engine away"
        )
    if not installed(engine):
        raise need(engine, EXTRAS[engine])
    return _SESSIONS[engine](path, threads)


def _by_name(tensors: Iterable[GraphTensor]) -> Tensors:
    return {name: tensor for tensor in tensors for name in tensor.names}


class OpenVinoSession:
    """A compiled model and its one infer request; computes in f32 as `runtime.engines.openvino_engine` does.

    OpenVINO keeps every name that a tensor had in a graph, where what only passes it on was taken out, and
    `get_any_name` gives any of them. So each of the names is known here.
    """

    def __init__(self, path: Path, threads: int) -> None:
        openvino = import_openvino()
        self.version: str = openvino.__version__.split("-")[0]
        try:
            compiled = openvino.Core().compile_model(str(path), "CPU", cpu_settings(threads))
            self._request: Any = compiled.create_infer_request()
            given = openvino_engine.graph_tensors(compiled.outputs)
            self.inputs = _by_name(openvino_engine.graph_tensors(compiled.inputs))
            self.outputs = _by_name(given)
            self._ports = [tensor.names for tensor in given]
        except RuntimeError as error:
            raise open_error(path, f"openvino {self.version}", openvino_engine.error_reason(error)) from error
        self._path = path

    def run(self, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Every input by its name → every output by its name."""
        for name, tensor in tensors.items():
            self._request.get_tensor(name).data[:] = tensor
        try:
            self._request.infer()
        except RuntimeError as error:
            reason = openvino_engine.error_reason(error)
            raise run_error(self._path, f"openvino {self.version}", reason) from error
        # Copied: the request's own memory holds the next call's numbers.
        found = [np.array(self._request.get_output_tensor(i).data) for i in range(len(self._ports))]
        return {name: one for names, one in zip(self._ports, found, strict=True) for name in names}

    def close(self) -> None:
        """Frees the request, and with it the compiled model."""
        del self._request


class OnnxRuntimeSession:
    """A session on the CPU, its operators one after the other."""

    def __init__(self, path: Path, threads: int) -> None:
        session, self.version = onnxruntime_engine.open_session(path, threads=threads)
        self._session = session
        self._path = path
        self._errors = onnxruntime_engine.library_errors()
        self.inputs = _by_name(onnxruntime_engine.graph_tensors(session.get_inputs()))
        self.outputs = _by_name(onnxruntime_engine.graph_tensors(session.get_outputs()))

    def run(self, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Every input by its name → every output by its name."""
        names = list(self.outputs)
        try:
            found = self._session.run(names, dict(tensors))
        except self._errors as error:
            reason = onnxruntime_engine.error_reason(error)
            raise run_error(self._path, f"onnxruntime {self.version}", reason) from error
        return dict(zip(names, found, strict=True))

    def close(self) -> None:
        """Frees the session."""
        del self._session


_SESSIONS: dict[str, Callable[[Path, int], TensorSession]] = {
    "openvino": OpenVinoSession,
    "onnxruntime": OnnxRuntimeSession,
}
