"""Reliability of pixel probabilities: numbers that can be done in one's head, and the diagram."""

import numpy as np
import pytest

from benchmarks.report.record import Reliability
from benchmarks.report.reliability import BINS, PixelCounts
from segcore.picture.preprocess import OutputSpec

ONE = OutputSpec(activation="sigmoid", channels=1, stride=1)
THREE = OutputSpec(activation="softmax", channels=3, stride=1)


def counted(output: OutputSpec, *cases: tuple[np.ndarray, np.ndarray]) -> Reliability:
    counts = PixelCounts(output)
    for probability, truth in cases:
        counts.add(probability, truth)
    return counts.reliability()


def test_one_class_is_judged_by_its_own_probability():
    # 10 pixels given 0.8, of which 6 are the class; 30 given 0.1, of which 3 are.
    probability = np.array([0.8] * 10 + [0.1] * 30, np.float32).reshape(1, 4, 10)
    truth = np.array([1] * 6 + [0] * 4 + [1] * 3 + [0] * 27).reshape(4, 10)
    found = counted(ONE, (probability, truth))
    assert found.of == "foreground"
    assert (found.pixels[12], found.pixels[1], sum(found.pixels)) == (10, 30, 40)
    assert (found.confidence[12], found.observed[12]) == (0.8, 0.6)
    assert (found.confidence[1], found.observed[1]) == (0.1, 0.1)
    assert found.ece == pytest.approx(0.2 * 10 / 40)


def test_several_classes_are_judged_by_the_one_that_is_chosen():
    probability = np.array([[0.1, 0.2, 0.7], [0.1, 0.7, 0.2], [0.6, 0.2, 0.2], [0.6, 0.3, 0.1]]).T.reshape(
        3, 2, 2
    )
    truth = np.array([[2, 1], [0, 1]])  # right, right, right, wrong
    found = counted(THREE, (probability, truth))
    assert found.of == "decision"
    assert (found.pixels[10], found.observed[10]) == (2, 1.0)
    assert (found.pixels[9], found.observed[9]) == (2, 0.5)
    assert found.ece == pytest.approx((2 * 0.3 + 2 * 0.1) / 4)


def test_cases_add_up_and_nothing_grows_with_them():
    rng = np.random.default_rng(0)
    probability = rng.random((1, 64, 48)).astype(np.float32)
    truth = (rng.random((64, 48)) < probability[0]).astype(np.uint8)
    whole = counted(ONE, (probability, truth))
    parts = counted(ONE, (probability[:, :40], truth[:40]), (probability[:, 40:], truth[40:]))
    assert parts == whole
    counts = PixelCounts(ONE)
    for _ in range(3):
        counts.add(probability, truth)
    assert counts.rows.shape == (3, BINS)
    assert counts.reliability().ece == pytest.approx(whole.ece)


def test_a_calibrated_model_has_almost_no_error_and_an_overconfident_one_has():
    rng = np.random.default_rng(1)
    true_chance = rng.random((1, 400, 400))
    truth = (rng.random((400, 400)) < true_chance[0]).astype(np.uint8)
    sharpened = np.clip((true_chance - 0.5) * 1.5 + 0.5, 0, 1)
    assert counted(ONE, (true_chance, truth)).ece < 0.01
    assert counted(ONE, (sharpened, truth)).ece > 0.08


def test_probabilities_of_0_and_1_and_pixels_of_another_class():
    probability = np.array([[[0.0, 1.0, 1.0]]])
    found = counted(ONE, (probability, np.array([[0, 1, 0]])))
    assert (found.pixels[0], found.pixels[-1]) == (1, 2)
    assert found.observed[-1] == 0.5
    assert found.ece == pytest.approx(2 * 0.5 / 3)


def test_nothing_counted_is_no_error():
    assert PixelCounts(ONE).reliability().ece == 0.0
