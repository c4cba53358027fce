"""Scores at the picture's own size, per case; their mean, spread, interval, and paired difference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from benchmarks.report.record import Accuracy, CaseRecord, Difference
from segcore.dataset.case import Case
from segcore.measure.metrics import dice_per_class, hd95_per_class, iou_per_class, small_parts_found
from segcore.stats import Estimate, interval

SMALL_PX = 50
"""Area in pixels below which a part of the truth counts as small, unless told otherwise."""


def distance_unit(cases: Sequence[Case]) -> Literal["px", "mm"]:
    """Millimetres where every case knows its spacing, else pixels: one unit for all, as they are averaged."""
    return "mm" if all(case.spacing_mm for case in cases) else "px"


def score_case(
    prediction: np.ndarray,
    case: Case,
    classes: Sequence[str],
    *,
    name: str,
    engine: str,
    unit: Literal["px", "mm"] = "px",
    small_px: int = SMALL_PX,
) -> CaseRecord:
    """Scores one mask, H×W class indices, against the case's own."""
    truth = case.mask()
    dice = dice_per_class(prediction, truth, len(classes))
    iou = iou_per_class(prediction, truth, len(classes))
    spacing = (case.spacing_mm if unit == "mm" else None) or (1.0, 1.0)
    hd95 = hd95_per_class(prediction, truth, len(classes), spacing=spacing)
    found, parts = small_parts_found(prediction, truth, len(classes), below_px=small_px)
    areas, true_areas = (_class_areas(mask, classes, spacing) for mask in (prediction, truth))
    return CaseRecord(
        name=name,
        engine=engine,
        case=case.id,
        patient=case.patient,
        dice_mean=float(dice.mean()),
        iou_mean=float(iou.mean()),
        dice_by_class=dict(zip(classes, dice.tolist(), strict=True)),
        iou_by_class=dict(zip(classes, iou.tolist(), strict=True)),
        hd95_unit=unit,
        hd95_mean=float(hd95.mean()),
        hd95_by_class=dict(zip(classes, hd95.tolist(), strict=True)),
        small_found=dict(zip(classes, found.tolist(), strict=True)),
        small_parts=dict(zip(classes, parts.tolist(), strict=True)),
        area_unit="mm²" if unit == "mm" else "px",
        area_by_class=areas,
        true_area_by_class=true_areas,
    )


def _class_areas(mask: np.ndarray, classes: Sequence[str], spacing: tuple[float, float]) -> dict[str, float]:
    """Area of each foreground class: pixels times the square of the spacing's unit."""
    pixels = np.bincount(mask.ravel(), minlength=len(classes) + 1)[1 : len(classes) + 1]
    return {k: float(f"{n * spacing[0] * spacing[1]:.6g}") for k, n in zip(classes, pixels, strict=True)}


def summarise_scores(scores: Sequence[CaseRecord], *, small_px: int = SMALL_PX) -> Accuracy:
    """Mean over classes per case, then over cases; small parts pooled; intervals resample patients."""
    patients = [score.patient for score in scores]
    dice = [score.dice_mean for score in scores]
    iou = [score.iou_mean for score in scores]
    dice_low, dice_high = interval(dice, patients)
    iou_low, iou_high = interval(iou, patients)
    hd95 = [score.hd95_mean for score in scores]
    hd95_low, hd95_high = interval(hd95, patients)
    recall = small_recall([sum(score.small_found.values()) for score in scores], scores)
    classes = list(scores[0].dice_by_class)
    parts = {k: sum(score.small_parts[k] for score in scores) for k in classes}
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
        hd95_unit=scores[0].hd95_unit,
        hd95_mean=float(np.mean(hd95)),
        hd95_low=hd95_low,
        hd95_high=hd95_high,
        hd95_by_class={k: float(np.mean([s.hd95_by_class[k] for s in scores])) for k in classes},
        small_px=small_px,
        small_parts=sum(parts.values()),
        small_recall=recall.mean if recall else None,
        small_recall_low=recall.low if recall else None,
        small_recall_high=recall.high if recall else None,
        small_recall_by_class={
            k: sum(score.small_found[k] for score in scores) / number for k, number in parts.items() if number
        },
    )


def small_recall(found: Sequence[float], scores: Sequence[CaseRecord]) -> Estimate | None:
    """Small parts found out of all, pooled over cases, with an interval over the patients that have some.

    Args:
        found: one a case; with another model's subtracted, the result is the paired difference.
        scores: of the same cases; they know how many parts there are.

    Returns:
        None if there is no such part.
    """
    rows = [
        (value, score.patient, count)
        for value, score in zip(found, scores, strict=True)
        if (count := sum(score.small_parts.values()))
    ]
    if not rows:
        return None
    values, patients, counts = zip(*rows, strict=True)
    low, high = interval(values, patients, counts=counts)
    return Estimate(mean=sum(values) / sum(counts), low=low, high=high)


def recall_difference(scores: Sequence[CaseRecord], reference: Sequence[CaseRecord]) -> Estimate | None:
    """Recall of small parts minus the reference's, on the same parts; None without any."""
    pairs = zip(scores, reference, strict=True)
    return small_recall([sum(s.small_found.values()) - sum(r.small_found.values()) for s, r in pairs], scores)


def paired_difference(scores: Sequence[CaseRecord], reference: Sequence[CaseRecord]) -> Difference:
    """Mean of Dice minus the reference's Dice, case by case, with its interval over patients."""
    if [s.case for s in scores] != [r.case for r in reference]:
        raise ValueError("paired scores must be of the same cases in the same order")
    differences = [s.dice_mean - r.dice_mean for s, r in zip(scores, reference, strict=True)]
    low, high = interval(differences, [s.patient for s in scores])
    return Difference(mean=float(np.mean(differences)), low=low, high=high)
