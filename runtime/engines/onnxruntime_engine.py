"""onnxruntime on the CPU: opens ONNX. It runs almost everywhere, and is the reference for ONNX graphs."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from runtime.engines.seam import EngineOptions, GraphTensor, open_error, run_error
from runtime.engines.stream import in_order


def open_model(model_path: Path, options: EngineOptions) -> OnnxRuntimeEngine:
    """Opens an inference session; see `runtime.engines.seam.open_engine`.

    The graph itself says its precision; it is made for no device, and nothing is kept in a cache.
    """
    return OnnxRuntimeEngine(model_path, threads=options.threads, streams=options.streams)


def library_version() -> str:
    """Of the installed library."""
    import onnxruntime

    version: str = onnxruntime.__version__
    return version


def library_errors() -> tuple[type[Exception], ...]:
    """What the library raises for a graph or a tensor of its own accord; they share no base class but Exception."""
    from onnxruntime.capi import onnxruntime_pybind11_state

    found = vars(onnxruntime_pybind11_state).values()
    own = [one for one in found if isinstance(one, type) and issubclass(one, Exception)]
    return (RuntimeError, *own)  # RuntimeError is what it makes of a C++ exception that it does not know


def error_reason(error: Exception) -> str:
    """The first line of an error of the library."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def open_session(model_path: Path, *, threads: int) -> tuple[Any, str]:
    """A session on the CPU, its operators one after the other, and the library's version.

    Args:
        model_path: of the .onnx file.
        threads: that compute one call, the calling one included.

    Raises:
        InputError: the file does not open.
    """
    import onnxruntime

    onnxruntime.disable_telemetry_events()  # Windows builds have it on
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 3  # errors only
    version: str = onnxruntime.__version__
    try:
        session = onnxruntime.InferenceSession(str(model_path), options, providers=["CPUExecutionProvider"])
    except library_errors() as error:
        raise open_error(model_path, f"onnxruntime {version}", error_reason(error)) from error
    return session, version


_TYPES = {"float": "float32", "double": "float64"}
"""Onnxruntime's names of types where numpy has another."""


def graph_tensors(ends: Iterable[Any]) -> tuple[GraphTensor, ...]:
    """What a session takes or gives; a side that is not fixed has a name there, or none."""
    return tuple(
        GraphTensor(
            _numpy_type(end.type),
            tuple(side if isinstance(side, int) else -1 for side in end.shape),
            (end.name,),
        )
        for end in ends
    )


def _numpy_type(name: str) -> str:
    """ "tensor(float)" → "float32"; what is no tensor keeps its name."""
    inner = name.removeprefix("tensor(").removesuffix(")")
    return _TYPES.get(inner, inner)


class OnnxRuntimeEngine:
    """One session on the CPU; each stream is a thread that calls it."""

    def __init__(self, model_path: Path, *, threads: int, streams: int) -> None:
        # The calling threads compute too: with the session's own, one fewer than this number, they are `threads`.
        session, self.version = open_session(model_path, threads=threads - streams + 1)
        self._session = session
        self._model_path = model_path
        self._errors = library_errors()
        self._streams = streams
        self.inputs = graph_tensors(session.get_inputs())
        self.outputs = graph_tensors(session.get_outputs())
        self._input: str = session.get_inputs()[0].name
        self._batch: int = session.get_inputs()[0].shape[0]
        self._outputs: list[str] = [session.get_outputs()[0].name]

    def run(self, batch: np.ndarray) -> np.ndarray:
        """N×H×W×C uint8 → logits N×K×h×w float32."""
        steps = range(0, len(batch), self._batch)
        return np.concatenate([self._infer_batch(batch[n : n + self._batch]) for n in steps])

    def stream(self, batches: Iterable[np.ndarray], *, in_flight: int) -> Generator[np.ndarray, None, None]:
        """Logits of batches in order; see `runtime.engines.seam.Engine`."""
        # Not run_async: it needs threads of the session's own, of which a stream with one thread has none.
        with ThreadPoolExecutor(self._streams) as pool:
            yield from in_order(
                batches,
                lambda batch: pool.submit(self._infer_batch, batch),
                Future.result,
                in_flight=in_flight,
                drop=Future.cancel,
            )

    def _infer_batch(self, batch: np.ndarray) -> np.ndarray:
        """One call with up to the graph's batch of images; empty ones fill it up."""
        count = len(batch)
        if count < self._batch:
            batch = np.concatenate([batch, np.zeros((self._batch - count, *batch.shape[1:]), np.uint8)])
        try:
            logits: np.ndarray = self._session.run(self._outputs, {self._input: batch})[0]
        except self._errors as error:
            raise run_error(self._model_path, f"onnxruntime {self.version}", error_reason(error)) from error
        return logits[:count]

    def close(self) -> None:
        """Frees the session."""
        del self._session
