"""How every plot of the report is drawn: colours, markers, and inline SVG in the page's own text colour."""

from __future__ import annotations

import html
import io
import re
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

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


def styled() -> Any:
    """The report's style: a decorator of what draws, or a `with` block around it."""
    return rc_context(_STYLE)


def new_figure(name: str, width_in: float, height_in: float) -> Any:
    """An empty figure; `name` is its id in the page."""
    figure = Figure(figsize=(width_in, height_in), dpi=72, layout="constrained")  # 72: as SVG is drawn
    figure.set_gid(name)
    return figure


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
    stream = io.StringIO()
    with rc_context(_STYLE | {"svg.hashsalt": salt}):
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", text)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    label = f' role="img" aria-label="{html.escape(description)}"'
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', lambda start: start[1] + label, text, count=1)
    text = re.sub(
        r'id="(figure|axes|patch|text|line2d|matplotlib\.axis|xtick|ytick|legend|PathCollection)_',
        rf'id="{salt}_\1_',
        text,
    )
    return text.replace(INK, "currentColor").replace(_SOFT, "currentColor")
