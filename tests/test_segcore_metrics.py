import numpy as np
import pytest

from segcore.measure.metrics import (
    connected_parts,
    dice_per_class,
    disagreement,
    hd95_per_class,
    iou_per_class,
    small_parts_found,
)
from segcore.stats import bootstrap_interval

EMPTY = np.zeros((4, 4), np.uint8)


def block(rows: slice, columns: slice, k: int = 1) -> np.ndarray:
    mask = EMPTY.copy()
    mask[rows, columns] = k
    return mask


def test_by_hand():
    a, b = block(slice(0, 2), slice(0, 4)), block(slice(1, 2), slice(0, 4))  # 8 and 4 pixels, 4 shared
    assert dice_per_class(a, b, 1) == pytest.approx([2 * 4 / 12])
    assert iou_per_class(a, b, 1) == pytest.approx([4 / 8])
    assert disagreement(a, b) == 4 / 16


@pytest.mark.parametrize("score", [dice_per_class, iou_per_class])
def test_both_empty_is_1_and_one_empty_is_0(score):
    some = block(slice(0, 1), slice(0, 1))
    assert score(EMPTY, EMPTY, 1) == [1.0]
    assert score(some, EMPTY, 1) == [0.0]
    assert score(EMPTY, some, 1) == [0.0]


@pytest.mark.parametrize("score", [dice_per_class, iou_per_class])
def test_classes_are_scored_apart(score):
    a = block(slice(0, 1), slice(0, 4)) + block(slice(2, 3), slice(0, 4), k=2)
    b = block(slice(0, 1), slice(0, 4)) + block(slice(3, 4), slice(0, 4), k=2)
    np.testing.assert_array_equal(score(a, b, 3), [1.0, 0.0, 1.0])  # class 3 is in neither


def test_symmetric_bounded_and_tied_by_iou():
    rng = np.random.default_rng(0)
    for _ in range(20):
        a, b = rng.integers(0, 4, (2, 8, 8), np.uint8)
        dice, iou = dice_per_class(a, b, 3), iou_per_class(a, b, 3)
        np.testing.assert_allclose(dice, dice_per_class(b, a, 3))
        np.testing.assert_allclose(dice, 2 * iou / (1 + iou))
        assert ((dice >= 0) & (dice <= 1)).all()


@pytest.mark.parametrize(
    "score", [dice_per_class, hd95_per_class, lambda *given: small_parts_found(*given, below_px=1)]
)
def test_shapes_must_match(score):
    with pytest.raises(ValueError, match=r"prediction \(4, 4\) and truth \(2, 2\) must have one shape"):
        score(EMPTY, EMPTY[:2, :2], 1)


def test_hd95_of_pixels_by_hand():
    a, b = block(slice(0, 1), slice(0, 1)), block(slice(3, 4), slice(2, 3))
    assert hd95_per_class(a, b, 1) == pytest.approx([np.hypot(3, 2)])
    assert hd95_per_class(a, b, 1, spacing=(0.5, 2.0)) == pytest.approx([np.hypot(1.5, 4)])


def test_hd95_is_the_larger_of_the_two_directions():
    """Row 0 of 4 pixels against its first pixel: distances 0 1 2 3 one way, 0 the other."""
    row, first = block(slice(0, 1), slice(0, 4)), block(slice(0, 1), slice(0, 1))
    expected = np.percentile([0, 1, 2, 3], 95)
    assert hd95_per_class(row, first, 1) == pytest.approx([expected])
    assert hd95_per_class(first, row, 1) == pytest.approx([expected])


def test_hd95_of_empty_masks():
    some = block(slice(0, 1), slice(0, 1))
    diagonal = np.hypot(4, 4)
    assert hd95_per_class(EMPTY, EMPTY, 1) == [0.0]
    assert hd95_per_class(some, EMPTY, 1) == pytest.approx([diagonal])
    assert hd95_per_class(EMPTY, some, 1) == pytest.approx([diagonal])
    assert hd95_per_class(EMPTY, some, 1, spacing=(0.1, 0.1)) == pytest.approx([diagonal / 10])


def test_hd95_ignores_the_inside_and_keeps_classes_apart():
    """A hole moves no outer border; a 6×6 square grown by 2 on every side is 2 away along the sides."""
    square, grown = np.zeros((2, 20, 20), np.uint8)
    square[7:13, 7:13], grown[5:15, 5:15] = 1, 1
    assert hd95_per_class(square, square, 2).tolist() == [0.0, 0.0]
    assert 2.0 <= hd95_per_class(square, grown, 1)[0] <= np.hypot(2, 2)
    assert hd95_per_class(2 * square, grown, 2) == pytest.approx([np.hypot(20, 20)] * 2)


