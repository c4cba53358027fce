"""Latency of several models in one run, interleaved: A B C, B C A, C A B …

A machine drifts (clock, temperature, neighbours). Timing the models in turns, in short bursts and in a
rotated order, spreads the drift over all of them, so that their ratios hold even where their times do not.

On a busy machine a speed means little, so how much other programs took meanwhile is measured, too.
"""

from __future__ import annotations

import gc
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

BURST_S = 0.4
MIN_CALLS, MAX_CALLS = 3, 100
BUSY_SHARE = 0.10
"""Share of processor time taken by others above which the report warns."""


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


# --- what this process and the others take of the machine: processor time and memory ---


@dataclass(frozen=True)
class ProcessorTimes:
    """Processor seconds so far: of all cores together, busy and in all, and of this process."""

    busy_s: float
    all_s: float
    own_s: float


def read_processor_times() -> ProcessorTimes | None:
    """Reads the kernel's counters; None where there are none (they are Linux's)."""
    try:
        line = Path("/proc/stat").read_text().splitlines()[0]
        # Source: proc_stat(5): user nice system idle iowait irq softirq steal; guest time is in user already.
        ticks = [int(word) / os.sysconf("SC_CLK_TCK") for word in line.split()[1:9]]
    except (OSError, ValueError, IndexError):
        return None
    # 3 and 4 are idle and iowait. The process's own time counts its threads, and not its children.
    return ProcessorTimes(sum(ticks) - sum(ticks[3:5]), sum(ticks), time.process_time())


def others_share(before: ProcessorTimes | None, after: ProcessorTimes | None) -> float | None:
    """Share of all processor time between two readings that other programs took, 0–1."""
    if before is None or after is None or after.all_s <= before.all_s:
        return None
    others = (after.busy_s - before.busy_s) - (after.own_s - before.own_s)
    return min(max(others / (after.all_s - before.all_s), 0.0), 1.0)


def busy_remark(share: float | None) -> str:
    """A sentence where others took more than `BUSY_SHARE`, else nothing."""
    if share is None or share <= BUSY_SHARE:
        return ""
    return f" Other programs took {100 * share:.0f} % of the processor time meanwhile: measure again when it is quiet."


def peak_memory_mib() -> float:
    """Largest resident size of this process so far, in MiB.

    Linux hands ru_maxrss down through fork and exec, so a child of a large parent would report the parent's
    peak; VmHWM belongs to the process's own memory alone.
    """
    try:
        status = Path("/proc/self/status").read_text()
        return next(int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        import resource  # Windows has none

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / 2**20 if sys.platform == "darwin" else peak / 2**10  # bytes on macOS, KiB elsewhere
