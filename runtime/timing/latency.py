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

BURST_S = 0.4
MIN_CALLS, MAX_CALLS = 3, 100


@dataclass(frozen=True)
class ModelCalls:
    """The two ways to call one opened model on image i: `run` the engine alone, `predict` all of it, if wanted."""

    run: Callable[[int], object]
    predict: Callable[[int], object] | None = None


@dataclass(frozen=True)
class LatencySamples:
    """Milliseconds of every timed call, by round; nothing end to end where there was no `predict`."""

    engine_ms: tuple[tuple[float, ...], ...]
    end_to_end_ms: tuple[tuple[float, ...], ...]


def time_interleaved(
    models: Sequence[ModelCalls],
    *,
    rounds: int,
    burst_s: float = BURST_S,
    progress: Callable[[], object] = lambda: None,
) -> list[LatencySamples]:
    """Times every model in every round.

    Args:
        models: opened, at one thread count.
        rounds: how often each gets a burst.
        burst_s: length of a burst in seconds, for the engine alone and again for the whole; at least 3 calls.
        progress: called after each burst.
    """
    ways = [[way for way in (m.run, m.predict) if way] for m in models]
    calls = [[_count_calls(way, burst_s) for way in both] for both in ways]  # also the first warm-up
    times: list[list[list[tuple[float, ...]]]] = [[[], []] for _ in models]
    for order in rotations(len(models), rounds):
        for i in order:
            with _without_collection():
                for k, way in enumerate(ways[i]):
                    times[i][k].append(_time_burst(way, calls[i][k]))
            progress()
    return [LatencySamples(tuple(engine), tuple(whole)) for engine, whole in times]


def rotations(count: int, rounds: int) -> Iterator[list[int]]:
    """The order of each round: every model comes first equally often."""
    for turn in range(rounds):
        yield [(turn + i) % count for i in range(count)]


def _count_calls(call: Callable[[int], object], burst_s: float) -> int:
    """How many calls fill a burst, from the second call (the first one pays for set-up)."""
    call(0)
    begin = time.perf_counter()
    call(1)
    took = max(time.perf_counter() - begin, 1e-6)
    return int(np.clip(round(burst_s / took), MIN_CALLS, MAX_CALLS))


def _time_burst(call: Callable[[int], object], calls: int) -> tuple[float, ...]:
    call(0)  # not timed: brings this model's memory and threads back after the others' turn
    times = []
    for i in range(calls):
        begin = time.perf_counter()
        call(i)
        times.append(1e3 * (time.perf_counter() - begin))
    return tuple(times)


def speedups(fast: LatencySamples, slow: LatencySamples) -> tuple[float, float, float]:
    """How many times as fast one model is as another of the same run, engine alone.

    Returns:
        The ratio of the medians over all calls, then the smallest and the largest ratio of one round's medians.
    """
    by_round = [
        float(np.median(b) / np.median(a)) for a, b in zip(fast.engine_ms, slow.engine_ms, strict=True)
    ]
    whole = float(np.median(np.concatenate(slow.engine_ms)) / np.median(np.concatenate(fast.engine_ms)))
    return whole, min(by_round), max(by_round)


@contextmanager
def _without_collection() -> Iterator[None]:
    """Keeps Python's garbage collector out of a burst."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
