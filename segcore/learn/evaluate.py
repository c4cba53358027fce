"""What a network is worth on validation cases: Dice, threshold and temperature, and pictures for a reader.

Masks are scored at the pictures' own size, through the path that deployment takes.
"""

from __future__ import annotations

import copy
import csv
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import nn

from segcore.command import log
from segcore.dataset.case import Case
from segcore.learn.network import DeployGraph
from segcore.measure.metrics import dice_per_class
from segcore.picture.overlay import error_map, outlines, overlay, sheet
from segcore.picture.preprocess import (
    InputSpec,
    OutputSpec,
    activate,
    mask_of_logits,
    prepare,
    probabilities,
    resize_logits,
    through_window,
)
from segcore.picture.quality import (
    THRESHOLDS,
    Calibration,
    choose_threshold,
    dice_at,
    expected_calibration_error,
    fit_temperature,
    reliability_rows,
)

CalibrationMethod = Literal["none", "threshold", "temperature"]
ScoredCase = tuple[float, Case, np.ndarray, np.ndarray]
"""Mean Dice over classes, case, predicted and true mask."""
_PIXELS_A_CASE = 2000  # of each case, for the temperature and the expected calibration error
_EXAMPLE_CASES = 6
_OUTLINED_CASES = 4


class Validator:
    """Scores a network on cases; their prepared pictures are kept, their masks are read each time."""

    def __init__(
        self, cases: Sequence[Case], spec: InputSpec, output: OutputSpec, classes: int, *, batch: int
    ) -> None:
        self.cases, self.spec, self.output = tuple(cases), spec, output
        self.classes, self.batch = classes, batch
        self.pictures = [prepare(case.image(), spec, name=f"image {case.id}") for case in cases]

    def with_output(self, output: OutputSpec) -> Validator:
        """The same cases, decided by another threshold."""
        other = copy.copy(self)
        other.output = output
        return other

    def predictions(self, network: nn.Module) -> Iterator[tuple[Case, np.ndarray, np.ndarray]]:
        """(case, predicted mask, true mask) at the case's own size."""
        return self.masks_of(self.logits(network))

    def masks_of(
        self, answers: Iterable[tuple[Case, np.ndarray]]
    ) -> Iterator[tuple[Case, np.ndarray, np.ndarray]]:
        """`predictions` from what `logits` gave."""
        for case, logits in answers:
            truth = case.mask()
            yield case, mask_of_logits(logits, self.output, (truth.shape[0], truth.shape[1])), truth

    def logits(self, network: nn.Module) -> Iterator[tuple[Case, np.ndarray]]:
        """(case, logits K×h×w at the head's stride)."""
        device = next(network.parameters()).device
        graph = DeployGraph(network, self.spec).to(device).eval()
        for start in range(0, len(self.cases), self.batch):
            pictures = torch.from_numpy(np.stack(self.pictures[start : start + self.batch])).to(device)
            with torch.inference_mode():
                logits = graph(pictures).float().cpu().numpy()
            yield from zip(self.cases[start : start + self.batch], logits, strict=True)

    def outlines(self, network: nn.Module) -> np.ndarray:
        """Some cases side by side, spread over all, H×W×3 uint8: true borders in orange, predicted ones in blue."""
        some, picks = copy.copy(self), self.outlined()
        some.cases, some.pictures = tuple(self.cases[i] for i in picks), [self.pictures[i] for i in picks]
        return self.outlines_of(some.logits(network))

    def outlined(self) -> list[int]:
        """Places of the cases that `outlines` shows."""
        count = min(_OUTLINED_CASES, len(self.cases))
        picks: list[int] = np.unique(np.linspace(0, len(self.cases) - 1, count).astype(int)).tolist()
        return picks

    def outlines_of(self, answers: Iterable[tuple[Case, np.ndarray]]) -> np.ndarray:
        """`outlines` from what `logits` gave of the cases that are `outlined`."""
        row = [
            outlines(through_window(case.image(), self.spec), prediction, truth)
            for case, prediction, truth in self.masks_of(answers)
        ]
        return np.asarray(sheet([row], ["truth orange, prediction blue"]))

    def dice(self, network: nn.Module) -> float:
        """Mean Dice over classes, then cases."""
        return self.dice_of(self.logits(network))

    def dice_of(self, answers: Iterable[tuple[Case, np.ndarray]]) -> float:
        """`dice` from what `logits` gave."""
        scores = [dice_per_class(p, t, self.classes).mean() for _, p, t in self.masks_of(answers)]
        return float(np.mean(scores))


def score_cases(validator: Validator, answers: Iterable[tuple[Case, np.ndarray]]) -> list[ScoredCase]:
    """Scores what `Validator.logits` gave, case by case."""
    return [
        (float(dice_per_class(prediction, truth, validator.classes).mean()), case, prediction, truth)
        for case, prediction, truth in validator.masks_of(answers)
    ]


