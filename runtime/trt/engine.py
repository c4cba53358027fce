"""TensorRT on the GPU: opens an engine plan that was built on this kind of device."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from runtime.engines.seam import EngineOptions
from runtime.trt.library import import_tensorrt

if TYPE_CHECKING:  # it imports tensorrt, whose absence must be one line that says what to do
    from runtime.trt.execution import TensorRtEngine


def open_model(model_path: Path, options: EngineOptions) -> TensorRtEngine:
    """Opens a plan; see `runtime.engines.seam.open_engine`.

    Args:
        model_path: the plan; it has its precision, and is compiled already.
        options: `streams` batches can be under way at once, each with GPU memory of its own. `target` is compared with
            this device before TensorRT sees the file. CPU threads, precision and cache are not used.

    Raises:
        InputError: no TensorRT, no cuda-python, no GPU, a plan for something else, or one that does not load.
    """
    import_tensorrt()
    from runtime.trt.execution import TensorRtEngine

    return TensorRtEngine(model_path, streams=options.streams, target=options.target)
