"""How fast `runtime.predict` goes over a folder of files, against its engine alone; and that a kill loses nothing.

`python -m benchmarks.checks.throughput_batch --bundle B --image FOLDER --out O [--ray]` writes O/record.json:

    engine     the engine alone, on pictures that are prepared and in memory
    map        `Predictor.map`, on pictures that are read and in memory: also prepares, resizes, decides, estimates
    batch …    the whole command from its start, on files: also reads, writes masks, measures, draws

All in turns, round after round. Then the command is killed at half and given again: how many lines, twice, missing.
"""

from __future__ import annotations

import csv
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from pydantic import Field
from tqdm import tqdm

from benchmarks.checks.throughput_resume import Resumed, kill_and_resume, run_predict
from benchmarks.measuring import Part, results_folder, write_record
from runtime.engines.seam import available_threads, open_engine
from runtime.predict.inputs import PredictionInput, list_inputs
from runtime.predictor import Predictor
from runtime.timing.interleaved import rotations
from runtime.timing.load import ProcessorTimes, busy_remark, others_share, read_processor_times
from segcore.bundle.folder import Bundle, open_bundle
from segcore.command import Settings, log, print_result, run_command
from segcore.host import Made, made_now
from segcore.medical.read import read_scan
from segcore.picture.preprocess import prepare

_WRITTEN = {
    "masks": ("--no-measurements", "--no-overlays"),
    "masks, measurements": ("--no-overlays",),
    "masks, measurements, overlays": (),
}


class BatchSettings(Settings):
    """Measures images a second of runtime.predict over files, and kills and resumes it."""

    bundle: Path
    """Exported bundle."""
    image: Path
    """As runtime.predict takes it."""
    images: int = Field(1000, gt=3)
    """So many of its inputs are used, the first."""
    threads: int | None = Field(None, gt=0)
    """CPU threads of everything measured; by default all that this process may use."""
    workers: tuple[int, ...] = (1, 2)
    """Number of worker processes to measure; repeat for several. The last is killed and resumed, too."""
    rounds: int = Field(3, ge=0)
    """Rounds of the interleaved timing; 0 for the kill alone."""
    ray: bool = False
    """Also through Ray on this machine, with the last number of workers: timed once, killed and resumed."""
    out: Path
    """Folder to write."""
    overwrite: bool = False
    """Replace a finished --out."""


class BatchRow(Part):
    """One way of predicting the pictures.

    Attributes:
        images_s: a second, median over rounds.
        images_s_low: of the slowest round.
        images_s_high: of the fastest.
        of_engine: images a second divided by the engine's own, median over rounds.
    """

    way: str
    images_s: float
    images_s_low: float
    images_s_high: float
    of_engine: float


class BatchRecord(Part):
    """What record.json holds; `other_load_share` is what other programs took of the processor in the rounds, 0–1."""

    bundle: str
    bundle_sha256: str
    images: int
    size_px: tuple[int, int]
    threads: int
    rounds: int
    load_average: float
    other_load_share: float | None
    rows: tuple[BatchRow, ...]
    resumed: tuple[Resumed, ...]
    ray_images_s: float | None
    made: Made


def main(settings: BatchSettings) -> None:
    """Measures, writes the folder, prints a table and one JSON line.

    Raises:
        InputError: a bundle or inputs that cannot be used.
    """
    with results_folder(settings) as folder:
        record = measure(settings)
        write_record(folder / "record.json", record)
    for line in _table(record):
        print(line)
    print_result(
        record=str(settings.out / "record.json"),
        rows=[row.model_dump() for row in record.rows],
        resumed=[one.model_dump() for one in record.resumed],
        ray_images_s=record.ray_images_s,
    )


