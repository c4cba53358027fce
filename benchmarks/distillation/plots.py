"""The plots of the comparison: every network, Dice against the share of the labels, and how the trainings went."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.distillation.plan import share_words
from benchmarks.distillation.record import DistillationRecord, Row, RunRecord
from benchmarks.report.plots import (
    INK,
    colour,
    label_shares,
    line_style,
    marker,
    new_axes,
    new_figure,
    shortened,
    styled,
)

CAPTIONS = {
    "shares": "Mark: mean over the seeds. Bar: 95 % interval over patients and seeds. Dots: every seed. Marks of one "
    "share stand beside each other so that their bars show.",
    "networks": "Large mark: mean over the seeds, FP32. Hollow: INT8. Bar: 95 % interval over patients and seeds. "
    "Dots: every seed.",
    "curves": "Validation Dice along each training, every seed. A training whose curve still rises at the end was too "
    "short.",
}


def draw_plots(record: DistillationRecord) -> dict[str, tuple[Any, str]]:
    """The plots that there are figures for: name → (figure, what it shows in words)."""
    arms = list(dict.fromkeys(row.what for row in record.rows))
    plots = {}
    if len({row.share for row in record.rows}) > 1:
        plots["shares"] = plot_shares(record.rows, arms)
    plots["networks"] = plot_networks(record.rows, arms)
    if any(len(run.curve) > 1 for run in record.runs):
        plots["curves"] = plot_curves(record.rows, record.runs, arms)
    return plots


@styled()
def plot_shares(rows: Sequence[Row], arms: Sequence[str]) -> tuple[Any, str]:
    """Dice against the share of the labels (log), a line an arm.

    Args:
        rows: of the table.
        arms: what they are without the share, in the order of their colours.
    """
    figure, axes = new_axes("shares", 9.2, 4.8)
    said = []
    for k, arm in enumerate(arms):
        line = sorted((row for row in rows if row.what == arm), key=lambda row: row.share)
        aside = 1.03 ** (k - (len(arms) - 1) / 2)  # apart, so that intervals show
        x = [100 * row.share * aside for row in line]
        for at, row in zip(x, line, strict=True):
            _draw_seeds(axes, [at] * len(row.dice.by_seed), row.dice.by_seed)
            if row.dice.low is not None:
                axes.plot(
                    [at, at], [row.dice.low, row.dice.high], color=colour(k), linewidth=4, alpha=0.3, zorder=2
                )
        style = f"{line_style(k)}{marker(k)}"
        means = [row.dice.mean for row in line]
        axes.plot(
            x, means, style, color=colour(k), markersize=7, linewidth=1.6, label=shortened(arm), zorder=3
        )
        said.append(f"{arm} " + ", ".join(f"{r.dice.mean:.3f} at {100 * r.share:g} %" for r in line))
    label_shares(figure, axes, [row.share for row in rows])
    return figure, f"Dice against the share of labelled training patients: {'; '.join(said)}"


@styled()
def plot_networks(rows: Sequence[Row], arms: Sequence[str]) -> tuple[Any, str]:
    """A line a network: its mean with the interval, a dot for each seed, and INT8 beside it."""
    figure, axes = new_axes("networks", 9.2, 1.0 + 0.46 * len(rows))
    for y, row in enumerate(rows):
        k = arms.index(row.what)
        if row.dice.low is not None:
            axes.plot(
                [row.dice.low, row.dice.high], [y, y], color=colour(k), linewidth=5, alpha=0.3, zorder=2
            )
        spread = np.linspace(-0.16, 0.16, len(row.dice.by_seed)) if len(row.dice.by_seed) > 1 else np.zeros(1)
        _draw_seeds(axes, row.dice.by_seed, y + spread)
        axes.plot(row.dice.mean, y, marker(k), color=colour(k), markersize=10, zorder=3)
        if row.int8:
            axes.plot(
                row.int8.mean,
                y + 0.24,
                marker(k),
                color=colour(k),
                markersize=7,
                markerfacecolor="none",
                zorder=3,
            )
    axes.set_yticks(range(len(rows)), [shortened(row.label, 52) for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlabel("Dice on test patients")
    said = "; ".join(f"{row.label} {row.dice.mean:.3f}" for row in rows)
    return figure, f"Dice of every network: {said}"


@styled()
def plot_curves(rows: Sequence[Row], runs: Sequence[RunRecord], arms: Sequence[str]) -> tuple[Any, str]:
    """Validation Dice along each training, a panel for each share of the labels."""
    shares = sorted({row.share for row in rows})
    what = {row.label: row.what for row in rows}
    figure = new_figure("curves", 3.4 + 4.2 * len(shares), 3.9)
    panels = figure.subplots(1, len(shares), squeeze=False, sharey=True)[0]
    named = set[str]()
    for axes, share in zip(panels, shares, strict=True):
        axes.grid(alpha=0.18)
        for run in (one for one in runs if one.share == share and len(one.curve) > 1):
            arm = what[run.arm]
            k = arms.index(arm)
            x = np.linspace(100 / len(run.curve), 100, len(run.curve))
            label = None if arm in named else shortened(arm)
            named.add(arm)
            axes.plot(x, run.curve, line_style(k), color=colour(k), linewidth=1.3, alpha=0.8, label=label)
        axes.set_title(share_words(share), loc="left", fontsize=10)
        axes.set_xlabel("share of the training, %")
    panels[0].set_ylabel("Dice on validation patients")
    figure.legend(loc="outside right upper", frameon=False, fontsize=9)
    return figure, "Validation Dice along each training; a panel for each share of the labels."


def _draw_seeds(axes: Any, x: Sequence[float], y: Sequence[float] | np.ndarray) -> None:
    axes.plot(x, y, ".", color=INK, markersize=4.5, alpha=0.55, zorder=4)
