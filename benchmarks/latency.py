"""Latency of several models in one run, interleaved: A B C, B C A, C A B …

A machine drifts (clock, temperature, neighbours). Timing the models in turns, in short bursts and in a
rotated order, spreads the drift over all of them, so that their ratios hold even where their times do not.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from benchmarks.record import Speed

BURST_S = 0.4
MIN_CALLS, MAX_CALLS = 3, 100


@dataclass(frozen=True)
class Timed:
    """The two ways to call one opened model on picture i: `run` the engine alone, `predict` all of it."""

    run: Callable[[int], object]
    predict: Callable[[int], object]


@dataclass(frozen=True)
class Samples:
    """Milliseconds of every timed call, by round."""

    engine_ms: tuple[tuple[float, ...], ...]
    end_to_end_ms: tuple[tuple[float, ...], ...]


def time_interleaved(
    models: Sequence[Timed],
    *,
    rounds: int,
    burst_s: float = BURST_S,
    progress: Callable[[], object] = lambda: None,
) -> list[Samples]:
    """Times every model in every round.

    Args:
        models: opened, at one thread count.
        rounds: how often each gets a burst.
        burst_s: length of a burst in seconds, for the engine alone and again for the whole; at least 3 calls.
        progress: called after each burst.
    """
    calls = [(_calls(m.run, burst_s), _calls(m.predict, burst_s)) for m in models]  # also the first warm-up
    engine: list[list[tuple[float, ...]]] = [[] for _ in models]
    whole: list[list[tuple[float, ...]]] = [[] for _ in models]
    for order in rotations(len(models), rounds):
        for i in order:
            with _no_collection():
                engine[i].append(_burst(models[i].run, calls[i][0]))
                whole[i].append(_burst(models[i].predict, calls[i][1]))
            progress()
    return [Samples(tuple(e), tuple(w)) for e, w in zip(engine, whole, strict=True)]


def rotations(count: int, rounds: int) -> Iterator[list[int]]:
    """The order of each round: every model comes first equally often."""
    for turn in range(rounds):
        yield [(turn + i) % count for i in range(count)]


def summarise_speed(samples: Samples, reference: Samples) -> Speed:
    """Percentiles over all rounds, and how many times faster than the reference (medians of the same run)."""
    engine, whole = np.concatenate(samples.engine_ms), np.concatenate(samples.end_to_end_ms)
    reference_engine = float(np.median(np.concatenate(reference.engine_ms)))
    reference_whole = float(np.median(np.concatenate(reference.end_to_end_ms)))
    by_round = [
        float(np.median(r) / np.median(s))
        for r, s in zip(reference.end_to_end_ms, samples.end_to_end_ms, strict=True)
    ]
    engine_p50, engine_p90, engine_p99 = (float(v) for v in np.percentile(engine, (50, 90, 99)))
    whole_p50, whole_p90, whole_p99 = (float(v) for v in np.percentile(whole, (50, 90, 99)))
    return Speed(
        latency_ms_p50=engine_p50,
        latency_ms_p90=engine_p90,
        latency_ms_p99=engine_p99,
        end_to_end_ms_p50=whole_p50,
        end_to_end_ms_p90=whole_p90,
        end_to_end_ms_p99=whole_p99,
        samples=min(len(engine), len(whole)),
        rounds=len(samples.end_to_end_ms),
        throughput_images_s=1e3 * len(whole) / float(whole.sum()),
        times_faster=reference_whole / whole_p50,
        times_faster_low=min(by_round),
        times_faster_high=max(by_round),
        times_faster_engine=reference_engine / engine_p50,
    )


def _calls(call: Callable[[int], object], burst_s: float) -> int:
    """How many calls fill a burst, from the second call (the first one pays for set-up)."""
    call(0)
    begin = time.perf_counter()
    call(1)
    took = max(time.perf_counter() - begin, 1e-6)
    return int(np.clip(round(burst_s / took), MIN_CALLS, MAX_CALLS))


def _burst(call: Callable[[int], object], calls: int) -> tuple[float, ...]:
    call(0)  # not timed: brings this model's memory and threads back after the others' turn
    times = []
    for i in range(calls):
        begin = time.perf_counter()
        call(i)
        times.append(1e3 * (time.perf_counter() - begin))
    return tuple(times)


@contextmanager
def _no_collection() -> Iterator[None]:
    """Keeps Python's garbage collector out of a burst."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
