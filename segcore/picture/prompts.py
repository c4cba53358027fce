"""What a promptable model is asked with: points on the thing or beside it, and a box around it. Numpy only.

Coordinates are (x, y) in the picture's own pixels, the centre of the first pixel at (0, 0), as a mouse gives them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from segcore.errors import InputError
from segcore.picture.preprocess import OutputSpec
from segcore.record import Record

PADDING, BACKGROUND, FOREGROUND, BOX_TOP_LEFT, BOX_BOTTOM_RIGHT = -1, 0, 1, 2, 3
"""Labels of prompt points, as SAM numbers them. Source: Kirillov et al., Segment Anything, ICCV 2023, and its code."""

MASK_CLIP = 32.0
"""Largest absolute logit of a mask that goes back in. Source: sam2's image predictor clamps its masks so."""


class PromptSpec(Record):
    """How a promptable model can be asked; travels in the manifest.

    Attributes:
        kinds: of prompts that it answers, because it was trained with them.
        slots: points a question; a box takes two.
        masks: candidates that it answers with, the single-mask answer first.
        mask_input: whether the last answer can be part of the next question.
        single: whether the first candidate answers clear prompts, as in SAM 2; else the best of all always does.
        encoder_file: of an exported bundle: picture → features, once a picture.
        decoder_file: of an exported bundle: features and prompt → masks, once a question.
    """

    kinds: tuple[Literal["point", "box", "mask"], ...]
    slots: int = Field(ge=2, le=256)
    masks: int = Field(ge=1, le=64)
    mask_input: bool = False
    single: bool = True
    encoder_file: str = ""
    decoder_file: str = ""


class Prompt(BaseModel):
    """One question about one picture.

    Attributes:
        points: (x, y, inside): a place, and whether it is on the thing.
        box: left, top, right, bottom.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    points: tuple[tuple[float, float, bool], ...] = ()
    box: tuple[float, float, float, float] | None = None


def prompt_of(points: Sequence[float], background: Sequence[float], box: Sequence[float]) -> Prompt | None:
    """The question that `--point`, `--background` and `--box` ask; None where none of them is given.

    Args:
        points: x, y, x, y, … on the thing.
        background: the same beside it.
        box: left, top, right, bottom, or nothing.

    Raises:
        InputError: numbers are missing, or too many.
    """
    for flag, numbers in (("--point", points), ("--background", background)):
        if len(numbers) % 2:
            raise InputError(
                f"{flag}: must be X,Y, got {_numbers_text(numbers)}; give two numbers for each point"
            )
    if len(box) not in (0, 4):
        raise InputError(f"--box: must be LEFT,TOP,RIGHT,BOTTOM, got {_numbers_text(box)}; give one box")
    places = [
        (*pair, inside)
        for many, inside in ((points, True), (background, False))
        for pair in zip(many[::2], many[1::2], strict=True)
    ]
    if not places and not box:
        return None
    return Prompt(points=tuple(places), box=(box[0], box[1], box[2], box[3]) if box else None)


def _numbers_text(numbers: Sequence[float]) -> str:
    return ",".join(f"{number:g}" for number in numbers)


def check_prompt(prompt: Prompt, image_px: tuple[int, int], spec: PromptSpec) -> None:
    """Checks that a model can be asked this about a picture.

    Args:
        prompt: the question.
        image_px: height and width of the picture.
        spec: the model's.

    Raises:
        InputError: nothing is asked, or with a kind of prompt that the model does not know; something lies outside the
            picture, a box without area, or too many points.
    """
    height, width = image_px
    given = [kind for kind, place in (("point", prompt.points), ("box", prompt.box)) if place]
    known = [kind for kind in ("point", "box") if kind in spec.kinds]
    if not given or not set(given) <= set(known):
        both = len(known) > 1
        raise InputError(
            f"prompt: must be {_kinds_text(known, 'or')}, got {_kinds_text(given, 'and') or 'none'}; "
            + ("click on the thing or draw a box around it" if both else "this model knows nothing else")
        )
    for x, y, _ in prompt.points:
        _check_inside("point", x, y, width, height)
    if prompt.box is not None:
        left, top, right, bottom = prompt.box
        _check_inside("box", left, top, width, height)
        _check_inside("box", right, bottom, width, height)
        if not (left < right and top < bottom):
            raise InputError(
                f"box: must run from top left to bottom right, got {left:g},{top:g} to {right:g},{bottom:g}; "
                "swap its corners"
            )
    used = len(prompt.points) + (2 if prompt.box else 0)
    if used > spec.slots:
        raise InputError(
            f"prompt: must be at most {spec.slots} points (a box is two), got {used}; take some away"
        )


def _kinds_text(kinds: Sequence[str], conjunction: str) -> str:
    return f" {conjunction} ".join(f"a {kind}" for kind in kinds)


def answer_spec(output: OutputSpec) -> OutputSpec:
    """How one answer becomes a mask: as the automatic mask of a model of one class; of several, from a half on."""
    one = output if output.activation == "sigmoid" else OutputSpec(activation="sigmoid", channels=1, stride=1)
    return one.model_copy(update={"stride": output.stride})


def choose_candidate(iou: np.ndarray, prompt: Prompt, spec: PromptSpec, *, again: bool = False) -> int:
    """Which of a model's candidates answers.

    A single point is ambiguous (a lobe, a lung, the chest), so the best of the other candidates by estimated IoU; a
    box, several points or an earlier answer leave no doubt, so the first. Source: Ravi et al., SAM 2, 2024, and the
    advice in its image predictor; without the latter's further choice by the mask's stability.

    Args:
        iou: M estimates.
        prompt: the question.
        spec: the model's.
        again: whether an earlier answer is part of the question.
    """
    if spec.masks == 1:
        return 0
    if not spec.single:
        return int(np.argmax(iou))
    clear = again or prompt.box is not None or len(prompt.points) > 1
    return 0 if clear else 1 + int(np.argmax(iou[1:]))


def _check_inside(what: str, x: float, y: float, width: int, height: int) -> None:
    if not (0 <= x <= width - 1 and 0 <= y <= height - 1):
        raise InputError(
            f"{what}: must lie in the picture, x 0 to {width - 1} and y 0 to {height - 1}, got {x:g},{y:g}"
        )


def prompt_arrays(
    prompts: Sequence[Prompt], image_px: tuple[int, int], input_px: tuple[int, int], slots: int
) -> tuple[np.ndarray, np.ndarray]:
    """Prompts as the network takes them.

    Args:
        prompts: N questions about pictures of one size.
        image_px: height and width of the pictures.
        input_px: of the network's input.
        slots: points a question.

    Returns:
        points N×slots×2 float32, (x, y) in the input's pixels (a pixel's centre stays its centre), and their labels
        N×slots float32, `PADDING` where a slot is empty.
    """
    scale = np.array([input_px[1] / image_px[1], input_px[0] / image_px[0]], np.float32)
    points = np.zeros((len(prompts), slots, 2), np.float32)
    labels = np.full((len(prompts), slots), PADDING, np.float32)
    for n, prompt in enumerate(prompts):
        places = [(x, y) for x, y, _ in prompt.points]
        kinds = [FOREGROUND if inside else BACKGROUND for *_, inside in prompt.points]
        if prompt.box is not None:
            places += [prompt.box[:2], prompt.box[2:]]
            kinds += [BOX_TOP_LEFT, BOX_BOTTOM_RIGHT]
        if places:
            points[n, : len(places)] = (np.array(places, np.float32) + 0.5) * scale - 0.5
            labels[n, : len(kinds)] = kinds
    return points, labels
