"""What the process that builds a plan is told, and what it answers. No TensorRT here: the parent holds both."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from runtime.trt.memory import MemoryLimits
from runtime.trt.target import Here


@dataclass(frozen=True)
class PlanRequest:
    """What to build.

    Attributes:
        onnx: the graph.
        plan: the file to write.
        precision: fp32, fp16 or int8; with TensorRT ≥ 10.13 the graph's types say it.
        timing_cache: kernel timings of earlier builds; read if it is there and fits, then written.
        workspace_mib: bound of one layer's scratch memory; by default what `memory_limits` allows.
    """

    onnx: Path
    plan: Path
    precision: str
    timing_cache: Path | None
    workspace_mib: int | None


@dataclass(frozen=True)
class BuiltPlan:
    """How a plan was built.

    Attributes:
        flags: of precision and typing, by TensorRT's names.
        here: the device.
        limits: of memory.
    """

    flags: tuple[str, ...]
    here: Here
    limits: MemoryLimits
