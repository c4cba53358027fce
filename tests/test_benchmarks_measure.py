"""Benchmarks: what timed calls come to, in numbers that can be done in one's head."""

import numpy as np
import pytest

from benchmarks.report.measure import KEPT_CALLS, keep_calls, summarise_speed
from runtime.timing.latency import LatencySamples


def test_speed_is_a_ratio_of_medians_of_the_same_run():
    reference = LatencySamples(((10.0, 10.0), (20.0, 20.0)), ((40.0, 40.0), (80.0, 80.0)))
    samples = LatencySamples(((5.0, 5.0), (5.0, 5.0)), ((10.0, 10.0), (10.0, 10.0)))
    speed = summarise_speed(samples, reference)
    assert (speed.times_faster, speed.times_faster_low, speed.times_faster_high) == (6.0, 4.0, 8.0)
    assert speed.times_faster_engine == 3.0
    assert speed.throughput_images_s == pytest.approx(100.0)
    assert (speed.samples, speed.rounds) == (4, 2)


def test_percentiles_of_latency():
    whole = (tuple(float(i) for i in range(101)),)
    speed = summarise_speed(LatencySamples(whole, whole), LatencySamples(whole, whole))
    percentiles = (speed.end_to_end_ms_p50, speed.end_to_end_ms_p90, speed.end_to_end_ms_p99)
    assert percentiles == pytest.approx((50, 90, 99))


def test_kept_calls_are_sorted_and_few():
    assert keep_calls(np.array([3.00049, 1.0, 2.0])) == (1.0, 2.0, 3.0)
    many = keep_calls(np.random.default_rng(0).permutation(1000) + 1.0)
    assert len(many) == KEPT_CALLS
    assert (many[0], many[-1], list(many)) == (1.0, 1000.0, sorted(many))
    assert np.median(many) == pytest.approx(500, abs=3)
    samples = LatencySamples(((1.0,),), ((4.0, 2.0), (3.0, 9.0)))
    speed = summarise_speed(samples, samples)
    assert speed.end_to_end_ms_sorted == (2.0, 3.0, 4.0, 9.0)
    assert speed.samples == 1  # of the engine alone there are fewer calls
