"""Other devices' reports beside what was measured here: tables of their own, never in this machine's ratios."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.report.record import Record
from benchmarks.report.tables import P99_SAMPLES, or_dash
from runtime.device.report import DeviceReport, Percentiles, read_report
from runtime.timing.latency import BUSY_SHARE
from segcore import words
from segcore.bundle.guard_record import DiceScore
from segcore.errors import InputError
from segcore.tables import Column, Table

UNMEASURED = "Speed against a higher precision: not measured"


@dataclass(frozen=True)
class DeviceRow:
    """A line of the table: a bundle on a device, or on this machine for comparison.

    Attributes:
        model: the bundle's name.
        name: of this run's record; empty for a device's, which is never the reference or the headline's.
        dice: mean, and 5th percentile, over the guard's validation cases; None where the network is not measured
            here, or had no guard.
        masks: share of golden pixels that differ, and whether that is within the limits.
        speed: times as fast as a higher precision on the same device, and whether that is enough.
    """

    model: str
    name: str
    device: str
    engine: str
    precision: str
    engine_ms: tuple[float | None, float | None, float | None]
    no_copies_ms: float | None
    end_to_end_ms: float | None
    throughput_images_s: float | None
    memory_mib: float | None
    power_mode: str
    dice: DiceScore | None
    masks: str
    speed: str = "–"
    is_reference: bool = False


def read_reports(paths: Sequence[Path]) -> list[DeviceReport]:
    """Reads device reports.

    Raises:
        InputError: one is missing, damaged, from a newer sam2edge, or given twice.
    """
    found: list[DeviceReport] = []
    for path in paths:
        report = read_report(path)
        if report in found:
            raise InputError(f"--records {path}: must be given once, was given before; remove one")
        found.append(report)
    return found


def device_tables(records: Sequence[Record], devices: Sequence[DeviceReport]) -> list[Table]:
    """Times, then all else; the devices' rows under this machine's. Nothing where no report was given."""
    if not devices:
        return []
    rows = (
        *(_machine_row(r) for r in records if r.latency_ms_p50 is not None),
        *_device_rows(records, devices),
    )
    return [
        Table("On devices, each measured by itself, beside this machine", (*_WHERE, *_TIMES), rows),
        Table("On devices: masks, memory and power", (*_WHERE, *_OTHERS), rows),
    ]


def device_remarks(devices: Sequence[DeviceReport]) -> list[str]:
    """What a reader must know of each report's figures, one paragraph each."""
    return [
        f"{r.device}, {r.engine} {r.engine_version}, {r.bundle.name}: {' '.join(_device_remarks(r))}"
        for r in devices
    ]


def _device_remarks(report: DeviceReport) -> list[str]:
    board, found = report.board, []
    release = " ".join(
        f"{name} {value}" for name, value in (("JetPack", board.jetpack), ("L4T", board.l4t)) if value
    )
    found.append(
        f"measured {report.time[:10]}{', ' + release if release else ''}; {_clocks_and_heat(report)}."
    )
    if not report.verification.passed:
        failed = "; ".join(report.verification.failures)
        found.append(
            f"Its masks of the golden cases are not the bundle's ({failed}). Do not use this engine."
        )
    found += _speed_remarks(report)
    if report.throttling:
        found.append(f"It held itself back while it was measured ({'; '.join(report.throttling)}).")
    if (report.other_load_share or 0.0) > BUSY_SHARE:
        found.append(
            f"Other programs took {words.percent(report.other_load_share or 0.0, 0)} of its processor time."
        )
    if report.tensorrt:
        share = report.tensorrt.reformat_share
        layers = ", ".join(f"{n} {name}" for name, n in report.tensorrt.layers_by_precision.items())
        took = "" if share is None else f", which take {words.percent(share)} of the time"
        found.append(
            f"TensorRT's layers: {layers}; {report.tensorrt.reformats} only change a layout or type{took}."
        )
        if report.device_memory_mib is not None:
            found.append(f"The engine holds {report.device_memory_mib:.0f} MiB of the GPU's memory.")
        if report.tensorrt.int8_proven is not None:
            proven = "proven" if report.tensorrt.int8_proven else "not proven"
            found.append(f"INT8 is {proven}: {report.tensorrt.int8_why}.")
    return found


def _speed_remarks(report: DeviceReport) -> list[str]:
    """INT8 against FP16 or FP32 on that device; nothing where there is no higher precision."""
    speed, precision = report.speed, report.bundle.precision
    if speed is None:
        return [] if precision == "fp32" else [f"{UNMEASURED}."]
    speedup, low, high = (words.bounded_ratio(value) for value in (speed.speedup, speed.low, speed.high))
    text = (
        f"{precision.upper()} is {speedup} times as fast as {speed.against.upper()} in the same "
        f"engine ({low}–{high} over {words.plural(speed.rounds, 'round')})"
    )
    verdict = {
        True: f": PASS, at least {report.min_speedup:g} is asked for.",
        False: f": FAIL, at least {report.min_speedup:g} is asked for. Use {speed.against.upper()} on this device.",
        None: ".",
    }
    return [text + verdict[report.fast_enough]]


