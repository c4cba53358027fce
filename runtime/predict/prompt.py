"""Asks a promptable bundle about one picture with points and a box, and writes the answer as any other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from runtime.predict.files import shown_picture
from runtime.predict.inputs import PredictionInput
from runtime.predict.write import Outputs, ScanPrediction, failure_record, write_prediction
from runtime.predictor import Prediction, Timings
from runtime.promptable import PromptPredictor, prompt_spec
from segcore.bundle.folder import Bundle
from segcore.errors import InputError
from segcore.medical.read import read_scan
from segcore.picture.prompts import Prompt


@dataclass(frozen=True)
class PromptQuestion:
    """What a user asks of one image: where, and for which class.

    Attributes:
        prompt: points and box, in the picture's own pixels.
        class_name: of the bundle, that the mask gets.
    """

    prompt: Prompt
    class_name: str


def read_question(
    bundle: Bundle,
    inputs: Sequence[PredictionInput],
    prompt: Prompt | None,
    class_name: str | None,
    *,
    alone: Mapping[str, object],
) -> PromptQuestion | None:
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
    return PromptQuestion(prompt, class_name or classes[0])


def predict_with_prompt(
    predictor: PromptPredictor,
    input_: PredictionInput,
    question: PromptQuestion,
    folder: Path,
    outputs: Outputs,
) -> dict[str, Any]:
    """Answers, writes the files, and gives the record: that of an automatic answer, with `prompt` and `estimated_iou`.

    Raises:
        OSError: the folder cannot be written to.
    """
    try:
        prediction = _answer_prompt(predictor, input_, question, outputs)
    except Exception as error:
        return failure_record(input_, error, outputs)
    return write_prediction(prediction, folder, outputs)


def _answer_prompt(
    predictor: PromptPredictor, input_: PredictionInput, question: PromptQuestion, outputs: Outputs
) -> ScanPrediction:
    scan = read_scan(input_.path, deidentify=outputs.deidentify)
    if scan.slices > 1:
        raise InputError(
            f"image {input_.shown}: must be one picture with --point or --box, has {scan.slices} slices; give one slice"
        )
    image = scan.picture(0, predictor.manifest.input.depth)
    found = predictor.answer(predictor.look(image, name=f"image {input_.shown}"), question.prompt)
    times = found.timings
    index = predictor.manifest.classes.index(question.class_name) + 1
    prediction = Prediction(
        mask=found.mask * np.uint8(index),
        probabilities=np.zeros((0, 0, 0), np.float32),
        timings=Timings(times.pre_ms, times.encoder_ms + times.decoder_ms, times.post_ms),
    )
    details = {
        "prompt": {"class": question.class_name, **question.prompt.model_dump(mode="json")},
        "estimated_iou": round(found.estimated_iou, 4),
    }
    shown = shown_picture(scan, image)
    return ScanPrediction(
        input_, scan, (prediction,), predictor, shown, prompted=question.class_name, details=details
    )
