"""What the page's HTTP API answers a program: one file to its masks and record (docs/demo.md)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from demo.case.downloads import FORMATS, write_mask_files
from demo.session.answers import ModelAnswer
from demo.session.incoming import bytes_as_pixels, receive, without_paths
from demo.session.models import Models
from demo.session.prompt_dialogue import PromptDialogue
from demo.session.prompt_summary import prompt_record
from segcore.errors import InputError
from segcore.measure.masks import measure_scan
from segcore.medical.read import read_scan
from segcore.picture.prompts import Prompt
from segcore.picture.scan import Scan

MOST_PIXELS = 600_000_000
"""Of all slices of one request: 2,000 slices of CT."""
LONGEST_S = 300.0
"""How long the models are asked for one request."""


class ProgramPrompt(BaseModel):
    """A program's prompt.

    Attributes:
        points: (x, y, inside) in the picture's own pixels: a place, and whether it is on the thing.
        box: left, top, right, bottom.
        class_name: what the prompt is for, "class" in JSON; "" for the model's first class.
        slice: the slice that it is about, from 1.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        alias_generator=lambda name: "class" if name == "class_name" else name,
    )

    points: tuple[tuple[float, float, bool], ...] = ()
    box: tuple[float, float, float, float] | None = None
    class_name: str = ""
    slice: int | None = None


def read_prompt(given: Any) -> ProgramPrompt:
    """A program's JSON, checked.

    Raises:
        InputError: it is no prompt.
    """
    try:
        return ProgramPrompt.model_validate(given)
    except ValidationError:
        raise InputError(
            'prompt: must be like {"points": [[x, y, true]], "box": [left, top, right, bottom], "class": '
            f'"lung", "slice": 1}}, each optional, got {repr(given)[:120]}'
        ) from None


@dataclass(frozen=True)
class ProgramRequest:
    """What a program asks about its file.

    Attributes:
        model: one of the models' names.
        formats: keys of `demo.case.downloads`.
        threshold: 0–1; None for the model's own.
        prompt: a click or a box for a promptable model; its answer takes the place of that class on that slice.
    """

    model: str
    formats: tuple[str, ...] = ()
    threshold: float | None = None
    prompt: ProgramPrompt | None = None


def read_request(model: str, formats: Any, threshold: Any, prompt: Any, models: Models) -> ProgramRequest:
    """A program's values, checked; null stands for what is not asked for.

    Raises:
        InputError: one of them is of the wrong type, or no such model.
    """
    known = [one.key for one in FORMATS]
    if not isinstance(formats, list | None) or any(one not in known for one in formats or ()):
        raise InputError(f"formats: must be a list of {', '.join(known)}, got something else")
    if threshold is not None and not (
        isinstance(threshold, int | float) and not isinstance(threshold, bool) and 0 < threshold < 1
    ):
        raise InputError("threshold: must be a number between 0 and 1 or null, got something else")
    models.manifest(model)  # told now, where there is no such model
    return ProgramRequest(
        model,
        tuple(dict.fromkeys(formats or ())),
        None if threshold is None else float(threshold),
        None if prompt is None else read_prompt(prompt),
    )


