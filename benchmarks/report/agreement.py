"""How far two ways of measuring one thing agree: bias and limits of agreement, with intervals over patients.

The numbers first, then the plot of them, then what the report shows: what an area measured from a model's masks is
worth, against the reference model's and against the truth's. It is drawn from `CaseRecord.area_by_class`, per class

    agreement = agreement_of(student_areas, teacher_areas, patients, "mm²")
    svg = bland_altman_svg(agreement, what="area of lung", names=("student", "teacher"))
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measuring import Part
from benchmarks.report.plots import INK, colour, new_axes, new_figure, shortened, styled, to_svg
from benchmarks.report.record import CaseRecord
from segcore import words
from segcore.stats import DRAWS, Estimate, percentile_interval, resampled, sums_by_patient

WITHIN = 1.96
"""Standard deviations to either side that hold 95 % of the differences, if they are normal."""
DRAWN_CLASSES = 3
"""Classes whose areas the report draws."""
_DOTS = colour(0)  # to be seen on light and on dark
_LABELS_APART = 0.11
"""Of the axes' height: two lines of text."""


class Agreement(Part):
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


@dataclass(frozen=True)
class AreaPlot:
    """One Bland–Altman plot.

    Attributes:
        of: the class.
        svg: the plot.
        caption: what it shows, in words.
    """

    of: str
    svg: str
    caption: str


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
    found = _figures_of(per_patient.sum(axis=1))
    ends: list[tuple[float | None, float | None]] = [(None, None)] * len(found)
    if per_patient.shape[1] > 1:
        ends = [
            _finite_interval(values) for values in _figures_of(resampled(per_patient, draws=draws, seed=seed))
        ]
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


def bland_altman_svg(agreement: Agreement, *, what: str, names: tuple[str, str]) -> str:
    """The plot as an `<svg>` element in the page's own text colour.

    Args:
        agreement: of two ways to measure.
        what: is measured, such as "area of lung".
        names: of the first way and of the second, which is subtracted.
    """
    salt = f"agreement-{zlib.crc32('|'.join((what, *names)).encode()):08x}"
    with styled():
        figure, axes = new_axes(salt, 5.4, 3.6)
        _draw_bland_altman(axes, agreement, what, names)
        _name_lines(axes, agreement)
        low, high = (words.signed_figures(e.mean) for e in (agreement.limit_low, agreement.limit_high))
        return to_svg(
            figure,
            salt,
            f"Bland–Altman plot of {what}, {names[0]} minus {names[1]}: mean difference "
            f"{words.signed_figures(agreement.bias.mean)} {agreement.unit}, limits of agreement {low} to {high} "
            f"{agreement.unit}, {agreement.cases} cases. Grey bands are 95 % intervals"
            + (
                "; the dotted line is how the difference rises with the mean."
                if _has_trend(agreement)
                else "."
            ),
        )


