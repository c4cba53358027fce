"""How far two ways of measuring one thing agree: bias and limits of agreement, with intervals over patients.

The benchmark report draws teacher against student from `CaseRecord.area_by_class`: per class

    agreement = agreement_of(student_areas, teacher_areas, patients, "mm²")
    svg = bland_altman_svg(agreement, what="area of lung", names=("student", "teacher"))  # agreement_plot
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict

from segcore.stats import DRAWS, Estimate, percentile_interval, resampled, sums_by_patient

WITHIN = 1.96
"""Standard deviations to either side that hold 95 % of the differences, if they are normal."""


class Agreement(BaseModel):
    """Bland and Altman's numbers; all differences are the first measurement minus the second, in `unit`.

    Intervals resample patients (95 %, percentiles of the bootstrap); None for a single patient.

    Attributes:
        unit: of the measurements: "mm", "mm²", "px".
        cases: pairs.
        patients: how many they are of.
        bias: mean difference.
        limit_low: lower limit of agreement, bias − 1.96 SD of the differences.
        limit_high: upper limit.
        mean_absolute: mean of the differences' sizes.
        slope: how much the difference rises with each `unit` of the pair's mean: not 0 where the bias is
            proportional; None where all means are equal.
        first: the first way's measurement of each case.
        second: the second's.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    unit: str
    cases: int
    patients: int
    bias: Estimate
    limit_low: Estimate
    limit_high: Estimate
    mean_absolute: Estimate
    slope: Estimate | None
    first: tuple[float, ...]
    second: tuple[float, ...]


def agreement_of(
    first: Sequence[float],
    second: Sequence[float],
    patients: Sequence[str],
    unit: str,
    *,
    draws: int = DRAWS,
    seed: int = 0,
) -> Agreement:
    """Compares two measurements of the same cases.

    A case that one way could not measure has no difference: leave it out and say how many there are. The SD is over
    all cases, also where patients have several.

    Args:
        first: one a case, such as the student's.
        second: one a case, such as the teacher's or the truth.
        patients: of the cases.
        unit: of both.
        draws: resamples of the patients.
        seed: of the resamples.

    Raises:
        ValueError: fewer than two cases, or lengths that differ.

    Source: Bland and Altman, Statistical methods for assessing agreement between two methods of clinical measurement,
        Lancet 327(8476), 1986; the slope: Measuring agreement in method comparison studies, Stat. Methods Med. Res. 8,
        1999, section 3.
    """
    if not len(first) == len(second) == len(patients) >= 2:
        raise ValueError(
            f"must be at least 2 pairs, got {len(first)}, {len(second)} and {len(patients)} patients"
        )
    a, b = np.asarray(first, float), np.asarray(second, float)
    per_patient = np.stack([sums_by_patient(m, patients) for m in _moments(a - b, (a + b) / 2)])  # 7×P
    found = _figures(per_patient.sum(axis=1))
    ends: list[tuple[float | None, float | None]] = [(None, None)] * len(found)
    if per_patient.shape[1] > 1:
        ends = [_interval(values) for values in _figures(resampled(per_patient, draws=draws, seed=seed))]
    bias, limit_low, limit_high, mean_absolute, slope = (
        Estimate(mean=float(value), low=low, high=high)
        for value, (low, high) in zip(found, ends, strict=True)
    )
    return Agreement(
        unit=unit,
        cases=len(a),
        patients=per_patient.shape[1],
        bias=bias,
        limit_low=limit_low,
        limit_high=limit_high,
        mean_absolute=mean_absolute,
        slope=slope if np.isfinite(slope.mean) else None,
        first=tuple(a.tolist()),
        second=tuple(b.tolist()),
    )


def _interval(drawn: np.ndarray) -> tuple[float | None, float | None]:
    drawn = drawn[np.isfinite(drawn)]  # a draw of one case has no spread, one of equal means no slope
    return percentile_interval(drawn) if len(drawn) else (None, None)


def _moments(difference: np.ndarray, mean: np.ndarray) -> tuple[np.ndarray, ...]:
    """What each case adds to the sums that all figures follow from."""
    centred = mean - mean.mean()  # the slope is a small difference of large sums otherwise
    one = np.ones_like(mean)
    return one, difference, difference**2, np.abs(difference), centred, centred**2, centred * difference


def _figures(sums: np.ndarray) -> tuple[np.ndarray, ...]:
    """Bias, limits, mean size and slope from 7×… sums; NaN where there is no slope."""
    n, d, dd, size, m, mm, md = sums
    with np.errstate(divide="ignore", invalid="ignore"):
        spread = WITHIN * np.sqrt(np.maximum(dd - d * d / n, 0.0) / (n - 1))
        across = mm - m * m / n
        slope = np.where(across > 1e-12 * np.maximum(mm, 1e-300), (md - m * d / n) / across, np.nan)
    return d / n, d / n - spread, d / n + spread, size / n, slope
