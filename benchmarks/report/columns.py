"""The columns of the report's tables: what a cell of a record says."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from benchmarks.report.record import Record
from segcore import words
from segcore.tables import Column

P99_SAMPLES = 100
"""Calls below which a 99th percentile is little more than the maximum, and is not shown."""


def accuracy_columns(records: Sequence[Record]) -> tuple[Column, ...]:
    """Dice, HD95, the calibration error and, where these cases have small parts, how many of them are found."""
    small = (SMALL, SMALL_DIFFERENCE) if records[0].small_parts else ()
    calibration = (ECE,) if all(record.reliability for record in records) else ()
    return (*ACCURACY, HD95, *calibration, *small)


def _or_dash(value: float | None, show: Callable[[float], str] = words.figures) -> str:
    return "–" if value is None else show(value)


def _p99(record: Record) -> str:
    enough = record.samples is not None and record.samples >= P99_SAMPLES
    return _or_dash(record.end_to_end_ms_p99 if enough else None)


def _faster_engine(record: Record) -> str:
    return "reference" if record.is_reference else _or_dash(record.times_faster_engine, words.times)


def _faster(record: Record) -> str:
    return "reference" if record.is_reference else _or_dash(record.times_faster, words.times)


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
ECE = Column(
    "ECE", "of pixels", lambda r: _or_dash(r.reliability and r.reliability.ece, lambda v: f"{v:.4f}")
)
SMALL = Column(
    "small parts found",
    "share, 95 %",
    lambda r: _or_dash(
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
WHOLE = Column("end to end", "ms p50", lambda r: _or_dash(r.end_to_end_ms_p50))
FASTER = Column("faster", "end to end", _faster)
SIZE = (
    Column("parameters", "", lambda r: words.count(r.parameters)),
    Column("files", "", lambda r: words.megabytes(r.size_bytes)),
)
MACS = Column("MACs", "an image", lambda r: words.count(r.macs))
SPEED = (
    Column("threads", "", lambda r: _or_dash(r.threads, str)),
    Column("engine", "ms p50", lambda r: _or_dash(r.latency_ms_p50)),
    WHOLE,
    Column("end to end", "ms p90", lambda r: _or_dash(r.end_to_end_ms_p90)),
    Column("end to end", "ms p99", _p99),
    FASTER,
    Column("faster", "engine", _faster_engine),
    Column("throughput", "images/s", lambda r: _or_dash(r.throughput_images_s)),
    Column("cold start", "s", lambda r: _or_dash(r.cold_start_ms, lambda ms: words.figures(ms / 1e3, 2))),
    Column("memory", "peak MiB", lambda r: _or_dash(r.peak_memory_mib, lambda mib: f"{mib:.0f}")),
    MACS,
)
PEAK = Column("of the peak", "engine", lambda r: _or_dash(r.share_of_peak, words.percent))


def class_columns(records: Sequence[Record]) -> tuple[Column, ...]:
    """Dice, HD95 and, where there are any, the small parts found, of every class."""

    def of_class(k: str) -> list[Column]:
        dice = Column(k, "Dice", lambda r: f"{r.dice_by_class[k]:.3f}")
        hd95 = Column(k, f"HD95 {records[0].hd95_unit}", lambda r: words.figures(r.hd95_by_class[k]))
        small = Column(k, "small parts found", lambda r: f"{r.small_recall_by_class[k]:.3f}")
        return [dice, hd95, *([small] if k in records[0].small_recall_by_class else [])]

    return tuple(column for k in records[0].dice_by_class for column in of_class(k))
