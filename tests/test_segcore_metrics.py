import numpy as np
import pytest

from segcore.metrics import bootstrap_interval, dice_per_class, disagreement, iou_per_class

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


def test_shapes_must_match():
    with pytest.raises(ValueError, match=r"prediction \(4, 4\) and truth \(2, 2\) must have one shape"):
        dice_per_class(EMPTY, EMPTY[:2, :2], 1)


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
