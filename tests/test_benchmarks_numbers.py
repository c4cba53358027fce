"""Benchmarks: numbers that can be done in one's head."""

import subprocess
import sys

import numpy as np
import pytest

from benchmarks.report.accuracy import (
    distance_unit,
    interval,
    paired_difference,
    recall_difference,
    score_case,
    summarise,
)
from benchmarks.report.answer import choose_headline, pareto_front
from benchmarks.report.measure import KEPT_CALLS, keep_calls, summarise_speed
from benchmarks.report.record import CaseRecord, Record, read_lines, write_lines
from runtime.timing.latency import (
    LatencySamples,
    ModelCalls,
    ProcessorTimes,
    others_share,
    rotations,
    time_interleaved,
)
from segcore import words
from segcore.dataset.case import Case, PhantomSource


def score(
    case: str,
    dice: float = 0.9,
    *,
    patient: str | None = None,
    name: str = "a",
    hd95: float = 2.0,
    small: tuple[int, int] = (0, 0),
) -> CaseRecord:
    return CaseRecord(
        name=name, engine="torch", case=case, patient=patient or case, dice_mean=dice, iou_mean=dice / 2,
        dice_by_class={"lung": dice}, iou_by_class={"lung": dice / 2},
        hd95_unit="px", hd95_mean=hd95, hd95_by_class={"lung": hd95},
        small_found={"lung": small[0]}, small_parts={"lung": small[1]},
    )  # fmt: skip


def record(name: str = "small", **changes: object) -> Record:
    fields: dict[str, object] = {
        "name": name, "reference": "big", "bundle": f"runs/{name}", "bundle_sha256": "0" * 64,
        "kind": "student", "precision": "fp32", "engine": "openvino", "engine_version": "1", "threads": 2,
        "data": "phantom:cxr", "split": "test", "input_height_px": 128, "input_width_px": 128,
        "parameters": 500_000, "macs": 765_000_000, "size_bytes": 2_000_000, "cases": 40, "patients": 30,
        "dice_mean": 0.9, "dice_p05": 0.8, "dice_low": 0.88, "dice_high": 0.92,
        "dice_by_class": {"lung": 0.9}, "iou_mean": 0.82, "iou_low": 0.8, "iou_high": 0.84,
        "iou_by_class": {"lung": 0.82}, "hd95_unit": "px", "hd95_mean": 3.21, "hd95_low": 2.9, "hd95_high": 3.62,
        "hd95_by_class": {"lung": 3.21}, "small_px": 50, "small_parts": 0,
        "times_fewer_parameters": 10.0, "times_smaller_file": 10.0,
    }  # fmt: skip
    if name != "big":
        fields |= {"dice_difference": -0.01, "dice_difference_low": -0.015, "dice_difference_high": -0.005,
                   "dice_share_kept": 0.989}  # fmt: skip
    return Record.model_validate(fields | changes)


def timed(ms: float, faster: float = 1.0) -> dict[str, object]:
    names = [f"{a}_ms_p{p}" for a in ("latency", "end_to_end") for p in (50, 90, 99)]
    speed = dict.fromkeys(
        ["times_faster", "times_faster_low", "times_faster_high", "times_faster_engine"], faster
    )
    return {**dict.fromkeys(names, ms), **speed, "samples": 50, "rounds": 5, "throughput_images_s": 1e3 / ms,
            "cold_start_ms": 250.0, "peak_memory_mib": 99.5}  # fmt: skip


def test_summary_is_mean_and_percentile_over_cases():
    summary = summarise([score(f"c{i}", i / 100) for i in range(101)])
    assert summary.dice_mean == pytest.approx(0.5)
    assert summary.dice_p05 == pytest.approx(0.05)
    assert summary.iou_mean == pytest.approx(0.25)
    assert summary.dice_by_class == {"lung": pytest.approx(0.5)}
    assert summary.dice_low is not None
    assert summary.dice_low < 0.5 < summary.dice_high
    assert (summary.cases, summary.patients) == (101, 101)


