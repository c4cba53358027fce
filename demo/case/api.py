"""What the page's HTTP API answers a program: one file to its masks and record (docs/demo.md)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from demo.case.downloads import write_mask_files
from demo.session.answers import ModelAnswer
from demo.session.incoming import receive, without_paths
from demo.session.models import Models
from demo.session.prompt_dialogue import PromptDialogue
from demo.session.prompt_summary import prompt_record
from segcore.errors import InputError
from segcore.measure.masks import measure_scan
from segcore.medical.read import read_scan
from segcore.picture.prompts import Prompt
from segcore.picture.scan import Scan


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
            f'"lung", "slice": 1}}, each optional, got {str(given)[:120]}'
        ) from None


def segment_file(
    models: Models,
    sent: str,
    folder: Path,
    files_folder: Path,
    *,
    model: str,
    formats: Sequence[str] = (),
    threshold: float | None = None,
    prompt: ProgramPrompt | None = None,
) -> tuple[dict[str, Any], list[Path]]:
    """Segments every slice of one upload.

    Args:
        models: the served ones.
        sent: path of the upload; it is moved to `folder`.
        folder: empty, for the upload of this call alone.
        files_folder: empty, for the files.
        model: one of the models' names.
        formats: keys of `demo.case.downloads`.
        threshold: 0–1; None for the model's own.
        prompt: a click or a box for a promptable model; its answer takes the place of that class on that slice.

    Returns:
        A record for JSON, and the files.

    Raises:
        InputError: the file, the model or the prompt cannot be used; no path in the message.
    """
    if threshold is not None and not 0 < threshold < 1:
        raise InputError(f"threshold: must lie between 0 and 1, got {threshold:g}")
    if not sent:
        raise InputError("file: must be given, none was")
    manifest = models.manifest(model)
    if prompt is not None:
        models.prompt_predictor(model)  # told now, and not after every slice, where it takes no prompts
    paths = receive([sent], folder / "upload")
    if len(paths) > 1:
        raise InputError(f"{Path(sent).name}: must hold one scan, got {len(paths)}; send them one by one")
    with without_paths(*paths):
        scan = read_scan(paths[0])
        prompt_index = None if prompt is None else _prompt_slice(prompt, scan)
        answers = list[ModelAnswer]()
        for index in range(scan.slices):
            picture = scan.picture(index, manifest.input.depth)
            answer = models.ask(model, picture, picture_name=scan.slice_name(index), runs=1)
            if prompt is not None and index == prompt_index:
                answer = _answer_prompt(
                    models, model, answer, picture, prompt, picture_name=scan.slice_name(index)
                )
            answers.append(answer.at(threshold))
        masks = np.stack([answer.mask for answer in answers])
        asked = next((prompt_record(p, i) for i, a in enumerate(answers) if (p := a.prompt_summary)), None)
        sha256, reference = models.sha256(model), models.reference_for(manifest.classes)
        files = list[Path]()
        if formats:
            files = write_mask_files(
                scan,
                masks,
                manifest,
                files_folder,
                formats,
                threshold=threshold,
                bundle_sha256=sha256,
                reference=reference,
                prompt=asked,
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
        "prompt": asked,
        "engine_ms": sum(answer.times.engine_ms for answer in answers),
        "note": "research use only, not a medical device",
    }
    return record, files


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
