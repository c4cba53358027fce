"""Bland–Altman plots: difference against mean, with bias and limits of agreement and how sure they are."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg

from benchmarks.report.agreement import Agreement
from benchmarks.report.drawing import INK, colour, new_axes, new_figure, shortened, styled, to_svg
from segcore.words import MINUS, signed_figures

_POINTS = colour(0)  # to be seen on light and on dark
_APART = 0.11
"""Of the axes' height: two lines of text."""


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
        _draw(axes, agreement, what, names)
        _write_lines(axes, agreement)
        low, high = (signed_figures(e.mean) for e in (agreement.limit_low, agreement.limit_high))
        return to_svg(
            figure,
            salt,
            f"Bland–Altman plot of {what}, {names[0]} minus {names[1]}: mean difference "
            f"{signed_figures(agreement.bias.mean)} {agreement.unit}, limits of agreement {low} to {high} "
            f"{agreement.unit}, {agreement.cases} cases. Grey bands are 95 % intervals"
            + ("; the dotted line is how the difference rises with the mean." if _trends(agreement) else "."),
        )


def write_panels(path: Path, panels: Sequence[tuple[Agreement, tuple[str, str]]], *, what: str) -> None:
    """Writes a PNG with a plot for each pair of names, all on one scale, two in a row."""
    rows = (len(panels) + 1) // 2
    with styled():
        figure = new_figure("agreement", 11.0 if len(panels) > 1 else 5.6, 3.7 * rows)
        FigureCanvasAgg(figure)
        grid = figure.subplots(rows, min(2, len(panels)), squeeze=False, sharex=True, sharey=True).ravel()
        for axes, (agreement, names) in zip(grid, panels, strict=False):
            axes.grid(alpha=0.18)
            _draw(axes, agreement, what, names)
            axes.tick_params(labelbottom=True, labelleft=True)
        for axes, (agreement, _) in zip(grid, panels, strict=False):  # now that the common scale is known
            _write_lines(axes, agreement)
        for axes in grid[len(panels) :]:
            axes.remove()
        figure.savefig(path, dpi=110, facecolor="white")


def _draw(axes: Any, agreement: Agreement, what: str, names: tuple[str, str]) -> None:
    first, second = np.array(agreement.first), np.array(agreement.second)
    mean, unit = (first + second) / 2, agreement.unit
    axes.axhline(0, color=INK, linewidth=0.8, alpha=0.5, zorder=1)
    axes.plot(mean, first - second, "o", color=_POINTS, markersize=4, alpha=0.7, markeredgewidth=0, zorder=2)
    for line, style in ((agreement.limit_high, "--"), (agreement.bias, "-"), (agreement.limit_low, "--")):
        axes.axhline(line.mean, color=INK, linewidth=1.3, linestyle=style, zorder=3)
        if line.low is not None and line.high is not None:
            axes.axhspan(line.low, line.high, color=INK, alpha=0.1, linewidth=0, zorder=0)
    if agreement.slope and _trends(agreement):
        ends = np.array([mean.min(), mean.max()])
        trend = agreement.bias.mean + agreement.slope.mean * (ends - mean.mean())
        axes.plot(ends, trend, ":", color=INK, linewidth=1.6, zorder=3)
    axes.margins(y=0.12)
    short = [shortened(name, 26) for name in names]
    axes.set_title(f"{short[0]} against {short[1]}", loc="left", fontsize=9.5)
    axes.set_xlabel(f"{what}, mean of both ({unit})", fontsize=9)
    axes.set_ylabel(f"difference ({unit})", fontsize=9)


def _write_lines(axes: Any, agreement: Agreement) -> None:
    """Names the three lines beside the plot, apart from each other where the lines are not."""
    bottom, top = axes.get_ylim()
    lines = (agreement.limit_low, agreement.bias, agreement.limit_high)
    low, middle, high = ((line.mean - bottom) / (top - bottom) for line in lines)
    places = min(low, middle - _APART), middle, max(high, middle + _APART)
    labels = f"{MINUS}1.96 SD", "mean", "+1.96 SD"
    for line, label, place in zip(lines, labels, places, strict=True):
        text = f"{label}\n{signed_figures(line.mean)} {agreement.unit}"
        axes.text(1.01, place, text, transform=axes.transAxes, va="center", fontsize=8.5)


def _trends(agreement: Agreement) -> bool:
    """Whether the slope has an interval that leaves 0 out."""
    slope = agreement.slope
    return bool(
        slope and slope.low is not None and slope.high is not None and not slope.low <= 0 <= slope.high
    )
