"""What the samples of an interleaved run say: percentiles, and ratios to a reference."""

from __future__ import annotations

import numpy as np

from benchmarks.report.record import Speed
from runtime.timing.interleaved import LatencySamples

KEPT_CALLS = 200
"""Most timed calls that a record keeps of a model."""


def summarise_speed(samples: LatencySamples, reference: LatencySamples) -> Speed:
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
        end_to_end_ms_sorted=keep_calls(whole),
    )


def keep_calls(times_ms: np.ndarray) -> tuple[float, ...]:
    """Calls for a plot of their distribution: sorted, to four figures, `KEPT_CALLS` at most.

    Of more, evenly spaced ones are kept, the fastest and the slowest among them.
    """
    ordered = np.sort(times_ms)
    at = np.round(np.linspace(0, len(ordered) - 1, min(len(ordered), KEPT_CALLS))).astype(int)
    return tuple(float(f"{ms:.4g}") for ms in ordered[at])
