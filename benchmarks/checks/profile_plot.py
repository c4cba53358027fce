"""Draws a profile: one stacked bar a model, a colour a kind of layer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.checks.layers import KINDS
from benchmarks.checks.profile import SHARE_GOAL, Profiled
from segcore import words

_COLOURS = ("#0072b2", "#56b4e9", "#004c7a", "#999999", "#e69f00", "#d55e00", "#009e73", "#cc79a7", "#cccccc")
"""One a kind, blues for what multiplies. Source: Okabe and Ito, Color universal design, 2008."""
_WRITTEN = 0.045
"""Shares below are too narrow for their number."""


def draw_profiles(found: Sequence[Profiled], path: Path) -> None:
    """Writes a PNG with the share of time by kind of layer, the first model on top."""
    figure = Figure(figsize=(9.6, 1.7 + 0.62 * len(found)), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    shown = [kind for kind in KINDS if any(one.profile.share(kind) > 0 for one in found)]
    left = [0.0] * len(found)
    for kind in shown:
        colour = _COLOURS[KINDS.index(kind)]
        shares = [one.profile.share(kind) for one in found]
        axes.barh(range(len(found)), shares, left=left, height=0.62, color=colour, label=kind, zorder=2)
        for row, (start, share) in enumerate(zip(left, shares, strict=True)):
            if share >= _WRITTEN:
                dark = KINDS.index(kind) in (0, 2, 5, 6)
                axes.text(
                    start + share / 2,
                    row,
                    f"{100 * share:.0f}",
                    ha="center",
                    va="center",
                    fontsize=9,
                    color="white" if dark else "black",
                )
        left = [start + share for start, share in zip(left, shares, strict=True)]
    axes.axvline(SHARE_GOAL, color="black", linewidth=1, linestyle="--", zorder=3)
    axes.set_yticks(range(len(found)), [_label(one) for one in found])
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.set_xticks([0, 0.2, 0.4, 0.6, 0.8, 1.0], ["0", "20", "40", "60", "80", "100"])
    axes.set_xlabel("% of the model's time by kind of layer; dashed: the goal for convolutions")
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(axis="y", length=0)
    figure.legend(loc="outside upper center", ncols=min(5, len(shown)), frameon=False, fontsize=9)
    figure.savefig(path)


def _label(one: Profiled) -> str:
    reached = f"convolutions at {100 * one.share_of_peak:.0f} % of peak"
    return f"{one.name}\n{words.figures(one.profile.latency_ms)} ms, {reached}"
