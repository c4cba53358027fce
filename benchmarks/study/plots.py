"""The plots of a study: Dice by system, by parameters, by labels, by rank, by grid, and on other data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from benchmarks.report.plots import (
    INK,
    colour,
    label_shares,
    line_style,
    mark_log_axis,
    marker,
    new_axes,
    new_figure,
    place_labels,
    shortened,
    styled,
)
from benchmarks.study.record import ArmRow, StudyRecord


def draw_plots(record: StudyRecord) -> dict[str, tuple[Any, str]]:
    """The plots that a study has figures for: name → (figure, what it shows in words)."""
    main, told = record.of("main"), record.of("main", told=True)
    systems = [row.system for row in main]
    looks = _looks_of_arms(record)
    plots: dict[str, tuple[Any, str]] = {"systems": plot_systems(main, told, systems)}
    if any(row.trained_parameters for row in main):
        plots["parameters"] = plot_parameters(record.of("main", "tune"), looks)
    if record.of("share"):
        plots["shares"] = plot_shares(record.of("main", "tune", "share"), looks)
    if record.of("rank"):
        ranked = {row.system for row in record.of("rank")}
        rows = [row for row in record.of("main", "rank") if row.system in ranked]
        plots["ranks"] = plot_ranks(rows, systems)
    if record.grid:
        plots["grid"] = plot_grid(record)
    if record.drops:
        plots["drops"] = plot_drops(record)
    return plots


class _ArmLook(NamedTuple):
    """How an arm is drawn in every plot that shows tunings: its colour and marker, and what it is called."""

    number: int
    name: str


def _looks_of_arms(record: StudyRecord) -> dict[tuple[str, str], _ArmLook]:
    """By (system, tuning). Where tunings of a system are shown each looks its own; a lone system is not named."""
    rows = record.of("main", "tune")
    keys = list(dict.fromkeys((row.system, row.tune) for row in rows))
    systems = list(dict.fromkeys(row.system for row in rows))
    if len(keys) == len(systems):
        return {key: _ArmLook(i, key[0]) for i, key in enumerate(keys)}
    own = {(row.system, row.tune) for row in rows if row.own_tuning}
    if len(systems) == 1:
        return {k: _ArmLook(i, k[1] + " (its own)" * (k in own)) for i, k in enumerate(keys)}
    return {k: _ArmLook(i, k[0] if k in own else ", ".join(k)) for i, k in enumerate(keys)}


@styled()
def plot_systems(main: Sequence[ArmRow], told: Sequence[ArmRow], systems: Sequence[str]) -> tuple[Any, str]:
    """A line a system: its mean with the interval over patients, and a dot for each run; then those told the truth."""
    rows = [*main, *told]
    figure, axes = new_axes("systems", 9.2, 1.0 + 0.46 * len(rows))
    floor = floor_of([row.dice.mean for row in rows])
    for y, row in enumerate(rows):
        k, face = systems.index(row.system), "none" if row.told else None
        if row.dice.mean < floor:
            _note_below(axes, row.dice.mean, y)
            continue
        if row.dice.low is not None and row.dice.high is not None:
            axes.plot(
                [row.dice.low, row.dice.high], [y, y], color=colour(k), linewidth=5, alpha=0.3, zorder=2
            )
        spread = np.linspace(-0.16, 0.16, len(row.dice.by_run)) if len(row.dice.by_run) > 1 else [0.0]
        axes.plot(row.dice.by_run, y + np.array(spread), ".", color=INK, markersize=4.5, alpha=0.55, zorder=4)
        axes.plot(row.dice.mean, y, marker(k), color=colour(k), markersize=10, markerfacecolor=face, zorder=3)
    if told:
        axes.axhline(len(main) - 0.5, color=INK, linewidth=0.8, linestyle=":", alpha=0.6)
    names = [f"{row.label} ({row.protocol})" if row.told else row.label for row in rows]
    axes.set_yticks(range(len(rows)), [shortened(name, 44) for name in names])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    if shown := [row.dice for row in rows if row.dice.mean >= floor]:
        _begin_axis_at(axes, [v for one in shown for v in (one.low, one.high, *one.by_run) if v is not None])
    axes.set_xlabel("Dice on test patients")
    said = "; ".join(f"{name} {row.dice.mean:.3f}" for name, row in zip(names, rows, strict=True))
    return figure, f"Dice by system: {said}"


@styled()
def plot_parameters(rows: Sequence[ArmRow], looks: Mapping[tuple[str, str], _ArmLook]) -> tuple[Any, str]:
    """Dice against trained parameters (log); what trains none stands at the left edge."""
    figure, axes = new_axes("parameters", 9.2, 4.6)
    known = [row.trained_parameters for row in rows if row.trained_parameters]
    least, most = min(known), max(known)
    none = least / 6
    x = [row.trained_parameters or none for row in rows]
    floor = floor_of([row.dice.mean for row in rows])
    shown = [row for row in rows if row.dice.mean >= floor]
    _room_above_and_below(axes, shown)
    bottom = axes.get_ylim()[0]
    y = [row.dice.mean if row in shown else bottom for row in rows]
    for at, up, row in zip(x, y, rows, strict=True):
        k = looks[row.system, row.tune].number
        if row in shown:
            _draw_whisker(axes, at, row, colour(k))
        face = None if row.kind == "main" else "none"
        sign = marker(k) if row in shown else "v"  # below the frame
        axes.plot(at, up, sign, color=colour(k), markersize=8, markerfacecolor=face, zorder=3, clip_on=False)
    axes.set_xscale("log")
    low = none / 2 if min(x) == none else least / 2.5
    _mark_counts(axes, low, most * 2.5, none if min(x) == none else None)
    axes.set_xlabel("trained parameters (log scale)")
    axes.set_ylabel("Dice on test patients")
    lines = [(a, r.dice.low or r.dice.mean, r.dice.high or r.dice.mean) for a, r in zip(x, rows, strict=True)]
    names = [shortened(looks[r.system, r.tune].name, 40) for r in rows]
    texts = [
        name + ("" if r in shown else f" {r.dice.mean:.3f}") for name, r in zip(names, rows, strict=True)
    ]
    place_labels(figure, axes, list(zip(x, y, strict=True)), texts, lines)
    said = "; ".join(
        f"{n} {r.trained_parameters:,}: {r.dice.mean:.3f}" for n, r in zip(names, rows, strict=True)
    )
    return figure, f"Dice against the number of trained parameters: {said}"


@styled()
def plot_shares(rows: Sequence[ArmRow], looks: Mapping[tuple[str, str], _ArmLook]) -> tuple[Any, str]:
    """Dice against the share of the labels, a line a system and tuning."""
    figure, axes = new_axes("shares", 9.2, 4.6)
    most = {(r.system, r.tune): r.dice.mean for r in rows if r.kind != "share"}
    arms = list(dict.fromkeys((r.system, r.tune) for r in rows if r.kind == "share"))
    arms.sort(
        key=lambda arm: -most.get(arm, 0.0)
    )  # the legend's order, which is that of the lines' right ends
    said = []
    for i, (system, tune) in enumerate(arms):
        line = sorted((r for r in rows if (r.system, r.tune) == (system, tune)), key=lambda r: r.share)
        x = [
            100 * r.share * 1.025 ** (i - (len(arms) - 1) / 2) for r in line
        ]  # apart, so that intervals show
        k, name = looks.get((system, tune)) or _ArmLook(
            len(looks) + i, f"{system}, {tune}"
        )  # at small shares alone
        for at, row in zip(x, line, strict=True):
            _draw_whisker(axes, at, row, colour(k))
        said.append(f"{name} " + ", ".join(f"{r.dice.mean:.3f} at {100 * r.share:g} %" for r in line))
        means = [r.dice.mean for r in line]
        axes.plot(
            x,
            means,
            f"{line_style(k)}{marker(k)}",
            color=colour(k),
            markersize=7,
            linewidth=1.6,
            label=name,
            zorder=3,
        )
    label_shares(figure, axes, [row.share for row in rows])
    return figure, f"Dice against the share of labelled training patients: {'; '.join(said)}"


@styled()
def plot_ranks(rows: Sequence[ArmRow], systems: Sequence[str]) -> tuple[Any, str]:
    """Dice against the rank of LoRA, a line a system."""
    figure, axes = new_axes("ranks", 4.7, 3.8)
    for system in dict.fromkeys(row.system for row in rows):
        line = sorted((r for r in rows if r.system == system and r.rank), key=lambda r: r.rank or 0)
        k = systems.index(system)
        for row in line:
            _draw_whisker(axes, float(row.rank or 0), row, colour(k))
        x, y = [row.rank for row in line], [row.dice.mean for row in line]
        axes.plot(x, y, f"-{marker(k)}", color=colour(k), markersize=7, linewidth=1.6, label=system, zorder=3)
    ranks = sorted({row.rank for row in rows if row.rank})
    axes.set_xscale("log")
    axes.set_xticks(ranks, [str(rank) for rank in ranks])
    axes.set_xticks([], minor=True)
    axes.set_xlabel("rank (log scale)")
    axes.set_ylabel("Dice on test patients")
    axes.legend(loc="best", frameon=False, fontsize=9)
    return figure, "Dice against the rank of LoRA."


@styled()
def plot_grid(record: StudyRecord) -> tuple[Any, str]:
    """Validation Dice of every choice, a map a system: the first setting up, the others across."""
    systems = list(dict.fromkeys(cell.system for cell in record.grid))
    first, *others = record.grid[0].values
    rows = sorted({cell.values[first] for cell in record.grid})
    across = sorted({tuple(cell.values[n] for n in others) for cell in record.grid})
    wide = min(3, len(systems))
    deep = -(-len(systems) // wide)
    figure = new_figure("grid", max(4.2, wide * (1.5 + 0.75 * len(across))), deep * (1.3 + 0.42 * len(rows)))
    panels = figure.subplots(deep, wide, squeeze=False).ravel()
    for axes, system in zip(panels, systems, strict=False):
        dice = [cell.dice_val for cell in record.grid if cell.system == system]
        axes.grid(False)
        table = np.full((len(rows), len(across)), np.nan)
        for cell in (c for c in record.grid if c.system == system):
            i, j = rows.index(cell.values[first]), across.index(tuple(cell.values[n] for n in others))
            table[i, j] = cell.dice_val
            dark = cell.dice_val < (min(dice) + max(dice)) / 2
            text = f"{cell.dice_val:.3f}" + ("*" * bool(cell.chosen))
            axes.text(j, i, text, ha="center", va="center", color="white" if dark else "black", fontsize=9)
        axes.imshow(table, cmap="viridis", vmin=min(dice), vmax=max(dice), aspect="auto")
        axes.set_title(shortened(system), loc="left", fontsize=10)
        axes.set_yticks(range(len(rows)), [f"{value:g}" for value in rows])
        axes.set_xticks(range(len(across)), [", ".join(f"{v:g}" for v in one) for one in across])
        axes.set_ylabel(first.replace("_", "-"))
        axes.set_xlabel(", ".join(n.replace("_", "-") for n in others))
    for axes in panels[len(systems) :]:
        axes.remove()
    return (
        figure,
        "Validation Dice of every choice of the grid, each system in its own shades; a star: chosen in some split.",
    )


@styled()
def plot_drops(record: StudyRecord) -> tuple[Any, str]:
    """A line a system from its Dice on its own data to that on the other."""
    figure, axes = new_axes("drops", 9.2, 1.1 + 0.46 * len(record.drops))
    floor = floor_of([d for one in record.drops for d in (one.own, one.other)])
    for y, one in enumerate(record.drops):
        if min(one.own, one.other) < floor:
            _note_below(axes, min(one.own, one.other), y)
        axes.plot([one.own, one.other], [y, y], color=colour(y), linewidth=2, alpha=0.5, zorder=2)
        axes.plot(one.own, y, marker(y), color=colour(y), markersize=9, zorder=3)
        axes.plot(one.other, y, marker(y), color=colour(y), markersize=9, markerfacecolor="none", zorder=3)
    axes.set_yticks(range(len(record.drops)), [shortened(one.label, 44) for one in record.drops])
    axes.set_ylim(len(record.drops) - 0.4, -0.6)
    if any(min(one.own, one.other) < floor for one in record.drops):
        _begin_axis_at(axes, [d for one in record.drops for d in (one.own, one.other) if d >= floor])
    axes.set_xlabel("Dice: filled on test patients of the training data, hollow on the other data")
    said = "; ".join(f"{one.label} {one.own:.3f} to {one.other:.3f}" for one in record.drops)
    return figure, f"Dice on the training data's test patients and on other data: {said}"


def floor_of(values: Sequence[float]) -> float:
    """Where an axis of Dice may begin, so that one that fails does not press the others together.

    A value is left below that is three times as far under the median as the best is above it.
    """
    median, best = float(np.median(values)), max(values)
    floor = median - 3 * max(best - median, 0.01)
    return floor if min(values) < floor else min(values)


def _begin_axis_at(axes: Any, shown: Sequence[float]) -> None:
    """Begins an axis across a little before the least that is shown: what lies far below must not widen it."""
    axes.set_xlim(left=min(shown) - max(0.05 * (max(shown) - min(shown)), 0.002))


def _note_below(axes: Any, value: float, y: float) -> None:
    """Says the value of what lies beyond the left edge, at the edge."""
    place = axes.get_yaxis_transform()
    axes.text(0.005, y, f"◂ {value:.3f}", transform=place, va="center", fontsize=9)


def _draw_whisker(axes: Any, x: float, row: ArmRow, tint: str) -> None:
    if row.dice.low is not None and row.dice.high is not None:
        axes.plot([x, x], [row.dice.low, row.dice.high], color=tint, linewidth=1.6, alpha=0.45, zorder=2)


def _room_above_and_below(axes: Any, rows: Sequence[ArmRow]) -> None:
    ends = [v for r in rows for v in (r.dice.low, r.dice.high, r.dice.mean) if v is not None]
    pad = max(0.12 * (max(ends) - min(ends)), 0.002)
    axes.set_ylim(min(ends) - pad, max(ends) + pad)


def _mark_counts(axes: Any, low: float, high: float, none: float | None) -> None:
    """Ticks of a logarithmic axis of counts: 1 k, 10 k, 1 M; `none` is where 0 stands."""
    mark_log_axis(axes, low, high)
    ticks = [10.0**e for e in range(12) if low <= 10.0**e <= high and (none is None or 10.0**e > 2 * none)]
    if len(ticks) < 2:
        ticks = [d * 10.0**e for e in range(12) for d in (1, 2, 5) if low <= d * 10.0**e <= high]
        ticks = [tick for tick in ticks if none is None or tick > 2 * none]
    texts = [_short_count(tick) for tick in ticks]
    axes.set_xticks([*([none] if none else []), *ticks], [*(["0"] if none else []), *texts])
    axes.set_xticks([], minor=True)


def _short_count(value: float) -> str:
    for size, letter in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"
