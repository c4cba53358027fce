"""Dice and IoU at the picture's own size, per case; their mean, spread, interval, and paired difference."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from benchmarks.record import Accuracy, CaseRecord, Difference
from segcore.case import Case
from segcore.metrics import bootstrap_interval, dice_per_class, iou_per_class


def score_case(
    prediction: np.ndarray, case: Case, classes: Sequence[str], *, name: str, engine: str
) -> CaseRecord:
    """Scores one mask, H×W class indices, against the case's own."""
    truth = case.mask()
    dice = dice_per_class(prediction, truth, len(classes))
    iou = iou_per_class(prediction, truth, len(classes))
    return CaseRecord(
        name=name,
        engine=engine,
        case=case.id,
        patient=case.patient,
        dice_mean=float(dice.mean()),
        iou_mean=float(iou.mean()),
        dice_by_class=dict(zip(classes, dice.tolist(), strict=True)),
        iou_by_class=dict(zip(classes, iou.tolist(), strict=True)),
    )


def summarise(scores: Sequence[CaseRecord]) -> Accuracy:
    """Mean over classes per case, then over cases; intervals resample patients."""
    patients = [score.patient for score in scores]
    dice = [score.dice_mean for score in scores]
    iou = [score.iou_mean for score in scores]
    dice_low, dice_high = interval(dice, patients)
    iou_low, iou_high = interval(iou, patients)
    classes = list(scores[0].dice_by_class)
    return Accuracy(
        cases=len(scores),
        patients=len(set(patients)),
        dice_mean=float(np.mean(dice)),
        dice_p05=float(np.percentile(dice, 5)),
        dice_low=dice_low,
        dice_high=dice_high,
        dice_by_class={k: float(np.mean([s.dice_by_class[k] for s in scores])) for k in classes},
        iou_mean=float(np.mean(iou)),
        iou_low=iou_low,
        iou_high=iou_high,
        iou_by_class={k: float(np.mean([s.iou_by_class[k] for s in scores])) for k in classes},
    )


def paired_difference(scores: Sequence[CaseRecord], reference: Sequence[CaseRecord]) -> Difference:
    """Mean of Dice minus the reference's Dice, case by case, with its interval over patients."""
    if [s.case for s in scores] != [r.case for r in reference]:
        raise ValueError("paired scores must be of the same cases in the same order")
    differences = [s.dice_mean - r.dice_mean for s, r in zip(scores, reference, strict=True)]
    low, high = interval(differences, [s.patient for s in scores])
    return Difference(mean=float(np.mean(differences)), low=low, high=high)


def interval(values: Sequence[float], patients: Sequence[str]) -> tuple[float, float] | tuple[None, None]:
    """The bootstrap interval over patients; none for a single patient, whose resamples are all the same."""
    return bootstrap_interval(values, patients) if len(set(patients)) > 1 else (None, None)
