"""What a device measured of a bundle: one JSON file to send back, and how it is read again.

Nothing in it names the user, the machine in its network, or a folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import ValidationError

from segcore.bundle.guard_record import GuardRecord, SpeedRatio, least_speedup
from segcore.bundle.manifest import EngineTarget
from segcore.errors import InputError
from segcore.record import Record
from segcore.text import read_json

SCHEMA_VERSION = 1


class Board(Record):
    """The device.

    Attributes:
        model: as its maker names it; None where nothing tells.
        l4t: Jetson Linux release, "36.4.3"; None where it is no Jetson.
        jetpack: the JetPack that came with it.
    """

    model: str | None
    l4t: str | None
    jetpack: str | None
    memory_mib: float | None


class PowerMode(Record):
    """The mode that nvpmodel has set; on a Jetson it decides the clocks."""

    id: int | None
    name: str | None


class ClockReading(Record):
    """One clock; min equal to max means pinned.

    Attributes:
        name: the kernel's, "policy0" or "17000000.gpu".
    """

    name: str
    mhz: float
    min_mhz: float
    max_mhz: float
    governor: str | None


class Snapshot(Record):
    """What the sensors said at one moment; what could not be read is None, and `DeviceReport.unread` says why.

    Attributes:
        moment: `start` before anything ran, `warm` after the warm-up, `round` after a burst, `end`.
        at_s: seconds since the start.
        temperatures_c: by thermal zone.
        power_mw: by rail of the board.
        cooling: state of each cooling device that is engaged; 0 states are left out.
        throttle_counts: events since the device was switched on, by counter.
    """

    moment: Literal["start", "warm", "round", "end"]
    at_s: float
    temperatures_c: dict[str, float] | None = None
    cpu_clocks: tuple[ClockReading, ...] | None = None
    gpu_clocks: tuple[ClockReading, ...] | None = None
    power_mw: dict[str, float] | None = None
    cooling: dict[str, int] | None = None
    throttle_counts: dict[str, int] | None = None
    memory_available_mib: float | None = None


class BundleFacts(Record):
    """Which bundle ran.

    Attributes:
        sha256: of the bundle that the kit brought, not of an engine built from it.
        parent: `Bundle.sha256` of the trained bundle.
        model_bytes: size of the model's file; for TensorRT of the engine that was built.
    """

    name: str
    sha256: str
    parent: str | None
    kind: str
    format: str
    precision: str
    height_px: int
    width_px: int
    channels: int
    classes: tuple[str, ...]
    parameters: int
    macs: int
    model_bytes: int


class VerificationFacts(Record):
    """How far the engine's masks of the golden cases are from the reference; shares of pixels, 0–1."""

    cases: int
    mean_share: float
    worst_share: float
    constant: bool
    failures: tuple[str, ...]

    @property
    def passed(self) -> bool:
        return not self.failures


class Percentiles(Record):
    """Milliseconds of single calls with a batch of one."""

    p50: float
    p90: float
    p99: float
    calls: int


def percentiles(bursts: Sequence[Sequence[float]]) -> Percentiles:
    """Over all calls of all bursts, in milliseconds."""
    times = np.concatenate(bursts)
    p50, p90, p99 = (float(value) for value in np.percentile(times, (50, 90, 99)))
    return Percentiles(p50=p50, p90=p90, p99=p99, calls=len(times))


class TensorRTFacts(Record):
    """What TensorRT made of the graph.

    Attributes:
        build_s: seconds to build the engine; None where the bundle brought one.
        layers_by_precision: number of the engine's layers by the precision that the inspector names.
        reformats: layers that only change a tensor's layout or type.
        reformat_share: their share of the engine's time, 0–1.
        int8_proven: every convolution that should compute in INT8 does; None where INT8 was not asked for.
        int8_why: what that rests on, or what is missing.
    """

    build_s: float | None
    layers_by_precision: dict[str, int]
    reformats: int
    reformat_share: float | None
    int8_proven: bool | None
    int8_why: str


class DeviceReport(Record):
    """Everything that one run on a device found.

    Attributes:
        sam2edge: version.
        host: processor, cores, system; no host or user name.
        versions: of the libraries that decide a result.
        clocks_pinned: min equals max on every clock that was read.
        throttling: what shows that the device held itself back; empty if nothing did.
        engine_target: what a TensorRT engine was built for.
        guard: what INT8 lost on validation cases, from the bundle.
        threads: CPU threads of the engine.
        latency_ms: the engine alone on a prepared picture, copies to and from the device included.
        latency_no_copies_ms: the same without copies.
        end_to_end_ms: from the decoded picture in memory to the mask at the picture's size.
        throughput_images_s: `Predictor.map` over many pictures, several under way at once.
        picture_px: height and width of the pictures that went end to end.
        process_peak_mib: largest resident size of this process until this bundle was measured, Python and libraries
            included.
        device_memory_mib: what the engine holds on the GPU.
        other_load_share: processor time that other programs took meanwhile, 0–1.
        speed: against the same network in a higher precision, the engine alone, in turns in one run; None where no such
            bundle was given.
        unread: field → why it is None.
    """

    schema_version: int = SCHEMA_VERSION
    sam2edge: str
    time: str
    command: str
    python: str
    host: str
    versions: dict[str, str]
    board: Board
    power_mode: PowerMode | None
    clocks_pinned: bool | None
    throttling: tuple[str, ...]
    engine: str
    engine_version: str
    engine_target: EngineTarget | None = None
    threads: int
    bundle: BundleFacts
    guard: GuardRecord | None = None
    verification: VerificationFacts
    warm_up_s: float
    latency_ms: Percentiles
    latency_no_copies_ms: Percentiles | None = None
    end_to_end_ms: Percentiles
    throughput_images_s: float
    picture_px: tuple[int, int]
    process_peak_mib: float
    device_memory_mib: float | None = None
    other_load_share: float | None = None
    tensorrt: TensorRTFacts | None = None
    speed: SpeedRatio | None = None
    snapshots: tuple[Snapshot, ...]
    unread: dict[str, str]

    def to_json(self) -> str:
        """The file's text, which `read_report` reads again."""
        return self.model_dump_json(indent=2) + "\n"

    @property
    def device(self) -> str:
        """What tables call the device."""
        return self.board.model or self.host

    @property
    def min_speedup(self) -> float:
        """How many times as fast as a higher precision INT8 must be."""
        return least_speedup(self.guard)

    @property
    def fast_enough(self) -> bool | None:
        """Whether INT8 is worth its error on this device; None for other precisions, and where it was not measured."""
        if self.speed is None or self.bundle.precision != "int8":
            return None
        return self.speed.speedup >= self.min_speedup


def read_report(path: Path) -> DeviceReport:
    """Reads what `python -m runtime.device` wrote.

    Raises:
        InputError: there is none, it is damaged, or a newer sam2edge wrote it.
    """
    if not path.is_file():
        raise InputError(f"device report {path}: must be a file, there is none; name a device-report.json")
    raw = read_json(path, f"device report {path}", remedy="have it sent again")
    version = raw.get("schema_version") if isinstance(raw, dict) else None
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise InputError(
            f"device report {path}: schema must be {SCHEMA_VERSION}, got {version}; install a newer sam2edge"
        )
    try:
        return DeviceReport.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the whole"
        raise InputError(
            f"device report {path}: {where}: {first['msg'][0].lower()}{first['msg'][1:]}; "
            "have it made again with this version of sam2edge"
        ) from None
