"""What the models say about one picture, and in words: how far they are apart, and how long they took."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median
from time import perf_counter

import numpy as np

from demo.session.prompt_summary import PromptSummary
from runtime.predictor import Prediction, Predictor
from segcore.bundle.manifest import Manifest
from segcore.bundle.story import PRECISION_WORDS
from segcore.measure.metrics import dice_per_class, disagreement
from segcore.picture.preprocess import decide

MAX_RUNS, MAX_SECONDS = 5, 1.0


@dataclass(frozen=True)
class Times:
    """Medians over several runs on one picture, in milliseconds."""

    pre_ms: float
    engine_ms: float
    post_ms: float
    total_ms: float
    runs: int


@dataclass(frozen=True)
class ModelAnswer:
    """What one model says about one picture.

    Attributes:
        manifest: the model's.
        engine: name and version of the engine that ran it.
        mask: H×W uint8, at the picture's own size.
        foreground: probability of each foreground class, K×H×W float32, 0–1.
        times: how long it took.
        quality: the Dice, 0–1, that the model expects of its mask; None where it does not estimate it.
        prompt_summary: what the reader asked, where the mask answers a prompt; None for the automatic mask. The times
            are the automatic mask's all the same.
    """

    manifest: Manifest
    engine: str
    mask: np.ndarray
    foreground: np.ndarray
    times: Times
    quality: float | None = None
    prompt_summary: PromptSummary | None = None

    def at(self, threshold: float | None) -> ModelAnswer:
        """The same answer with the mask drawn at another threshold, 0–1; None: at the model's own.

        A model of several classes has none.
        """
        output = self.manifest.output
        if threshold is None or output.activation != "sigmoid":
            return self
        mask = decide(self.foreground, output.model_copy(update={"threshold": threshold}))
        return replace(self, mask=mask)


def ask_model(predictor: Predictor, image: np.ndarray, *, name: str, max_runs: int = MAX_RUNS) -> ModelAnswer:
    """Predicts a few times, so that one hiccup of the machine does not decide the times shown.

    Args:
        predictor: the opened model.
        image: as `Predictor.predict` takes it.
        name: what an error calls the picture.
        max_runs: fewer where a second is over; 1 where the times do not matter.

    Raises:
        InputError: the model cannot take this picture.
    """
    # The first run always counts, however slow it is; each further one only while the reader would not notice.
    start, runs = perf_counter(), list[Prediction]()
    while not runs or (len(runs) < max_runs and perf_counter() - start < MAX_SECONDS):
        runs.append(predictor.predict(image, name=name))
    last = runs[-1]
    return ModelAnswer(
        manifest=predictor.manifest,
        engine=f"{predictor.engine_name} {predictor.engine_version}",
        mask=last.mask,
        # One channel is the foreground itself; of several, the first is the background.
        foreground=last.probabilities if len(last.probabilities) == 1 else last.probabilities[1:],
        times=Times(
            pre_ms=median(r.timings.pre_ms for r in runs),
            engine_ms=median(r.timings.engine_ms for r in runs),
            post_ms=median(r.timings.post_ms for r in runs),
            total_ms=median(r.timings.total_ms for r in runs),
            runs=len(runs),
        ),
        quality=last.quality,
    )


def have_same_classes(a: ModelAnswer, b: ModelAnswer) -> bool:
    """Whether two models look for the same things."""
    return a.manifest.classes == b.manifest.classes


def speed_words(reference_ms: float, ms: float) -> str:
    """How a time compares to the reference's: "4.0 times faster"."""
    ratio = reference_ms / ms
    if ratio >= 1.05:
        return f"{ratio:.1f} times faster"
    return f"{1 / ratio:.1f} times slower" if ratio <= 1 / 1.05 else "as fast"


def timing_note(answers: Sequence[ModelAnswer]) -> str:
    """How the times were taken."""
    runs = min(answer.times.runs for answer in answers)
    return f"Times: median of {runs} run{'s' * (runs > 1)} on this computer, opening the file not counted."


def apart_words(a: ModelAnswer, b: ModelAnswer) -> str:
    """One sentence on how much two masks differ."""
    share = 100 * disagreement(a.mask, b.mask)
    dice = dice_per_class(a.mask, b.mask, len(a.manifest.classes)).mean()
    if share == 0:
        return "The two masks are the same in every pixel."
    return f"The two masks differ in {share:.2g} % of the pixels (overlap, Dice: {dice:.3f})."


def size_mib(manifest: Manifest) -> float:
    """Size of the model itself, see `Manifest.model_bytes`."""
    return manifest.model_bytes / 2**20


def speed_rows(names: Sequence[str], answers: Sequence[ModelAnswer]) -> list[list[str]]:
    """Time by stage and size, as rows of text: a heading row, then one property a row, one model a column.

    Args:
        names: what the models are called.
        answers: theirs.
    """
    return [
        ["", *names],
        ["Time for this picture", *(f"{a.times.total_ms:.1f} ms" for a in answers)],
        [" preparing the picture", *(f"{a.times.pre_ms:.1f} ms" for a in answers)],
        [" the network", *(f"{a.times.engine_ms:.1f} ms" for a in answers)],
        [" drawing the mask", *(f"{a.times.post_ms:.1f} ms" for a in answers)],
        ["Parameters", *(f"{a.manifest.parameters:,}" for a in answers)],
        ["Size on disk", *(f"{size_mib(a.manifest):.1f} MiB" for a in answers)],
        ["Precision", *(PRECISION_WORDS[a.manifest.precision] for a in answers)],
        ["Runs on", *(a.engine for a in answers)],
    ]


def model_title(manifest: Manifest) -> str:
    """A model's heading: its part and its name, which may begin with the part."""
    part = manifest.kind.capitalize()
    return manifest.name if manifest.name.startswith(f"{part} ") else f"{part}: {manifest.name}"