def test_distances_and_small_parts_are_summed_up():
    cases = [score("a", hd95=1.0, small=(1, 1)), score("b", hd95=3.0), score("c", hd95=8.0, small=(0, 3))]
    summary = summarise(cases, small_px=9)
    assert (summary.hd95_mean, summary.hd95_unit, summary.hd95_by_class) == (4.0, "px", {"lung": 4.0})
    assert summary.hd95_low < 4.0 < summary.hd95_high
    assert (summary.small_px, summary.small_parts, summary.small_recall) == (9, 4, 0.25)
    assert (summary.small_recall_low, summary.small_recall_high) == (0.0, 1.0)
    assert summary.small_recall_by_class == {"lung": 0.25}
    without = summarise([score("a"), score("b")])
    assert (without.small_parts, without.small_recall, without.small_recall_by_class) == (0, None, {})


def test_recall_is_compared_on_the_same_parts():
    reference = [score("a", small=(1, 2)), score("b"), score("c", small=(2, 2))]
    better = [score("a", small=(2, 2)), score("b"), score("c", small=(2, 2))]
    difference = recall_difference(better, reference)
    assert (difference.mean, difference.low, difference.high) == (0.25, 0.0, 0.5)
    assert recall_difference(reference[1:2], reference[1:2]) is None


def test_millimetres_only_where_every_case_knows_its_spacing():
    known, unknown = (
        Case("a", "p", PhantomSource("ct", 2, 0), "test", spacing_mm=s) for s in ((0.5, 0.5), None)
    )
    assert [distance_unit(c) for c in ([known], [known, unknown], [unknown])] == ["mm", "px", "px"]
    shifted = np.roll(known.mask(), 4, axis=0)
    in_mm, in_px = (
        score_case(shifted, known, ["lesion"], name="x", engine="e", unit=u).hd95_mean for u in ("mm", "px")
    )
    assert in_px == pytest.approx(2 * in_mm)
    assert in_px > 0


def test_areas_of_mask_and_truth():
    case = Case("a", "p", PhantomSource("ct", 2, 0), "test", spacing_mm=(0.5, 0.25))
    mask = np.zeros_like(case.mask())
    mask[2:6, 3:13] = 1
    in_mm, in_px = (score_case(mask, case, ["lesion"], name="x", engine="e", unit=u) for u in ("mm", "px"))
    assert (in_mm.area_by_class, in_mm.area_unit) == ({"lesion": 40 * 0.125}, "mm²")
    assert (in_px.area_by_class, in_px.area_unit) == ({"lesion": 40.0}, "px")
    assert in_px.true_area_by_class == {"lesion": float((case.mask() == 1).sum())}


def test_paired_difference_cancels_what_cases_share():
    reference = [score(f"c{i}", 0.5 + 0.01 * i) for i in range(20)]
    lower = [score(f"c{i}", 0.5 + 0.01 * i - 0.02) for i in range(20)]
    difference = paired_difference(lower, reference)
    assert (difference.mean, difference.low, difference.high) == pytest.approx((-0.02, -0.02, -0.02))
    assert not difference.includes_zero
    mixed = [score(f"c{i}", 0.5 + 0.01 * i + (0.01 if i % 2 else -0.01)) for i in range(20)]
    assert paired_difference(mixed, reference).includes_zero


def test_paired_difference_needs_the_same_cases_in_order():
    with pytest.raises(ValueError, match="same cases in the same order"):
        paired_difference([score("a", 1), score("b", 1)], [score("b", 1), score("a", 1)])


def test_one_patient_gives_no_interval():
    assert interval([0.1, 0.9], ["p", "p"]) == (None, None)
    assert paired_difference([score("a", 0.9)], [score("a", 0.1)]).includes_zero


def test_pareto_front_by_hand():
    assert pareto_front([1, 2, 3, 4], [0.5, 0.9, 0.8, 0.95]) == [0, 1, 3]
    assert pareto_front([1, 1], [0.5, 0.5]) == [0, 1]
    assert pareto_front([1, 1], [0.5, 0.6]) == [1]
    assert pareto_front([], []) == []


