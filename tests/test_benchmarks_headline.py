"""Benchmarks: which models are worth choosing, and which one the headline is about."""

import pytest

from benchmarks.report.headline import choose_headline_record, pareto_front


@pytest.fixture
def record(benchmark_records):
    return benchmark_records.record


@pytest.fixture
def timed(benchmark_records):
    return benchmark_records.timed


def test_pareto_front_by_hand():
    assert pareto_front([1, 2, 3, 4], [0.5, 0.9, 0.8, 0.95]) == [0, 1, 3]
    assert pareto_front([1, 1], [0.5, 0.5]) == [0, 1]
    assert pareto_front([1, 1], [0.5, 0.6]) == [1]
    assert pareto_front([], []) == []


def test_headline_is_the_fastest_of_those_that_keep_accuracy(record, timed):
    big = record("big", **timed(100))
    near, nearer = record("near", **timed(10)), record("nearer", **timed(20))
    poor = record("poor", dice_difference=-0.3, dice_difference_low=-0.4, dice_mean=0.6, **timed(1))
    assert choose_headline_record([big, near, nearer, poor]) == near
    assert choose_headline_record([big, poor]) == poor
    assert choose_headline_record([big]) is None


def test_headline_among_equally_poor_is_the_fastest(record, timed):
    poor = {"dice_difference": -0.3, "dice_difference_low": -0.4, "dice_mean": 0.6}
    slow, fast = record("slow", **poor, **timed(9)), record("fast", **poor, **timed(2))
    assert choose_headline_record([record("big", **timed(100)), slow, fast]) == fast
