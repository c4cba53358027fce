"""Asks a promptable bundle about one picture with points and a box, and writes the answer as any other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from runtime.predict_files import shown_picture
from runtime.predict_inputs import Input
from runtime.predict_write import Answer, Outputs, failure, write_answer
from runtime.prediction import Prediction, Timings
from runtime.promptable import PromptPredictor, prompt_spec
from segcore.bundle import Bundle
from segcore.errors import InputError
from segcore.medical.read import read_scan
from segcore.prompts import Prompt


@dataclass(frozen=True)
class Asked:
    """A user's question.

    Attributes:
        prompt: points and box, in the picture's own pixels.
        class_name: of the bundle, that the mask gets.
    """

    prompt: Prompt
    class_name: str


def asked_of(
    bundle: Bundle,
    inputs: Sequence[Input],
    prompt: Prompt | None,
    class_name: str | None,
    *,
    alone: Mapping[str, object],
) -> Asked | None:
    """A question from the flags; None where there is none.

    Args:
        bundle: that is asked.
        inputs: of `--image`.
        prompt: of `--point`, `--background` and `--box`.
        class_name: of `--prompt-class`.
        alone: flags that do not go together with a prompt, and what was given for them.

    Raises:
        InputError: the bundle takes no prompts, several inputs, a class that is not clear, or another flag.
    """
    if prompt is None:
        if class_name is not None:
            raise InputError(
                f"--prompt-class {class_name}: must come with --point or --box, got neither; say where it is"
            )
        return None
    prompt_spec(bundle)
    for flag, given in alone.items():
        if given:
            raise InputError(f"{flag}: must be left away with --point and --box, which are for one picture")
    classes = bundle.manifest.classes
    if len(inputs) > 1:
        raise InputError(
            f"--image: must be one picture with --point or --box, got {len(inputs)}; a prompt is a place in one"
        )
    if class_name is None and len(classes) > 1:
        raise InputError(
            f"--prompt-class: must be one of {', '.join(classes)}, got none; say what is asked for"
        )
    if class_name is not None and class_name not in classes:
        raise InputError(f"--prompt-class: must be one of {', '.join(classes)}, got {class_name}")
    return Asked(prompt, class_name or classes[0])


def predict_prompted(
    predictor: PromptPredictor, item: Input, asked: Asked, folder: Path, outputs: Outputs
) -> dict[str, Any]:
    """Answers, writes the files, and gives the record: that of an automatic answer, with `prompt` and `estimated_iou`.

    Raises:
        OSError: the folder cannot be written to.
    """
    try:
        answer = _answer(predictor, item, asked, outputs)
    except Exception as error:
        return failure(item, error, outputs)
    return write_answer(answer, folder, outputs)


def _answer(predictor: PromptPredictor, item: Input, asked: Asked, outputs: Outputs) -> Answer:
    scan = read_scan(item.path, deidentify=outputs.deidentify)
    if scan.slices > 1:
        raise InputError(
            f"image {item.shown}: must be one picture with --point or --box, has {scan.slices} slices; give one slice"
        )
    picture = scan.picture(0, predictor.manifest.input.depth)
    found = predictor.answer(predictor.look(picture, name=f"image {item.shown}"), asked.prompt)
    times = found.timings
    index = predictor.manifest.classes.index(asked.class_name) + 1
    prediction = Prediction(
        mask=found.mask * np.uint8(index),
        probabilities=np.zeros((0, 0, 0), np.float32),
        timings=Timings(times.pre_ms, times.encoder_ms + times.decoder_ms, times.post_ms),
    )
    details = {
        "prompt": {"class": asked.class_name, **asked.prompt.model_dump(mode="json")},
        "estimated_iou": round(found.estimated_iou, 4),
    }
    shown = shown_picture(scan, picture)
    return Answer(item, scan, (prediction,), predictor, shown, prompted=asked.class_name, details=details)