def measure(settings: BatchSettings) -> BatchRecord:
    """Everything between the settings and the files."""
    bundle = open_bundle(settings.bundle)
    inputs = list_inputs(settings.image)[: settings.images]
    threads = settings.threads or available_threads()
    load = os.getloadavg()[0]
    with TemporaryDirectory() as place:
        listed, out = _write_list(inputs, Path(place, "index.csv")), Path(place, "out")
        common = ["--bundle", settings.bundle, "--image", listed]
        rows, share = _time(settings, bundle, inputs, common, out, threads) if settings.rounds else ((), None)
        most, cases = settings.workers[-1], [one.case for one in inputs]
        killed = [*common, "--workers", most, "--threads", threads]
        resumed = [kill_and_resume(f"batch, workers {most}", killed, cases, out)]
        if settings.ray:
            with_ray = [*common, "--workers", most, "--threads", max(1, threads // most), "--ray"]
            resumed.append(kill_and_resume(f"ray, workers {most}", with_ray, cases, out))
            ray_images_s = len(inputs) / run_predict(with_ray, out)
    return BatchRecord(
        bundle=bundle.manifest.name,
        bundle_sha256=bundle.sha256,
        images=len(inputs),
        size_px=read_scan(inputs[0].path).size_px,
        threads=threads,
        rounds=settings.rounds,
        load_average=load,
        other_load_share=share,
        rows=rows,
        resumed=tuple(resumed),
        ray_images_s=ray_images_s if settings.ray else None,
        made=made_now(),
    )


def _write_list(inputs: Sequence[PredictionInput], path: Path) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "case"])
        writer.writerows((one.path.resolve(), one.case) for one in inputs)
    return path


def _time(
    settings: BatchSettings,
    bundle: Bundle,
    inputs: Sequence[PredictionInput],
    common: Sequence[object],
    out: Path,
    threads: int,
) -> tuple[tuple[BatchRow, ...], float | None]:
    manifest = bundle.manifest
    images = [read_scan(one.path).picture(0, manifest.input.depth) for one in inputs]
    prepared = [prepare(image, manifest.input)[None] for image in images]
    with Predictor.open(bundle, threads=threads, streams=threads) as opened:
        engine = open_engine(
            opened.engine_name,
            bundle.model_path,
            precision=manifest.precision,
            threads=threads,
            streams=threads,
            target=manifest.engine_target,
        )

        def alone() -> float:
            begin = time.perf_counter()
            for _ in engine.stream(prepared, in_flight=threads + 1):
                pass
            return time.perf_counter() - begin

        def mapped() -> float:
            with opened.map(images) as answers:
                for _ in answers:
                    pass
            return answers.seconds

        ways: dict[str, Callable[[], float]] = {"engine": alone, "map": mapped}
        for count in settings.workers:
            for what, flags in _WRITTEN.items():
                words = [*common, "--workers", count, "--threads", threads, *flags]
                ways[f"batch, workers {count}, {what}"] = lambda words=words: run_predict(words, out)  # type: ignore[misc]
        alone(), mapped()  # warm-up; the commands start cold, as a user's do
        seconds = np.empty((settings.rounds, len(ways)))
        before = _own_and_children(read_processor_times())
        for n, order in enumerate(tqdm(rotations(len(ways), settings.rounds), unit="round", disable=None)):
            for i in order:
                seconds[n, i] = list(ways.values())[i]()
        share = others_share(before, _own_and_children(read_processor_times()))
    rate = len(inputs) / seconds
    return tuple(
        BatchRow(
            way=way,
            images_s=float(np.median(rate[:, i])),
            images_s_low=float(rate[:, i].min()),
            images_s_high=float(rate[:, i].max()),
            of_engine=float(np.median(rate[:, i] / rate[:, 0])),
        )
        for i, way in enumerate(ways)
    ), share


def _own_and_children(clock: ProcessorTimes | None) -> ProcessorTimes | None:
    """With what the commands took, which are not others."""
    ended = os.times()
    return clock and replace(clock, own_s=clock.own_s + ended.children_user + ended.children_system)


def _table(record: BatchRecord) -> Iterator[str]:
    size = "×".join(map(str, record.size_px))
    yield (
        f"{record.bundle}, {record.images} images of {size}, {record.threads} threads, {record.rounds} rounds, "
        f"load {record.load_average:.1f} before"
    )
    yield f"{'':50}{'images/s (rounds)':>26}{'of the engine':>16}"
    for row in record.rows:
        rates = f"{row.images_s:.1f} ({row.images_s_low:.1f}–{row.images_s_high:.1f})"
        yield f"{row.way:50}{rates:>26}{row.of_engine:16.3f}"
    if record.ray_images_s is not None:
        yield f"{'ray, once, masks, measurements, overlays':50}{record.ray_images_s:26.1f}"
    for one in record.resumed:
        yield (
            f"{one.way}, killed at {one.lines_at_kill} of {one.inputs} and given again: {one.lines} lines, "
            f"{one.twice} twice, {one.missing} missing, {one.changed} changed, {one.failed} failed, {one.masks} masks"
        )
    if remark := busy_remark(record.other_load_share):
        log(remark.strip())


if __name__ == "__main__":
    run_command(main, BatchSettings, "python -m benchmarks.checks.throughput_batch")
