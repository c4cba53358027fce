"""How many pictures a second `Predictor.map` gives against one-by-one calls, and whether its memory stays flat.

`python -m benchmarks.checks.throughput --bundle B --data D --out O [--images 10000]` writes

    O/record.json    pictures a second of each engine and number of streams, ratios; resident memory over the images
    O/memory.png     resident memory over the images, with --images
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import cycle, islice
from pathlib import Path

import numpy as np
from pydantic import Field

from benchmarks.measuring import (
    Part,
    check_libraries,
    log_load,
    new_png_figure,
    resident_mib,
    results_folder,
    time_in_turns,
    write_record,
)
from runtime.engines.seam import available_threads, choose_engine, engines_for, installed
from runtime.predictor import Predictor
from runtime.timing.latency import others_share, read_processor_times
from segcore.bundle.folder import Bundle, open_and_tell
from segcore.command import Progress, Settings, print_result, run_command
from segcore.dataset.dataset import open_dataset
from segcore.errors import InputError
from segcore.host import Made, made_now
from segcore.words import ranged

MEMORY_EVERY = 500
"""Images between two readings of the resident memory; what follows the first reading should not grow."""
# Okabe and Ito, Color Universal Design, 2008.
_COLOURS = ("#0072b2", "#d55e00", "#009e73")


class ThroughputSettings(Settings):
    """`python -m benchmarks.checks.throughput` measures pictures a second of `Predictor.map` against one-by-one calls.

    All are interleaved in one run.
    """

    bundle: Path
    """Exported bundle."""
    data: str
    """Dataset whose test pictures are used; masks are not needed."""
    engine: tuple[str, ...] = ()
    """Engine to measure; repeat for several. Default: every installed one that opens the bundle."""
    threads: int | None = Field(None, gt=0)
    """CPU threads of each engine; by default all that this process may use."""
    streams: tuple[int, ...] = (1, 2)
    """Number of streams to measure, repeat for several; those above --threads are left out."""
    batch: int = Field(1, gt=0)
    """Pictures a call in map; the bundle must hold a file for so many."""
    pictures: int = Field(16, gt=0)
    """Test pictures held in memory; each round predicts all of them with everything measured."""
    rounds: int = Field(15, gt=0)
    """Rounds of the interleaved timing."""
    images: int | None = Field(None, ge=2 * MEMORY_EVERY)
    """Also goes round the pictures until so many were predicted, and notes the resident memory every 500 (Linux)."""
    out: Path
    """Folder to write."""
    overwrite: bool = False
    """Replace a finished --out."""


class Throughput(Part):
    """One way of predicting many pictures.

    Attributes:
        streams: of `Predictor.map`; 0 for one-by-one calls, which all rows of the engine are compared with.
        images_s: pictures a second, median over rounds.
        times_more: one-by-one time divided by this, median over rounds; above 1 is faster.
        times_more_low: the smallest such ratio of a round.
        times_more_high: the largest.
    """

    engine: str
    engine_version: str
    streams: int
    images_s: float
    times_more: float
    times_more_low: float
    times_more_high: float


class MemoryCurve(Part):
    """Resident memory while `Predictor.map` goes on.

    Attributes:
        images: predicted so far, at each reading.
        resident_mib: VmRSS then.
        growth_mib: the largest reading after the first, minus the first.
    """

    engine: str
    streams: int
    images: tuple[int, ...]
    resident_mib: tuple[float, ...]
    growth_mib: float
    images_s: float


class ThroughputRecord(Part):
    """What record.json holds; `other_load_share` is what other programs took of the processor meanwhile, 0–1."""

    bundle: str
    bundle_sha256: str
    data: str
    threads: int
    batch: int
    pictures: int
    rounds: int
    other_load_share: float | None
    rows: tuple[Throughput, ...]
    memory: tuple[MemoryCurve, ...]
    made: Made


def main(settings: ThroughputSettings) -> None:
    """Measures, writes the folder, prints a table and one JSON line.

    Raises:
        InputError: a bundle, engine or data that cannot be used.
    """
    if settings.images is not None and not Path("/proc/self/status").exists():
        raise InputError("--images: must be left out where there is no /proc, only Linux says the memory so")
    check_libraries("matplotlib")
    with results_folder(settings) as folder:
        record = measure_throughput(settings)
        write_record(folder / "record.json", record)
        if record.memory:
            draw_memory(record, folder / "memory.png")
    for line in _table_lines(record):
        print(line)
    log_load(record.other_load_share)
    print_result(
        record=str(settings.out / "record.json"),
        plot=str(settings.out / "memory.png") if record.memory else None,
        rows=[row.model_dump() for row in record.rows],
        growth_mib={one.engine: one.growth_mib for one in record.memory},
    )


def measure_throughput(settings: ThroughputSettings) -> ThroughputRecord:
    """Everything between the settings and the files."""
    bundle = open_and_tell(settings.bundle)
    threads = settings.threads or available_threads()
    streams = sorted({count for count in settings.streams if 1 <= count <= threads})
    if not streams:
        raise InputError(
            f"--streams: must hold a number of 1 to {threads}, the threads, got {settings.streams}"
        )
    cases = open_dataset(settings.data, need_masks=False).split("test", limit=settings.pictures)
    if not cases:
        raise InputError(f"--data {settings.data}: must have a labelled test case, got none; name other data")
    images = [case.image() for case in cases]
    engines = _chosen_engines(bundle, settings.engine)
    memory = []
    for engine in engines if settings.images is not None else ():
        with Predictor.open(
            bundle, engine=engine, threads=threads, streams=streams[-1], batch=settings.batch
        ) as opened:
            memory.append(follow_memory(opened, images, settings.images or 0))
    rows, before = [], read_processor_times()
    for engine in engines:
        rows += _time_engine(bundle, engine, images, settings, threads=threads, streams=streams)
    return ThroughputRecord(
        bundle=bundle.manifest.name,
        bundle_sha256=bundle.sha256,
        data=settings.data,
        threads=threads,
        batch=settings.batch,
        pictures=len(images),
        rounds=settings.rounds,
        other_load_share=others_share(before, read_processor_times()),
        rows=tuple(rows),
        memory=tuple(memory),
        made=made_now(),
    )


def follow_memory(predictor: Predictor, images: Sequence[np.ndarray], count: int) -> MemoryCurve:
    """Goes round the pictures until `count` were predicted, and reads the resident memory every `MEMORY_EVERY`."""
    at, resident = [], []
    with predictor.map(islice(cycle(images), count)) as predictions:
        for n, _ in enumerate(
            Progress(predictions, f"memory, {predictor.engine_name}", total=count, unit="picture"), 1
        ):
            if n % MEMORY_EVERY == 0:
                at.append(n)
                resident.append(resident_mib())
    return MemoryCurve(
        engine=predictor.engine_name,
        streams=predictor.streams,
        images=tuple(at),
        resident_mib=tuple(resident),
        growth_mib=max(resident[1:]) - resident[0],
        images_s=predictions.images_per_s,
    )


def _chosen_engines(bundle: Bundle, wanted: Sequence[str]) -> list[str]:
    if wanted:
        return [choose_engine(bundle, one) for one in wanted]
    able = [one for one in engines_for(bundle) if installed(one)]
    return able or [choose_engine(bundle)]  # which says what to install


def _time_engine(
    bundle: Bundle,
    engine: str,
    images: Sequence[np.ndarray],
    settings: ThroughputSettings,
    *,
    threads: int,
    streams: Sequence[int],
) -> list[Throughput]:
    """One-by-one calls, and map with each number of streams, in turns: every round, each takes all the pictures."""
    with ExitStack() as stack:
        single = stack.enter_context(Predictor.open(bundle, engine=engine, threads=threads))
        passes: list[Callable[[], object]] = [lambda: [single.predict(image) for image in images]]
        for count in streams:
            opened = stack.enter_context(
                Predictor.open(bundle, engine=engine, threads=threads, streams=count, batch=settings.batch)
            )
            passes.append(lambda opened=opened: [*opened.map(images)])  # type: ignore[misc]
        for one in passes:
            one()  # warm-up
        ways = [partial(_seconds_of, one) for one in passes]
        times = time_in_turns(ways, rounds=settings.rounds, title=engine)
        version = single.engine_version
    ratios = times[:, :1] / times  # rounds×ways; the first way is one by one
    return [
        Throughput(
            engine=engine,
            engine_version=version,
            streams=count,
            images_s=len(images) / float(np.median(times[:, i])),
            times_more=float(np.median(ratios[:, i])),
            times_more_low=float(ratios[:, i].min()),
            times_more_high=float(ratios[:, i].max()),
        )
        for i, count in enumerate((0, *streams))
    ]


def _seconds_of(call: Callable[[], object]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def _table_lines(record: ThroughputRecord) -> Iterator[str]:
    yield f"{record.bundle}, {record.threads} threads, {record.pictures} pictures, {record.rounds} rounds"
    yield f"{'':32}{'images/s':>10}{'times one by one (rounds)':>32}"
    for row in record.rows:
        way = "one by one" if row.streams == 0 else f"map, streams {row.streams}"
        ratio = ranged(row.times_more, row.times_more_low, row.times_more_high, 2)
        yield f"{row.engine + ', ' + way:32}{row.images_s:10.1f}{ratio:>32}"
    for one in record.memory:
        yield (
            f"{one.engine}: resident memory {one.resident_mib[0]:.1f} MiB after {one.images[0]} images, "
            f"{one.resident_mib[-1]:.1f} after {one.images[-1]}, at most {one.growth_mib:+.1f}"
        )


def draw_memory(record: ThroughputRecord, path: Path) -> None:
    """Writes a PNG; the axis begins at 0, so that what looks flat is flat."""
    figure = new_png_figure(7, 3.2, dpi=120)
    axes = figure.add_subplot()
    for one, colour in zip(record.memory, _COLOURS, strict=False):
        label = f"{one.engine}, {one.streams} streams: {one.growth_mib:+.1f} MiB after the first reading"
        axes.plot(one.images, one.resident_mib, marker="o", markersize=3, color=colour, label=label)
    axes.set_ylim(0, 1.25 * max(max(one.resident_mib) for one in record.memory))
    axes.set_xlim(0)
    axes.set_xlabel("images predicted in one call of Predictor.map")
    axes.set_ylabel("resident memory, MiB")
    axes.set_title(record.bundle, fontsize=10)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.legend(frameon=False, fontsize=9, loc="upper left")
    figure.savefig(path)


if __name__ == "__main__":
    run_command(main, ThroughputSettings, "python -m benchmarks.checks.throughput")
