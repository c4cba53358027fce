"""Prompts: which are refused and in what words, how they become arrays, and which candidate answers."""

import numpy as np
import pytest

from segcore.errors import InputError
from segcore.picture.preprocess import OutputSpec
from segcore.picture.prompts import (
    PADDING,
    Prompt,
    PromptSpec,
    answer_spec,
    check_prompt,
    choose_candidate,
    prompt_arrays,
    prompt_of,
)

SPEC = PromptSpec(kinds=("point", "box"), slots=4, masks=4)
IMAGE_PX = (100, 200)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (Prompt(), "prompt: must be a point or a box, got none; click on the thing or draw a box around it"),
        (
            Prompt(points=((200, 5, True),)),
            "point: must lie in the picture, x 0 to 199 and y 0 to 99, got 200,5",
        ),
        (
            Prompt(points=((3, 4, True), (-0.5, 5, False))),
            "point: must lie in the picture, x 0 to 199 and y 0 to 99, got -0.5,5",
        ),
        (
            Prompt(points=((float("nan"), 5, True),)),
            "point: must lie in the picture, x 0 to 199 and y 0 to 99, got nan,5",
        ),
        (Prompt(box=(0, 0, 30, 100)), "box: must lie in the picture, x 0 to 199 and y 0 to 99, got 30,100"),
        (
            Prompt(box=(30, 10, 20, 40)),
            "box: must run from top left to bottom right, got 30,10 to 20,40; swap its corners",
        ),
        (
            Prompt(box=(30, 10, 30, 40)),
            "box: must run from top left to bottom right, got 30,10 to 30,40; swap its corners",
        ),
        (
            Prompt(points=((1, 1, True),) * 3, box=(0, 0, 9, 9)),
            "prompt: must be at most 4 points (a box is two), got 5; take some away",
        ),
    ],
)
def test_refused_in_one_line(prompt, message):
    with pytest.raises(InputError) as refused:
        check_prompt(prompt, IMAGE_PX, SPEC)
    assert str(refused.value) == message


@pytest.mark.parametrize(
    ("known", "asked", "message"),
    [
        ("box", Prompt(points=((5, 5, True),)), "must be a box, got a point"),
        ("box", Prompt(), "must be a box, got none"),
        ("point", Prompt(points=((5, 5, True),), box=(0, 0, 9, 9)), "must be a point, got a point and a box"),
    ],
)
def test_a_kind_that_the_model_does_not_know(known, asked, message):
    with pytest.raises(InputError) as refused:
        check_prompt(asked, IMAGE_PX, SPEC.model_copy(update={"kinds": (known, "mask")}))
    assert str(refused.value) == f"prompt: {message}; this model knows nothing else"


def test_the_pictures_corners_are_in_it():
    check_prompt(Prompt(points=((0, 0, True), (199, 99, False))), IMAGE_PX, SPEC)
    check_prompt(Prompt(points=((1, 1, True),) * 2, box=(0, 0, 199, 99)), IMAGE_PX, SPEC)


def test_a_pixels_centre_stays_its_centre():
    asked = [Prompt(points=((0, 0, True), (199, 99, False))), Prompt(box=(0.5, 1.5, 20.5, 40.5))]
    points, labels = prompt_arrays(asked, IMAGE_PX, (50, 100), 4)  # every second pixel of each side
    assert points.dtype == labels.dtype == np.float32
    # The centre of 2×2 pixels is that of the one they become; the first pixel's is a quarter before it.
    assert points[0, :2].tolist() == [[-0.25, -0.25], [99.25, 49.25]]
    assert points[1, :2].tolist() == [[0, 0.5], [10, 20]]
    assert labels.tolist() == [[1, 0, PADDING, PADDING], [2, 3, PADDING, PADDING]]
    assert not points[:, 2:].any()


def test_what_the_flags_say():
    assert prompt_of((), (), ()) is None
    assert prompt_of((1, 2, 3, 4), (5, 6), (0, 1, 2, 3)) == Prompt(
        points=((1, 2, True), (3, 4, True), (5, 6, False)), box=(0, 1, 2, 3)
    )
    for given, message in (
        (((1, 2, 3), (), ()), "--point: must be X,Y, got 1,2,3; give two numbers for each point"),
        (((), (7,), ()), "--background: must be X,Y, got 7; give two numbers for each point"),
        (((), (), (1, 2, 3)), "--box: must be LEFT,TOP,RIGHT,BOTTOM, got 1,2,3; give one box"),
    ):
        with pytest.raises(InputError) as refused:
            prompt_of(*given)
        assert str(refused.value) == message


def test_one_point_is_ambiguous_and_more_are_clear():
    iou = np.array([0.9, 0.1, 0.3, 0.2])
    one, two = Prompt(points=((1, 1, True),)), Prompt(points=((1, 1, True), (2, 2, False)))
    box = Prompt(box=(0, 0, 5, 5))
    assert choose_candidate(iou, one, SPEC) == 2
    assert [choose_candidate(iou, asked, SPEC) for asked in (two, box)] == [0, 0]
    assert choose_candidate(iou, one, SPEC, again=True) == 0


def test_without_a_single_mask_answer_the_best_always_answers():
    three = SPEC.model_copy(update={"masks": 3, "single": False})
    iou = np.array([0.2, 0.1, 0.3])
    for asked in (Prompt(points=((1, 1, True),)), Prompt(box=(0, 0, 5, 5))):
        assert choose_candidate(iou, asked, three) == 2
    assert choose_candidate(iou[:1], Prompt(box=(0, 0, 5, 5)), SPEC.model_copy(update={"masks": 1})) == 0


def test_an_answer_is_decided_as_one_class():
    one = OutputSpec(activation="sigmoid", channels=1, stride=4, threshold=0.6, temperature=1.5)
    assert answer_spec(one) == one
    several = answer_spec(OutputSpec(activation="softmax", channels=5, stride=4))
    assert (several.activation, several.channels, several.threshold) == ("sigmoid", 1, 0.5)
