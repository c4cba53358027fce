"""Builds, verifies and measures a bundle on the device that will run it, and writes one report.

`python -m runtime.device --bundle B --engine tensorrt --out device-report.json`; the device kit runs it
(`python -m export.kit`). It reads the device's power mode, clocks and temperatures and sets none of them.
"""

from __future__ import annotations

import platform
import time
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Literal

from pydantic import Field

from runtime.device.plan_facts import EngineInspection, inspect_engine
from runtime.device.report import BundleFacts, DeviceReport, Percentiles, VerificationFacts
from runtime.device.sensors import (
    SensorWatch,
    clocks_pinned,
    find_throttling,
    read_board,
    read_power_mode,
    unread_sensors,
)
from runtime.device.speed import (
    PICTURE_PX,
    DeviceFigures,
    TimingPlan,
    check_baseline,
    check_comparing,
    compare_speed,
    gate_speed,
    measure_predictor,
    speed_text,
)
from runtime.engines.seam import BUILDS_FROM, choose_engine
from runtime.predictor import Predictor
from runtime.trt.build import build_bundle
from runtime.trt.cuda_runtime import CudaLibrary, choose_cuda
from runtime.verify import Verification, verify_bundle
from segcore import __version__
from segcore.bundle.folder import MANIFEST, Bundle, open_and_tell, open_bundle
from segcore.command import Settings, log, print_result, run_command
from segcore.errors import GateError, InputError
from segcore.host import describe_host, library_versions
from segcore.outfolder import write_text
from segcore.words import fixed_percent


class DeviceSettings(Settings):
    """Builds the engine where that is TensorRT, verifies its masks, measures, and writes one report.

    Nothing about the device is set: choose its power mode and pin its clocks before, if you want to. Exit
    status 3: the masks are not the bundle's, or int8 is not faster than the baseline; the report is still written,
    except where TensorRT's build of the bundle ended so.
    """

    bundle: Path
    """Folder of an exported bundle."""
    expect: tuple[str, ...] = ()
    """sha256 of the bundle (its first 12 digits or more will do); another bundle is refused. Repeat for several."""
    baseline: Path | None = None
    """Folder of the same network's export in a higher precision. Both are timed in turns in one run, and an int8 bundle
    that is not faster ends with exit status 3."""
    engine: Literal["tensorrt", "tensorrt-rtx", "openvino", "onnxruntime"]
    """The engine to measure."""
    out: Path
    """File to write: device-report.json."""
    threads: int | None = Field(default=None, gt=0)
    """CPU threads of the engine; by default all that this process may use."""
    cuda_library: CudaLibrary | None = None
    """For an engine on a GPU: cuda-python or pycuda; by default cuda-python where it is installed."""
    warm_up_s: float = Field(default=10.0, ge=0)
    """Seconds of calls before the first timed one."""
    rounds: int = Field(default=10, gt=0)
    """Bursts of timed calls; the sensors are read after each."""
    burst_s: float = Field(default=0.4, gt=0)
    """Seconds a burst."""
    overwrite: bool = False
    """Replace OUT if it is there."""


def main(settings: DeviceSettings) -> None:
    """Writes the report, prints the figures and one JSON line.

    Raises:
        InputError: a bundle or an engine that cannot be used here.
        GateError: the masks of the golden cases are not the bundle's, or INT8 is not faster than the baseline.
    """
    choose_cuda(settings.cuda_library)
    check_out(settings.out, overwrite=settings.overwrite)
    source = open_and_tell(settings.bundle, settings.expect)
    baseline = _open_baseline(settings, source)  # refused now, before minutes are spent
    report, bundle = measure_device(settings, source)
    write_text(settings.out, report.to_json())  # whatever becomes of the baseline, this much is kept
    for name, value in _report_lines(report):
        print(f"{name:30}{value}")
    if baseline and report.verification.passed:
        report = _add_speed(report, bundle, baseline, settings)
        write_text(settings.out, report.to_json())
    _print_result(report, settings.out)
    if not report.verification.passed:
        raise GateError(
            f"bundle {settings.bundle} with {report.engine} {report.engine_version}: "
            f"{'; '.join(report.verification.failures)}; the report {settings.out} says so too"
        )
    gate_speed(report)


