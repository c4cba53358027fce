"""How well a model knows its own Dice, and what passing on the least sure cases gains; numpy alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict

from segcore.metrics import bootstrap_interval

DRAWS = 1000


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class CaseRow(_Part):
    """One picture under one condition; Dice and quality are 0–1, means over classes."""

    condition: str
    case: str
    patient: str
    quality: float
    dice_student: float
    dice_teacher: float


class Estimate(_Part):
    """A number with its 95 % interval over patients; None where it cannot be computed (one patient, no spread)."""

    value: float | None
    low: float | None = None
    high: float | None = None


class Condition(_Part):
    """The student's estimate of its Dice against the true one, over the cases of one condition.

    Attributes:
        condition: clean, a degradation, or the name of the other data.
        mae: mean absolute error of the estimate.
        poor: share of cases whose true Dice is below the threshold.
        flagged: share whose estimate is.
        auroc: how well the estimate tells poor cases from the others: 0.5 is chance, 1 perfect.
    """

    condition: str
    cases: int
    patients: int
    quality_mean: float
    dice_student: float
    dice_teacher: float
    spearman: Estimate
    pearson: Estimate
    mae: Estimate
    poor: float
    flagged: float
    auroc: float | None


class AtThreshold(_Part):
    """What `--below` does to the cases of a curve.

    Attributes:
        sent: share of cases that go to the teacher.
        dice: mean Dice of the pair.
        latency_ms: mean time of a picture.
        dice_kept: the student's mean Dice on what it keeps; None if it keeps nothing.
        dice_sent: the student's mean Dice on what it sends; None if it sends nothing.
        dice_sent_teacher: the teacher's on the same cases.
    """

    sent: float
    dice: float
    latency_ms: float
    dice_kept: float | None
    dice_sent: float | None
    dice_sent_teacher: float | None


class Curve(_Part):
    """Mean Dice of the pair when q % of the cases go to the teacher, q = 0, 1, … 100.

    Attributes:
        of: the conditions that it is over.
        least_sure: the q % with the lowest estimates.
        random: on average over all choices of q %.
        oracle: the q % whose Dice rises most; nobody knows these beforehand.
        latency_ms: mean time of a picture: the student's, and the teacher's for q % of them.
        at_threshold: where `--below` lies on it.
    """

    of: tuple[str, ...]
    cases: int
    least_sure: tuple[float, ...]
    random: tuple[float, ...]
    oracle: tuple[float, ...]
    latency_ms: tuple[float, ...]
    at_threshold: AtThreshold


def condition_of(rows: Sequence[CaseRow], below: float) -> Condition:
    """Summarises the cases of one condition."""
    quality, dice = np.array([r.quality for r in rows]), np.array([r.dice_student for r in rows])
    patients = [r.patient for r in rows]
    errors = np.abs(quality - dice)
    low, high = bootstrap_interval(errors, patients) if len(set(patients)) > 1 else (None, None)
    return Condition(
        condition=rows[0].condition,
        cases=len(rows),
        patients=len(set(patients)),
        quality_mean=float(quality.mean()),
        dice_student=float(dice.mean()),
        dice_teacher=float(np.mean([r.dice_teacher for r in rows])),
        spearman=correlation(quality, dice, patients, spearman),
        pearson=correlation(quality, dice, patients, pearson),
        mae=Estimate(value=float(errors.mean()), low=low, high=high),
        poor=float((dice < below).mean()),
        flagged=float((quality < below).mean()),
        auroc=auroc(-quality, dice < below),
    )


def pearson(a: np.ndarray, b: np.ndarray) -> float | None:
    """Pearson's correlation; None where one of the two does not vary."""
    a, b = a - a.mean(), b - b.mean()
    spread = float(np.sqrt((a**2).sum() * (b**2).sum()))
    return float((a * b).sum()) / spread if spread > 1e-12 else None


def spearman(a: np.ndarray, b: np.ndarray) -> float | None:
    """Spearman's rank correlation, equal values sharing their mean rank; None where one does not vary."""
    return pearson(ranks(a), ranks(b))


def ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1; equal values share the mean of theirs."""
    _, group, counts = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(counts) - (counts - 1) / 2)[group])


def auroc(score: np.ndarray, positive: np.ndarray) -> float | None:
    """Chance that a positive has a higher score than a negative; None without both."""
    n, m = int(positive.sum()), int((~positive).sum())
    if not n or not m:
        return None
    return float((ranks(score)[positive].sum() - n * (n + 1) / 2) / (n * m))


def correlation(
    a: np.ndarray,
    b: np.ndarray,
    patients: Sequence[str],
    kind: Callable[[np.ndarray, np.ndarray], float | None],
) -> Estimate:
    """A correlation with its 95 % percentile interval, resampling patients."""
    value = kind(a, b)
    names, group = np.unique(np.asarray(patients), return_inverse=True)
    if value is None or len(names) < 2:
        return Estimate(value=value)
    members = [np.flatnonzero(group == k) for k in range(len(names))]
    rng = np.random.default_rng(0)
    drawn = []
    for _ in range(DRAWS):
        picks = np.concatenate([members[k] for k in rng.integers(0, len(names), len(names))])
        found = kind(a[picks], b[picks])
        if found is not None:
            drawn.append(found)
    if not drawn:
        return Estimate(value=value)
    low, high = np.percentile(drawn, (2.5, 97.5))
    return Estimate(value=value, low=float(low), high=float(high))


def curve_of(rows: Sequence[CaseRow], *, below: float, student_ms: float, teacher_ms: float) -> Curve:
    """The deferral curve over all `rows`, with chance and the best possible order beside it."""
    quality = np.array([r.quality for r in rows])
    student, teacher = np.array([r.dice_student for r in rows]), np.array([r.dice_teacher for r in rows])
    gain = teacher - student
    shares = np.linspace(0.0, 1.0, 101)
    sent = quality < below
    return Curve(
        of=tuple(dict.fromkeys(r.condition for r in rows)),
        cases=len(rows),
        least_sure=_swept(student, gain, np.argsort(quality, kind="stable"), shares),
        random=tuple((student.mean() + shares * gain.mean()).tolist()),
        oracle=_swept(student, gain, np.argsort(-gain, kind="stable"), shares),
        latency_ms=tuple((student_ms + shares * teacher_ms).tolist()),
        at_threshold=AtThreshold(
            sent=float(sent.mean()),
            dice=float(np.where(sent, teacher, student).mean()),
            latency_ms=student_ms + float(sent.mean()) * teacher_ms,
            dice_kept=_mean(student[~sent]),
            dice_sent=_mean(student[sent]),
            dice_sent_teacher=_mean(teacher[sent]),
        ),
    )


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if len(values) else None


def _swept(student: np.ndarray, gain: np.ndarray, order: np.ndarray, shares: np.ndarray) -> tuple[float, ...]:
    """Mean Dice when the first of `order` are replaced; a share between two cases is interpolated."""
    total = student.sum() + np.concatenate([[0.0], np.cumsum(gain[order])])
    return tuple((np.interp(shares * len(gain), np.arange(len(gain) + 1), total) / len(gain)).tolist())
