"""What a reader asks promptable models about one slice, step by step: points, a box, undo, start over."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from demo.compare import Answer
from demo.models import Models
from demo.prompted import Prompted
from segcore.errors import InputError
from segcore.prompts import Prompt

if TYPE_CHECKING:
    from runtime.promptable import EncodedImage, PromptAnswer


class Step(BaseModel):
    """What the reader did in the viewer.

    Attributes:
        act: what was done; "class" chooses what the prompt is for, and starts over.
        x: column of a point, in the picture's own pixels.
        y: its row.
        inside: whether the point is on the thing.
        box: left, top, right, bottom.
        class_name: what the prompt is for.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    act: Literal["point", "box", "undo", "over", "class"]
    x: float = 0.0
    y: float = 0.0
    inside: bool = True
    box: tuple[float, float, float, float] | None = None
    class_name: str = ""


@dataclass
class Prompting:
    """The questions about one slice and their answers. Under its session's lock.

    One prompt is for all the promptable models that are shown: so they are compared on the same question.

    Attributes:
        models: the served ones.
        names: of the promptable ones that are shown.
        picture: of a model's name, as that model takes it.
        called: what an error calls the picture.
        engine: to run them; None for each bundle's own.
        class_name: what the prompt is for.
        questions: so far, the last is the one that is answered; () for the automatic masks.
        handled: steps taken, refused ones too, so that the viewer knows which answer it has.
    """

    models: Models
    names: tuple[str, ...]
    picture: Callable[[str], np.ndarray]
    called: str
    engine: str | None = None
    class_name: str = ""
    questions: tuple[Prompt, ...] = ()
    handled: int = 0
    _looked: dict[str, EncodedImage] = field(default_factory=dict)
    _found: dict[str, PromptAnswer] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.class_name not in self.classes:
            self.class_name = next(iter(self.classes), "")

    @property
    def classes(self) -> tuple[str, ...]:
        """What a prompt can be for."""
        return tuple(dict.fromkeys(c for n in self.names for c in self.models.manifest(n).classes))

    @property
    def slots(self) -> int:
        """Points that the least able of the models takes; a box is two."""
        return min((s.slots for n in self.names if (s := self.models.manifest(n).prompt)), default=0)

    @property
    def prompt(self) -> Prompt:
        """What is asked now; without points and box where nothing is."""
        return self.questions[-1] if self.questions else Prompt()

    def take(self, step: Step) -> None:
        """Does what the reader did.

        Raises:
            InputError: the prompt lies outside the picture, has too many points, or nobody here takes one; then
                everything is as it was before.
        """
        self.handled += 1
        if not self.names:
            raise InputError("prompt: must go to a model that takes clicks, none is shown; choose one")
        now = self.prompt
        if step.act == "point":
            self.ask(now.model_copy(update={"points": (*now.points, (step.x, step.y, step.inside))}))
        elif step.act == "box":
            self.ask(now.model_copy(update={"box": step.box}))
        elif step.act == "undo":
            self._back_to(self.questions[:-1])
        elif step.act == "over":
            self._back_to(())
        else:
            self.choose_class(step.class_name)

    def ask(self, prompt: Prompt) -> None:
        """One more question: every model answers it, mending its last answer where it can."""
        questions = (*self.questions, prompt)
        found = self._answers(prompt, self._found if len(_line_of(questions)) > 1 else {})
        self.questions, self._found = questions, found

    def choose_class(self, class_name: str) -> None:
        """What the prompt is for; another class starts over.

        Raises:
            InputError: no model knows it.
        """
        if class_name not in self.classes:
            raise InputError(f"prompt: must be for one of {', '.join(self.classes)}, got {class_name}")
        if class_name != self.class_name:
            self._back_to(())
        self.class_name = class_name

    def shown(self, name: str, automatic: Answer) -> Answer:
        """A model's answer to the prompt, or its automatic one where nothing was asked of it."""
        found = self._found.get(name)
        if found is None:
            return automatic
        times = found.timings
        prompted = Prompted(
            questions=_line_of(self.questions),
            class_name=self.class_name,
            estimated_iou=found.estimated_iou,
            look_ms=times.pre_ms + times.encoder_ms,
            answer_ms=times.decoder_ms + times.post_ms,
        )
        return _replace_prompted_class(automatic, found, prompted)

    def _back_to(self, questions: tuple[Prompt, ...]) -> None:
        """Asks anew what led to an answer, because a model may mend the one before."""
        found: dict[str, PromptAnswer] = {}
        for prompt in _line_of(questions):
            found = self._answers(prompt, found)
        self.questions, self._found = questions, found

    def _answers(self, prompt: Prompt, before: dict[str, PromptAnswer]) -> dict[str, PromptAnswer]:
        found = {}
        for name in self.names:
            if self.class_name not in self.models.manifest(name).classes:
                continue
            predictor, lock = self.models.prompt_predictor(name, self.engine)
            with lock:
                if name not in self._looked:
                    self._looked[name] = predictor.look(self.picture(name), name=self.called)
                found[name] = predictor.answer(self._looked[name], prompt, before=before.get(name))
        return found


def _replace_prompted_class(answer: Answer, found: PromptAnswer, prompted: Prompted) -> Answer:
    """A model's automatic answer with one class as the prompt found it, and the other classes as they were.

    The prompt wins where it meets another class. The model's estimate of its Dice goes: it judged the automatic mask.
    """
    k = answer.manifest.classes.index(prompted.class_name) + 1
    mask = np.where(answer.mask == k, 0, answer.mask)
    mask = np.where(found.mask == 1, k, mask).astype(np.uint8)
    foreground = answer.foreground.copy()
    foreground[k - 1] = found.probability[0]
    return replace(answer, mask=mask, foreground=foreground, quality=None, prompted=prompted)


def _line_of(questions: tuple[Prompt, ...]) -> tuple[Prompt, ...]:
    """The last questions in which only points were added: another box is a new beginning."""
    start = len(questions) - 1
    while start > 0 and questions[start - 1].box == questions[-1].box:
        start -= 1
    return questions[max(start, 0) :]


def prompt_payload(prompting: Prompting) -> dict[str, Any] | None:
    """What the viewer needs to offer and draw prompts; None where no model that is shown takes one."""
    if not prompting.names:
        return None
    prompt = prompting.prompt
    return {
        "classes": list(prompting.classes),
        "class": prompting.class_name,
        "slots": prompting.slots,
        "points": [list(point) for point in prompt.points],
        "box": None if prompt.box is None else list(prompt.box),
        "questions": len(prompting.questions),
        "handled": prompting.handled,
    }