def check_out(out: Path, *, overwrite: bool) -> None:
    """Refuses a report's place before minutes are spent.

    Raises:
        InputError: it is there already, or its folder is not.
    """
    if out.exists() and (out.is_dir() or not overwrite):
        raise InputError(f"--out {out}: must not exist yet, it does; move it away, or add --overwrite")
    if not out.parent.is_dir():
        raise InputError(f"--out {out}: must lie in a folder that is there, {out.parent} is not; make it")


def _open_baseline(settings: DeviceSettings, bundle: Bundle) -> Bundle | None:
    """The baseline as it was brought, with all that can be refused before minutes are spent.

    Raises:
        InputError: its time and the bundle's cannot be compared, or not with this engine.
    """
    if settings.baseline is None:
        return None
    baseline = open_and_tell(settings.baseline, settings.expect)
    check_comparing(settings.engine, check_baseline(bundle, baseline), baseline)
    if _needs_building(baseline, settings.engine):
        engine_folder(settings.out, of="baseline")
    return baseline


def measure_device(settings: DeviceSettings, source: Bundle) -> tuple[DeviceReport, Bundle]:
    """Everything of a bundle between the settings and the report; its baseline is not touched.

    Args:
        settings: of the command.
        source: `settings.bundle`, opened: on a small device hashing a teacher takes seconds.

    Returns:
        The report, and the bundle that ran: TensorRT's is the one that was built.
    """
    watch = SensorWatch()
    watch.take_snapshot("start")  # before anything runs: the clocks and temperatures of the idle device
    bundle, build_s = make_runnable(source, settings.engine, settings.out)
    log(f"verifying {bundle.manifest.name} with {settings.engine}")
    # First, but it stops nothing: wrong masks go into the report with their times, and end the command later.
    found = verify_bundle(bundle, engine=settings.engine, threads=settings.threads)
    log(f"warming up {settings.warm_up_s:g} s, then {settings.rounds} rounds")
    size_px = bundle.manifest.input.size_px  # of several sizes the first: latencies are of one network
    with Predictor.open(
        bundle, engine=settings.engine, threads=settings.threads, size_px=size_px
    ) as predictor:
        figures = measure_predictor(predictor, watch, _timing_plan(settings))
    inspected = inspect_engine(bundle, build_s=build_s) if settings.engine == "tensorrt" else None
    # Without folders, which may hold a user's name.
    command = f"python -m runtime.device --engine {settings.engine} --warm-up-s {settings.warm_up_s:g} "
    command += f"--rounds {settings.rounds} --burst-s {settings.burst_s:g}"
    report = assemble_report(
        source,
        bundle,
        found,
        figures,
        inspected,
        watch,
        command=command,
        warm_up_s=settings.warm_up_s,
        no_speed=_why_no_speed(settings, found.failures),
    )
    return report, bundle


def _timing_plan(settings: DeviceSettings) -> TimingPlan:
    return TimingPlan(warm_up_s=settings.warm_up_s, rounds=settings.rounds, burst_s=settings.burst_s)


def _why_no_speed(settings: DeviceSettings, failures: tuple[str, ...]) -> str:
    """Why a report holds no speed against a baseline, should none be put into it."""
    if settings.baseline is None:
        return "no baseline was given"
    return "the masks are not the bundle's" if failures else "the comparison with the baseline did not end"


def _add_speed(
    report: DeviceReport, bundle: Bundle, baseline: Bundle, settings: DeviceSettings
) -> DeviceReport:
    """The report with the bundle's speed against the baseline."""
    opened, _ = make_runnable(baseline, settings.engine, settings.out, of="baseline")
    speed = compare_speed(
        bundle, opened, _timing_plan(settings), engine=settings.engine, threads=report.threads
    )
    unread = {name: why for name, why in report.unread.items() if name != "speed"}
    return report.model_copy(update={"speed": speed, "unread": unread})


# --- the bundle that the engine opens ---


