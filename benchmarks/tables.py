"""The tables, once, for the terminal, the Markdown and the page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks import wording
from benchmarks.record import Record, for_threads

P99_SAMPLES = 100
"""Calls below which a 99th percentile is little more than the maximum, and is not shown."""


@dataclass(frozen=True)
class Column:
    """A column: its header, the unit or remark under it, and the text of a record's cell."""

    header: str
    unit: str
    cell: Callable[[Record], str]
    words: bool = False


def _or_dash(value: float | None, show: Callable[[float], str] = wording.figures) -> str:
    return "–" if value is None else show(value)


def _p99(record: Record) -> str:
    enough = record.samples is not None and record.samples >= P99_SAMPLES
    return _or_dash(record.end_to_end_ms_p99 if enough else None)


def _faster_engine(record: Record) -> str:
    return "reference" if record.is_reference else _or_dash(record.times_faster_engine, wording.times)


def _faster(record: Record) -> str:
    return "reference" if record.is_reference else _or_dash(record.times_faster, wording.times)


_WHO = (
    Column("model", "", lambda r: r.name, words=True),
    Column("engine", "", lambda r: r.engine, words=True),
)
_ACCURACY = (
    Column("precision", "", lambda r: r.precision, words=True),
    Column("Dice", "mean, 95 %", lambda r: wording.dice(r.dice_mean, r.dice_low, r.dice_high)),
    Column(
        "Dice − reference",
        "paired, 95 %",
        lambda r: wording.difference(r.dice_difference, r.dice_difference_low, r.dice_difference_high),
    ),
    Column("Dice p05", "worst 1 in 20", lambda r: f"{r.dice_p05:.3f}"),
    Column("IoU", "mean", lambda r: f"{r.iou_mean:.3f}"),
)
_WHOLE = Column("end to end", "ms p50", lambda r: _or_dash(r.end_to_end_ms_p50))
_FASTER = Column("faster", "end to end", _faster)
_SIZE = (
    Column("parameters", "", lambda r: wording.count(r.parameters)),
    Column("files", "", lambda r: wording.megabytes(r.size_bytes)),
)
_SPEED = (
    Column("threads", "", lambda r: _or_dash(r.threads, str)),
    Column("engine", "ms p50", lambda r: _or_dash(r.latency_ms_p50)),
    _WHOLE,
    Column("end to end", "ms p90", lambda r: _or_dash(r.end_to_end_ms_p90)),
    Column("end to end", "ms p99", _p99),
    _FASTER,
    Column("faster", "engine", _faster_engine),
    Column("throughput", "images/s", lambda r: _or_dash(r.throughput_images_s)),
    Column("cold start", "s", lambda r: _or_dash(r.cold_start_ms, lambda ms: wording.figures(ms / 1e3, 2))),
    Column("memory", "peak MiB", lambda r: _or_dash(r.peak_memory_mib, lambda mib: f"{mib:.0f}")),
    Column("MACs", "an image", lambda r: wording.count(r.macs)),
)


@dataclass(frozen=True)
class Table:
    """A table ready to be drawn.

    Attributes:
        title: what it shows.
        columns: its columns.
        records: one a row.
        rows: the texts, a row a record.
    """

    title: str
    columns: tuple[Column, ...]
    records: tuple[Record, ...]

    @property
    def rows(self) -> list[list[str]]:
        return [[column.cell(record) for column in self.columns] for record in self.records]


def tables_of(records: Sequence[Record]) -> list[Table]:
    """The comparison at the first thread count, then, where times were taken, all of them at every count."""
    first = tuple(for_threads(records))
    if first[0].threads is None:
        return [Table("Comparison", _WHO + _ACCURACY + _SIZE, first)]
    title = f"Comparison, {wording.plural(first[0].threads, 'thread')}"
    return [
        Table(title, (*_WHO, *_ACCURACY, _WHOLE, _FASTER, *_SIZE), first),
        Table("Speed and memory", _WHO + _SPEED, tuple(records)),
    ]


def class_cells(records: Sequence[Record]) -> list[list[str]]:
    """Name, engine and mean Dice of each class, once for each bundle and engine."""
    return [[r.name, r.engine, *(f"{v:.3f}" for v in r.dice_by_class.values())] for r in for_threads(records)]


def plain_table(table: Table) -> str:
    """A table for a terminal, aligned."""
    shown = table.columns
    rows = [[c.header for c in shown], [c.unit for c in shown], *table.rows]
    widths = [max(len(row[i]) for row in rows) for i in range(len(shown))]
    lines = [
        "  ".join(
            text.ljust(width) if column.words else text.rjust(width)
            for text, width, column in zip(row, widths, shown, strict=True)
        ).rstrip()
        for row in rows
    ]
    lines.insert(2, "  ".join("─" * width for width in widths))
    return "\n".join(lines)


def markdown_table(table: Table) -> str:
    """A table in Markdown."""
    head = [" ".join(filter(None, (c.header, c.unit))) for c in table.columns]
    lines = [head, ["---" if c.words else "---:" for c in table.columns], *table.rows]
    return "\n".join("| " + " | ".join(text.replace("|", "\\|") for text in line) + " |" for line in lines)
