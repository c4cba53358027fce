"""How fast a bundle is on this device: its own times, and those against its baseline in turns.

Its own: latency of the engine alone and end to end, throughput, and how much other programs took meanwhile. The
baseline is the same network in a higher precision, in the same engine: an INT8 that is not faster is not worth its
error, and only the device that runs it can tell.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from runtime.device.report import DeviceReport, Percentiles, percentiles
from runtime.device.sensors import SensorWatch
from runtime.engines.seam import ENGINES, ON_GPU, builds_tensorrt, engines_for
from runtime.predictor import Predictor
from runtime.timing.latency import (
    ModelCalls,
    others_share,
    peak_memory_mib,
    read_processor_times,
    speedups,
    time_interleaved,
)
from runtime.verify import verify_bundle
from segcore.bundle.folder import Bundle
from segcore.bundle.guard_record import SpeedRatio
from segcore.bundle.manifest import Manifest
from segcore.command import log
from segcore.errors import GateError, InputError
from segcore.phantom import phantom_case
from segcore.picture.preprocess import InputSpec, prepare
from segcore.words import bounded_ratio

PICTURE_PX = 512
"""Side of the pictures that go end to end."""
PICTURES = 8
"""Different pictures, which take turns."""
THROUGHPUT_S = 3.0
"""Seconds of pictures one after another, at most."""
_PRECISION_RANK = {"int8": 0, "fp16": 1, "fp32": 2}
_ENGINE_TITLE = {
    "tensorrt": "TensorRT",
    "tensorrt-rtx": "TensorRT for RTX",
    "openvino": "OpenVINO",
    "onnxruntime": "onnxruntime",
}


@dataclass(frozen=True)
class TimingPlan:
    """How long a bundle is timed.

    Attributes:
        warm_up_s: seconds of calls before the first timed one; clocks and temperature settle meanwhile.
        rounds: bursts of timed calls.
        burst_s: seconds a burst, for each way to call.
    """

    warm_up_s: float
    rounds: int
    burst_s: float


@dataclass(frozen=True)
class DeviceFigures:
    """Figures of one opened bundle; as in `runtime.device.report.DeviceReport`."""

    latency_ms: Percentiles
    end_to_end_ms: Percentiles
    throughput_images_s: float
    other_load_share: float | None
    process_peak_mib: float


def measure_predictor(predictor: Predictor, watch: SensorWatch, plan: TimingPlan) -> DeviceFigures:
    """Warms up, then times in bursts with a look at the sensors after each, then lets pictures flow.

    Args:
        predictor: opened.
        watch: takes the snapshots.
        plan: how long.
    """
    pictures = device_pictures(predictor.manifest.input)
    batches = [prepare(picture, predictor.manifest.input)[None].copy() for picture in pictures]
    warm_up(predictor, batches, plan.warm_up_s)
    watch.take_snapshot("warm")
    before = read_processor_times()
    calls = ModelCalls(
        run=lambda i: predictor.run(batches[i % PICTURES]),
        predict=lambda i: predictor.predict(pictures[i % PICTURES]),
    )
    (samples,) = time_interleaved(
        [calls], rounds=plan.rounds, burst_s=plan.burst_s, progress=lambda: watch.take_snapshot("round")
    )
    seconds = min(THROUGHPUT_S, plan.burst_s * plan.rounds)
    throughput = _measure_throughput(predictor, pictures, seconds=seconds)
    share = others_share(before, read_processor_times())
    watch.take_snapshot("end")
    return DeviceFigures(
        latency_ms=percentiles(samples.engine_ms),
        end_to_end_ms=percentiles(samples.end_to_end_ms),
        throughput_images_s=throughput,
        other_load_share=share,
        process_peak_mib=peak_memory_mib(),  # before anything else is opened in this process
    )


def device_pictures(spec: InputSpec) -> list[np.ndarray]:
    """Procedural films of `PICTURE_PX`, in the depth and over the window that the model knows; H×W."""
    pictures = [phantom_case("cxr", i, seed=7, size_px=PICTURE_PX)[0] for i in range(PICTURES)]
    if spec.depth == "uint8":
        return pictures
    low, high = spec.window
    return [(low + picture * ((high - low) / 255.0)).astype(spec.depth) for picture in pictures]


def warm_up(predictor: Predictor, batches: Sequence[np.ndarray], seconds: float) -> None:
    """Calls the engine alone for so long, once at least."""
    end = time.perf_counter() + seconds
    predictor.run(batches[0])
    while time.perf_counter() < end:
        for batch in batches:
            predictor.run(batch)


def _measure_throughput(predictor: Predictor, pictures: Sequence[np.ndarray], *, seconds: float) -> float:
    """Pictures a second through `Predictor.map`, which prepares some while the engine works on others."""
    end = time.perf_counter() + seconds

    def flow() -> Iterator[np.ndarray]:
        yield from pictures
        while time.perf_counter() < end:
            yield from pictures

    begin = time.perf_counter()
    count = sum(1 for _ in predictor.map(flow()))
    return count / (time.perf_counter() - begin)


# --- against the baseline ---


def check_baseline(bundle: Bundle, baseline: Bundle) -> tuple[str, ...]:
    """Refuses a pair whose times cannot be compared.

    Returns:
        The engines that can compare them, one at least.

    Raises:
        InputError: a torch bundle, a built engine, another network, no higher precision, another input size, or no
            engine in common.
    """
    ours, theirs = bundle.manifest, baseline.manifest
    name = f"--baseline {baseline.folder}"
    able, able_too = _comparing_engines(bundle), _comparing_engines(baseline)
    for folder, manifest in ((bundle.folder, ours), (baseline.folder, theirs)):
        if manifest.format in ON_GPU:  # its parent is the bundle that it was built from, not the network
            raise InputError(
                f"{name}: must be compared as a bundle that an engine is built from, {folder} is a built one; "
                "give the tensorrt-onnx bundles of both"
            )
    if ours.parent is None or theirs.parent != ours.parent:
        raise InputError(
            f"{name}: must be of the same network as --bundle {bundle.folder} (made from {_short_hash(ours.parent)}), "
            f"was made from {_short_hash(theirs.parent)}; export both from one trained bundle"
        )
    if _PRECISION_RANK[theirs.precision] <= _PRECISION_RANK[ours.precision]:
        raise InputError(
            f"{name}: must have a higher precision than {ours.precision}, got {theirs.precision}; "
            "export one with --precision fp16 or fp32"
        )
    if theirs.input.size_px != ours.input.size_px:
        raise InputError(
            f"{name}: must take pictures of {_size_text(ours)} px as --bundle {bundle.folder} does, "
            f"got {_size_text(theirs)}; export both at one size"
        )
    engines = tuple(engine for engine in ENGINES if engine in able and engine in able_too)
    if not engines:
        raise InputError(
            f"{name}: must be of a format that {' or '.join(able)} runs, "
            f"as --bundle {bundle.folder}, got {theirs.format}; export it to the format of --bundle"
        )
    return engines


def _comparing_engines(bundle: Bundle) -> tuple[str, ...]:
    """The engines in which a bundle's time means something; a tensorrt-onnx bundle runs elsewhere for its numbers."""
    able = engines_for(bundle)
    if bundle.manifest.format == "tensorrt-onnx":
        return ("tensorrt",)
    return (*able, "tensorrt") if builds_tensorrt(bundle.manifest) else able


