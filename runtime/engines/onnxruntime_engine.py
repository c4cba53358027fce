"""onnxruntime on the CPU: opens ONNX. It runs almost everywhere, and is the reference for ONNX graphs."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np

from runtime.engines.stream import in_order
from segcore.bundle.manifest import EngineTarget
from segcore.errors import InputError


def open_model(
    model_path: Path,
    *,
    precision: str,
    threads: int,
    streams: int,
    target: EngineTarget | None,
    cache: Path | None,
) -> OnnxRuntimeEngine:
    """Opens an inference session; see `runtime.engines.seam.open_engine`.

    The graph itself says its precision; it is made for no device, and nothing is kept in a cache.
    """
    return OnnxRuntimeEngine(model_path, threads=threads, streams=streams)


class OnnxRuntimeEngine:
    """One session on the CPU, its operators one after the other; each stream is a thread that calls it."""

    def __init__(self, model_path: Path, *, threads: int, streams: int) -> None:
        import onnxruntime

        onnxruntime.disable_telemetry_events()  # Windows builds have it on
        self.version: str = onnxruntime.__version__
        options = onnxruntime.SessionOptions()
        # The calling threads compute too: with the session's own, one fewer than this number, they are `threads`.
        options.intra_op_num_threads = threads - streams + 1
        options.inter_op_num_threads = 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        options.log_severity_level = 3  # errors only
        try:
            session = onnxruntime.InferenceSession(
                str(model_path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # its errors share no base class but Exception
            reason = str(error).strip().splitlines()[0]
            raise InputError(
                f"model {model_path}: must open in onnxruntime {self.version}, does not ({reason}); "
                "export it again"
            ) from error
        self._session = session
        self._streams = streams
        self._input: str = session.get_inputs()[0].name
        self._batch: int = session.get_inputs()[0].shape[0]
        self._outputs: list[str] = [session.get_outputs()[0].name]

    def run(self, batch: np.ndarray) -> np.ndarray:
        """N×H×W×C uint8 → logits N×K×h×w float32."""
        steps = range(0, len(batch), self._batch)
        return np.concatenate([self._infer(batch[n : n + self._batch]) for n in steps])

    def stream(self, batches: Iterable[np.ndarray], *, in_flight: int) -> Generator[np.ndarray, None, None]:
        """Logits of batches in order; see `runtime.engines.seam.Engine`."""
        # Not run_async: it needs threads of the session's own, of which a stream with one thread has none.
        with ThreadPoolExecutor(self._streams) as pool:
            yield from in_order(
                batches,
                lambda batch: pool.submit(self._infer, batch),
                Future.result,
                in_flight=in_flight,
                drop=Future.cancel,
            )

    def _infer(self, batch: np.ndarray) -> np.ndarray:
        """One call with up to the graph's batch of images; empty ones fill it up."""
        count = len(batch)
        if count < self._batch:
            batch = np.concatenate([batch, np.zeros((self._batch - count, *batch.shape[1:]), np.uint8)])
        logits: np.ndarray = self._session.run(self._outputs, {self._input: batch})[0]
        return logits[:count]

    def close(self) -> None:
        """Frees the session."""
        del self._session
