"""Runs a torch-format bundle with PyTorch: the baseline that exported bundles are compared with."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from runtime.predictor import Prediction, Timings
from segcore.bundle.folder import Bundle
from segcore.errors import need
from segcore.picture.preprocess import decide, prepare, probabilities


class TorchPredictor:
    """The surface of `runtime.predictor.Predictor`, over the network itself.

    Attributes:
        bundle: the opened bundle.
        engine_name: always "torch".
        engine_version: PyTorch's version.
        threads: PyTorch's intra-operation threads; a setting of the whole process.
    """

    engine_name = "torch"

    def __init__(self, bundle: Bundle, *, threads: int | None = None) -> None:
        try:
            import torch
        except ImportError:
            raise need("torch", "train") from None
        if threads is not None:
            torch.set_num_threads(threads)
        self.bundle = bundle
        self.manifest = bundle.manifest
        self.threads = torch.get_num_threads()
        self.engine_version = str(torch.__version__)
        self._torch: Any = torch
        self._graph: Any = _load_graph(bundle)

    def __enter__(self) -> TorchPredictor:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def run(self, batch: np.ndarray) -> np.ndarray:
        """1×H×W×C uint8 to logits 1×K×h×w float32."""
        with self._torch.inference_mode():
            logits: np.ndarray = self._graph(self._torch.from_numpy(batch)).numpy()
            return logits

    def predict(self, image: np.ndarray, *, name: str = "image") -> Prediction:
        """Picture H×W or H×W×3 to a mask at its own size, by the same path as every engine."""
        begin = time.perf_counter()
        batch = prepare(image, self.manifest.input, name=name)[
            None
        ].copy()  # torch wants memory it may write to
        ready = time.perf_counter()
        logits = self.run(batch)[0]
        ran = time.perf_counter()
        probability = probabilities(logits, self.manifest.output, (image.shape[0], image.shape[1]))
        mask = decide(probability, self.manifest.output)
        end = time.perf_counter()
        timings = Timings(
            pre_ms=1e3 * (ready - begin), engine_ms=1e3 * (ran - ready), post_ms=1e3 * (end - ran)
        )
        return Prediction(mask=mask, probabilities=probability, timings=timings)

    def close(self) -> None:
        self._graph = None


def _load_graph(bundle: Bundle) -> Any:
    """The network behind the graph contract, so that it takes what an exported model takes."""
    from segcore.learn.network import DeployGraph

    if bundle.manifest.kind == "teacher":
        from teacher.system import load_teacher as load
    else:
        from student.network import load_student as load
    return DeployGraph(load(bundle), bundle.manifest.input).eval()
