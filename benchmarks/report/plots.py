"""The plots of a report, as SVG in the page's own text colour: how they look, and those of accuracy and speed.

matplotlib is imported where something is drawn: `--help` and the checks of the flags must not wait for it.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from benchmarks.report.headline import pareto_front
from benchmarks.report.record import CaseRecord, Record
from segcore import words
from segcore.picture.overlay import COLOURS

INK, _SOFT = "#010203", "#040506"  # stand-ins, replaced by currentColor: matplotlib knows no CSS
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.size": 10.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.grid": True,
    "grid.color": _SOFT,
    "grid.linewidth": 0.6,
}
_MARKERS = "osD^vPX*"
_LINES = ("-", "--", ":")
_PALETTE = (*(c for c in COLOURS if c != (240, 228, 66)), (130, 130, 130))  # yellow is lost on white
NEAR_PT = 14
"""A text farther than this from its point is joined to it by a line."""


def colour(index: int) -> str:
    """The colour of the index-th model, the same in every plot."""
    return "#{:02x}{:02x}{:02x}".format(*_PALETTE[index % len(_PALETTE)])


def marker(index: int) -> str:
    """Its marker: nobody must tell models apart by colour alone."""
    return _MARKERS[index % len(_MARKERS)]


def line_style(index: int) -> str:
    """Its line: another one where the colours begin again."""
    return _LINES[index // len(_PALETTE) % len(_LINES)]


def shortened(name: str, most: int = 34) -> str:
    """A name that fits beside an axis."""
    return name if len(name) <= most else name[: most - 1] + "…"


@contextmanager
def styled() -> Iterator[None]:
    """The report's style: a decorator of what draws, or a `with` block around it."""
    from matplotlib import rc_context

    with rc_context(_STYLE):
        yield


def new_figure(name: str, width_in: float, height_in: float) -> Any:
    """An empty figure; `name` is its id in the page."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width_in, height_in), dpi=72, layout="constrained")  # 72: as SVG is drawn
    figure.set_gid(name)
    return figure


def label_shares(figure: Any, axes: Any, shares: Iterable[float]) -> None:
    """Axes and legend of a plot of Dice against the share of the labelled patients, 0–1, on a log scale."""
    percents = sorted({100 * share for share in shares})
    axes.set_xscale("log")
    axes.set_xticks(percents, [f"{percent:g} %" for percent in percents])
    axes.set_xticks([], minor=True)
    axes.set_xlabel("training patients whose masks are used (log scale)")
    axes.set_ylabel("Dice on test patients")
    figure.legend(loc="outside right upper", frameon=False, fontsize=9)


def new_axes(name: str, width_in: float, height_in: float) -> tuple[Any, Any]:
    """A figure with one pair of axes and a faint grid."""
    figure = new_figure(name, width_in, height_in)
    axes = figure.add_subplot()
    axes.grid(alpha=0.18)
    axes.set_axisbelow(True)
    return figure, axes


def mark_log_axis(axes: Any, low: float, high: float) -> None:
    """Limits and plain ticks of a logarithmic axis across: 1, 2, 5, 10 …; fewer where they would touch."""
    steps = (1, 2, 5) if high / low < 300 else (1,)
    ticks = [d * 10.0**e for e in range(-4, 7) for d in steps if low <= d * 10.0**e <= high]
    if len(ticks) < 2:
        ticks = [float(f"{v:.2g}") for v in np.geomspace(low * 1.05, high / 1.05, 3)]
    axes.set_xlim(low, high)
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_xticks([], minor=True)


def to_svg(figure: Any, salt: str, description: str) -> str:
    """The figure as an `<svg>` element for use inside a page.

    Names no address (not even a namespace: HTML needs none), scales with the page, and describes itself.

    Args:
        figure: with a transparent background.
        salt: differs between plots of one page, so that their ids do.
        description: plain text, read out by screen readers.
    """
    from matplotlib import rc_context

    stream = io.StringIO()
    # The ids that matplotlib makes up are hashes of the salt: equal figures give equal files.
    with rc_context(_STYLE | {"svg.hashsalt": salt}):
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    text = stream.getvalue()
    text = text[text.index("<svg") :]  # an <?xml …?> and a doctype have no place inside a page
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", text)
    # Without a width and a height the viewBox alone says the form, and the page's column the size.
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    label = f' role="img" aria-label="{html.escape(description)}"'
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', lambda start: start[1] + label, text, count=1)
    text = re.sub(
        r'id="(figure|axes|patch|text|line2d|matplotlib\.axis|xtick|ytick|legend|PathCollection)_',
        rf'id="{salt}_\1_',
        text,
    )
    return text.replace(INK, "currentColor").replace(_SOFT, "currentColor")


@styled()
def plot_pareto(records: Sequence[Record], names: Sequence[str]) -> str:
    """Accuracy against end-to-end latency (log), one point a record, with the Pareto front.

    Args:
        records: of one thread count, all timed.
        names: of all models in the report's order, which gives their colours.
    """
    figure, axes = new_axes("pareto", 9.2, 4.4)
    x = [record.end_to_end_ms_p50 or float("nan") for record in records]
    y = [record.dice_mean for record in records]
    front = pareto_front(x, y)
    axes.plot([x[i] for i in front], [y[i] for i in front], "--", color=INK, linewidth=1, alpha=0.6, zorder=1)
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
        axes.plot(x[i], y[i], marker(k), color=colour(k), markersize=8, zorder=3)
    axes.set_xscale("log")
    mark_log_axis(axes, min(x) / 1.6, max(x) * 1.6)
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
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.transforms import Bbox

    # Where the axes lie and how large a text is are known once the figure was laid out, so it is drawn first.
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    inside = axes.get_window_extent(renderer)
    centres = [axes.transData.transform(point) for point in points]
    taken = [Bbox.from_bounds(cx - 7, cy - 7, 14, 14) for cx, cy in centres]
    drawn = [Bbox([axes.transData.transform((x, a)), axes.transData.transform((x, b))]) for x, a, b in lines]
    for i, text in enumerate(texts):
        trials: list[tuple[float, int, tuple[float, float, str], Any]] = []
        for dx, dy, side in _label_places():
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
            leader = {"arrowstyle": "-", "color": INK, "alpha": 0.45, "linewidth": 0.7}
            end = (dx, dy - 6 if dy > 0 else dy + 6)
            axes.annotate("", points[i], end, textcoords="offset points", arrowprops=leader)
    return taken[len(points) :]


def _label_places() -> list[tuple[float, float, str]]:
    """Offsets in points and the text's side, nearest first; the first free one is taken."""
    near = [(10, 0, "left"), (-10, 0, "right"), (0, 13, "center"), (0, -13, "center")]
    near += [(9, 11, "left"), (9, -11, "left"), (-9, 11, "right"), (-9, -11, "right")]
    far = [
        (dx, dy, side)
        for d in (26, 40, 56, 74, 94)
        for dy in (d, -d)
        for dx, side in ((6, "left"), (-6, "right"))
    ]
    return [*near, *far]


