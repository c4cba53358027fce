"""One row a network, its precisions and thread counts side by side: the table to choose a model from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from benchmarks.report.columns import HD95, MACS, SMALL
from benchmarks.report.record import Record, for_threads
from segcore import words
from segcore.tables import Column, Table

_PRECISIONS = ("int8", "fp16", "fp32")


def network_tables(records: Sequence[Record], ratio_to: Sequence[str] = ()) -> list[Table]:
    """Size, accuracy and latency of each network; latency as a ratio to others'; share of the peak.

    Args:
        records: all of one run, timed.
        ratio_to: sha256 of bundles to tell ratios to; the reference's if empty.

    Returns:
        Nothing where no network was measured in two precisions or at two thread counts: the other tables say all.
    """
    turn = _turns(for_threads(records))
    rows = _one_each(for_threads(records), turn)
    precisions = [p for p in _PRECISIONS if any(r.precision == p for r in records)]
    threads = list(dict.fromkeys(r.threads for r in records if r.threads is not None))
    several = len(rows) < len({(r.bundle_sha256, r.engine) for r in records})
    if not (several or len(threads) > 1 or ratio_to):
        return []
    find = {(r.network, r.engine, turn[r.name], r.precision, r.threads): r for r in records}

    def columns(cell: Callable[[Record], str]) -> list[Column]:
        def one(precision: str, count: int) -> Column:
            def text(row: Record) -> str:
                record = find.get((row.network, row.engine, turn[row.name], precision, count))
                return "–" if record is None else cell(record)

            return Column(precision.upper(), words.plural(count, "thread"), text)

        return [one(precision, count) for precision in precisions for count in threads]

    who = [Column("network", "", lambda r: _name(r, rows), words=True)]
    small = [SMALL] if rows[0].small_parts else []
    dice = Column("Dice", "mean, 95 %", lambda r: words.dice(r.dice_mean, r.dice_low, r.dice_high))
    size = Column("parameters", "", lambda r: words.count(r.parameters))
    scored = Column("scored in", "", lambda r: r.precision.upper(), words=True)
    about = [*who, size, MACS, dice, HD95, *small, scored]
    times = columns(lambda r: words.figures(r.latency_ms_p50 or 0.0))
    found = [Table("Networks, engine latency in ms (median)", (*about, *times), rows)]
    for base in _bases(records, ratio_to):
        against = {
            r.threads: r.latency_ms_p50 for r in records if (r.name, r.engine) == (base.name, base.engine)
        }

        def ratio(record: Record, against: dict[int | None, float | None] = against) -> str:
            share = (record.latency_ms_p50 or 0.0) / (against[record.threads] or 1.0)
            return f"{words.percent(share)} ({words.figures(1 / share)}×)"

        title = f"Networks, engine latency as a share of {base.name} at as many threads (times faster)"
        found.append(Table(title, (*who, *columns(ratio)), rows))
    if any(r.share_of_peak for r in records):
        peak = columns(lambda r: "–" if r.share_of_peak is None else words.percent(r.share_of_peak))
        title = "Networks, share of the measured peak of their precision"
        found.append(Table(title, (*who, *peak), rows))
    return found


def _turns(records: Sequence[Record]) -> dict[str, int]:
    """By name: the how-manieth export of its network in its precision; the second gets a row of its own."""
    seen: Counter[tuple[str, str, str]] = Counter()
    turn = {}
    for record in records:
        key = record.network, record.engine, record.precision
        turn[record.name] = seen[key]
        seen[key] += 1
    return turn


def _one_each(records: Sequence[Record], turn: dict[str, int]) -> tuple[Record, ...]:
    """One record a network and engine: of its smallest precision, which is what one would ship."""
    best: dict[tuple[str, str, int], Record] = {}
    for record in records:
        key = record.network, record.engine, turn[record.name]
        if key not in best or _PRECISIONS.index(record.precision) < _PRECISIONS.index(best[key].precision):
            best[key] = record
    return tuple(best.values())


def _name(record: Record, rows: Sequence[Record]) -> str:
    """The name without the precision; with the engine where the network ran on several."""
    name = record.name.partition(" · ")[0].removesuffix(f", {record.precision.upper()}")
    shared = sum(row.network == record.network for row in rows) > 1
    return f"{name} · {record.engine}" if shared else name


def _bases(records: Sequence[Record], ratio_to: Sequence[str]) -> list[Record]:
    """The first record of each bundle to tell ratios to."""
    wanted = ratio_to or [next(r for r in records if r.is_reference).bundle_sha256]
    return [next(r for r in records if r.bundle_sha256 == sha256) for sha256 in dict.fromkeys(wanted)]
