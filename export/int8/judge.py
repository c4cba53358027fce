"""Dice through the engine that will run it: what INT8 loses against FP32 on labelled validation cases."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from runtime.engines.seam import Engine
from segcore.bundle.guard_record import DiceScore
from segcore.bundle.manifest import Manifest
from segcore.dataset.case import Case
from segcore.measure.metrics import dice_per_class
from segcore.picture.preprocess import InputSpec, mask_of_logits, prepare

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