def calibrate(
    answers: Sequence[tuple[Case, np.ndarray]],
    output: OutputSpec,
    how: CalibrationMethod,
    *,
    between: tuple[float, float] = (0.05, 0.95),
) -> tuple[OutputSpec, Calibration | None]:
    """The output spec with what was chosen, and how.

    A temperature changes probabilities and no mask; the threshold is chosen after it.

    Args:
        answers: (case, logits) from `Validator.logits`, of cases that were not trained on.
        output: the network's, so far.
        how: none, the threshold (models of one class), or temperature and threshold.
        between: lowest and highest threshold to choose.
    """
    binary = output.activation == "sigmoid"
    if how == "none":
        return output, None
    pixels, wanted = _sample_pixels(answers)
    temperature = fit_temperature(pixels, wanted) if how == "temperature" else 1.0
    output = output.model_copy(update={"temperature": temperature})
    tried = [t for t in THRESHOLDS if between[0] <= t <= between[1]] if binary else []
    dice = np.zeros(len(tried))
    for case, logits in answers if binary else ():
        truth = case.mask()
        probability = probabilities(logits, output, (truth.shape[0], truth.shape[1]))
        dice += dice_at(probability[0], truth, tried) / len(answers)
    if binary:
        output = output.model_copy(update={"threshold": choose_threshold(tried, dice.tolist())})
        log(f"threshold {output.threshold:g}, chosen on {len(answers)} validation cases")
    return output, Calibration(
        thresholds=tuple(tried),
        dice=tuple(float(f"{d:.6f}") for d in dice),
        temperature=temperature,
        ece_before=_calibration_error(pixels, wanted, output.model_copy(update={"temperature": 1.0})),
        ece=_calibration_error(pixels, wanted, output),
        cases=len(answers),
    )


def draw_examples(scored: Sequence[ScoredCase], spec: InputSpec, path: Path) -> None:
    """A sheet of the worst, middle and best validation cases: picture, truth, prediction, error map."""
    scored = sorted(scored, key=lambda s: s[0])
    picks = np.unique(np.linspace(0, len(scored) - 1, min(_EXAMPLE_CASES, len(scored))).astype(int))
    rows = []
    for i in picks:
        _, case, prediction, truth = scored[i]
        image = through_window(case.image(), spec)
        rows.append(
            [image, overlay(image, truth), overlay(image, prediction), error_map(image, prediction, truth)]
        )
    sheet(rows, ["image", "truth", "prediction (worst case first)", "missed orange, extra blue"]).save(path)


def draw_curves(history_csv: Path, path: Path) -> None:
    """Loss and validation Dice by epoch."""
    from matplotlib.figure import Figure  # without pyplot, which keeps figures and looks for a display

    with history_csv.open() as file:
        rows = list(csv.DictReader(file))
    epochs = [int(r["epoch"]) for r in rows]
    figure = Figure(figsize=(9, 3.2))
    left, right = figure.subplots(1, 2)
    # Fixed margins: to find them, a layout engine draws everything twice more.
    figure.subplots_adjust(left=0.105, right=0.99, bottom=0.16, top=0.96, wspace=0.22)
    left.plot(epochs, [float(r["loss"]) for r in rows], color="#0072b2")
    left.set(xlabel="epoch", ylabel="training loss", yscale="log")
    dice = [float(r["dice_val"]) for r in rows]
    right.plot(epochs, dice, color="#009e73")
    right.axvline(epochs[int(np.argmax(dice))], color="#d55e00", linestyle=":", label=f"best {max(dice):.4f}")
    right.set(xlabel="epoch", ylabel="validation Dice")
    right.legend()
    figure.savefig(path, dpi=110)


def _sample_pixels(answers: Sequence[tuple[Case, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Logits n×K and true class of some pixels of every case, at the case's own size."""
    random, logits, truths = np.random.default_rng(0), [], []
    for case, one in answers:
        truth = case.mask()
        picked = random.integers(0, truth.size, _PIXELS_A_CASE)
        full = resize_logits(one, (truth.shape[0], truth.shape[1]))
        logits.append(full.reshape(len(one), -1)[:, picked].T)
        truths.append(truth.ravel()[picked])
    return np.concatenate(logits), np.concatenate(truths)


def _calibration_error(logits: np.ndarray, truth: np.ndarray, output: OutputSpec) -> float:
    """Expected calibration error of sampled pixels: logits n×K, truth n."""
    p = activate(logits.T[:, :, None], output)[:, :, 0]  # K n
    if output.activation == "sigmoid":
        return expected_calibration_error(reliability_rows(p[0], truth == 1))
    return expected_calibration_error(reliability_rows(p.max(0), p.argmax(0) == truth))
