import numpy as np
import pytest

from runtime.parity import PARITY_LIMITS, UNGATED, Parity, ParityLimits, check_parity
from segcore.picture.preprocess import OutputSpec

SIGMOID = OutputSpec(activation="sigmoid", channels=1, stride=1, threshold=0.5)
SOFTMAX = OutputSpec(activation="softmax", channels=3, stride=1, threshold=0.5)
SIZE = (10, 10)


def halves(cases: int = 2) -> np.ndarray:
    """Logits that are 1 in the first rows and -1 below; a row more a case."""
    logits = np.full((cases, 1, *SIZE), -1.0, np.float32)
    for n in range(cases):
        logits[n, 0, : 3 + n] = 1.0
    return logits


def test_equal_logits_do_not_differ():
    assert check_parity(halves(), halves(), SIGMOID, [SIZE] * 2) == Parity(0.0, 0.0, False)


def test_shares_are_counted_in_pixels():
    logits = halves()
    logits[1, 0, 9, :4] = 1.0  # 4 of 100 pixels of one of two cases
    parity = check_parity(logits, halves(), SIGMOID, [SIZE] * 2)
    assert parity.mean_share == pytest.approx(0.02)
    assert parity.worst_share == pytest.approx(0.04)


def test_masks_are_compared_at_the_pictures_own_size():
    logits = halves()
    logits[0, 0, 9] = 1.0
    parity = check_parity(logits, halves(), SIGMOID, [(100, 60), SIZE])
    assert parity.worst_share == pytest.approx(0.1, abs=0.02)


def test_several_classes_are_compared_by_the_largest_logit():
    reference = np.random.default_rng(0).normal(size=(2, 3, *SIZE)).astype(np.float32)
    assert check_parity(reference + 5, reference, SOFTMAX, [SIZE] * 2).mean_share == 0.0
    assert check_parity(reference[:, ::-1], reference, SOFTMAX, [SIZE] * 2).mean_share > 0.3


@pytest.mark.parametrize(
    "dead",
    [
        np.zeros((3, 1, *SIZE), np.float32),
        np.repeat(halves(1), 3, axis=0),  # one answer for every picture, as a collapsed encoder gives
        np.arange(3, dtype=np.float32)[:, None, None, None] * np.ones((3, 1, *SIZE), np.float32),
    ],
    ids=["zero", "same for all", "flat"],
)
def test_constant_output_is_noticed(dead):
    parity = check_parity(dead, halves(3), SIGMOID, [SIZE] * 3)
    assert parity.constant
    assert parity.failures(UNGATED) == ["the output must vary with the picture, it is constant"]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_an_output_that_is_not_numbers_is_noticed_though_its_mask_is_right(bad):
    logits = halves(3)
    assert logits[1, 0, -1, -1] != logits[1, 0, 0, 0]
    place = max if bad > 0 else min  # infinity on the side where it changes no pixel
    flat = logits[1, 0].ravel()
    flat[place(range(flat.size), key=lambda i: flat[i])] = bad
    parity = check_parity(logits, halves(3), SIGMOID, [SIZE] * 3)
    assert not parity.finite
    assert parity.failures(UNGATED) == ["the output must be numbers, some are NaN or infinity"]


def test_failures_name_share_and_limit():
    parity = Parity(mean_share=0.006, worst_share=0.03, constant=False)
    assert parity.failures(PARITY_LIMITS["int8"]) == [
        "0.600 % of pixels differ on average, at most 0.500 % may",
        "3.000 % of pixels differ in the worst case, at most 2.000 % may",
    ]
    assert parity.failures(ParityLimits(0.006, 0.03)) == []


def test_limits_are_those_of_the_architecture():
    expected = {"fp32": ParityLimits(0.001), "fp16": ParityLimits(0.005), "int8": ParityLimits(0.005, 0.02)}
    assert expected == PARITY_LIMITS
