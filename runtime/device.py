"""Builds, verifies and measures a bundle on the device that will run it, and writes one report.

`python -m runtime.device --bundle B --engine tensorrt --out device-report.json`; the device kit runs it
(`python -m export.kit`). It reads the device's power mode, clocks and temperatures and sets none of them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from runtime.device_engine import engine_folder, needs_building, runnable
from runtime.device_facts import assemble
from runtime.device_measure import measure
from runtime.device_report import DeviceReport, Percentiles
from runtime.device_speed import check_baseline, check_comparing, compare_speed, gate_speed, speed_text
from runtime.device_tensorrt import inspect_engine
from runtime.device_watch import Watch
from runtime.parity import percent
from runtime.predictor import Predictor
from runtime.verify import verify_bundle
from segcore.bundle import Bundle, open_bundle
from segcore.command import Settings, log, print_result, run_command
from segcore.errors import GateError, InputError
from segcore.outfolder import write_text


class DeviceSettings(Settings):
    """Builds the engine where that is TensorRT, verifies its masks, measures, and writes one report.

    Nothing about the device is set: choose its power mode and pin its clocks before, if you want to. Exit
    status 3: the masks are not the bundle's, or int8 is not faster than the baseline; the report is still written,
    except where TensorRT's build of the bundle ended so.
    """

    bundle: Path
    """Folder of an exported bundle."""
    baseline: Path | None = None
    """Folder of the same network's export in a higher precision. Both are timed in turns in one run, and an int8 bundle
    that is not faster ends with exit status 3."""
    engine: Literal["tensorrt", "openvino", "onnxruntime"]
    """The engine to measure."""
    out: Path
    """File to write: device-report.json."""
    threads: int | None = Field(default=None, gt=0)
    """CPU threads of the engine; by default all that this process may use."""
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
    check_out(settings.out, overwrite=settings.overwrite)
    source = open_bundle(settings.bundle)
    baseline = _open_baseline(settings, source)
    report, bundle = measure_device(settings, source)
    _write(report, settings.out)  # whatever becomes of the baseline, this much is kept
    for name, value in _lines(report):
        print(f"{name:30}{value}")
    if baseline and report.verification.passed:
        report = _compared(report, bundle, baseline, settings)
        _write(report, settings.out)
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


def measure_device(settings: DeviceSettings, source: Bundle) -> tuple[DeviceReport, Bundle]:
    """Everything of a bundle between the settings and the report; its baseline is not touched.

    Args:
        settings: of the command.
        source: `settings.bundle`, opened: on a small device hashing a teacher takes seconds.

    Returns:
        The report, and the bundle that ran: TensorRT's is the one that was built.
    """
    watch = Watch()
    watch.look("start")
    bundle, build_s = runnable(source, settings.engine, settings.out)
    log(f"verifying {bundle.manifest.name} with {settings.engine}")
    found = verify_bundle(bundle, engine=settings.engine, threads=settings.threads)
    log(f"warming up {settings.warm_up_s:g} s, then {settings.rounds} rounds")
    size_px = bundle.manifest.input.size_px  # of several sizes the first: latencies are of one network
    with Predictor.open(
        bundle, engine=settings.engine, threads=settings.threads, size_px=size_px
    ) as predictor:
        measured = measure(
            predictor,
            watch,
            warm_up_s=settings.warm_up_s,
            rounds=settings.rounds,
            burst_s=settings.burst_s,
        )
    inspected = inspect_engine(bundle, build_s=build_s) if settings.engine == "tensorrt" else None
    # Without folders, which may hold a user's name.
    command = f"python -m runtime.device --engine {settings.engine} --warm-up-s {settings.warm_up_s:g} "
    command += f"--rounds {settings.rounds} --burst-s {settings.burst_s:g}"
    report = assemble(
        source,
        bundle,
        found,
        measured,
        inspected,
        watch,
        command=command,
        warm_up_s=settings.warm_up_s,
        no_speed=_no_speed(settings, found.failures),
    )
    return report, bundle


def _no_speed(settings: DeviceSettings, failures: tuple[str, ...]) -> str:
    """Why a report holds no speed against a baseline, should none be put into it."""
    if settings.baseline is None:
        return "no baseline was given"
    return "the masks are not the bundle's" if failures else "the comparison with the baseline did not end"


def _open_baseline(settings: DeviceSettings, bundle: Bundle) -> Bundle | None:
    """The baseline as it was brought, with all that can be refused before minutes are spent.

    Raises:
        InputError: its time and the bundle's cannot be compared, or not with this engine.
    """
    if settings.baseline is None:
        return None
    baseline = open_bundle(settings.baseline)
    check_comparing(settings.engine, check_baseline(bundle, baseline), baseline)
    if needs_building(baseline, settings.engine):
        engine_folder(settings.out, of="baseline")
    return baseline


def _compared(
    report: DeviceReport, bundle: Bundle, baseline: Bundle, settings: DeviceSettings
) -> DeviceReport:
    """The report with the bundle's speed against the baseline."""
    opened, _ = runnable(baseline, settings.engine, settings.out, of="baseline")
    speed = compare_speed(
        bundle,
        opened,
        engine=settings.engine,
        threads=report.threads,
        warm_up_s=settings.warm_up_s,
        rounds=settings.rounds,
        burst_s=settings.burst_s,
    )
    unread = {name: why for name, why in report.unread.items() if name != "speed"}
    return report.model_copy(update={"speed": speed, "unread": unread})


def _write(report: DeviceReport, out: Path) -> None:
    write_text(out, report.model_dump_json(indent=2) + "\n")


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


def _lines(report: DeviceReport) -> list[tuple[str, str]]:
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
            f"{'PASS' if verified.passed else 'FAIL'}, {percent(verified.mean_share)} of pixels differ",
        ),
        ("engine alone", _spread(report.latency_ms)),
        ("engine without copies", _spread(report.latency_no_copies_ms)),
        ("end to end", _spread(report.end_to_end_ms)),
        ("throughput", f"{report.throughput_images_s:.3g} images/s"),
        ("memory of the process", f"{report.process_peak_mib:.0f} MiB at its peak"),
        ("hottest", f"{max(temperatures):.0f} °C" if temperatures else "unknown"),
    ]
    if report.tensorrt:
        rows.append(("INT8", report.tensorrt.int8_why))
    return rows + [("throttled", remark) for remark in report.throttling]


def _spread(times: Percentiles | None) -> str:
    if times is None:
        return "–"
    return f"p50 {times.p50:.3g}   p90 {times.p90:.3g}   p99 {times.p99:.3g} ms ({times.calls} calls)"


if __name__ == "__main__":
    run_command(main, DeviceSettings, "python -m runtime.device")
