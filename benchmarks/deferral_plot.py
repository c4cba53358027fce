"""One picture: the estimate against the true Dice, and what passing on the least sure cases gains."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.deferral_numbers import CaseRow, Curve

if TYPE_CHECKING:
    from benchmarks.deferral import DeferralRecord

# Okabe and Ito, Color Universal Design, 2008; yellow is left out, it is lost on white.
_COLOURS = ("#000000", "#e69f00", "#56b4e9", "#009e73", "#cc79a7", "#0072b2", "#d55e00", "#999999")
_MARKERS = "os^vDPX*"
_LEAST = 0.012
"""1 − Dice at the axes' end; what is better is drawn there."""
_TICKS = [1.0, 0.8, 0.5, 0.3, 0.2, 0.1, 0.05, 0.03, 0.02]
_BELOW: dict[str, Any] = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.13), "frameon": False}


def draw_deferral(record: DeferralRecord, rows: Sequence[CaseRow], path: Path) -> None:
    """Writes the PNG.

    Args:
        record: what was measured.
        rows: its cases.
        path: file to write.
    """
    figure = Figure(figsize=(16, 6), layout="constrained")
    FigureCanvasAgg(figure)
    scatter, *curves = figure.subplots(
        1, 1 + len(record.curves), width_ratios=[1.15] + [1.0] * len(record.curves)
    )
    _draw_scatter(scatter, record, rows)
    for axes, curve in zip(curves, record.curves, strict=True):
        _draw_curve(axes, curve, record)
    load = (
        ""
        if record.other_load_share is None
        else f", others took {record.other_load_share:.0%} of the processor"
    )
    figure.suptitle(
        f"{record.student}  →  {record.teacher};  {record.threads} thread{'s' * (record.threads > 1)}: "
        f"{record.student_ms:.1f} and {record.teacher_ms:.1f} ms a picture{load}",
        fontsize=10,
    )
    figure.savefig(path, dpi=110)


def _draw_scatter(axes: Any, record: DeferralRecord, rows: Sequence[CaseRow]) -> None:
    """Both axes are 1 − Dice, logarithmic and turned round: most cases lie between 0.9 and 1."""
    axes.plot([1, _LEAST], [1, _LEAST], color="#888888", linewidth=1, zorder=1)
    axes.axhline(1 - record.below, color="#888888", linewidth=1, linestyle=":", zorder=1)
    axes.text(
        0.9,
        0.96 * (1 - record.below),
        f"estimates below {record.below:g} are passed on",
        fontsize=8,
        va="bottom",
    )
    for i, condition in enumerate(record.conditions):
        mine = [r for r in rows if r.condition == condition.condition]
        rho = condition.spearman.value
        kind = " (kind seen in the fit)" if condition.condition in record.seen else ""
        words = f"{condition.condition}{kind}: "
        words += "nothing to mark" if rho is None else f"ρ {rho:.2f}, error {condition.mae.value:.3f}"
        axes.scatter(
            [max(1 - r.dice_student, _LEAST) for r in mine],
            [max(1 - r.quality, _LEAST) for r in mine],
            s=13,
            alpha=0.5,
            linewidths=0,
            color=_COLOURS[i % len(_COLOURS)],
            marker=_MARKERS[i % len(_MARKERS)],
            label=words,
            zorder=3 if i else 4,
        )
    labels = [f"{1 - tick:g}" for tick in _TICKS]
    for axis, scale in ((axes.xaxis, axes.set_xscale), (axes.yaxis, axes.set_yscale)):
        scale("log")
        axis.set_ticks(_TICKS, labels)
        axis.set_ticks([], minor=True)
    axes.set(xlim=(1.1, _LEAST), ylim=(1.1, _LEAST))
    axes.set(xlabel="true Dice", ylabel="Dice as the student estimates it")
    axes.set_title("Does it know? Each dot is a test picture", fontsize=11)
    legend = axes.legend(fontsize=8, ncols=2, **_BELOW)
    for handle in legend.legend_handles:
        handle.set_alpha(1.0)
    _tidy(axes)


def _draw_curve(axes: Any, curve: Curve, record: DeferralRecord) -> None:
    percent = list(range(101))
    axes.plot(percent, curve.oracle, color="#999999", linestyle="--", label="best possible order (oracle)")
    axes.plot(percent, curve.least_sure, color="#0072b2", linewidth=2.2, label="least sure first")
    axes.plot(percent, curve.random, color="#d55e00", linestyle=":", linewidth=1.8, label="random order")
    at = curve.at_threshold
    words = f"below {record.below:g}: {at.sent:.0%} sent, Dice {at.dice:.4f}, {at.latency_ms:.1f} ms"
    axes.plot([100 * at.sent], [at.dice], "o", color="#0072b2", markersize=8, zorder=5, label=words)
    axes.set(
        xlim=(-2, 102), xlabel="share of cases sent to the second model (%)", ylabel="mean Dice of the pair"
    )
    start, end = curve.latency_ms[0], curve.latency_ms[-1]
    time = axes.secondary_xaxis(
        "top",
        functions=(lambda q: start + q / 100 * (end - start), lambda ms: (ms - start) / (end - start) * 100),
    )
    time.set_xlabel("mean time of a picture (ms)", fontsize=9)
    time.tick_params(labelsize=8)
    name = (
        "Clean test cases"
        if len(curve.of) == 1
        else f"Clean and degraded ({len(curve.of)} conditions, equal shares)"
    )
    axes.set_title(name, fontsize=11)
    axes.legend(fontsize=8, ncols=2, **_BELOW)
    _tidy(axes)


def _tidy(axes: Any) -> None:
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["right"]].set_visible(False)
