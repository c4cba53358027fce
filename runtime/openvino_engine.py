"""OpenVINO on the CPU: opens IR (model.xml with model.bin) and ONNX."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

from segcore.errors import InputError


def import_openvino() -> Any:
    """Imports openvino with its telemetry off.

    `import openvino` sends an event to Google Analytics unless the user opted out beforehand (openvino
    2026.4.1, tools/ovc/__init__.py, enable_opt_in_dialog=False); NNCF does the same. Hospital machines must
    not call out. Both fall back to a stub where openvino_telemetry cannot be imported; a None in sys.modules
    brings that about.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    return openvino


def open_model(model_path: Path, *, precision: str, threads: int) -> OpenVinoEngine:
    """Compiles a model for the CPU; see `runtime.engine.open_engine`."""
    return OpenVinoEngine(model_path, precision=precision, threads=threads)


def cpu_settings(threads: int) -> dict[str, Any]:
    """What every model is compiled with; the profile adds the counters.

    Every precision computes in f32 here, and INT8 layers in i8: fp16 bundles hold 16-bit weights only. The
    hint is pinned because a CPU with bf16 or f16 units would else choose them and change the masks (an f16
    MobileSAM encoder gave one embedding for every picture: open-edge-platform/geti#7354).
    """
    return {
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
    }


class OpenVinoEngine:
    """One compiled model and one infer request, used again for every picture."""

    def __init__(self, model_path: Path, *, precision: str, threads: int) -> None:
        openvino = import_openvino()
        self.version = openvino.__version__.split("-")[0]
        try:
            compiled = openvino.Core().compile_model(str(model_path), "CPU", cpu_settings(threads))
            self._request = compiled.create_infer_request()
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            raise InputError(
                f"model {model_path}: must open in openvino {self.version}, does not ({reason}); "
                "export it again"
            ) from error
        self._picture = self._request.get_input_tensor().data  # 1 H W C, the engine's own memory
        self._logits = self._request.get_output_tensor().data  # 1 K h w

    def run(self, batch: np.ndarray) -> np.ndarray:
        """N×H×W×C uint8 → logits N×K×h×w float32."""
        logits = np.empty((len(batch), *self._logits.shape[1:]), np.float32)
        for n, picture in enumerate(batch):
            self._picture[0] = picture
            self._request.infer(share_outputs=True)
            logits[n] = self._logits[0]
        return logits

    def close(self) -> None:
        """Frees the request and with it the compiled model."""
        del self._picture, self._logits, self._request
