"""The tables of a study, once, for the terminal, Markdown and the page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.study_record import Row, Spread, StudyRecord, Versus
from benchmarks.tables import piped
from benchmarks.wording import count, figures, signed

DASH = "–"
_HINTS = (
    "Differences are paired, and their intervals are over patients: another seed may move them further. No p: these "
    "are hints."
)


@dataclass(frozen=True)
class Grid:
    """A table: a title, what it says in a line, heads and cells; the first column is of words.

    Attributes:
        words: which columns are words.
        reference: index of the row that the others are compared with; None where there is none.
    """

    title: str
    note: str
    head: tuple[str, ...]
    cells: tuple[tuple[str, ...], ...]
    words: tuple[bool, ...]
    reference: int | None = None

    def markdown(self) -> str:
        """The table with its title and note."""
        return f"**{self.title}**\n\n{piped(self.head, self.cells, words=self.words)}\n\n{self.note}\n"


Column = tuple[str, Callable[[Row], str]]


def main_table(record: StudyRecord) -> Grid:
    """The systems, best first."""
    rows = record.of("main")
    columns: list[Column] = [
        ("system", lambda r: r.label),
        ("Dice, mean ± sd", lambda r: spread(r.dice)),
        ("95 % interval", lambda r: between(r.dice.low, r.dice.high)),
        ("place", lambda r: DASH if r.place is None else f"{r.place.place} ({r.place.low}–{r.place.high})"),
        ("difference, points", lambda r: versus(r.versus, r.label == record.reference)),
        ("runs above", lambda r: f"{r.versus.above} of {r.versus.runs}" if r.versus else DASH),
        ("p, Holm", lambda r: p_value(r.versus.p_holm if r.versus else None)),
    ]
    if any(r.versus and r.versus.p_splits is not None for r in rows):
        columns.append(("p, splits", lambda r: p_value(r.versus.p_splits if r.versus else None)))
    columns += _costs(rows)
    note = (
        f"Difference to {record.reference}: paired, of the same patients, splits and seeds; runs above: pairs of runs "
        "in which it was the better. Place: by Dice; in brackets where 95 % of resampled patients put it. ± is the "
        "standard deviation over runs; the interval resamples patients."
    )
    return grid("Systems on equal terms", note, columns, rows, reference=record.reference)


def _costs(rows: Sequence[Row]) -> list[Column]:
    columns: list[Column] = [
        ("trained", lambda r: count(r.trained_parameters)),
        ("parameters", lambda r: count(r.parameters)),
        ("MACs", lambda r: count(r.macs)),
        ("memory, MiB", lambda r: DASH if r.peak_memory_mib is None else f"{r.peak_memory_mib:.0f}"),
    ]
    if any(r.peak_gpu_memory_mib is not None for r in rows):
        columns.append(
            ("GPU, MiB", lambda r: DASH if r.peak_gpu_memory_mib is None else f"{r.peak_gpu_memory_mib:.0f}")
        )
    return [
        *columns,
        ("s an epoch", lambda r: DASH if r.seconds_epoch is None else figures(r.seconds_epoch)),
        ("images/s", lambda r: DASH if r.images_s is None else figures(r.images_s)),
        ("runs", lambda r: f"{r.runs}" + (f" of {r.runs + r.missing_runs}" if r.missing_runs else "")),
    ]


def further_tables(record: StudyRecord) -> list[Grid]:
    """Every other table that the study has rows for."""
    label: Column = ("system", lambda r: r.label)
    scores: list[Column] = [
        ("Dice", lambda r: spread(r.dice)),
        ("95 % interval", lambda r: between(r.dice.low, r.dice.high)),
    ]
    rows = record.of("main")
    unit = rows[0].hd95_unit
    others: list[Column] = [
        label,
        ("IoU, mean ± sd", lambda r: spread(r.iou)),
        ("IoU, 95 %", lambda r: between(r.iou.low, r.iou.high)),
        (f"HD95, {unit}, mean ± sd", lambda r: spread(r.hd95, 2)),
        ("HD95, 95 %", lambda r: between(r.hd95.low, r.hd95.high, 2)),
    ]
    if len(record.classes) > 1:
        others += [(f"Dice, {name}", _of_class(name)) for name in record.classes]
    tables = [grid("Overlap and distance", "HD95: smaller is better.", others, rows)]
    if told := record.of("main", "tune", "rank", told=True):
        protocol: Column = ("told", lambda r: r.protocol)
        note = (
            "Here the prompts come from the true mask, as a reader's who knows it and clicks or draws with care; under "
            "“upper bound” the truth even chooses among the masks. Not ranked, and not comparable with the table above."
        )
        tables.append(grid("Told by the truth (not ranked)", note, [label, protocol, *scores], told))
    ablated: list[Column] = [label, ("trained", lambda r: count(r.trained_parameters)), *scores]
    own: Column = ("against its own tuning, points", lambda r: versus(r.versus, r.own_tuning))
    systems = {r.system for r in record.of("tune")}
    if systems:
        some = [r for r in record.of("main", "tune") if r.system in systems]
        note = f"The same system with other tunings of its encoder, best first. {_HINTS}"
        tables.append(grid("Tuning of the encoder", note, [*ablated, own], _by_system(some, _by_dice)))
    systems = {r.system for r in record.of("rank")}
    if systems:
        some = [r for r in record.of("main", "rank") if r.system in systems]
        rank: Column = ("rank", lambda r: str(r.rank))
        note = f"The same system with other ranks of its LoRA. {_HINTS}"
        tables.append(grid("Rank", note, [label, rank, *ablated[1:], own], _by_system(some, _by_rank)))
    if record.of("share"):
        tables.append(_share_table(record))
    return [*tables, *_drop_table(record), *_grid_table(record)]


def _of_class(name: str) -> Callable[[Row], str]:
    return lambda row: f"{row.dice_by_class[name]:.3f}"


def _by_system(rows: Sequence[Row], order: Callable[[Row], Any]) -> list[Row]:
    """Systems together; comparisons of the main table are not shown here."""
    return [r.model_copy(update={"versus": None}) if r.own_tuning else r for r in sorted(rows, key=order)]


def _by_dice(row: Row) -> Any:
    return row.system, not row.own_tuning, -row.dice.mean


def _by_rank(row: Row) -> Any:
    return row.system, row.rank or 0


def _share_table(record: StudyRecord) -> Grid:
    rows = record.of("main", "tune", "share")
    shares = sorted({row.share for row in rows})
    keys = dict.fromkeys((r.system, r.tune) for r in rows if r.kind == "share")
    cells = []
    for system, tune in keys:
        by_share = {r.share: r for r in rows if (r.system, r.tune) == (system, tune)}
        trained = next(iter(by_share.values())).trained_parameters
        texts = [spread(by_share[s].dice) if s in by_share else DASH for s in shares]
        cells.append((f"{system}, {tune}", count(trained), *texts))
    return Grid(
        "Share of the labels",
        "Dice, mean ± sd over runs; the share is of the training patients whose masks are used. A smaller share is "
        "passed over more often an epoch, so that all take about as many steps.",
        ("system, tuning", "trained", *(f"{100 * share:g} %" for share in shares)),
        tuple(cells),
        (True, *([False] * (len(shares) + 1))),
    )


def _drop_table(record: StudyRecord) -> list[Grid]:
    if not record.drops:
        return []
    cells = tuple(
        (
            d.label,
            f"{d.own:.3f}",
            f"{d.other:.3f}",
            f"{signed(100 * d.drop.mean, 2)} {between(d.drop.low, d.drop.high, 2, 100)}",
        )
        for d in record.drops
    )
    far = next(row for row in record.rows if row.data == record.also_test)
    return [
        Grid(
            "On other data",
            f"Trained on {record.data}, tested on {far.cases} labelled images of {far.patients} patients of "
            f"{record.also_test}. Other patients, so the difference is not paired, and part of it is that those images "
            "may be harder.",
            ("system", "Dice", "Dice, other data", "difference, points"),
            cells,
            (True, False, False, False),
        )
    ]


def _grid_table(record: StudyRecord) -> list[Grid]:
    if not record.grid:
        return []
    names = list(record.grid[0].values)
    cells = tuple(
        (c.system, *(f"{c.values[n]:g}" for n in names), f"{c.dice_val:.4f}", f"{c.chosen} of {c.splits}")
        for c in record.grid
    )
    head = ("system", *(name.replace("_", "-") for name in names), "validation Dice", "chosen in splits")
    note = (
        "Each split chooses by its own validation patients, with the first seed; test patients have no say."
    )
    return [Grid("Grid", note, head, cells, (True, *([False] * (len(names) + 2))))]


def grid(
    title: str, note: str, columns: Sequence[Column], rows: Sequence[Row], *, reference: str | None = None
) -> Grid:
    """A table of rows; columns are (head, text of a row)."""
    words = tuple(head in ("system", "told") for head, _ in columns)
    cells = tuple(tuple(text(row) for _, text in columns) for row in rows)
    at = next((i for i, row in enumerate(rows) if row.label == reference), None)
    return Grid(title, note, tuple(head for head, _ in columns), cells, words, at)


def spread(one: Spread, decimals: int = 4) -> str:
    """0.9512 ± 0.0021; no deviation of one run."""
    return f"{one.mean:.{decimals}f}" + ("" if one.sd is None else f" ± {one.sd:.{decimals}f}")


def between(low: float | None, high: float | None, decimals: int = 4, scale: float = 1.0) -> str:
    """(0.9480–0.9561), or with signs (−0.31 to +0.02) where the scale is in points."""
    if low is None or high is None:
        return DASH
    if scale != 1.0:
        return f"({signed(scale * low, decimals)} to {signed(scale * high, decimals)})"
    return f"{low:.{decimals}f}–{high:.{decimals}f}"


def versus(one: Versus | None, is_reference: bool) -> str:
    """−0.31 (−0.52 to −0.11), in points of Dice."""
    if one is None:
        return "reference" if is_reference else DASH
    return f"{signed(100 * one.mean, 2)} {between(one.low, one.high, 2, 100)}"


def p_value(p: float | None) -> str:
    """0.043; tiny ones as < 0.001."""
    return DASH if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"
