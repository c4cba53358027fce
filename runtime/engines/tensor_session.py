"""Graphs of several named tensors in and out, on the CPU: what a promptable model's encoder and decoder need.

`runtime.engines.seam.Engine` is for one image in and one logits tensor out; this is its plain sibling, with no
streams.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from runtime.engines import onnxruntime_engine
from runtime.engines.openvino_engine import cpu_settings, import_openvino
from runtime.engines.seam import EXTRAS, installed, open_error
from segcore.errors import InputError, need

Shapes = dict[str, tuple[int, ...]]


class TensorSession(Protocol):
    """An opened graph of static shapes.

    Attributes:
        version: of the library, "2026.4.1".
        inputs: shapes of what it takes, by name; a tensor may have several.
        outputs: shapes of what it gives, by name; a tensor may have several.
    """

    version: str
    inputs: Shapes
    outputs: Shapes

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
            self.inputs = {name: tuple(port.shape) for port in compiled.inputs for name in port.get_names()}
            self.outputs = {name: tuple(port.shape) for port in compiled.outputs for name in port.get_names()}
            self._ports: list[tuple[str, ...]] = [tuple(port.get_names()) for port in compiled.outputs]
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            raise open_error(path, f"openvino {self.version}", reason) from error

    def run(self, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Every input by its name → every output by its name."""
        for name, tensor in tensors.items():
            self._request.get_tensor(name).data[:] = tensor
        self._request.infer()
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
        self.inputs = {one.name: tuple(one.shape) for one in session.get_inputs()}
        self.outputs = {one.name: tuple(one.shape) for one in session.get_outputs()}

    def run(self, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Every input by its name → every output by its name."""
        names = list(self.outputs)
        return dict(zip(names, self._session.run(names, dict(tensors)), strict=True))

    def close(self) -> None:
        """Frees the session."""
        del self._session


_SESSIONS: dict[str, Callable[[Path, int], TensorSession]] = {
    "openvino": OpenVinoSession,
    "onnxruntime": OnnxRuntimeSession,
}
