"""TensorRT on the GPU: opens an engine plan that was built on this kind of device."""

from __future__ import annotations

from pathlib import Path

from runtime.engines.seam import EngineOptions
from runtime.trt.cuda_runtime import GpuDevice
from runtime.trt.execution import TensorRtEngine
from runtime.trt.library import import_tensorrt
from runtime.trt.target import check_target, identify_device


def open_model(model_path: Path, options: EngineOptions) -> TensorRtEngine:
    """Opens a plan; see `runtime.engines.seam.open_engine`.

    Args:
        model_path: the plan; it has its precision, and is compiled already.
        options: `streams` batches can be under way at once, each with GPU memory of its own. `target` is compared with
            this device before TensorRT sees the file. CPU threads, precision and cache are not used.

    Raises:
        InputError: no TensorRT, no cuda-python, no GPU, a plan for something else, or one that does not load.
    """
    trt = import_tensorrt()

    def check_device(device: GpuDevice) -> None:
        check_target(options.target, identify_device(trt.__version__, device), model_path)

    return TensorRtEngine(trt, model_path, streams=options.streams, check_device=check_device)
