"""TensorRT on the GPU: opens an engine plan that was built on this kind of device."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from runtime.trt.library import import_tensorrt
from segcore.bundle.manifest import EngineTarget

if TYPE_CHECKING:  # it imports tensorrt, whose absence must be one line that says what to do
    from runtime.trt.execution import TensorRtEngine


def open_model(
    model_path: Path,
    *,
    precision: str,
    threads: int,
    streams: int = 1,
    target: EngineTarget | None = None,
    cache: Path | None = None,
) -> TensorRtEngine:
    """Opens a plan; see `runtime.engines.seam.open_engine`.

    Args:
        model_path: the plan.
        precision: not used: the plan has it.
        threads: not used: the GPU computes.
        streams: batches that can be under way at once; each takes GPU memory of its own.
        target: what the plan was built for; compared with this device before TensorRT sees the file.
        cache: not used: a plan is compiled already.

    Raises:
        InputError: no TensorRT, no cuda-python, no GPU, a plan for something else, or one that does not load.
    """
    import_tensorrt()
    from runtime.trt.execution import TensorRtEngine

    return TensorRtEngine(model_path, streams=streams, target=target)