def test_hd95_is_as_by_brute_force():
    rng = np.random.default_rng(0)
    for _ in range(20):
        a, b = (rng.random((2, 9, 12)) < 0.2).astype(np.uint8)
        spacing = tuple(rng.uniform(0.5, 2, 2))
        points = [
            np.argwhere([[m[y, x] and _at_border(m, y, x) for x in range(12)] for y in range(9)]) * spacing
            for m in (a, b)
        ]
        apart = np.linalg.norm(points[0][:, None] - points[1][None], axis=2)
        expected = max(np.percentile(apart.min(1), 95), np.percentile(apart.min(0), 95))
        assert hd95_per_class(a, b, 1, spacing=spacing) == pytest.approx([expected])


def _at_border(mask: np.ndarray, y: int, x: int) -> bool:
    around = [(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)]
    return any(not (0 <= i < mask.shape[0] and 0 <= j < mask.shape[1] and mask[i, j]) for i, j in around)


def test_parts_touch_diagonally_too():
    mask = np.array([[1, 0, 0, 1], [0, 1, 0, 1], [0, 0, 0, 0], [1, 1, 0, 1]], bool)
    expected = np.array([[1, 0, 0, 2], [0, 1, 0, 2], [0, 0, 0, 0], [3, 3, 0, 4]])
    np.testing.assert_array_equal(connected_parts(mask), expected)
    assert connected_parts(np.zeros((3, 3), bool)).max() == 0


def test_arms_that_meet_below_are_one_part():
    u, w = (
        np.array([[1, 0, 1], [1, 1, 1]], bool),
        np.array([[1, 0, 1, 0, 1], [1, 0, 1, 0, 1], [0, 1, 0, 1, 0]], bool),
    )
    for mask in (u, w, u[::-1], w[::-1]):
        np.testing.assert_array_equal(connected_parts(mask), mask.astype(int))


def test_a_small_part_is_found_if_half_of_it_is():
    truth, prediction = np.zeros((2, 6, 8), np.uint8)
    truth[0, 0:2] = truth[2, 0:3] = truth[4, 0:6] = 1  # 2, 3 and 6 pixels
    truth[0, 5:7] = 2
    prediction[0, 0] = prediction[2, 0] = 1  # half, a third
    prediction[4, 0:6] = 1
    prediction[0, 5:7] = 1  # of another class: not found
    found, parts = small_parts_found(prediction, truth, 3, below_px=6)
    assert (found.tolist(), parts.tolist()) == ([1, 0, 0], [2, 1, 0])
    found, parts = small_parts_found(prediction, truth, 3, below_px=7)
    assert (found.tolist(), parts.tolist()) == ([2, 0, 0], [3, 1, 0])


def test_interval_of_a_constant_is_that_constant():
    assert bootstrap_interval([0.7] * 6, list("aabbcc")) == (pytest.approx(0.7), pytest.approx(0.7))


def test_interval_resamples_patients_not_cases():
    """Copies of a patient's case add no knowledge: the interval must not shrink."""
    values, patients = [0.2, 0.5, 0.9, 0.6], list("abcd")
    assert bootstrap_interval(values * 50, patients * 50) == pytest.approx(
        bootstrap_interval(values, patients)
    )


def test_interval_is_of_the_mean_over_cases_not_over_patients():
    """30 patients with one case of Dice 1, 30 with nine of Dice 0: the mean over cases is 0.1, over patients 0.5."""
    patients = [f"a{i}" for i in range(30)] + [f"b{i}" for i in range(30) for _ in range(9)]
    low, high = bootstrap_interval([1.0] * 30 + [0.0] * 270, patients)
    assert low < 0.1 < high < 0.3


def test_interval_covers_the_mean_and_is_repeatable():
    values = np.random.default_rng(0).normal(0.8, 0.05, 60)
    patients = [f"p{i // 2}" for i in range(60)]
    low, high = bootstrap_interval(values, patients)
    assert low < values.mean() < high
    assert bootstrap_interval(values, patients) == (low, high)
    expected = 1.96 * values.reshape(-1, 2).mean(1).std() / np.sqrt(30)
    assert (high - low) / 2 == pytest.approx(expected, rel=0.15)


def test_interval_of_a_pooled_share():
    """Equal counts: the share's interval is the mean's over that count; a patient's large count weighs more."""
    values, patients = [1.0, 0.0, 2.0, 1.0], list("abcd")
    low, high = bootstrap_interval(values, patients, counts=[2] * 4)
    assert (2 * low, 2 * high) == pytest.approx(bootstrap_interval(values, patients))
    low, high = bootstrap_interval([9, 0], ["a", "b"], counts=[90, 1])
    assert (low, high) == pytest.approx((0.0, 0.1))
