"""The speed gate: an INT8 that is not faster in the engine that will run it is not worth its error."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path

import numpy as np

from export.job import Job
from runtime.engines.seam import Engine
from runtime.timing.interleaved import ModelCalls, speedups, time_interleaved
from segcore.bundle.guard_record import SpeedRatio
from segcore.command import log
from segcore.errors import GateError
from segcore.words import bounded_ratio

ROUNDS = 5
_TIMED_PICTURES = 8


def gate_speed(
    job: Job, int8_path: Path, fp32_path: Path, inputs: Sequence[np.ndarray]
) -> tuple[SpeedRatio, ...]:
    """INT8 against FP32 in every installed engine that opens the format.

    FP16 is not timed beside them: on a CPU those bundles hold 16-bit weights and compute in FP32.

    Args:
        job: says how much faster INT8 has to be.
        int8_path: one model file.
        fp32_path: the other.
        inputs: pictures, each 1×H×W×C uint8; the first few are used.

    Raises:
        GateError: it is fast enough in none of them.
    """
    speeds = []
    for name in job.engines:
        speed = _measure_speedup(job, name, (int8_path, fp32_path), inputs[:_TIMED_PICTURES])
        speeds.append(speed)
        log(
            f"guard: {name} {speed.engine_version}, {job.threads} threads: "
            f"INT8 is {bounded_ratio(speed.speedup)} times as fast as FP32 "
            f"({bounded_ratio(speed.low)} to {bounded_ratio(speed.high)} over {speed.rounds} rounds)"
        )
    best = max(speeds, key=lambda speed: speed.speedup)
    least = job.guard.speedup
    if best.speedup < least:
        raise GateError(
            f"int8: must be at least {least:g} times as fast as fp32, got {bounded_ratio(best.speedup)} in "
            f"{best.engine} {best.engine_version}; export --precision fp32, or lower --min-speedup"
        )
    return tuple(speeds)


def _measure_speedup(
    job: Job, name: str, paths: tuple[Path, Path], inputs: Sequence[np.ndarray]
) -> SpeedRatio:
    """Times INT8 and FP32 in turns in one run of an engine, and compares their medians."""
    with ExitStack() as stack:
        engines = [stack.enter_context(closing(job.open_model(name, path))) for path in paths]
        int8, fp32 = time_interleaved([_timed_engine(engine, inputs) for engine in engines], rounds=ROUNDS)
        version = engines[0].version
    speedup, low, high = speedups(int8, fp32)
    return SpeedRatio(
        engine=name,
        engine_version=version,
        threads=job.threads,
        against="fp32",
        speedup=speedup,
        low=low,
        high=high,
        rounds=ROUNDS,
    )


def _timed_engine(engine: Engine, inputs: Sequence[np.ndarray]) -> ModelCalls:
    return ModelCalls(run=lambda i: engine.run(inputs[i % len(inputs)]))
