"""What the process that builds a plan is told, how much memory it may take, and what it answers.

No TensorRT here: the parent holds request and answer. Memory is bounded by what is free when the build begins: on a
Jetson the GPU shares it with everything else, and a builder that takes what it wants ends with the kernel killing a
process, not always its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from runtime.trt.target import DeviceIdentity
from segcore.errors import InputError

WORKSPACE_MIB = 256
"""Scratch memory of one layer. Our networks need less; TensorRT's own default is all of the GPU's memory."""
SMALLEST_MIB = 768
"""Below this no build is tried. CUDA's context and TensorRT's kernels alone take about half a GiB (not measured on
a Jetson)."""


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
        identity: the device.
        limits: of memory.
    """

    flags: tuple[str, ...]
    identity: DeviceIdentity
    limits: MemoryLimits


@dataclass(frozen=True)
class MemoryLimits:
    """Bounds of TensorRT's memory pools.

    Attributes:
        workspace_mib: of one layer's scratch memory, in the finished engine too.
        tactic_dram_mib: of all that the builder allocates while it tries kernels.
        free_mib: what was free when this was reckoned.
    """

    workspace_mib: int
    tactic_dram_mib: int
    free_mib: int


def memory_limits(free_mib: int, workspace_mib: int | None = None) -> MemoryLimits:
    """Half of what is free for the builder's trials, a quarter at most for a layer's scratch memory.

    The other half is for the builder's own copies of the weights, CUDA and Python. TensorRT's default for the trials
    is 75 % of all memory on embedded devices, whether it is free or not.

    Args:
        free_mib: `available_mib`, or what the GPU has free if that is less.
        workspace_mib: what the user asked for; by default `WORKSPACE_MIB`.

    Raises:
        InputError: too little is free, or less than was asked for.
    """
    if free_mib < SMALLEST_MIB:
        raise InputError(
            f"memory: must have {SMALLEST_MIB} MiB free to build an engine, has {free_mib}; "
            "close the desktop (sudo systemctl isolate multi-user.target) and other programs"
        )
    tactic_dram = free_mib // 2
    if workspace_mib is None:
        return MemoryLimits(min(WORKSPACE_MIB, free_mib // 4), tactic_dram, free_mib)
    if not 1 <= workspace_mib <= tactic_dram:
        raise InputError(
            f"--workspace-mib {workspace_mib}: must be 1 to {tactic_dram}, half of the memory free now; "
            "give less, or leave it out"
        )
    return MemoryLimits(workspace_mib, tactic_dram, free_mib)


def available_mib(meminfo: Path = Path("/proc/meminfo")) -> int:
    """Memory that a new program may take without swapping, MiB: the kernel's own estimate, MemAvailable."""
    for line in meminfo.read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) // 1024
    raise InputError(f"{meminfo}: must state MemAvailable, does not; build on a Linux machine")
