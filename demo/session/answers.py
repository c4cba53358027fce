"""What the models say about one picture, how far they are apart, and how long they took: numbers and pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median
from time import perf_counter

import numpy as np
from PIL import Image

from demo.session.prompt_summary import PromptSummary
from runtime.predictor import Prediction, Predictor
from segcore.bundle.manifest import Manifest
from segcore.bundle.story import PRECISION_WORDS
from segcore.measure.metrics import dice_per_class, disagreement
from segcore.picture.overlay import as_rgb
from segcore.picture.preprocess import decide

SHOWN_SIDE_PX = 768
MAX_RUNS, MAX_SECONDS = 5, 1.0
# Black, orange, yellow, white: brightness alone carries the order, for colour-blind eyes and grey prints.
_HEAT_LEVELS = np.array([0.0, 0.35, 0.75, 1.0])
_HEAT_COLOURS = np.array([[0, 0, 0], [213, 94, 0], [240, 228, 66], [255, 255, 255]], float)


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


def comparable(a: ModelAnswer, b: ModelAnswer) -> bool:
    """Whether two models look for the same things."""
    return a.manifest.classes == b.manifest.classes


def heat(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """How far two models are apart, H×W, 0–1: the largest difference in probability over the classes.

    Args:
        a: foreground probabilities, K×H×W.
        b: the same of the other model.
    """
    return np.asarray(np.abs(a - b).max(axis=0))


def heat_map(image: np.ndarray, apart: np.ndarray) -> np.ndarray:
    """The picture, dimmed, under the heat; H×W×3 uint8, dark where the models agree."""
    picture = as_rgb(image).astype(float) * 0.45
    levels = [np.interp(apart, _HEAT_LEVELS, _HEAT_COLOURS[:, c]) for c in range(3)]
    opacity = np.clip(apart * 2.5, 0, 1)[..., None]
    return np.round(picture * (1 - opacity) + np.stack(levels, axis=-1) * opacity).astype(np.uint8)


def fit(picture: np.ndarray, side_px: int = SHOWN_SIDE_PX) -> np.ndarray:
    """A picture as H×W×3 uint8, shrunk if it is larger than the page can show."""
    picture = as_rgb(picture)
    if max(picture.shape[:2]) <= side_px:
        return picture
    shown = Image.fromarray(picture)
    shown.thumbnail((side_px, side_px))
    return np.asarray(shown)


def speed_words(reference_ms: float, ms: float) -> str:
    """How a time compares to the reference's: "4.0 times faster"."""
    ratio = reference_ms / ms
    if ratio >= 1.05:
        return f"{ratio:.1f} times faster"
    return f"{1 / ratio:.1f} times slower" if ratio <= 1 / 1.05 else "as fast"


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


def title(manifest: Manifest) -> str:
    """A model's heading: its part and its name, which may begin with the part."""
    part = manifest.kind.capitalize()
    return manifest.name if manifest.name.startswith(f"{part} ") else f"{part}: {manifest.name}"