def make_runnable(source: Bundle, engine: str, out: Path, *, of: str = "") -> tuple[Bundle, float | None]:
    """The bundle that the engine opens, and the seconds that building it took; None where nothing was built.

    Args:
        source: the bundle that was brought.
        engine: to run it with.
        out: the report's file; see `engine_folder`.
        of: as in `engine_folder`.

    Raises:
        InputError: this engine cannot run the bundle, or TensorRT cannot build it here.
        GateError: TensorRT built it, and its masks are not the bundle's.
    """
    if not _needs_building(source, engine):
        choose_engine(source, engine)
        return source, None
    folder = engine_folder(out, of=of)
    # One for both engines of a report: two precisions of a network have kernels in common.
    timings = out.with_name(f"{out.stem}-engine-timings")
    log(f"building TensorRT's engine into {folder}; minutes on a small device")
    begin = time.perf_counter()
    build_bundle(source, folder, overwrite=True, timing_cache=timings)
    return open_bundle(folder), time.perf_counter() - begin


def _needs_building(source: Bundle, engine: str) -> bool:
    """Whether the engine opens a bundle only after it was built from it."""
    return engine == "tensorrt" and source.manifest.format in BUILDS_FROM


def engine_folder(out: Path, *, of: str = "") -> Path:
    """Where an engine of a report is built: beside it. One of an earlier run is replaced, nothing else.

    Args:
        out: the report's file.
        of: "baseline" for the engine that the report's is compared with.

    Raises:
        InputError: another folder has that name.
    """
    folder = out.with_name(f"{out.stem}-{of}-engine" if of else f"{out.stem}-engine")
    if folder.exists() and not (folder / MANIFEST).is_file():
        raise InputError(f"--out {out}: {folder} must be free for the engine, is not; move it away")
    return folder


# --- the report ---


def assemble_report(
    source: Bundle,
    bundle: Bundle,
    found: Verification,
    figures: DeviceFigures,
    inspected: EngineInspection | None,
    watch: SensorWatch,
    *,
    command: str,
    warm_up_s: float,
    no_speed: str,
) -> DeviceReport:
    """Puts everything into the report, with the reason of whatever could not be read.

    Args:
        source: the bundle that the kit brought.
        bundle: the one that ran; for TensorRT the engine that was built from `source`.
        found: of the golden cases.
        figures: of any engine.
        inspected: TensorRT's own figures; None for other engines.
        watch: with all its snapshots.
        command: how the measurement was called, without folders.
        warm_up_s: seconds before the first timed call.
        no_speed: why there is no comparison with a baseline so far.
    """
    board, mode = read_board(), read_power_mode()
    pinned = clocks_pinned(watch.snapshots[0])
    reasons = {
        "board.model": (board.model, "no device tree and no DMI names it"),
        "board.l4t": (board.l4t, "no /etc/nv_tegra_release: not a Jetson"),
        "board.jetpack": (
            board.jetpack,
            "no Jetson" if board.l4t is None else "a release that is not known here",
        ),
        "board.memory_mib": (board.memory_mib, "no /proc/meminfo"),
        "power_mode": (mode, "nvpmodel is not here, or tells nothing"),
        "clocks_pinned": (pinned, "no clock could be read"),
        "other_load_share": (figures.other_load_share, "no /proc/stat"),
        "latency_no_copies_ms": (inspected, f"{found.engine} computes in the CPU's own memory"),
        "device_memory_mib": (inspected, f"{found.engine} holds nothing on a GPU"),
        "guard": (source.manifest.guard, "the bundle holds no record of a guard"),
        "tensorrt": (inspected, f"{found.engine} ran"),
        "speed": (None, no_speed),  # comes after the rest, if at all
    }
    unread = {name: why for name, (value, why) in reasons.items() if value is None}
    return DeviceReport(
        sam2edge=installed_version(),
        time=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        command=command,
        python=platform.python_version(),
        host=describe_host(),
        versions=library_versions(),
        board=board,
        power_mode=mode,
        clocks_pinned=pinned,
        throttling=find_throttling(watch.snapshots),
        engine=found.engine,
        engine_version=found.engine_version,
        engine_target=bundle.manifest.engine_target,
        threads=found.threads,
        bundle=_describe_bundle(source, bundle),
        guard=source.manifest.guard,
        verification=VerificationFacts(
            cases=found.cases,
            mean_share=found.parity.mean_share,
            worst_share=found.parity.worst_share,
            constant=found.parity.constant,
            failures=found.failures,
        ),
        warm_up_s=warm_up_s,
        latency_ms=figures.latency_ms,
        latency_no_copies_ms=inspected.latency_no_copies_ms if inspected else None,
        end_to_end_ms=figures.end_to_end_ms,
        throughput_images_s=figures.throughput_images_s,
        picture_px=(PICTURE_PX, PICTURE_PX),
        process_peak_mib=figures.process_peak_mib,
        device_memory_mib=inspected.device_memory_mib if inspected else None,
        other_load_share=figures.other_load_share,
        tensorrt=inspected.facts if inspected else None,
        snapshots=tuple(watch.snapshots),
        unread=unread | unread_sensors(watch.snapshots),
    )


