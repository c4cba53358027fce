"""The tables of a report."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.report.columns import FASTER, PEAK, SIZE, SPEED, WHO, WHOLE, accuracy_columns, class_columns
from benchmarks.report.networks import network_tables
from benchmarks.report.record import Record, for_threads
from segcore import words
from segcore.tables import Table


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
    title = f"Comparison, {words.plural(first[0].threads, 'thread')}"
    peak = (PEAK,) if any(r.share_of_peak for r in records) else ()
    return [
        Table(title, (*WHO, *accuracy, WHOLE, FASTER, *SIZE), first),
        Table("Speed and memory", (*WHO, *SPEED, *peak), tuple(records)),
        *network_tables(records, ratio_to),
        *classes,
    ]
