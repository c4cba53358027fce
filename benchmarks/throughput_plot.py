"""Draws resident memory over the images that `Predictor.map` has predicted."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from benchmarks.throughput import ThroughputRecord

# Okabe and Ito, Color Universal Design, 2008.
_COLOURS = ("#0072b2", "#d55e00", "#009e73")


def draw_memory(record: ThroughputRecord, path: Path) -> None:
    """Writes a PNG; the axis begins at 0, so that what looks flat is flat."""
    figure = Figure(figsize=(7, 3.2), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for one, colour in zip(record.memory, _COLOURS, strict=False):
        label = f"{one.engine}, {one.streams} streams: {one.growth_mib:+.1f} MiB after the first reading"
        axes.plot(one.images, one.resident_mib, marker="o", markersize=3, color=colour, label=label)
    axes.set_ylim(0, 1.25 * max(max(one.resident_mib) for one in record.memory))
    axes.set_xlim(0)
    axes.set_xlabel("images predicted in one call of Predictor.map")
    axes.set_ylabel("resident memory, MiB")
    axes.set_title(record.bundle, fontsize=10)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.legend(frameon=False, fontsize=9, loc="upper left")
    figure.savefig(path)
