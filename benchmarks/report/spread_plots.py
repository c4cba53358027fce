"""How far values lie apart, a row a model: Dice of every case, time of every call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.report.drawing import INK, colour, mark_log_axis, new_axes, shortened, styled, to_svg
from benchmarks.report.record import CaseRecord, Record
from segcore import words


@styled()
def plot_distribution(scores: Sequence[Sequence[CaseRecord]], names: Sequence[str]) -> str:
    """Dice of every case; the bar is the median, the box holds the middle half.

    Args:
        scores: one sequence a model.
        names: of all models in the report's order, which gives their colours.
    """
    figure, axes = new_axes("spread", 4.7, _height(len(scores)))
    rows = [(cases[0].name, np.array([score.dice_mean for score in cases])) for cases in scores]
    _draw_rows(axes, rows, names)
    axes.set_xlabel("Dice of a case")
    said = "; ".join(f"{name}: median {np.median(values):.3f}" for name, values in rows)
    return to_svg(figure, "spread", f"Distribution of Dice over cases. {said}")


@styled()
def plot_latency(records: Sequence[Record], names: Sequence[str]) -> str:
    """Time of every timed call, picture to mask, on a log axis; the bar is the median, the box holds the middle half.

    Args:
        records: of one thread count, with their calls.
        names: of all models in the report's order.
    """
    figure, axes = new_axes("latency", 4.7, _height(len(records)))
    axes.set_xscale("log")
    rows = [(record.name, np.array(record.end_to_end_ms_sorted)) for record in records]
    _draw_rows(axes, rows, names)
    low, high = min(v.min() for _, v in rows) / 1.1, max(v.max() for _, v in rows) * 1.1
    mark_log_axis(axes, low, high)
    axes.set_xlabel("picture to mask, milliseconds a call (log scale)")
    said = "; ".join(f"{name}: median {words.figures(float(np.median(v)))} ms" for name, v in rows)
    return to_svg(figure, "latency", f"Distribution of the time a call took. {said}")


def _height(rows: int) -> float:
    return max(2.2, 0.75 + 0.52 * rows)


def _draw_rows(axes: Any, rows: Sequence[tuple[str, np.ndarray]], names: Sequence[str]) -> None:
    noise = np.random.default_rng(0)
    for row, (name, values) in enumerate(rows):
        k = names.index(name)
        q1, median, q3 = np.percentile(values, (25, 50, 75))
        axes.barh(row, q3 - q1, 0.5, left=q1, color=colour(k), alpha=0.3, zorder=2)
        shifted = row + noise.uniform(-0.18, 0.18, len(values))
        axes.plot(values, shifted, "o", color=colour(k), markersize=3, alpha=0.7, zorder=3)
        axes.plot([median, median], [row - 0.25, row + 0.25], color=INK, linewidth=1.6, zorder=4)
        axes.text(0, row - 0.34, shortened(name, 48), fontsize=8.5, transform=axes.get_yaxis_transform())
    axes.set_yticks([])
    axes.set_ylim(len(rows) - 0.5, -0.75)
    axes.spines["left"].set_visible(False)
