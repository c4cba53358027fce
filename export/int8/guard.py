"""The accuracy guard: returns layers to float until INT8 keeps its Dice, the most sensitive first, in few steps.

One loop for every engine: it knows a graph with its ranges (`export.int8.guard.CalibratedGraph`) and what
a model file
loses in the engine that will run it (`export.int8.judge`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from export.int8.judge import Judgement
from segcore.bundle.guard_record import FloatLayer, GuardStep, LayerSensitivity, points_text

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
