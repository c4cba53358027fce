"""Scores against a reference mask, in words."""

import numpy as np
import pytest

from demo.session.trust import against_truth

SQUARE = np.zeros((8, 10), np.uint8)
SQUARE[2:6, 2:6] = 1  # 16 pixels
MOVED = np.zeros((8, 10), np.uint8)
MOVED[2:6, 4:8] = 1  # 8 of them shared: Dice 16/32, IoU 8/24; every border is 2 columns off at worst


def test_one_class_in_pixels_by_hand():
    assert against_truth(MOVED, SQUARE, ["lung"]) == [
        ["Structure", "Dice", "IoU", "HD95 (px)"],
        ["lung", "0.500", "0.333", "2.0"],
    ]


def test_distances_are_in_millimetres_of_the_right_axis():
    assert against_truth(MOVED, SQUARE, ["lung"], (5.0, 0.5)) == [
        ["Structure", "Dice", "IoU", "HD95 (mm)"],
        ["lung", "0.500", "0.333", "1.0"],
    ]


def test_several_classes_end_with_their_mean():
    truth = SQUARE.copy()
    truth[7, 9] = 2
    prediction = truth.copy()
    prediction[SQUARE == 1] = 0
    rows = against_truth(prediction, truth, ["lung", "heart"])
    assert rows[1][:3] == ["lung", "0.000", "0.000"]
    assert rows[2] == ["heart", "1.000", "1.000", "0.0"]
    assert rows[3][:3] == ["mean", "0.500", "0.500"]


def test_reference_with_more_classes_than_the_model_is_not_compared():
    assert against_truth(SQUARE, SQUARE * 2, ["lung"])[1:] == [["lung", "–", "–", "–"]]


def test_masks_of_two_sizes_are_our_bug():
    with pytest.raises(ValueError, match="must have one shape"):
        against_truth(SQUARE, SQUARE[:, :5], ["lung"])
