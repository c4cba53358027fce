"""The accuracy guard: returns layers to float until INT8 keeps its Dice, the most sensitive first, in few steps.

One loop for every engine. It knows a graph with its ranges, of which any choice of layers can be written in INT8
(`export.model_file.CalibratedGraph`), and what a model file loses on labelled cases in the engine that will run it
(`Judge`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from export.job import Bounds
from export.model_file import CalibratedGraph
from runtime.engines.seam import Engine
from segcore.bundle.guard_record import DiceScore, FloatLayer, GuardStep, LayerSensitivity, points_text
from segcore.bundle.manifest import Manifest
from segcore.command import Progress
from segcore.dataset.case import Case
from segcore.measure.metrics import dice_per_class
from segcore.picture.preprocess import InputSpec, mask_of_logits, prepare
from teacher.settings import WITHOUT_ATTENTION

POINT = 0.01
"""Of Dice, which is 0–1."""
MAX_FLOAT_SHARE = 0.5
"""Of the layers; past it the model is no longer an INT8 model, whatever its file is called."""


@dataclass(frozen=True)
class Judgement:
    """One model on the guard's cases.

    Attributes:
        int8: its Dice.
        drop_points: mean Dice lost against FP32, in points; negative where it gained.
        p05_drop_points: of the 5th percentile over cases.
        error: relative RMS error of its logits.
    """

    int8: DiceScore
    drop_points: float
    p05_drop_points: float
    error: float

    def keeps(self, bounds: Bounds) -> bool:
        """Whether both drops are within the bounds."""
        return self.drop_points <= bounds.drop_points and self.p05_drop_points <= bounds.p05_drop_points


class Judge:
    """The guard's cases, held ready, with FP32's answers.

    Attributes:
        fp32: Dice of FP32 through the engine.
        inputs: the prepared pictures, each 1×H×W×C uint8.
        engine_version: of the library that ran them.
    """

    def __init__(
        self,
        cases: Sequence[Case],
        manifest: Manifest,
        fp32_path: Path,
        open_model: Callable[[Path], Engine],
        *,
        spec: InputSpec | None = None,
    ) -> None:
        """Reads the cases once and runs FP32 on them.

        Args:
            cases: labelled, of the validation split.
            manifest: its output and classes.
            fp32_path: model file of the same network in FP32.
            open_model: opens a model file with the engine.
            spec: the model's input; by default the manifest's.
        """
        self._manifest, self._open = manifest, open_model
        self.inputs, self._truths = [], []
        for case in cases:
            self.inputs.append(prepare(case.image(), spec or manifest.input, name=f"case {case.id}")[None])
            self._truths.append(case.mask())
        self._reference = self._run_model(fp32_path)
        self.fp32 = self._score_logits(self._reference)

    def judge(self, path: Path) -> Judgement:
        """Runs a model file of the same network on the cases."""
        logits = self._run_model(path)
        score = self._score_logits(logits)
        squares = sum(float(((a - b) ** 2).sum()) for a, b in zip(logits, self._reference, strict=True))
        power = sum(float((b**2).sum()) for b in self._reference)
        return Judgement(
            int8=score,
            drop_points=(self.fp32.mean - score.mean) / POINT,
            p05_drop_points=(self.fp32.p05 - score.p05) / POINT,
            error=float(np.sqrt(squares / power)) if power else float("inf"),
        )

    def _run_model(self, path: Path) -> list[np.ndarray]:
        with closing(self._open(path)) as engine:
            self.engine_version = engine.version
            return [engine.run(picture)[0] for picture in self.inputs]

    def _score_logits(self, logits: Sequence[np.ndarray]) -> DiceScore:
        dice = case_dice(logits, self._truths, self._manifest)
        return DiceScore(mean=float(np.mean(dice)), p05=float(np.percentile(dice, 5)))


@dataclass(frozen=True)
class Trial:
    """A model with some layers in float: what it loses, and the record of it."""

    judged: Judgement
    step: GuardStep


@dataclass(frozen=True)
class FloatChoice:
    """Which layers were returned to float, and how they were found.

    Attributes:
        in_float: the layers that are in float in the model that was written last, the most sensitive first.
        trial: of that model.
        steps: what was tried, in order.
        sensitivity: of every layer, the most sensitive first.
    """

    in_float: tuple[str, ...]
    trial: Trial
    steps: tuple[GuardStep, ...]
    sensitivity: tuple[LayerSensitivity, ...]

    def float_layers(self) -> tuple[FloatLayer, ...]:
        """Each layer in float, with the reason."""
        by_name = {one.layer: one for one in self.sensitivity}
        return tuple(
            FloatLayer(
                layer=name,
                why=f"alone in INT8 it costs {points_text(by_name[name].drop_points)} points of Dice "
                f"({points_text(by_name[name].p05_drop_points)} of the 5th percentile); "
                f"logits off by {100 * by_name[name].error:.1f} %",
            )
            for name in self.in_float
        )


def try_layers(
    calibrated: CalibratedGraph,
    judge: Callable[[Path], Judgement],
    bounds: Bounds,
    path: Path,
    *,
    in_float: Sequence[str] = (),
    what: str,
    log: Callable[[str], None],
) -> Trial:
    """Writes a model with these layers in float, and judges it.

    Args:
        calibrated: the graph.
        judge: a model file's loss, through the engine.
        bounds: on the loss.
        path: model file to write.
        in_float: names of layers.
        what: describes the model, for the record.
        log: told of the verdict.
    """
    calibrated.write(path, in_float=in_float)
    judged = judge(path)
    passed = judged.keeps(bounds)
    log(
        f"guard: {what}: Dice {judged.int8.mean:.4f}, {points_text(judged.drop_points)} points lost "
        f"({points_text(judged.p05_drop_points)} of the 5th percentile): {'kept' if passed else 'too much'}"
    )
    step = GuardStep(
        what=what,
        float_layers=len(in_float),
        int8=judged.int8,
        drop_points=judged.drop_points,
        p05_drop_points=judged.p05_drop_points,
        passed=passed,
    )
    return Trial(judged, step)


def return_layers(
    calibrated: CalibratedGraph,
    judge: Callable[[Path], Judgement],
    bounds: Bounds,
    path: Path,
    *,
    what: str = "",
    log: Callable[[str], None],
) -> FloatChoice | None:
    """Finds the fewest layers in float that keep the bounds, and writes that model to `path`.

    Layers are ranked by what each costs when it *alone* computes in 8 bits: where two layers are both at fault,
    returning either one to float shows nothing. 1, 2, 4, … of the worst go back until the bounds hold; the steps that
    are left halve the gap to the last count that failed.

    Args:
        calibrated: the graph; with every layer in INT8 it breaks the bounds.
        judge: a model file's loss, through the engine.
        bounds: on the loss, and on the number of steps.
        path: model file to write; each attempt overwrites it.
        what: of which network, for the record.
        log: told of each step.

    Returns:
        The last model that kept the bounds, else the last that was tried; None if no step is allowed.
    """
    count, most = 1, int(MAX_FLOAT_SHARE * len(calibrated.layers))
    if not bounds.steps or most < count:
        return None
    log(f"guard: ranking {len(calibrated.layers)} layers, each alone in INT8")
    sensitivity = rank_layers(calibrated, judge, path)
    ranked = [one.layer for one in sensitivity]
    trials: dict[int, Trial] = {}
    failed, kept = 0, 0
    for _ in range(bounds.steps):
        if count in trials:  # doubling has come to the most that may be, or halving to two neighbours
            break
        words = f"{count} of {len(ranked)} layers in float{what}"
        trials[count] = try_layers(
            calibrated, judge, bounds, path, in_float=ranked[:count], what=words, log=log
        )
        if trials[count].step.passed:
            kept = count
        else:
            failed = count
        count = (failed + kept + 1) // 2 if kept else min(2 * count, most)
    chosen = kept or failed
    calibrated.write(
        path, in_float=ranked[:chosen]
    )  # again: a later attempt, with fewer layers, may have failed
    steps = tuple(trial.step for trial in trials.values())
    return FloatChoice(tuple(ranked[:chosen]), trials[chosen], steps, sensitivity)


def rank_layers(
    calibrated: CalibratedGraph, judge: Callable[[Path], Judgement], path: Path
) -> tuple[LayerSensitivity, ...]:
    """What each layer costs alone in INT8, the costliest first; ties by the error of the logits.

    Args:
        calibrated: the graph.
        judge: a model file's loss, through the engine.
        path: a model file that may be overwritten.
    """
    found = []
    for layer in Progress(calibrated.layers, "sensitivity", unit="layer"):
        calibrated.write(path, in_float=[other for other in calibrated.layers if other != layer])
        judged = judge(path)
        found.append(
            LayerSensitivity(
                layer=layer,
                drop_points=judged.drop_points,
                p05_drop_points=judged.p05_drop_points,
                error=judged.error,
            )
        )
    # Hundredths of a point are noise of the cases; among those the logits tell more.
    return tuple(
        sorted(found, key=lambda s: (round(max(s.drop_points, s.p05_drop_points), 1), s.error), reverse=True)
    )


def case_dice(
    logits: Sequence[np.ndarray] | np.ndarray, truths: Sequence[np.ndarray], manifest: Manifest
) -> list[float]:
    """Dice of each case, 0–1, mean over classes, at the truth's own size.

    Args:
        logits: N × (K×h×w).
        truths: N masks of class indices, H×W.
        manifest: its output and classes.
    """
    return [
        float(
            dice_per_class(
                mask_of_logits(one, manifest.output, truth.shape), truth, len(manifest.classes)
            ).mean()
        )
        for one, truth in zip(logits, truths, strict=True)
    ]


def has_attention(manifest: Manifest) -> bool:
    """Whether there is an encoder of the SAM family in it: a teacher on another one has none, and no student has."""
    encoder = manifest.architecture_settings.get("encoder")
    return manifest.kind == "teacher" and encoder not in (None, *WITHOUT_ATTENTION)
