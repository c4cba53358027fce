"""What a reader asks promptable models about one slice, step by step: points, a box, undo, start over."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from demo.session.answers import ModelAnswer
from demo.session.models import Models
from demo.session.prompt_summary import PromptSummary
from segcore.errors import InputError
from segcore.picture.prompts import Prompt

if TYPE_CHECKING:
    from runtime.promptable import EncodedImage, PromptAnswer


class PromptStep(BaseModel):
    """What the reader did in the viewer.

    Attributes:
        act: what was done; "class" chooses what the prompt is for, and starts over.
        x: column of a point, in the picture's own pixels.
        y: its row.
        inside: whether the point is on the thing.
        box: left, top, right, bottom.
        class_name: what the prompt is for.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    act: Literal["point", "box", "undo", "over", "class"]
    x: float = 0.0
    y: float = 0.0
    inside: bool = True
    box: tuple[float, float, float, float] | None = None
    class_name: str = ""


@dataclass
class PromptDialogue:
    """The questions about one slice and their answers. Under its session's lock.

    One prompt is for all the promptable models that are shown: so they are compared on the same question.

    Attributes:
        models: the served ones.
        model_names: of the promptable ones that are shown.
        picture_of: of a model's name, as that model takes it.
        picture_name: what an error calls the picture.
        engine: to run them; None for each bundle's own.
        class_name: what the prompt is for.
        questions: so far, the last is the one that is answered; () for the automatic masks.
        handled: steps taken, refused ones too, so that the viewer knows which answer it has.
    """

    models: Models
    model_names: tuple[str, ...]
    picture_of: Callable[[str], np.ndarray]
    picture_name: str
    engine: str | None = None
    class_name: str = ""
    questions: tuple[Prompt, ...] = ()
    handled: int = 0
    _encoded_images: dict[str, EncodedImage] = field(default_factory=dict)
    _prompt_answers: dict[str, PromptAnswer] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.class_name not in self.classes:
            self.class_name = next(iter(self.classes), "")

    @property
    def classes(self) -> tuple[str, ...]:
        """What a prompt can be for."""
        return tuple(dict.fromkeys(c for n in self.model_names for c in self.models.manifest(n).classes))

    @property
    def slots(self) -> int:
        """Points that the least able of the models takes; a box is two."""
        return min((s.slots for n in self.model_names if (s := self.models.manifest(n).prompt)), default=0)

    @property
    def prompt(self) -> Prompt:
        """What is asked now; without points and box where nothing is."""
        return self.questions[-1] if self.questions else Prompt()

    def take_step(self, step: PromptStep) -> None:
        """Does what the reader did.

        Raises:
            InputError: the prompt lies outside the picture, has too many points, or nobody here takes one; then
                everything is as it was before.
        """
        self.handled += 1
        if not self.model_names:
            raise InputError("prompt: must go to a model that takes clicks, none is shown; choose one")
        now = self.prompt
        if step.act == "point":
            self.ask_prompt(now.model_copy(update={"points": (*now.points, (step.x, step.y, step.inside))}))
        elif step.act == "box":
            self.ask_prompt(now.model_copy(update={"box": step.box}))
        elif step.act == "undo":
            self._ask_again(self.questions[:-1])
        elif step.act == "over":
            self._ask_again(())
        else:
            self.choose_class(step.class_name)

    def ask_prompt(self, prompt: Prompt) -> None:
        """One more question: every model answers it, mending its last answer where it can."""
        questions = (*self.questions, prompt)
        # Kept only when every model has answered: a prompt that is refused leaves everything as it was.
        found = self._ask_models(prompt, self._prompt_answers if len(_since_last_box(questions)) > 1 else {})
        self.questions, self._prompt_answers = questions, found

    def choose_class(self, class_name: str) -> None:
        """What the prompt is for; another class starts over.

        Raises:
            InputError: no model knows it.
        """
        if class_name not in self.classes:
            raise InputError(f"prompt: must be for one of {', '.join(self.classes)}, got {class_name}")
        if class_name != self.class_name:
            self._ask_again(())
        self.class_name = class_name

    def answer_of(self, name: str, automatic: ModelAnswer) -> ModelAnswer:
        """A model's answer to the prompt, or its automatic one where nothing was asked of it."""
        found = self._prompt_answers.get(name)
        if found is None:
            return automatic
        times = found.timings
        summary = PromptSummary(
            questions=_since_last_box(self.questions),
            class_name=self.class_name,
            estimated_iou=found.estimated_iou,
            look_ms=times.pre_ms + times.encoder_ms,
            answer_ms=times.decoder_ms + times.post_ms,
        )
        return _replace_prompted_class(automatic, found, summary)

    def _ask_again(self, questions: tuple[Prompt, ...]) -> None:
        """Asks anew what led to an answer, because a model may mend the one before."""
        found: dict[str, PromptAnswer] = {}
        for prompt in _since_last_box(questions):
            found = self._ask_models(prompt, found)
        self.questions, self._prompt_answers = questions, found

    def _ask_models(self, prompt: Prompt, before: dict[str, PromptAnswer]) -> dict[str, PromptAnswer]:
        found = {}
        for name in self.model_names:
            if self.class_name not in self.models.manifest(name).classes:
                continue
            predictor, lock = self.models.prompt_predictor(name, self.engine)
            with lock:
                if name not in self._encoded_images:
                    # The encoder runs once a slice, the decoder once a question.
                    self._encoded_images[name] = predictor.look(self.picture_of(name), name=self.picture_name)
                found[name] = predictor.answer(self._encoded_images[name], prompt, before=before.get(name))
        return found


def _replace_prompted_class(answer: ModelAnswer, found: PromptAnswer, summary: PromptSummary) -> ModelAnswer:
    """A model's automatic answer with one class as the prompt found it, and the other classes as they were.

    The prompt wins where it meets another class. The model's estimate of its Dice goes: it judged the automatic mask.
    """
    k = answer.manifest.classes.index(summary.class_name) + 1
    mask = np.where(answer.mask == k, 0, answer.mask)
    mask = np.where(found.mask == 1, k, mask).astype(np.uint8)
    foreground = answer.foreground.copy()
    foreground[k - 1] = found.probability[0]
    return replace(answer, mask=mask, foreground=foreground, quality=None, prompt_summary=summary)


def _since_last_box(questions: tuple[Prompt, ...]) -> tuple[Prompt, ...]:
    """The last questions in which only points were added: another box is a new beginning."""
    start = len(questions) - 1
    while start > 0 and questions[start - 1].box == questions[-1].box:
        start -= 1
    return questions[max(start, 0) :]


def prompt_json(dialogue: PromptDialogue) -> dict[str, Any] | None:
    """What the viewer needs to offer and draw prompts; None where no model that is shown takes one."""
    if not dialogue.model_names:
        return None
    prompt = dialogue.prompt
    return {
        "classes": list(dialogue.classes),
        "class": dialogue.class_name,
        "slots": dialogue.slots,
        "points": [list(point) for point in prompt.points],
        "box": None if prompt.box is None else list(prompt.box),
        "questions": len(dialogue.questions),
        "handled": dialogue.handled,
    }
