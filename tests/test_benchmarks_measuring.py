"""Benchmarks: records as lines of JSON, and turns."""

import pytest

from benchmarks.measuring import read_lines, time_in_turns, write_lines
from benchmarks.report.record import CaseRecord, Record


@pytest.fixture
def record(benchmark_records):
    return benchmark_records.record


@pytest.fixture
def score(benchmark_records):
    return benchmark_records.score


@pytest.fixture
def timed(benchmark_records):
    return benchmark_records.timed


def test_lines_round_trip(tmp_path, record, score, timed):
    records = [record("big", **timed(100)), record()]
    write_lines(tmp_path / "records.jsonl", records)
    assert read_lines(tmp_path / "records.jsonl", Record) == records
    scores = [score("ä <b>", 0.123456789012345)]
    write_lines(tmp_path / "cases.jsonl", scores)
    assert read_lines(tmp_path / "cases.jsonl", CaseRecord) == scores


def test_lines_of_older_versions_can_be_read(tmp_path, record, score, timed):
    added = {"end_to_end_ms_sorted", "reliability"}
    (tmp_path / "records.jsonl").write_text(record(**timed(9)).model_dump_json(exclude=added) + "\n")
    (old,) = read_lines(tmp_path / "records.jsonl", Record)
    assert (old.end_to_end_ms_sorted, old.reliability) == ((), None)
    added = {"area_unit", "area_by_class", "true_area_by_class"}
    (tmp_path / "cases.jsonl").write_text(score("a").model_dump_json(exclude=added) + "\n")
    assert read_lines(tmp_path / "cases.jsonl", CaseRecord)[0].area_by_class == {}


def test_every_round_takes_all_ways_and_another_one_comes_first():
    calls: list[str] = []

    def way(name, seconds):
        return lambda: calls.append(name) or seconds

    seconds = time_in_turns([way("a", 1.0), way("b", 2.0)], rounds=3)
    assert seconds.tolist() == [[1.0, 2.0]] * 3
    assert "".join(calls) == "abbaab"
