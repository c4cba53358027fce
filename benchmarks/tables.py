"""The tables, once, for the terminal, the Markdown and the page."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks import wording
from benchmarks.columns import (
    FASTER,
    PEAK,
    SIZE,
    SPEED,
    WHO,
    WHOLE,
    Table,
    accuracy_columns,
    class_columns,
)
from benchmarks.networks import network_tables
from benchmarks.record import Record, for_threads


def tables_of(records: Sequence[Record], ratio_to: Sequence[str] = ()) -> list[Table]:
    """The comparison at the first thread count; every class; where times were taken, them, and the networks.

    Args:
        records: all of one run.
        ratio_to: sha256 of the bundles whose latency the networks' is compared with; the reference's if empty.
    """
    first = tuple(for_threads(records))
    accuracy = accuracy_columns(first)
    classes = []
    if len(first[0].dice_by_class) > 1:
        classes = [Table("Every class", (*WHO, *class_columns(first)), first)]
    if first[0].threads is None:
        return [Table("Comparison", (*WHO, *accuracy, *SIZE), first), *classes]
    title = f"Comparison, {wording.plural(first[0].threads, 'thread')}"
    peak = (PEAK,) if any(r.share_of_peak for r in records) else ()
    return [
        Table(title, (*WHO, *accuracy, WHOLE, FASTER, *SIZE), first),
        Table("Speed and memory", (*WHO, *SPEED, *peak), tuple(records)),
        *network_tables(records, ratio_to),
        *classes,
    ]


def plain_table(table: Table) -> str:
    """A table for a terminal, aligned."""
    shown = table.columns
    heads = [[c.header for c in shown], [c.unit for c in shown]]
    return aligned(heads, table.rows, words=[c.words for c in shown])


def markdown_table(table: Table) -> str:
    """A table in Markdown."""
    head = [" ".join(filter(None, (c.header, c.unit))) for c in table.columns]
    return piped(head, table.rows, words=[c.words for c in table.columns])


def aligned(heads: Sequence[Sequence[str]], rows: Sequence[Sequence[str]], *, words: Sequence[bool]) -> str:
    """Lines of cells for a terminal: heads, a rule, rows; columns of `words` to the left, numbers to the right."""
    widths = [max(len(row[i]) for row in (*heads, *rows)) for i in range(len(words))]
    lines = [
        "  ".join(
            text.ljust(width) if left else text.rjust(width)
            for text, width, left in zip(row, widths, words, strict=True)
        ).rstrip()
        for row in (*heads, *rows)
    ]
    lines.insert(len(heads), "  ".join("─" * width for width in widths))
    return "\n".join(lines)


def piped(head: Sequence[str], rows: Sequence[Sequence[str]], *, words: Sequence[bool]) -> str:
    """The same in Markdown."""
    lines = [head, ["---" if left else "---:" for left in words], *rows]
    return "\n".join("| " + " | ".join(text.replace("|", "\\|") for text in line) + " |" for line in lines)
