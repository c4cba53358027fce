"""The report's plots as inline SVG in the page's own text colour, so that they read on light and dark."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from benchmarks.comparison import pareto_front
from benchmarks.record import CaseRecord, Record
from segcore.overlay import COLOURS

_INK, _SOFT = "#010203", "#040506"  # stand-ins, replaced by currentColor: matplotlib knows no CSS
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.size": 10.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.grid": True,
    "grid.color": _SOFT,
    "grid.linewidth": 0.6,
}
MARKERS = "osD^vPX*"
NEAR_PT = 14
"""A text farther than this from its point is joined to it by a line."""
_PALETTE = (*(c for c in COLOURS if c != (240, 228, 66)), (130, 130, 130))  # yellow is lost on white


def colour(index: int) -> str:
    """The colour of the index-th model, the same in every plot."""
    return "#{:02x}{:02x}{:02x}".format(*_PALETTE[index % len(_PALETTE)])


@rc_context(_STYLE)
def plot_pareto(records: Sequence[Record], names: Sequence[str]) -> str:
    """Accuracy against end-to-end latency (log), one point a record, with the Pareto front.

    Args:
        records: of one thread count, all timed.
        names: of all models in the report's order, which gives their colours.
    """
    figure, axes = _new("pareto", 9.2, 4.4)
    x = [record.end_to_end_ms_p50 or float("nan") for record in records]
    y = [record.dice_mean for record in records]
    front = pareto_front(x, y)
    axes.plot(
        [x[i] for i in front], [y[i] for i in front], "--", color=_INK, linewidth=1, alpha=0.6, zorder=1
    )
    for i, record in enumerate(records):
        k = names.index(record.name)
        if record.dice_low is not None and record.dice_high is not None:
            axes.plot(
                [x[i]] * 2,
                [record.dice_low, record.dice_high],
                color=colour(k),
                linewidth=1.6,
                alpha=0.55,
                zorder=2,
            )
        axes.plot(x[i], y[i], MARKERS[k % len(MARKERS)], color=colour(k), markersize=8, zorder=3)
    axes.set_xscale("log")
    low, high = min(x), max(x)
    axes.set_xlim(low / 1.6, high * 1.6)
    ticks = [d * 10.0**e for e in range(-3, 6) for d in (1, 2, 5) if low / 1.6 <= d * 10.0**e <= high * 1.6]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_xticks([], minor=True)
    spans = [v for r in records for v in (r.dice_low, r.dice_high) if v is not None] + y
    pad = max(0.15 * (max(spans) - min(spans)), 0.002)
    axes.set_ylim(min(spans) - pad, max(spans) + pad)
    axes.set_xlabel("picture to mask, median milliseconds (log scale; left is faster)")
    axes.set_ylabel("Dice (up is better)")
    lines = [
        (a, r.dice_low or r.dice_mean, r.dice_high or r.dice_mean) for a, r in zip(x, records, strict=True)
    ]
    place_labels(figure, axes, list(zip(x, y, strict=True)), [record.name for record in records], lines)
    return to_svg(
        figure,
        "pareto",
        "Accuracy against latency; the dashed line joins the models that no other one beats.",
    )


def place_labels(
    figure: Any,
    axes: Any,
    points: Sequence[tuple[float, float]],
    texts: Sequence[str],
    lines: Sequence[tuple[float, float, float]] = (),
) -> list[Any]:
    """Writes a text beside each point where it covers no point, no other text and no edge.

    Tries places ever farther from the point, and joins text and point by a line where they are apart.

    Args:
        figure: drawn as it will be saved.
        axes: with its limits set.
        points: in data units.
        texts: one a point.
        lines: upright lines (x, low, high) in data units that texts should rather not cross.

    Returns:
        The boxes of the texts in pixels, in the order of the points.
    """
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    inside = axes.get_window_extent(renderer)
    centres = [axes.transData.transform(point) for point in points]
    taken = [Bbox.from_bounds(cx - 7, cy - 7, 14, 14) for cx, cy in centres]
    drawn = [Bbox([axes.transData.transform((x, a)), axes.transData.transform((x, b))]) for x, a, b in lines]
    for i, text in enumerate(texts):
        trials: list[tuple[float, int, tuple[float, float, str], Any]] = []
        for dx, dy, side in _places():
            note = axes.annotate(
                text, points[i], (dx, dy), textcoords="offset points", ha=side, va="center", fontsize=9
            )
            box = note.get_window_extent(renderer).padded(1)
            note.remove()
            out = not (
                inside.x0 <= box.x0 and box.x1 <= inside.x1 and inside.y0 <= box.y0 and box.y1 <= inside.y1
            )
            cost = 2 * box.count_overlaps(taken) + box.count_overlaps(drawn) + 4 * out
            trials.append((cost, len(trials), (dx, dy, side), box))
            if cost == 0:
                break
        _, _, (dx, dy, side), box = min(trials, key=lambda trial: trial[:2])
        taken.append(box)
        axes.annotate(text, points[i], (dx, dy), textcoords="offset points", ha=side, va="center", fontsize=9)
        if abs(dy) > NEAR_PT:
            leader = {"arrowstyle": "-", "color": _INK, "alpha": 0.45, "linewidth": 0.7}
            end = (dx, dy - 6 if dy > 0 else dy + 6)
            axes.annotate("", points[i], end, textcoords="offset points", arrowprops=leader)
    return taken[len(points) :]


def _places() -> list[tuple[float, float, str]]:
    near = [(10, 0, "left"), (-10, 0, "right"), (0, 13, "center"), (0, -13, "center")]
    near += [(9, 11, "left"), (9, -11, "left"), (-9, 11, "right"), (-9, -11, "right")]
    far = [
        (dx, dy, side)
        for d in (26, 40, 56, 74, 94)
        for dy in (d, -d)
        for dx, side in ((6, "left"), (-6, "right"))
    ]
    return [*near, *far]


@rc_context(_STYLE)
def plot_paired(
    reference: Sequence[CaseRecord], others: Sequence[Sequence[CaseRecord]], names: Sequence[str]
) -> str:
    """Dice of each case: the reference's across, each other model's up; under the line accuracy was lost."""
    figure, axes = _new("paired", 4.5, 4.3)
    across = [score.dice_mean for score in reference]
    lowest = min(across)
    for scores in others:
        k = names.index(scores[0].name)
        up = [score.dice_mean for score in scores]
        lowest = min(lowest, *up)
        axes.plot(
            across,
            up,
            MARKERS[k % len(MARKERS)],
            color=colour(k),
            markersize=5,
            alpha=0.75,
            label=scores[0].name,
        )
    floor = max(0.0, lowest - 0.03)
    axes.plot([floor, 1], [floor, 1], color=_INK, linewidth=1, alpha=0.6)
    axes.set_xlim(floor, 1.005)
    axes.set_ylim(floor, 1.005)
    axes.set_aspect("equal")
    axes.set_xlabel(f"Dice of {_short(reference[0].name)}")
    axes.set_ylabel("Dice of the same case")
    axes.legend(loc="upper left", frameon=False, fontsize=8, handletextpad=0.1, borderaxespad=0)
    return to_svg(figure, "paired", "Dice of every case under the reference and under the other models.")


@rc_context(_STYLE)
def plot_distribution(scores: Sequence[Sequence[CaseRecord]], names: Sequence[str]) -> str:
    """Every case's Dice, a row a model; the bar is the median, the box holds the middle half."""
    figure, axes = _new("spread", 4.7, max(2.2, 0.75 + 0.52 * len(scores)))
    noise = np.random.default_rng(0)
    for row, cases in enumerate(scores):
        k = names.index(cases[0].name)
        values = np.array([score.dice_mean for score in cases])
        q1, median, q3 = np.percentile(values, (25, 50, 75))
        axes.barh(row, q3 - q1, 0.5, left=q1, color=colour(k), alpha=0.3, zorder=2)
        axes.plot(
            values,
            row + noise.uniform(-0.18, 0.18, len(values)),
            "o",
            color=colour(k),
            markersize=3,
            alpha=0.7,
            zorder=3,
        )
        axes.plot([median, median], [row - 0.25, row + 0.25], color=_INK, linewidth=1.6, zorder=4)
        axes.text(
            0, row - 0.34, _short(cases[0].name, 48), fontsize=8.5, transform=axes.get_yaxis_transform()
        )
    axes.set_yticks([])
    axes.set_ylim(len(scores) - 0.5, -0.75)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("Dice of a case")
    return to_svg(figure, "spread", "Distribution of Dice over cases for each model.")


def _short(name: str, most: int = 34) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"


def _new(name: str, width_in: float, height_in: float) -> tuple[Any, Any]:
    figure = Figure(figsize=(width_in, height_in), dpi=72, layout="constrained")  # 72: as SVG is drawn
    axes = figure.add_subplot()
    axes.grid(alpha=0.18)
    axes.set_axisbelow(True)
    figure.set_gid(name)
    return figure, axes


def to_svg(figure: Any, salt: str, description: str) -> str:
    """The figure as an `<svg>` element for use inside a page.

    Names no address (not even a namespace: HTML needs none), scales with the page, and describes itself.

    Args:
        figure: with a transparent background.
        salt: differs between plots of one page, so that their ids do.
        description: read out by screen readers; plain text without markup.
    """
    stream = io.StringIO()
    with rc_context(_STYLE | {"svg.hashsalt": salt}):
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", text)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', rf'\1 role="img" aria-label="{description}"', text, count=1)
    text = re.sub(
        r'id="(figure|axes|patch|text|line2d|matplotlib\.axis|xtick|ytick|legend|PathCollection)_',
        rf'id="{salt}_\1_',
        text,
    )
    return text.replace(_INK, "currentColor").replace(_SOFT, "currentColor")
