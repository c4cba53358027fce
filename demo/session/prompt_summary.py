"""What a reader asked a promptable model, beside its answer: in words, and for the record."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from segcore.picture.prompts import Prompt


@dataclass(frozen=True)
class PromptSummary:
    """That a mask, or one class of it, answers a reader's prompt.

    Attributes:
        questions: since the box was drawn, in the order of asking, each with all its points; the mask answers the last.
            The earlier ones matter where a model mends its last answer (`PromptSpec.mask_input`).
        class_name: what the reader asked for; other classes are the model's own.
        estimated_iou: what the model expects of the answer, 0–1; nobody measured it.
        look_ms: the encoder, once a slice.
        answer_ms: the decoder and the mask, once a question.
    """

    questions: tuple[Prompt, ...]
    class_name: str
    estimated_iou: float
    look_ms: float
    answer_ms: float

    @property
    def prompt(self) -> Prompt:
        """The question that the mask answers."""
        return self.questions[-1]


def prompt_words(prompt: Prompt) -> str:
    """ "2 points on it, 1 beside it and a box"."""
    on = sum(inside for *_, inside in prompt.points)
    beside = len(prompt.points) - on
    parts = [f"{on} point{'s' * (on != 1)} on it"] if on else []
    if beside:
        parts.append(f"{beside} beside it" if on else f"{beside} point{'s' * (beside != 1)} beside it")
    if prompt.box is not None:
        parts.append("a box")
    *first, last = parts
    return f"{', '.join(first)} and {last}" if first else last


def prompt_sentence(summary: PromptSummary, classes: int) -> str:
    """One sentence on what is not the model's own doing.

    Args:
        summary: of the mask.
        classes: of the model; of several, the others are its own.
    """
    own = "; other classes are as the model found them alone" if classes > 1 else ""
    return f"{summary.class_name} answers your prompt ({prompt_words(summary.prompt)}){own}."


def iou_sentence(summary: PromptSummary) -> str:
    """The model's estimate, and that it is no more than that."""
    return (
        f"The model's own estimate of the overlap (IoU) with what you meant: {summary.estimated_iou:.2f}. "
        "It is an estimate and not a measurement."
    )


def prompt_record(summary: PromptSummary, slice_index: int) -> dict[str, Any]:
    """For JSON; places in the picture's own pixels, slices counted from 1."""
    return {
        "slice": slice_index + 1,
        "class": summary.class_name,
        "points": [list(point) for point in summary.prompt.points],
        "box": None if summary.prompt.box is None else list(summary.prompt.box),
        "estimated_iou": round(summary.estimated_iou, 4),
        "questions": [one.model_dump(mode="json") for one in summary.questions],
    }
