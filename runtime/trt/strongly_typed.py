"""Precision by the graph's own types: TensorRT 10.13 and later (JetPack 7), and 11, which knows nothing else."""

from __future__ import annotations

import tensorrt as trt

from runtime.trt.library import STRONGLY_TYPED, ReleaseRange

SERVES = ReleaseRange(STRONGLY_TYPED)

FLAGS = ("STRONGLY_TYPED",)


def network_flags() -> int:
    """10.13 must be asked for strong typing; 11 has it always on and ignores the flag."""
    return 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
