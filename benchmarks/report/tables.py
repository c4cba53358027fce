"""The tables of a report: what a cell says of a record, the models side by side, and the networks to choose from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from benchmarks.report.record import Record, for_threads
from segcore import words
from segcore.tables import Column, Table

P99_SAMPLES = 100
"""Calls below which a 99th percentile is little more than the maximum, and is not shown."""
_PRECISIONS = ("int8", "fp16", "fp32")
"""The smallest first: it is the one that one would ship."""


def or_dash(value: float | None, show: Callable[[float], str] = words.figures) -> str:
    """A number in three figures, or as `show` writes it; a dash where it was not measured."""
    return "–" if value is None else show(value)


def _p99_cell(record: Record) -> str:
    enough = record.samples is not None and record.samples >= P99_SAMPLES
    return or_dash(record.end_to_end_ms_p99 if enough else None)


def _faster_engine_cell(record: Record) -> str:
    return "reference" if record.is_reference else or_dash(record.times_faster_engine, words.times)


def _faster_cell(record: Record) -> str:
    return "reference" if record.is_reference else or_dash(record.times_faster, words.times)


WHO = (
    Column("model", "", lambda r: r.name, words=True),
    Column("engine", "", lambda r: r.engine, words=True),
)
ACCURACY = (
    Column("precision", "", lambda r: r.precision, words=True),
    Column("Dice", "mean, 95 %", lambda r: words.dice(r.dice_mean, r.dice_low, r.dice_high)),
    Column(
        "Dice − reference",
        "paired, 95 %",
        lambda r: words.difference(r.dice_difference, r.dice_difference_low, r.dice_difference_high),
    ),
    Column("Dice p05", "worst 1 in 20", lambda r: f"{r.dice_p05:.3f}"),
    Column("IoU", "mean", lambda r: f"{r.iou_mean:.3f}"),
)
HD95 = Column(
    "HD95", "mean, 95 %", lambda r: words.distance(r.hd95_mean, r.hd95_low, r.hd95_high, r.hd95_unit)
)
ECE = Column("ECE", "of pixels", lambda r: or_dash(r.reliability and r.reliability.ece, lambda v: f"{v:.4f}"))
SMALL = Column(
    "small parts found",
    "share, 95 %",
    lambda r: or_dash(
        r.small_recall, lambda share: words.dice(share, r.small_recall_low, r.small_recall_high)
    ),
)
SMALL_DIFFERENCE = Column(
    "small parts − reference",
    "paired, 95 %",
    lambda r: words.difference(
        r.small_recall_difference, r.small_recall_difference_low, r.small_recall_difference_high
    ),
)
WHOLE = Column("end to end", "ms p50", lambda r: or_dash(r.end_to_end_ms_p50))
FASTER = Column("faster", "end to end", _faster_cell)
SIZE = (
    Column("parameters", "", lambda r: words.count(r.parameters)),
    Column("files", "", lambda r: words.megabytes(r.size_bytes)),
)
MACS = Column("MACs", "an image", lambda r: words.count(r.macs))
SPEED = (
    Column("threads", "", lambda r: or_dash(r.threads, str)),
    Column("engine", "ms p50", lambda r: or_dash(r.latency_ms_p50)),
    WHOLE,
    Column("end to end", "ms p90", lambda r: or_dash(r.end_to_end_ms_p90)),
    Column("end to end", "ms p99", _p99_cell),
    FASTER,
    Column("faster", "engine", _faster_engine_cell),
    Column("throughput", "images/s", lambda r: or_dash(r.throughput_images_s)),
    Column("cold start", "s", lambda r: or_dash(r.cold_start_ms, lambda ms: words.figures(ms / 1e3, 2))),
    Column("memory", "peak MiB", lambda r: or_dash(r.peak_memory_mib, lambda mib: f"{mib:.0f}")),
    MACS,
)
PEAK = Column("of the peak", "engine", lambda r: or_dash(r.share_of_peak, words.percent))


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


def accuracy_columns(records: Sequence[Record]) -> tuple[Column, ...]:
    """Dice, HD95, the calibration error and, where these cases have small parts, how many of them are found."""
    small = (SMALL, SMALL_DIFFERENCE) if records[0].small_parts else ()
    calibration = (ECE,) if all(record.reliability for record in records) else ()
    return (*ACCURACY, HD95, *calibration, *small)


def class_columns(records: Sequence[Record]) -> tuple[Column, ...]:
    """Dice, HD95 and, where there are any, the small parts found, of every class."""

    def of_class(k: str) -> list[Column]:
        dice = Column(k, "Dice", lambda r: f"{r.dice_by_class[k]:.3f}")
        hd95 = Column(k, f"HD95 {records[0].hd95_unit}", lambda r: words.figures(r.hd95_by_class[k]))
        small = Column(k, "small parts found", lambda r: f"{r.small_recall_by_class[k]:.3f}")
        return [dice, hd95, *([small] if k in records[0].small_recall_by_class else [])]

    return tuple(column for k in records[0].dice_by_class for column in of_class(k))


def network_tables(records: Sequence[Record], ratio_to: Sequence[str] = ()) -> list[Table]:
    """The tables to choose a model from: a row a network, its precisions and thread counts side by side.

    Size, accuracy and latency; latency as a ratio to others'; share of the peak.

    Args:
        records: all of one run, timed.
        ratio_to: sha256 of bundles to tell ratios to; the reference's if empty.

    Returns:
        Nothing where no network was measured in two precisions or at two thread counts: the other tables say all.
    """
    turn = _export_turns(for_threads(records))
    rows = _one_record_each(for_threads(records), turn)
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

    who = [Column("network", "", lambda r: _network_name(r, rows), words=True)]
    small = [SMALL] if rows[0].small_parts else []
    dice = Column("Dice", "mean, 95 %", lambda r: words.dice(r.dice_mean, r.dice_low, r.dice_high))
    size = Column("parameters", "", lambda r: words.count(r.parameters))
    scored = Column("scored in", "", lambda r: r.precision.upper(), words=True)
    about = [*who, size, MACS, dice, HD95, *small, scored]
    times = columns(lambda r: words.figures(r.latency_ms_p50 or 0.0))
    found = [Table("Networks, engine latency in ms (median)", (*about, *times), rows)]
    for base in _ratio_bases(records, ratio_to):
        against = {
            r.threads: r.latency_ms_p50 for r in records if (r.name, r.engine) == (base.name, base.engine)
        }

        def ratio(record: Record, against: dict[int | None, float | None] = against) -> str:
            share = (record.latency_ms_p50 or 0.0) / (against[record.threads] or 1.0)
            return f"{words.percent(share)} ({words.figures(1 / share)}×)"

        title = f"Networks, engine latency as a share of {base.name} at as many threads (times faster)"
        found.append(Table(title, (*who, *columns(ratio)), rows))
    if any(r.share_of_peak for r in records):
        peak = columns(lambda r: or_dash(r.share_of_peak, words.percent))
        title = "Networks, share of the measured peak of their precision"
        found.append(Table(title, (*who, *peak), rows))
    return found


def _export_turns(records: Sequence[Record]) -> dict[str, int]:
    """By name: the how-manieth export of its network in its precision; the second gets a row of its own."""
    seen: Counter[tuple[str, str, str]] = Counter()
    turn = {}
    for record in records:
        key = record.network, record.engine, record.precision
        turn[record.name] = seen[key]
        seen[key] += 1
    return turn


def _one_record_each(records: Sequence[Record], turn: dict[str, int]) -> tuple[Record, ...]:
    """One record a network and engine: of its smallest precision, which is what one would ship."""
    best: dict[tuple[str, str, int], Record] = {}
    for record in records:
        key = record.network, record.engine, turn[record.name]
        if key not in best or _PRECISIONS.index(record.precision) < _PRECISIONS.index(best[key].precision):
            best[key] = record
    return tuple(best.values())


def _network_name(record: Record, rows: Sequence[Record]) -> str:
    """The name without the precision; with the engine where the network ran on several."""
    name = record.name.partition(" · ")[0].removesuffix(f", {record.precision.upper()}")
    shared = sum(row.network == record.network for row in rows) > 1
    return f"{name} · {record.engine}" if shared else name


def _ratio_bases(records: Sequence[Record], ratio_to: Sequence[str]) -> list[Record]:
    """The first record of each bundle to tell ratios to."""
    wanted = ratio_to or [next(r for r in records if r.is_reference).bundle_sha256]
    return [next(r for r in records if r.bundle_sha256 == sha256) for sha256 in dict.fromkeys(wanted)]