def _speed_cell(report: DeviceReport) -> str:
    if report.speed is None:
        return "–" if report.bundle.precision == "fp32" else "not measured"
    verdict = {True: " PASS", False: " FAIL", None: ""}[report.fast_enough]
    return f"{words.bounded_ratio(report.speed.speedup)}× {report.speed.against}{verdict}"


def _clocks_and_heat(report: DeviceReport) -> str:
    hottest = [max(s.temperatures_c.values()) for s in report.snapshots if s.temperatures_c]
    pinned = {True: "clocks pinned", False: "clocks not pinned", None: "clocks could not be read"}
    heat = f", {hottest[0]:.0f} °C at the start and {hottest[-1]:.0f} °C at the end" if hottest else ""
    return pinned[report.clocks_pinned] + heat


def _machine_row(record: Record) -> DeviceRow:
    return DeviceRow(
        model=record.name,
        name=record.name,
        device="this machine",
        engine=f"{record.engine}, {words.plural(record.threads or 1, 'thread')}",
        precision=record.precision,
        engine_ms=(
            record.latency_ms_p50,
            record.latency_ms_p90,
            record.latency_ms_p99 if (record.samples or 0) >= P99_SAMPLES else None,
        ),
        no_copies_ms=None,
        end_to_end_ms=record.end_to_end_ms_p50,
        throughput_images_s=record.throughput_images_s,
        memory_mib=record.peak_memory_mib,
        power_mode="–",
        dice=None,
        masks="–",
        is_reference=record.is_reference,
    )


def _device_rows(records: Sequence[Record], devices: Sequence[DeviceReport]) -> list[DeviceRow]:
    networks = {record.network for record in records}
    rows = []
    for report in devices:
        bundle, mode = report.bundle, report.power_mode
        known = report.guard is not None and (bundle.parent or bundle.sha256) in networks
        engine = f"{report.engine} {report.engine_version}"
        if report.engine != "tensorrt":
            engine += f", {words.plural(report.threads, 'thread')}"
        verdict = "" if report.verification.passed else " FAIL"
        rows.append(
            DeviceRow(
                model=bundle.name,
                name="",
                device=_shortened_board(report.device),
                engine=engine,
                precision=bundle.precision,
                engine_ms=_percentiles_of(report.latency_ms),
                no_copies_ms=report.latency_no_copies_ms.p50 if report.latency_no_copies_ms else None,
                end_to_end_ms=report.end_to_end_ms.p50,
                throughput_images_s=report.throughput_images_s,
                memory_mib=report.process_peak_mib,
                power_mode=(mode.name or str(mode.id)) if mode else "–",
                dice=report.guard.int8 if known and report.guard else None,
                masks=words.percent(report.verification.mean_share) + verdict,
                speed=_speed_cell(report),
            )
        )
    return rows


def _shortened_board(device: str) -> str:
    """ "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super" → "Jetson Orin Nano Super"."""
    for word in ("NVIDIA ", " Engineering Reference", " Developer Kit"):
        device = device.replace(word, "")
    return device


def _percentiles_of(times: Percentiles) -> tuple[float | None, float | None, float | None]:
    return times.p50, times.p90, times.p99 if times.calls >= P99_SAMPLES else None


_WHERE = (
    Column("model", "", lambda r: r.model, words=True),
    Column("device", "", lambda r: r.device, words=True),
    Column("engine", "", lambda r: r.engine, words=True),
    Column("precision", "", lambda r: r.precision, words=True),
)
_TIMES = (
    Column("engine", "ms p50", lambda r: or_dash(r.engine_ms[0])),
    Column("engine", "ms p90", lambda r: or_dash(r.engine_ms[1])),
    Column("engine", "ms p99", lambda r: or_dash(r.engine_ms[2])),
    Column("no copies", "ms p50", lambda r: or_dash(r.no_copies_ms)),
    Column("end to end", "ms p50", lambda r: or_dash(r.end_to_end_ms)),
    Column("throughput", "images/s", lambda r: or_dash(r.throughput_images_s)),
    Column("speed", "against a higher precision", lambda r: r.speed),
)
_OTHERS = (
    Column("masks", "golden pixels that differ", lambda r: r.masks),
    Column("Dice", "the guard's cases", lambda r: "–" if r.dice is None else f"{r.dice.mean:.3f}"),
    Column("Dice p05", "the guard's cases", lambda r: "–" if r.dice is None else f"{r.dice.p05:.3f}"),
    Column("memory", "peak MiB", lambda r: "–" if r.memory_mib is None else f"{r.memory_mib:.0f}"),
    Column("power mode", "", lambda r: r.power_mode, words=True),
)
