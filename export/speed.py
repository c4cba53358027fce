"""The speed gate: an INT8 that is not faster in the engine that will run it is not worth its error."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from pathlib import Path

import numpy as np

from runtime.engine import Engine
from runtime.interleaved import ModelCalls, speedups, time_interleaved
from segcore.guard_record import SpeedRatio

ROUNDS = 5


def measure_speedup(
    name: str,
    open_model: Callable[[Path], Engine],
    int8_path: Path,
    fp32_path: Path,
    inputs: Sequence[np.ndarray],
    *,
    threads: int,
    rounds: int = ROUNDS,
) -> SpeedRatio:
    """Times both precisions in turns in one run, and compares their medians.

    FP16 is not timed beside them: on a CPU those bundles hold 16-bit weights and compute in FP32.

    Args:
        name: of the engine.
        open_model: opens a model file with it.
        int8_path: one model file.
        fp32_path: the other.
        inputs: pictures, each 1×H×W×C uint8; a few are enough.
        threads: that `open_model` gives the engine.
        rounds: of the interleaving.
    """
    with ExitStack() as stack:
        engines = [stack.enter_context(closing(open_model(path))) for path in (int8_path, fp32_path)]
        int8, fp32 = time_interleaved([_timed(engine, inputs) for engine in engines], rounds=rounds)
        version = engines[0].version
    speedup, low, high = speedups(int8, fp32)
    return SpeedRatio(
        engine=name,
        engine_version=version,
        threads=threads,
        against="fp32",
        speedup=speedup,
        low=low,
        high=high,
        rounds=rounds,
    )


def _timed(engine: Engine, inputs: Sequence[np.ndarray]) -> ModelCalls:
    return ModelCalls(run=lambda i: engine.run(inputs[i % len(inputs)]))
