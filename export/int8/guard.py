"""The accuracy guard: returns layers to float until INT8 keeps its Dice, the most sensitive first, in few steps.

One loop for every engine: it knows a graph with its ranges (`export.int8.guard.CalibratedGraph`) and what
a model file
loses in the engine that will run it (`export.int8.guard`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from runtime.engines.seam import Engine
from segcore.bundle.guard_record import DiceScore, FloatLayer, GuardStep, LayerSensitivity, points_text
from segcore.bundle.manifest import Manifest
from segcore.dataset.case import Case
from segcore.measure.metrics import dice_per_class
from segcore.picture.preprocess import InputSpec, mask_of_logits, prepare
from teacher.settings import CONTROLS

MAX_FLOAT_SHARE = 0.5
"""Of the layers; past it the model is no longer an INT8 model, whatever its file is called."""


@dataclass(frozen=True)
class Bounds:
    """What INT8 may lose, and how long the guard may try.

    Attributes:
        drop_points: of mean Dice.
        p05_drop_points: of the 5th percentile over cases.
        steps: attempts with layers in float.
    """

    drop_points: float
    p05_drop_points: float
    steps: int

    def allow(self, judged: Judgement) -> bool:
        """Whether both drops are within the bounds."""
        return judged.drop_points <= self.drop_points and judged.p05_drop_points <= self.p05_drop_points


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
    passed = bounds.allow(judged)
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
        if count in trials:
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
    calibrated.write(path, in_float=ranked[:chosen])
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
    from tqdm import tqdm

    found = []
    for layer in tqdm(calibrated.layers, desc="sensitivity", unit="layer", mininterval=1.0, disable=None):
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


# One calibration, many models: what the INT8 guard knows of a quantiser.


class CalibratedGraph(Protocol):
    """A graph whose ranges are known, so that any choice of its layers can be written in INT8 without new data.

    Two quantisers give one: `export.int8.qdq` for TensorRT, and OpenVINO's for its own format. The guard returns layers
    to float by their names until the masks are good enough; it knows nothing else of either.
    """

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers that can be quantised, in the graph's order; each name once, the same in every run.

        A layer is an operator with weights (convolution, linear), or an Add or Concat with quantised inputs.
        """
        ...

    def write(self, path: Path, *, in_float: Collection[str] = ()) -> None:
        """Writes the model.

        The same call writes the same file. No call changes what later ones write.

        Args:
            path: file to write, in a folder that is there; what belongs to it goes beside it.
            in_float: names from `layers` that compute in float. Every other layer is quantised, as far as the
                engine's rules allow: an Add or Concat whose reader is in float needs no quantised inputs.

        Raises:
            ValueError: a name that is not in `layers`.
        """
        ...


# Which networks have attention: they are quantised in another way, and their graphs hold the
# batch.


def has_attention(manifest: Manifest) -> bool:
    """Every teacher has SAM 2's, but the controls, which are U-Nets; no student has any."""
    return manifest.kind == "teacher" and manifest.architecture not in CONTROLS


# Dice through the engine that will run it: what INT8 loses against FP32 on labelled validation
# cases.

POINT = 0.01  # of Dice


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
        self._reference = self._run(fp32_path)
        self.fp32 = self._score(self._reference)

    def judge(self, path: Path) -> Judgement:
        """Runs a model file of the same network on the cases."""
        logits = self._run(path)
        score = self._score(logits)
        squares = sum(float(((a - b) ** 2).sum()) for a, b in zip(logits, self._reference, strict=True))
        power = sum(float((b**2).sum()) for b in self._reference)
        return Judgement(
            int8=score,
            drop_points=(self.fp32.mean - score.mean) / POINT,
            p05_drop_points=(self.fp32.p05 - score.p05) / POINT,
            error=float(np.sqrt(squares / power)) if power else float("inf"),
        )

    def _run(self, path: Path) -> list[np.ndarray]:
        with closing(self._open(path)) as engine:
            self.engine_version = engine.version
            return [engine.run(picture)[0] for picture in self.inputs]

    def _score(self, logits: Sequence[np.ndarray]) -> DiceScore:
        dice = case_dice(logits, self._truths, self._manifest)
        return DiceScore(mean=float(np.mean(dice)), p05=float(np.percentile(dice, 5)))
