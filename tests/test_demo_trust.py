"""Scores against a reference mask, and the traffic light, in words."""

import numpy as np
import pytest

from demo.page.html_pieces import light_card
from demo.session.trust import against_truth, light_of
from segcore.picture.quality import QualityModel

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


QUALITY = QualityModel(
    weights=(0.0,) * 13, centre=(0.0,) * 6, spread=(1.0,) * 6, high=(1.0,) * 6, shape_centre=((0.0,) * 7,),
    shape_spread=((1.0,) * 7,), empty_right=(0.0,), cases=44, error=0.0163, error_degraded=0.0511,
)  # fmt: skip


@pytest.mark.parametrize(
    ("quality", "colour"),
    [
        (1.0, "green"),
        (0.9, "green"),
        (0.895, "green"),
        (0.894, "amber"),
        (0.8, "amber"),
        (0.79, "red"),
        (0.0, "red"),
    ],
)
def test_light_is_that_of_the_number_shown(quality, colour):
    assert light_of(quality).colour == colour


def test_light_says_in_words_what_it_means_and_what_it_does_not():
    html = light_card(0.84, QUALITY)
    assert "Amber: check the outline" in html
    assert "Expected overlap with a careful reader (Dice): <strong>0.84</strong>" in html
    assert (
        "The model&#x27;s own estimate, fitted on 44 validation cases; mean error ±0.016 on pictures like those, "
        "±0.051 on degraded ones. A picture unlike the training pictures can still fool it."
    ) in html
