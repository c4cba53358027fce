"""Benchmarks: scores of a case and their summary, in numbers that can be done in one's head."""

import numpy as np
import pytest

from benchmarks.report.accuracy import (
    distance_unit,
    interval,
    paired_difference,
    recall_difference,
    score_case,
    summarise_scores,
)
from segcore.dataset.case import Case, PhantomSource


@pytest.fixture
def score(benchmark_records):
    return benchmark_records.score


def test_summary_is_mean_and_percentile_over_cases(score):
    summary = summarise_scores([score(f"c{i}", i / 100) for i in range(101)])
    assert summary.dice_mean == pytest.approx(0.5)
    assert summary.dice_p05 == pytest.approx(0.05)
    assert summary.iou_mean == pytest.approx(0.25)
    assert summary.dice_by_class == {"lung": pytest.approx(0.5)}
    assert summary.dice_low is not None
    assert summary.dice_low < 0.5 < summary.dice_high
    assert (summary.cases, summary.patients) == (101, 101)


def test_distances_and_small_parts_are_summed_up(score):
    cases = [score("a", hd95=1.0, small=(1, 1)), score("b", hd95=3.0), score("c", hd95=8.0, small=(0, 3))]
    summary = summarise_scores(cases, small_px=9)
    assert (summary.hd95_mean, summary.hd95_unit, summary.hd95_by_class) == (4.0, "px", {"lung": 4.0})
    assert summary.hd95_low < 4.0 < summary.hd95_high
    assert (summary.small_px, summary.small_parts, summary.small_recall) == (9, 4, 0.25)
    assert (summary.small_recall_low, summary.small_recall_high) == (0.0, 1.0)
    assert summary.small_recall_by_class == {"lung": 0.25}
    without = summarise_scores([score("a"), score("b")])
    assert (without.small_parts, without.small_recall, without.small_recall_by_class) == (0, None, {})


def test_recall_is_compared_on_the_same_parts(score):
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


def test_paired_difference_cancels_what_cases_share(score):
    reference = [score(f"c{i}", 0.5 + 0.01 * i) for i in range(20)]
    lower = [score(f"c{i}", 0.5 + 0.01 * i - 0.02) for i in range(20)]
    difference = paired_difference(lower, reference)
    assert (difference.mean, difference.low, difference.high) == pytest.approx((-0.02, -0.02, -0.02))
    assert not difference.includes_zero
    mixed = [score(f"c{i}", 0.5 + 0.01 * i + (0.01 if i % 2 else -0.01)) for i in range(20)]
    assert paired_difference(mixed, reference).includes_zero


def test_paired_difference_needs_the_same_cases_in_order(score):
    with pytest.raises(ValueError, match="same cases in the same order"):
        paired_difference([score("a", 1), score("b", 1)], [score("b", 1), score("a", 1)])


def test_one_patient_gives_no_interval(score):
    assert interval([0.1, 0.9], ["p", "p"]) == (None, None)
    assert paired_difference([score("a", 0.9)], [score("a", 0.1)]).includes_zero
