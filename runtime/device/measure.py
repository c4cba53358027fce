"""Measures an opened bundle on this device: latency alone and end to end, throughput, the others' load."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from runtime.device.report import Percentiles, percentiles
from runtime.device.watch import SensorWatch
from runtime.predictor import Predictor
from runtime.timing.interleaved import ModelCalls, time_interleaved
from runtime.timing.load import others_share, peak_memory_mib, read_processor_times
from segcore.phantom import phantom_case
from segcore.picture.preprocess import InputSpec, prepare

PICTURE_PX = 512
PICTURES = 8
THROUGHPUT_S = 3.0


@dataclass(frozen=True)
class DeviceFigures:
    """Figures of one opened bundle; as in `runtime.device.report.DeviceReport`."""

    latency_ms: Percentiles
    end_to_end_ms: Percentiles
    throughput_images_s: float
    other_load_share: float | None
    process_peak_mib: float


def measure_predictor(
    predictor: Predictor, watch: SensorWatch, *, warm_up_s: float, rounds: int, burst_s: float = 0.4
) -> DeviceFigures:
    """Warms up, then times in bursts with a look at the sensors after each, then lets pictures flow.

    Args:
        predictor: opened.
        watch: takes the snapshots.
        warm_up_s: seconds of calls before the first timed one; clocks and temperature settle meanwhile.
        rounds: of bursts.
        burst_s: seconds a burst, for each way to call.
    """
    pictures = device_pictures(predictor.manifest.input)
    batches = [prepare(picture, predictor.manifest.input)[None].copy() for picture in pictures]
    warm_up(predictor, batches, warm_up_s)
    watch.take_snapshot("warm")
    before = read_processor_times()
    ways = [
        ModelCalls(
            run=lambda i: predictor.run(batches[i % PICTURES]),
            predict=lambda i: predictor.predict(pictures[i % PICTURES]),
        )
    ]
    samples = time_interleaved(
        ways, rounds=rounds, burst_s=burst_s, progress=lambda: watch.take_snapshot("round")
    )
    throughput = _measure_throughput(predictor, pictures, seconds=min(THROUGHPUT_S, burst_s * rounds))
    share = others_share(before, read_processor_times())
    watch.take_snapshot("end")
    return DeviceFigures(
        latency_ms=percentiles(samples[0].engine_ms),
        end_to_end_ms=percentiles(samples[0].end_to_end_ms),
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