def test_headline_is_the_fastest_of_those_that_keep_accuracy():
    big = record("big", **timed(100))
    near, nearer = record("near", **timed(10)), record("nearer", **timed(20))
    poor = record("poor", dice_difference=-0.3, dice_difference_low=-0.4, dice_mean=0.6, **timed(1))
    assert choose_headline([big, near, nearer, poor]) == near
    assert choose_headline([big, poor]) == poor
    assert choose_headline([big]) is None


def test_headline_among_equally_poor_is_the_fastest():
    poor = {"dice_difference": -0.3, "dice_difference_low": -0.4, "dice_mean": 0.6}
    slow, fast = record("slow", **poor, **timed(9)), record("fast", **poor, **timed(2))
    assert choose_headline([record("big", **timed(100)), slow, fast]) == fast


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
    assert summarise_speed(samples, samples).end_to_end_ms_sorted == (2.0, 3.0, 4.0, 9.0)


def test_models_take_turns_in_rotated_order():
    assert list(rotations(3, 4)) == [[0, 1, 2], [1, 2, 0], [2, 0, 1], [0, 1, 2]]
    calls: list[str] = []
    models = [
        ModelCalls(run=lambda i, n=n: calls.append(n), predict=lambda i, n=n: calls.append(n)) for n in "ab"
    ]
    samples = time_interleaved(models, rounds=2, burst_s=1e-6)
    turns = [name for i, name in enumerate(calls) if i == 0 or name != calls[i - 1]]
    assert turns == ["a", "b", "a", "b", "a"]  # set-up a b; round one a b; round two b a
    assert [len(burst) for burst in samples[0].end_to_end_ms] == [3, 3]


def test_load_of_others_by_hand():
    before, after = ProcessorTimes(10.0, 100.0, 1.0), ProcessorTimes(18.0, 120.0, 6.0)
    assert others_share(before, after) == pytest.approx(3 / 20)
    assert others_share(None, after) is None


def test_child_does_not_inherit_its_parents_peak_memory():
    big = np.ones(40_000_000)  # 305 MiB in this process
    code = "from runtime.timing.latency import peak_memory_mib; print(peak_memory_mib())"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=".")
    assert float(child.stdout) < 250 < big.nbytes / 2**20


def test_lines_round_trip(tmp_path):
    records = [record("big", **timed(100)), record()]
    write_lines(tmp_path / "records.jsonl", records)
    assert read_lines(tmp_path / "records.jsonl", Record) == records
    scores = [score("ä <b>", 0.123456789012345)]
    write_lines(tmp_path / "cases.jsonl", scores)
    assert read_lines(tmp_path / "cases.jsonl", CaseRecord) == scores


def test_lines_of_older_versions_can_be_read(tmp_path):
    added = {"end_to_end_ms_sorted", "reliability"}
    (tmp_path / "records.jsonl").write_text(record(**timed(9)).model_dump_json(exclude=added) + "\n")
    (old,) = read_lines(tmp_path / "records.jsonl", Record)
    assert (old.end_to_end_ms_sorted, old.reliability) == ((), None)
    added = {"area_unit", "area_by_class", "true_area_by_class"}
    (tmp_path / "cases.jsonl").write_text(score("a").model_dump_json(exclude=added) + "\n")
    assert read_lines(tmp_path / "cases.jsonl", CaseRecord)[0].area_by_class == {}


def test_words_for_numbers():
    assert words.signed(-0.00321) == "−0.0032"
    assert words.signed(-0.00001) == "0.0000"
    assert words.difference(0.01, -0.02, 0.04) == "+0.0100 (−0.0200 to +0.0400)"
    assert [words.count(v) for v in (487_145, 31_040_000, 48_200_000_000, 12)] == [
        "487 k",
        "31.0 M",
        "48.2 G",
        "12",
    ]
    assert words.megabytes(1_955_994) == "1.96 MB"
    assert [words.percent(v) for v in (0.0062, 0.1234, 1.04)] == ["0.620 %", "12.3 %", "104 %"]
    assert words.distance(3.214, 2.9, 3.62, "px") == "3.21 px (2.90–3.62)"
    assert words.times(31.44) == "31×"