@styled()
def plot_paired(
    reference: Sequence[CaseRecord], others: Sequence[Sequence[CaseRecord]], names: Sequence[str]
) -> str:
    """Dice of each case: the reference's across, each other model's up; under the line accuracy was lost."""
    figure, axes = new_axes("paired", 4.5, 4.3)
    across = [score.dice_mean for score in reference]
    lowest = min(across)
    for scores in others:
        k = names.index(scores[0].name)
        up = [score.dice_mean for score in scores]
        lowest = min(lowest, *up)
        axes.plot(
            across,
            up,
            marker(k),
            color=colour(k),
            markersize=5,
            alpha=0.75,
            label=scores[0].name,
        )
    floor = max(0.0, lowest - 0.03)
    axes.plot([floor, 1], [floor, 1], color=INK, linewidth=1, alpha=0.6)
    axes.set_xlim(floor, 1.005)
    axes.set_ylim(floor, 1.005)
    axes.set_aspect("equal")
    axes.set_xlabel(f"Dice of {shortened(reference[0].name)}")
    axes.set_ylabel("Dice of the same case")
    axes.legend(loc="upper left", frameon=False, fontsize=8, handletextpad=0.1, borderaxespad=0)
    return to_svg(figure, "paired", "Dice of every case under the reference and under the other models.")


@styled()
def plot_distribution(scores: Sequence[Sequence[CaseRecord]], names: Sequence[str]) -> str:
    """Dice of every case; the bar is the median, the box holds the middle half.

    Args:
        scores: one sequence a model.
        names: of all models in the report's order, which gives their colours.
    """
    figure, axes = new_axes("spread", 4.7, _strips_height_in(len(scores)))
    rows = [(cases[0].name, np.array([score.dice_mean for score in cases])) for cases in scores]
    _draw_strips(axes, rows, names)
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
    figure, axes = new_axes("latency", 4.7, _strips_height_in(len(records)))
    axes.set_xscale("log")
    rows = [(record.name, np.array(record.end_to_end_ms_sorted)) for record in records]
    _draw_strips(axes, rows, names)
    low, high = min(v.min() for _, v in rows) / 1.1, max(v.max() for _, v in rows) * 1.1
    mark_log_axis(axes, low, high)
    axes.set_xlabel("picture to mask, milliseconds a call (log scale)")
    said = "; ".join(f"{name}: median {words.figures(float(np.median(v)))} ms" for name, v in rows)
    return to_svg(figure, "latency", f"Distribution of the time a call took. {said}")


def _strips_height_in(rows: int) -> float:
    return max(2.2, 0.75 + 0.52 * rows)


def _draw_strips(axes: Any, rows: Sequence[tuple[str, np.ndarray]], names: Sequence[str]) -> None:
    """A strip a model: every value as a dot, moved up or down by chance so that equal ones show, and its quartiles."""
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