def segment_file(
    models: Models, sent: str, folder: Path, files_folder: Path, asked: ProgramRequest
) -> tuple[dict[str, Any], list[Path]]:
    """Segments every slice of one upload.

    Args:
        models: the served ones.
        sent: path of the upload; it is moved to `folder`.
        folder: empty, for the upload of this call alone.
        files_folder: empty, for the files.
        asked: what the program wants.

    Returns:
        A record for JSON, and the files.

    Raises:
        InputError: the file, the model or the prompt cannot be used; no path in the message.
    """
    if not sent:
        raise InputError("file: must be given, none was")
    model, threshold, prompt = asked.model, asked.threshold, asked.prompt
    manifest = models.manifest(model)
    if prompt is not None:
        models.prompt_predictor(model)  # told now, and not after every slice, where it takes no prompts
    with models.turn(bytes_as_pixels([sent])):
        paths = receive([sent], folder / "upload")
    if len(paths) > 1:
        raise InputError(f"{Path(sent).name}: must hold one scan, got {len(paths)}; send them one by one")
    with without_paths(*paths):
        scan = read_scan(paths[0])
        pixels = scan.slices * scan.size_px[0] * scan.size_px[1]
        if pixels > MOST_PIXELS:
            raise InputError(
                f"{scan.name}: must have at most {MOST_PIXELS} pixels in all its slices, got {pixels}; "
                "send fewer slices, or use python -m runtime.predict"
            )
        prompt_index = None if prompt is None else _prompt_slice(prompt, scan)
        with models.turn(pixels):
            answers = _answer_slices(models, scan, asked, prompt_index)
        masks = np.stack([answer.mask for answer in answers])
        prompted = next((prompt_record(p, i) for i, a in enumerate(answers) if (p := a.prompt_summary)), None)
        sha256, reference = models.sha256(model), models.reference_for(manifest.classes)
        files = list[Path]()
        if asked.formats:
            files = write_mask_files(
                scan,
                masks,
                manifest,
                files_folder,
                asked.formats,
                threshold=threshold,
                bundle_sha256=sha256,
                reference=reference,
                prompt=prompted,
            )
    measured = measure_scan(scan, masks, manifest.classes, reference=reference)
    judged = [answer.quality for answer in answers if answer.quality is not None]
    record = {
        "file": scan.name,
        "slices": scan.slices,
        "size_px": list(scan.size_px),
        "spacing_mm": scan.spacing_mm,
        "slice_spacing_mm": scan.slice_spacing_mm,
        "model": model,
        "engine": answers[0].engine,
        "threshold": threshold if threshold is not None else manifest.output.threshold,
        "measurements": [one.model_dump(mode="json") for one in measured],
        "expected_dice": {"least": min(judged), "mean": sum(judged) / len(judged)} if judged else None,
        "prompt": prompted,
        "engine_ms": sum(answer.times.engine_ms for answer in answers),
        "note": "research use only, not a medical device",
    }
    return record, files


def _answer_slices(
    models: Models, scan: Scan, asked: ProgramRequest, prompt_index: int | None
) -> list[ModelAnswer]:
    """What the model says of every slice, without its probabilities: those of a series would fill the memory."""
    depth, answers = models.manifest(asked.model).input.depth, list[ModelAnswer]()
    begin = perf_counter()
    for index in range(scan.slices):
        if perf_counter() - begin > LONGEST_S:
            raise InputError(
                f"{scan.name}: must be done in {LONGEST_S:.0f} seconds, {index} of {scan.slices} slices were; "
                "send fewer slices, or use python -m runtime.predict"
            )
        picture, name = scan.picture(index, depth), scan.slice_name(index)
        answer = models.ask(asked.model, picture, picture_name=name, runs=1)
        if asked.prompt is not None and index == prompt_index:
            answer = _answer_prompt(models, asked.model, answer, picture, asked.prompt, picture_name=name)
        answers.append(replace(answer.at(asked.threshold), foreground=np.empty((0, 0, 0), np.float32)))
    return answers


def _prompt_slice(prompt: ProgramPrompt, scan: Scan) -> int:
    """Its index, from 0; of several slices the prompt must say which."""
    number = prompt.slice if prompt.slice is not None or scan.slices > 1 else 1
    if number is None or not 1 <= number <= scan.slices:
        raise InputError(f"prompt: slice must be 1 to {scan.slices}, got {number or 'none'}")
    return number - 1


def _answer_prompt(
    models: Models,
    model: str,
    answer: ModelAnswer,
    picture: np.ndarray,
    prompt: ProgramPrompt,
    *,
    picture_name: str,
) -> ModelAnswer:
    dialogue = PromptDialogue(models, (model,), lambda _: picture, picture_name)
    if prompt.class_name:
        dialogue.choose_class(prompt.class_name)
    dialogue.ask_prompt(Prompt(points=prompt.points, box=prompt.box))
    return dialogue.answer_of(model, answer)