def _short_hash(sha256: str | None) -> str:
    return sha256[:12] if sha256 else "nothing that is known"


def _size_text(manifest: Manifest) -> str:
    return "×".join(map(str, manifest.input.size_px))


def check_comparing(engine: str, engines: tuple[str, ...], baseline: Bundle) -> None:
    """Refuses an engine that cannot compare the two.

    Raises:
        InputError: it is none of what `check_baseline` gave.
    """
    if engine not in engines:
        raise InputError(
            f"--engine {engine}: must be {' or '.join(engines)} to be compared with --baseline {baseline.folder}, "
            f"got {engine}; leave --baseline out, or use --engine {engines[0]}"
        )


def compare_speed(
    bundle: Bundle,
    baseline: Bundle,
    plan: TimingPlan,
    *,
    engine: str,
    threads: int,
) -> SpeedRatio:
    """Verifies the baseline, then times both in turns in one run, the engine alone.

    Args:
        bundle: verified, as the engine opens it.
        baseline: as the engine opens it.
        plan: how long; half of the warm-up for each.
        engine: for both.
        threads: CPU threads, for both.

    Raises:
        GateError: the baseline's masks are not those of its golden cases.
    """
    log(f"verifying {baseline.manifest.name} with {engine}")
    found = verify_bundle(baseline, engine=engine, threads=threads)
    if found.failures:
        raise GateError(
            f"--baseline {baseline.folder} with {found.engine} {found.engine_version}: {'; '.join(found.failures)}; "
            "its speed was not compared"
        )
    spec = bundle.manifest.input
    batches = [prepare(picture, spec)[None].copy() for picture in device_pictures(spec)]
    log(
        f"timing {bundle.manifest.precision} and {baseline.manifest.precision} in turns, {plan.rounds} rounds"
    )
    with (
        Predictor.open(bundle, engine=engine, threads=threads, size_px=spec.size_px) as ours,
        Predictor.open(baseline, engine=engine, threads=threads, size_px=spec.size_px) as theirs,
    ):
        for predictor in (ours, theirs):
            warm_up(predictor, batches, plan.warm_up_s / 2)
        fast, slow = time_interleaved(
            [_engine_calls(predictor, batches) for predictor in (ours, theirs)],
            rounds=plan.rounds,
            burst_s=plan.burst_s,
        )
        version = ours.engine_version
    speedup, low, high = speedups(fast, slow)
    return SpeedRatio(
        engine=engine,
        engine_version=version,
        threads=threads,
        against=baseline.manifest.precision,
        speedup=speedup,
        low=low,
        high=high,
        rounds=plan.rounds,
    )


def _engine_calls(predictor: Predictor, batches: list[np.ndarray]) -> ModelCalls:
    return ModelCalls(run=lambda i: predictor.run(batches[i % PICTURES]))


def gate_speed(report: DeviceReport) -> None:
    """The verdict on INT8; nothing where the report holds none.

    Raises:
        GateError: it is not fast enough on this device.
    """
    speed = report.speed
    if speed is None or report.fast_enough is not False:
        return
    raise GateError(
        f"int8: must be at least {report.min_speedup:g} times as fast as {speed.against} on this device, is "
        f"{bounded_ratio(speed.speedup)} times ({_ENGINE_TITLE[speed.engine]} {speed.engine_version}); "
        f"use the {speed.against} bundle"
    )


def speed_text(speed: SpeedRatio, precision: str) -> str:
    """int8 is 1.62 times as fast as fp16 (1.55 to 1.70 over 10 rounds)."""
    return (
        f"{precision} is {bounded_ratio(speed.speedup)} times as fast as {speed.against} "
        f"({bounded_ratio(speed.low)} to {bounded_ratio(speed.high)} over {speed.rounds} rounds)"
    )