def write_panels(path: Path, panels: Sequence[tuple[Agreement, tuple[str, str]]], *, what: str) -> None:
    """Writes a PNG with a plot for each pair of names, all on one scale, two in a row."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    rows = (len(panels) + 1) // 2
    with styled():
        figure = new_figure("agreement", 11.0 if len(panels) > 1 else 5.6, 3.7 * rows)
        FigureCanvasAgg(figure)
        grid = figure.subplots(rows, min(2, len(panels)), squeeze=False, sharex=True, sharey=True).ravel()
        for axes, (agreement, names) in zip(grid, panels, strict=False):
            axes.grid(alpha=0.18)
            _draw_bland_altman(axes, agreement, what, names)
            axes.tick_params(labelbottom=True, labelleft=True)
        for axes, (agreement, _) in zip(grid, panels, strict=False):  # now that the common scale is known
            _name_lines(axes, agreement)
        for axes in grid[len(panels) :]:
            axes.remove()
        figure.savefig(path, dpi=110, facecolor="white")


def plot_areas(scores: Sequence[CaseRecord], reference: Sequence[CaseRecord]) -> list[AreaPlot]:
    """Two plots for each of the first classes: minus the reference model's area, and minus the truth's.

    Args:
        scores: of the model that is judged.
        reference: of the same cases in the same order.

    Returns:
        Nothing for a single case, or where areas were not recorded.
    """
    if len(scores) < 2 or not all(case.area_by_class for case in (*scores, *reference)):
        return []
    patients, name, found = [case.patient for case in scores], scores[0].name, []
    for k in list(scores[0].area_by_class)[:DRAWN_CLASSES]:
        mine = [case.area_by_class[k] for case in scores]
        others = {
            reference[0].name: [case.area_by_class[k] for case in reference],
            "the truth": [case.true_area_by_class[k] for case in scores],
        }
        for other, theirs in others.items():
            agreement = agreement_of(mine, theirs, patients, scores[0].area_unit)
            svg = bland_altman_svg(agreement, what=f"area of {k}", names=(name, other))
            found.append(
                AreaPlot(k, svg, f"Area of {k}, {name} minus {other}: {_agreement_words(agreement)}")
            )
    return found


def _finite_interval(drawn: np.ndarray) -> tuple[float | None, float | None]:
    drawn = drawn[np.isfinite(drawn)]  # a draw of one case has no spread, one of equal means no slope
    return percentile_interval(drawn) if len(drawn) else (None, None)


def _moments(difference: np.ndarray, mean: np.ndarray) -> tuple[np.ndarray, ...]:
    """What each case adds to the sums that all figures follow from."""
    centred = mean - mean.mean()  # the slope is a small difference of large sums otherwise
    one = np.ones_like(mean)
    return one, difference, difference**2, np.abs(difference), centred, centred**2, centred * difference


def _figures_of(sums: np.ndarray) -> tuple[np.ndarray, ...]:
    """Bias, limits, mean size and slope from 7×… sums; NaN where there is no slope."""
    n, d, dd, size, m, mm, md = sums
    with np.errstate(divide="ignore", invalid="ignore"):
        spread = WITHIN * np.sqrt(np.maximum(dd - d * d / n, 0.0) / (n - 1))
        across = mm - m * m / n
        slope = np.where(across > 1e-12 * np.maximum(mm, 1e-300), (md - m * d / n) / across, np.nan)
    return d / n, d / n - spread, d / n + spread, size / n, slope


def _draw_bland_altman(axes: Any, agreement: Agreement, what: str, names: tuple[str, str]) -> None:
    first, second = np.array(agreement.first), np.array(agreement.second)
    mean, unit = (first + second) / 2, agreement.unit
    axes.axhline(0, color=INK, linewidth=0.8, alpha=0.5, zorder=1)
    axes.plot(mean, first - second, "o", color=_DOTS, markersize=4, alpha=0.7, markeredgewidth=0, zorder=2)
    for line, style in ((agreement.limit_high, "--"), (agreement.bias, "-"), (agreement.limit_low, "--")):
        axes.axhline(line.mean, color=INK, linewidth=1.3, linestyle=style, zorder=3)
        if line.low is not None and line.high is not None:
            axes.axhspan(line.low, line.high, color=INK, alpha=0.1, linewidth=0, zorder=0)
    if agreement.slope and _has_trend(agreement):
        ends = np.array([mean.min(), mean.max()])
        trend = agreement.bias.mean + agreement.slope.mean * (ends - mean.mean())
        axes.plot(ends, trend, ":", color=INK, linewidth=1.6, zorder=3)
    axes.margins(y=0.12)
    short = [shortened(name, 26) for name in names]
    axes.set_title(f"{short[0]} against {short[1]}", loc="left", fontsize=9.5)
    axes.set_xlabel(f"{what}, mean of both ({unit})", fontsize=9)
    axes.set_ylabel(f"difference ({unit})", fontsize=9)


def _name_lines(axes: Any, agreement: Agreement) -> None:
    """Names the three lines beside the plot, apart from each other where the lines are not."""
    bottom, top = axes.get_ylim()
    lines = (agreement.limit_low, agreement.bias, agreement.limit_high)
    low, middle, high = ((line.mean - bottom) / (top - bottom) for line in lines)
    places = min(low, middle - _LABELS_APART), middle, max(high, middle + _LABELS_APART)
    labels = f"{words.MINUS}1.96 SD", "mean", "+1.96 SD"
    for line, label, place in zip(lines, labels, places, strict=True):
        text = f"{label}\n{words.signed_figures(line.mean)} {agreement.unit}"
        axes.text(1.01, place, text, transform=axes.transAxes, va="center", fontsize=8.5)


def _has_trend(agreement: Agreement) -> bool:
    """Whether the slope has an interval that leaves 0 out."""
    slope = agreement.slope
    return bool(
        slope and slope.low is not None and slope.high is not None and not slope.low <= 0 <= slope.high
    )


def _agreement_words(agreement: Agreement) -> str:
    """ "on average +223 px (0.275 % of the area); 19 of 20 cases between −2370 and +2810 px."."""
    mean = sum(agreement.first + agreement.second) / (2 * agreement.cases)
    share = f" ({words.percent(abs(agreement.bias.mean) / mean)} of the area)" if mean else ""
    low, high = (words.signed_figures(limit.mean) for limit in (agreement.limit_low, agreement.limit_high))
    average = words.signed_figures(agreement.bias.mean)
    return (
        f"on average {average} {agreement.unit}{share}; 19 of 20 cases between {low} and "
        f"{high} {agreement.unit}, if the differences are normally distributed. Grey: 95 % intervals over patients."
    )
