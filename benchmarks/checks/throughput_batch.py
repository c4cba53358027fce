"""How fast `runtime.predict` goes over a folder of files, against its engine alone; and that a kill loses nothing.

`python -m benchmarks.checks.throughput_batch --bundle B --image FOLDER --out O [--ray]` writes O/record.json:

    engine     the engine alone, on pictures that are prepared and in memory
    map        `Predictor.map`, on pictures that are read and in memory: also prepares, resizes, decides, estimates
    batch …    the whole command from its start, on files: also reads, writes masks, measures, draws

All in turns, round after round. Then the command is killed at half and given again: how many lines, twice, missing.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from pydantic import Field

from benchmarks.measuring import Part, log_load, results_folder, time_in_turns, write_record
from runtime.engines.seam import available_threads, open_engine
from runtime.predict.inputs import PredictionInput, list_inputs
from runtime.predict.write import PREDICTIONS_FILE
from runtime.predictor import Predictor
from runtime.timing.latency import ProcessorTimes, others_share, read_processor_times
from segcore.bundle.folder import Bundle, open_and_tell
from segcore.command import Settings, print_result, run_command
from segcore.errors import InputError
from segcore.host import Made, made_now
from segcore.medical.read import read_scan
from segcore.picture.preprocess import prepare
from segcore.words import ranged

_FLAGS_BY_OUTPUT = {
    "masks": ("--no-measurements", "--no-overlays"),
    "masks, measurements": ("--no-overlays",),
    "masks, measurements, overlays": (),
}


class BatchSettings(Settings):
    """`python -m benchmarks.checks.throughput_batch` times runtime.predict over files, and kills and resumes it."""

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


class ResumedCommand(Part):
    """A command that was killed and given again.

    Attributes:
        way: which.
        inputs: how many it was given.
        lines_at_kill: whole lines of predictions.jsonl then.
        lines: at the end.
        twice: inputs with more than one line.
        missing: inputs without a line.
        failed: lines with an error.
        changed: lines of before the kill that are not the first ones at the end.
        masks: files under masks/.
    """

    way: str
    inputs: int
    lines_at_kill: int
    lines: int
    twice: int
    missing: int
    failed: int
    changed: int
    masks: int


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
    resumed: tuple[ResumedCommand, ...]
    ray_images_s: float | None
    made: Made


def main(settings: BatchSettings) -> None:
    """Measures, writes the folder, prints a table and one JSON line.

    Raises:
        InputError: a bundle or inputs that cannot be used.
    """
    with results_folder(settings) as folder:
        record = measure_batch(settings)
        write_record(folder / "record.json", record)
    for line in _table_lines(record):
        print(line)
    log_load(record.other_load_share)
    print_result(
        record=str(settings.out / "record.json"),
        rows=[row.model_dump() for row in record.rows],
        resumed=[one.model_dump() for one in record.resumed],
        ray_images_s=record.ray_images_s,
    )


def measure_batch(settings: BatchSettings) -> BatchRecord:
    """Everything between the settings and the files."""
    bundle = open_and_tell(settings.bundle)
    listed_inputs = list_inputs(settings.image).inputs
    inputs = [one for one in listed_inputs if isinstance(one.path, Path)][: settings.images]
    threads = settings.threads or available_threads()
    load = os.getloadavg()[0]
    ray_images_s: float | None = None
    with TemporaryDirectory() as place:
        listed, out = _write_list(inputs, Path(place, "index.csv")), Path(place, "out")
        common = ["--bundle", settings.bundle, "--image", listed]
        rows, share = (
            _time_ways(settings, bundle, inputs, common, out, threads) if settings.rounds else ((), None)
        )
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
        ray_images_s=ray_images_s,
        made=made_now(),
    )


def _write_list(inputs: Sequence[PredictionInput], path: Path) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "case"])
        writer.writerows((one.path.resolve(), one.case) for one in inputs if isinstance(one.path, Path))
    return path


def _time_ways(
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
            for what, flags in _FLAGS_BY_OUTPUT.items():
                words = [*common, "--workers", count, "--threads", threads, *flags]
                ways[f"batch, workers {count}, {what}"] = lambda words=words: run_predict(words, out)  # type: ignore[misc]
        alone(), mapped()  # warm-up; the commands start cold, as a user's do
        before = _with_children(read_processor_times())
        seconds = time_in_turns(list(ways.values()), rounds=settings.rounds)
        share = others_share(before, _with_children(read_processor_times()))
    rate = len(inputs) / seconds  # rounds×ways; the first way is the engine
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


def _with_children(clock: ProcessorTimes | None) -> ProcessorTimes | None:
    """With what the commands took: they are children of this process, and not others."""
    ended = os.times()
    return clock and replace(clock, own_s=clock.own_s + ended.children_user + ended.children_system)


def run_predict(words: Sequence[object], out: Path) -> float:
    """Runs the command into a new folder, which is removed, and gives the seconds that it took, its start included.

    Raises:
        InputError: it failed.
    """
    begin = time.perf_counter()
    done = subprocess.run(
        _predict_command(words, out), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    seconds = time.perf_counter() - begin
    shutil.rmtree(out, ignore_errors=True)
    if done.returncode != 0:
        raise InputError(f"runtime.predict: must end well, does not: {done.stderr.strip().splitlines()[-1]}")
    return seconds


def kill_and_resume(way: str, words: Sequence[object], cases: Sequence[str], out: Path) -> ResumedCommand:
    """Kills the command (SIGKILL, its own process alone) when half of the inputs have their lines, and gives it again.

    Args:
        way: what the result calls it.
        words: of the command, without --out.
        cases: of its inputs.
        out: folder to write, removed in the end.

    Raises:
        InputError: it ended before it could be killed, or did not end well.
    """
    stored = Path(f"{out}.partial") / PREDICTIONS_FILE
    with subprocess.Popen(
        _predict_command(words, out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as running:
        while not (stored.exists() and stored.read_bytes().count(b"\n") >= len(cases) / 2):
            if running.poll() is not None:
                raise InputError(f"{way}: must be killed at half, ended before that; give more --images")
            time.sleep(0.005)
        os.kill(running.pid, signal.SIGKILL)
    before = stored.read_bytes().split(b"\n")[:-1]
    again = subprocess.run(
        _predict_command(words, out), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    if not out.exists():
        raise InputError(f"{way}: must end well, does not: {again.stderr.strip().splitlines()[-1]}")
    after = (out / PREDICTIONS_FILE).read_bytes().split(b"\n")[:-1]
    times = Counter(json.loads(line)["case"] for line in after)
    resumed = ResumedCommand(
        way=way,
        inputs=len(cases),
        lines_at_kill=len(before),
        lines=len(after),
        twice=sum(count > 1 for count in times.values()),
        missing=len(set(cases) - set(times)),
        failed=sum("error" in json.loads(line) for line in after),
        changed=sum(old != new for old, new in zip(before, after, strict=False)),
        masks=sum(path.is_file() for path in (out / "masks").rglob("*")),
    )
    shutil.rmtree(out)
    return resumed


def _predict_command(words: Sequence[object], out: Path) -> list[str]:
    return [sys.executable, "-m", "runtime.predict", *map(str, words), "--out", str(out)]


def _table_lines(record: BatchRecord) -> Iterator[str]:
    size = "×".join(map(str, record.size_px))
    yield (
        f"{record.bundle}, {record.images} images of {size}, {record.threads} threads, {record.rounds} rounds, "
        f"load {record.load_average:.1f} before"
    )
    yield f"{'':50}{'images/s (rounds)':>26}{'of the engine':>16}"
    for row in record.rows:
        rates = ranged(row.images_s, row.images_s_low, row.images_s_high, 1)
        yield f"{row.way:50}{rates:>26}{row.of_engine:16.3f}"
    if record.ray_images_s is not None:
        yield f"{'ray, once, masks, measurements, overlays':50}{record.ray_images_s:26.1f}"
    for one in record.resumed:
        yield (
            f"{one.way}, killed at {one.lines_at_kill} of {one.inputs} and given again: {one.lines} lines, "
            f"{one.twice} twice, {one.missing} missing, {one.changed} changed, {one.failed} failed, {one.masks} masks"
        )


if __name__ == "__main__":
    run_command(main, BatchSettings, "python -m benchmarks.checks.throughput_batch")
