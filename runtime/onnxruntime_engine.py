"""onnxruntime on the CPU: opens ONNX. It runs almost everywhere, and is the reference for ONNX graphs."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from segcore.errors import InputError


def open_model(model_path: Path, *, precision: str, threads: int) -> OnnxRuntimeEngine:
    """Opens an inference session; see `runtime.engine.open_engine`. The graph itself says its precision."""
    return OnnxRuntimeEngine(model_path, threads=threads)


class OnnxRuntimeEngine:
    """One session on the CPU, its operators one after the other, each on `threads` threads."""

    def __init__(self, model_path: Path, *, threads: int) -> None:
        import onnxruntime

        onnxruntime.disable_telemetry_events()  # Windows builds have it on
        self.version: str = onnxruntime.__version__
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
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
        self._input: str = session.get_inputs()[0].name
        self._outputs: list[str] = [session.get_outputs()[0].name]

    def run(self, batch: np.ndarray) -> np.ndarray:
        """N×H×W×C uint8 → logits N×K×h×w float32."""
        return np.concatenate(
            [self._session.run(self._outputs, {self._input: picture[None]})[0] for picture in batch]
        )

    def close(self) -> None:
        """Frees the session."""
        del self._session