def installed_version() -> str:
    """Of the kit's wheel, which names the commit too; else of sam2edge."""
    try:
        return metadata.version("sam2edge-edge")
    except metadata.PackageNotFoundError:
        return __version__


def _describe_bundle(source: Bundle, bundle: Bundle) -> BundleFacts:
    manifest = source.manifest
    return BundleFacts(
        name=manifest.name,
        sha256=source.sha256,
        parent=manifest.parent,
        kind=manifest.kind,
        format=manifest.format,
        precision=manifest.precision,
        height_px=manifest.input.height_px,
        width_px=manifest.input.width_px,
        channels=manifest.input.channels,
        classes=manifest.classes,
        parameters=manifest.parameters,
        macs=manifest.macs,
        model_bytes=bundle.manifest.model_bytes,
    )


# --- what is printed ---


def _report_lines(report: DeviceReport) -> list[tuple[str, str]]:
    """The figures for a terminal."""
    mode = report.power_mode
    verified = report.verification
    temperatures = [t for s in report.snapshots for t in (s.temperatures_c or {}).values()]
    rows = [
        ("device", report.device),
        ("engine", f"{report.engine} {report.engine_version}, {report.threads} threads"),
        ("bundle", report.bundle.name),
        ("power mode", f"{mode.name} ({mode.id})" if mode else "unknown"),
        (
            "masks",
            f"{'PASS' if verified.passed else 'FAIL'}, {fixed_percent(verified.mean_share)} of pixels differ",
        ),
        ("engine alone", _percentile_text(report.latency_ms)),
        ("engine without copies", _percentile_text(report.latency_no_copies_ms)),
        ("end to end", _percentile_text(report.end_to_end_ms)),
        ("throughput", f"{report.throughput_images_s:.3g} images/s"),
        ("memory of the process", f"{report.process_peak_mib:.0f} MiB at its peak"),
        ("hottest", f"{max(temperatures):.0f} °C" if temperatures else "unknown"),
    ]
    if report.tensorrt:
        rows.append(("INT8", report.tensorrt.int8_why))
    return rows + [("throttled", remark) for remark in report.throttling]


def _percentile_text(times: Percentiles | None) -> str:
    if times is None:
        return "–"
    return f"p50 {times.p50:.3g}   p90 {times.p90:.3g}   p99 {times.p99:.3g} ms ({times.calls} calls)"


def _print_result(report: DeviceReport, out: Path) -> None:
    """How fast against the baseline, and the JSON line."""
    speed = report.speed
    if speed:
        print(f"{'speed':30}{speed_text(speed, report.bundle.precision)}")
    print_result(
        report=str(out),
        device=report.device,
        engine=report.engine,
        engine_version=report.engine_version,
        latency_ms_p50=report.latency_ms.p50,
        end_to_end_ms_p50=report.end_to_end_ms.p50,
        passed=report.verification.passed,
        speedup=speed.speedup if speed else None,
        against=speed.against if speed else None,
        fast_enough=report.fast_enough,
    )


if __name__ == "__main__":
    run_command(main, DeviceSettings, "python -m runtime.device")
