"""What a search leaves behind: the table, the picture and the config for `student.distill`."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from student.search.candidates import Candidate

TABLE, PICTURE, CONFIG, RECORD = "search.csv", "search.png", "distill.yaml", "record.json"
_COLOURS = {"none": "#7f7f7f", "strided": "#0072b2", "unshuffle": "#d55e00"}
_MARKERS = {1: "s", 2: "^", 4: "o"}


@dataclass(frozen=True)
class SearchRow:
    """A measured candidate.

    Attributes:
        ms: median latency.
        final: whether `ms` is of the last run, in which the finalists were timed together, freshly opened.
        share_of_peak: of the engine's measured peak in the search's precision, 0–1.
        dice_val: of a short proxy training, where there was one.
    """

    candidate: Candidate
    ms: float
    final: bool
    share_of_peak: float
    within_budget: bool
    on_front: bool
    chosen: bool
    dice_val: float | None = None


def write_table(path: Path, rows: Sequence[SearchRow]) -> None:
    """One line a candidate, fastest first: what it is, what it costs, what it reached."""
    with path.open("w", newline="") as file:
        lines = [_table_line(row) for row in sorted(rows, key=lambda row: row.ms)]
        writer = csv.DictWriter(file, fieldnames=list(lines[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)


def _table_line(row: SearchRow) -> dict[str, object]:
    c = row.candidate
    design = c.design.model_dump(mode="json")
    return {
        "name": c.name,
        "latency_ms": f"{row.ms:.4f}",
        "parameters": c.parameters,
        "macs": c.macs,
        "capacity": f"{c.capacity:.0f}",
        "gmac_s": f"{c.macs / row.ms / 1e6:.1f}",
        "share_of_peak": f"{row.share_of_peak:.4f}",
        "within_budget": row.within_budget,
        "pareto": row.on_front,
        "chosen": row.chosen,
        "final_run": row.final,
        "dice_val": "" if row.dice_val is None else f"{row.dice_val:.4f}",
        **{name: " ".join(map(str, v)) if isinstance(v, list) else v for name, v in design.items()},
    }


def write_config(path: Path, chosen: Candidate, size_px: int, promise: str) -> None:
    """The config that `student.distill --config` takes.

    Args:
        path: file to write.
        chosen: the design.
        size_px: of the input.
        promise: one line for a reader: the latency and where it was measured.
    """
    settings = {"size": size_px, "design": chosen.design.model_dump(mode="json")}
    body = yaml.safe_dump(settings, sort_keys=False, default_flow_style=None)
    path.write_text(
        f"# {chosen.name}: {promise}\n# python -m student.distill --config {path.name} --data D --out O\n{body}"
    )


def draw_search(path: Path, rows: Sequence[SearchRow], *, budget_ms: float, title: str) -> None:
    """Capacity against latency, both on log axes, with the budget, the front and the chosen design.

    Args:
        path: PNG to write.
        rows: every measured candidate.
        budget_ms: a line.
        title: engine, precision, threads, input, machine.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    figure = Figure(figsize=(8.6, 6.0), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.set(xscale="log", yscale="log")
    for stem, stride in sorted({(r.candidate.design.stem, r.candidate.design.stem_stride) for r in rows}):
        group = [
            r for r in rows if (r.candidate.design.stem, r.candidate.design.stem_stride) == (stem, stride)
        ]
        axes.scatter(
            [r.ms for r in group],
            [r.candidate.capacity / 1e6 for r in group],
            s=[18 + 90 * r.share_of_peak for r in group],
            c=_COLOURS[stem],
            marker=_MARKERS[stride],
            alpha=0.65,
            linewidths=0,
            label="no stem, full resolution" if stem == "none" else f"{stem} stem, stride {stride}",
        )
    front = sorted((r for r in rows if r.on_front), key=lambda r: r.ms)
    points = [(r.ms, r.candidate.capacity / 1e6) for r in front]
    axes.plot(
        *zip(*points, strict=True), color="black", linewidth=1, alpha=0.7, label="Pareto front", zorder=1
    )
    axes.axvline(budget_ms, color="#009e73", linewidth=1.5, linestyle="--", label=f"budget {budget_ms:g} ms")
    (chosen,) = (r for r in rows if r.chosen)
    place = (chosen.ms, chosen.candidate.capacity / 1e6)
    c = chosen.candidate
    note = (
        f"chosen: {c.name}\n{chosen.ms:.3f} ms, {c.parameters / 1e6:.2f} M parameters, {c.macs / 1e6:.0f} M MACs, "
        f"{chosen.share_of_peak:.0%} of the peak"
    )
    axes.plot(*place, "*", markersize=17, color="#f0e442", markeredgecolor="black", zorder=5, label=note)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("median latency in milliseconds (log; left is faster)")
    axes.set_ylabel("capacity √(MACs · parameters), millions (log)")
    axes.set_title(
        f"{title}\nmarks grow with the share of the machine's measured peak", fontsize=9, loc="left"
    )
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=3, fontsize=8, frameon=False)  # beside no point
    figure.savefig(path, dpi=130)
