"""Where the processor's time goes from a file to its mask: every stage, the whole, and others that do the same.

`python -m benchmarks.checks.stages --bundle B --image FOLDER --out O` writes O/record.json:

    stages     processor milliseconds a picture of each stage, one thread, and as a share of the engine's
    loops      milliseconds a picture of `runtime.predict.files.predict_files` with masks alone and with its default
               outputs, in this process; with `--hand-loop PYTHON` also those of `hand_loop.py`, run by an interpreter
               that has OpenCV
    commands   with `--against CHECKOUT`, another checkout of ours: the whole command, there and here; processor
               milliseconds a picture beyond the start, which pixels of the masks differ, and which records

All in turns, round after round; a figure is a median over rounds. An engine run is the time of `Predictor.run`.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from PIL import Image
from pydantic import Field

from benchmarks.measuring import Part, log_load, results_folder, time_in_turns, write_record
from runtime.predict.files import predict_files
from runtime.predict.inputs import PredictionInput, list_inputs
from runtime.predict.write import PREDICTIONS_FILE, Outputs
from runtime.predictor import Predictor
from runtime.timing.latency import others_share, read_processor_times
from segcore.bundle.folder import open_and_tell
from segcore.command import Settings, print_result, run_command
from segcore.errors import InputError
from segcore.host import Made, made_now
from segcore.measure.masks import measure_scan
from segcore.medical.read import read_scan
from segcore.outfolder import write_bytes
from segcore.picture.overlay import overlay
from segcore.picture.png import encode_png
from segcore.picture.preprocess import mask_of_logits, prepare
from segcore.picture.quality import quality_of

MASKS_ONLY, DEFAULT = Outputs(overlays=False, measurements=False), Outputs()
_UNAVOIDABLE = ("decode", "engine", "pack the mask")
_TIMES = ("pre_ms", "engine_ms", "post_ms", "total_ms")
_ROOT = Path(__file__).parents[2]


class StagesSettings(Settings):
    """`python -m benchmarks.checks.stages` times every stage from a file to its mask, and others that do the same."""

    bundle: Path
    """Exported bundle."""
    image: Path
    """Folder of pictures, as runtime.predict takes it."""
    images: int = Field(200, gt=3)
    """So many of its inputs are used, the first."""
    rounds: int = Field(5, ge=1)
    """Rounds of the interleaved timing."""
    hand_loop: Path | None = None
    """Interpreter with openvino and OpenCV that runs hand_loop.py."""
    against: Path | None = None
    """Another checkout of sam2edge, whose command is compared with this one's."""
    flags: tuple[str, ...] = ("--no-overlays --no-measurements", "")
    """Flags of runtime.predict that --against compares; repeat for several."""
    out: Path
    """Folder to write."""
    overwrite: bool = False
    """Replace a finished --out."""


class StageRow(Part):
    """A stage, or a loop over all of them.

    Attributes:
        name: of it.
        ms: processor milliseconds a picture, median over rounds.
        of_engine: the same in engine runs.
    """

    name: str
    ms: float
    of_engine: float


class ComparedCommand(Part):
    """The whole command of two checkouts.

    Attributes:
        flags: that both were given.
        before_ms: processor milliseconds a picture beyond the start, of the other checkout.
        after_ms: of this one.
        ratio: after / before, median over rounds.
        files: masks and overlays that both wrote.
        pixels: of them that differ.
        records: that differ in anything but times, and by more than rounding.
    """

    flags: str
    before_ms: float
    after_ms: float
    ratio: float
    files: int
    pixels: int
    records: int


class StagesRecord(Part):
    """What record.json holds; `unavoidable` is the share of decoder, engine and packing of the mask in masks only."""

    bundle: str
    bundle_sha256: str
    engine: str
    images: int
    size_px: tuple[int, int]
    rounds: int
    load_average: float
    other_load_share: float | None
    stages: tuple[StageRow, ...]
    loops: tuple[StageRow, ...]
    unavoidable: float
    commands: tuple[ComparedCommand, ...]
    made: Made


def main(settings: StagesSettings) -> None:
    """Measures, writes the folder, prints tables and one JSON line.

    Raises:
        InputError: a bundle, inputs, an interpreter or a checkout that cannot be used.
    """
    with results_folder(settings) as folder:
        record = measure_stages(settings)
        write_record(folder / "record.json", record)
    for line in _table_lines(record):
        print(line)
    log_load(record.other_load_share)
    print_result(record=str(settings.out / "record.json"))


def measure_stages(settings: StagesSettings) -> StagesRecord:
    """Everything between the settings and the files."""
    bundle = open_and_tell(settings.bundle)
    inputs = [one for one in list_inputs(settings.image).inputs if isinstance(one.path, Path)]
    inputs = inputs[: settings.images]
    load, clock = os.getloadavg()[0], read_processor_times()
    with TemporaryDirectory() as place, Predictor.open(bundle, threads=1) as predictor:
        scratch = Path(place)
        names = list(_stage_times(predictor, inputs[0], scratch))
        totals = np.zeros((settings.rounds, len(names)))
        taken = iter(range(settings.rounds))

        def stages() -> float:
            n = next(taken)
            for input_ in inputs:
                totals[n] += list(_stage_times(predictor, input_, scratch).values())
            return float(totals[n].sum())

        loops: dict[str, Callable[[], float]] = {
            "masks only": lambda: _loop_seconds(predictor, inputs, scratch, MASKS_ONLY),
            "default outputs": lambda: _loop_seconds(predictor, inputs, scratch, DEFAULT),
        }
        if settings.hand_loop is not None:
            python, folder = settings.hand_loop, _linked(inputs, scratch / "pictures")
            loops["hand-written loop"] = lambda: _hand_loop_seconds(python, settings.bundle, folder, scratch)
        ways = [stages, *loops.values()]
        _loop_seconds(predictor, inputs, scratch, DEFAULT)  # warm-up
        seconds = time_in_turns(ways, rounds=settings.rounds)[:, 1:]
        commands = tuple(
            _compare(settings, inputs, words.split(), scratch / f"compared-{n}")
            for n, words in enumerate(settings.flags)
            if settings.against is not None
        )
        engine_name = f"{predictor.engine_name} {predictor.engine_version}"
    each = 1e3 * totals / len(inputs)
    engine = each[:, names.index("engine")]
    rows = [_row(name, each[:, i], engine) for i, name in enumerate(names)]
    looped = [_row(name, 1e3 * seconds[:, i] / len(inputs), engine) for i, name in enumerate(loops)]
    unavoidable = sum(row.ms for row in rows if row.name in _UNAVOIDABLE) / looped[0].ms
    return StagesRecord(
        bundle=bundle.manifest.name,
        bundle_sha256=bundle.sha256,
        engine=engine_name,
        images=len(inputs),
        size_px=read_scan(inputs[0].path).size_px,
        rounds=settings.rounds,
        load_average=load,
        other_load_share=others_share(clock, read_processor_times()),
        stages=tuple(rows),
        loops=tuple(looped),
        unavoidable=unavoidable,
        commands=commands,
        made=made_now(),
    )


def _row(name: str, ms: np.ndarray, engine_ms: np.ndarray) -> StageRow:
    return StageRow(name=name, ms=float(np.median(ms)), of_engine=float(np.median(ms / engine_ms)))


def _stage_times(predictor: Predictor, input_: PredictionInput, scratch: Path) -> dict[str, float]:
    """Processor seconds of each stage for one picture, in the order in which it passes them."""
    manifest, times = predictor.manifest, dict[str, float]()

    def timed(name: str, work: Callable[[], Any]) -> Any:
        begin = time.process_time()
        result = work()
        times[name] = time.process_time() - begin
        return result

    scan = timed("open", lambda: read_scan(input_.path))
    image = timed("decode", lambda: scan.picture(0, manifest.input.depth))
    prepared = timed("prepare", lambda: prepare(image, manifest.input))
    logits = timed("engine", lambda: predictor.run(prepared[None]))[0]
    mask = timed("mask", lambda: mask_of_logits(logits, manifest.output, image.shape[:2]))
    model = manifest.quality
    timed("quality", lambda: quality_of(logits, manifest.output, model) if model else None)
    packed = timed("pack the mask", lambda: encode_png(mask, filter="none"))
    timed("write the mask", lambda: write_bytes(scratch / "mask.png", packed))
    timed("measure", lambda: measure_scan(scan, mask[None], manifest.classes))
    drawn = timed("draw the overlay", lambda: overlay(scan.display(0), mask))
    timed("pack the overlay", lambda: encode_png(drawn, filter="up"))
    return times


def _loop_seconds(
    predictor: Predictor, inputs: Sequence[PredictionInput], scratch: Path, outputs: Outputs
) -> float:
    """Processor seconds of all inputs through the runtime's own loop, into a new folder."""
    with TemporaryDirectory(dir=scratch) as folder:
        begin = time.process_time()
        for record in predict_files(predictor, inputs, Path(folder), outputs):
            if "error" in record:
                raise InputError(f"--image: must hold pictures that can be segmented, got: {record['error']}")
        return time.process_time() - begin


def _linked(inputs: Sequence[PredictionInput], folder: Path) -> Path:
    folder.mkdir()
    for n, input_ in enumerate(inputs):
        assert isinstance(input_.path, Path)
        (folder / f"{n:06d}{input_.path.suffix}").symlink_to(input_.path.resolve())
    return folder


def _hand_loop_seconds(python: Path, bundle: Path, pictures: Path, scratch: Path) -> float:
    with TemporaryDirectory(dir=scratch) as out:
        words = [python, Path(__file__).with_name("hand_loop.py"), bundle, pictures, out, 1]
        done = subprocess.run([*map(str, words)], capture_output=True, text=True)
    if done.returncode != 0:
        raise InputError(
            f"--hand-loop {python}: must run hand_loop.py with openvino and OpenCV, does not: {done.stderr[-200:]}"
        )
    return float(json.loads(done.stdout.splitlines()[-1])["cpu_s"])


def _compare(
    settings: StagesSettings, inputs: Sequence[PredictionInput], flags: Sequence[str], place: Path
) -> ComparedCommand:
    """The command of two checkouts on all pictures, less that on two, which is mostly the start; `place` is new."""
    assert settings.against is not None
    checkouts = {"before": settings.against.resolve(), "after": _ROOT}
    place.mkdir()
    all_of_them, two = _linked(inputs, place / "all"), _linked(inputs[:2], place / "two")

    def seconds(name: str) -> float:
        start = _command_seconds(checkouts[name], settings.bundle, two, place / "start", flags)
        whole = _command_seconds(checkouts[name], settings.bundle, all_of_them, place / name, flags)
        return (whole - start) / (len(inputs) - 2)

    found = time_in_turns([lambda: seconds("before"), lambda: seconds("after")], rounds=settings.rounds)
    outs = [place / name for name in checkouts]
    pictures = [path.relative_to(outs[0]) for path in sorted(outs[0].rglob("*.png"))]
    return ComparedCommand(
        flags=" ".join(flags),
        before_ms=1e3 * float(np.median(found[:, 0])),
        after_ms=1e3 * float(np.median(found[:, 1])),
        ratio=float(np.median(found[:, 1] / found[:, 0])),
        files=len(pictures),
        pixels=sum(_differing(outs[0] / path, outs[1] / path) for path in pictures),
        records=sum(
            not _alike(one, other) for one, other in zip(_records(outs[0]), _records(outs[1]), strict=True)
        ),
    )


def _command_seconds(checkout: Path, bundle: Path, images: Path, out: Path, flags: Sequence[str]) -> float:
    """Processor seconds of `runtime.predict` of a checkout, its start included."""
    words = [
        "--bundle",
        bundle.resolve(),
        "--image",
        images,
        "--out",
        out,
        "--threads",
        1,
        "--overwrite",
        *flags,
    ]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-m", "runtime.predict", *map(str, words)],
        cwd=checkout,
        env={**os.environ, "PYTHONPATH": str(checkout)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    if done.returncode != 0:
        raise InputError(f"runtime.predict of {checkout}: must end well, does not: {done.stderr[-200:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _differing(one: Path, other: Path) -> int:
    a, b = np.asarray(Image.open(one)), np.asarray(Image.open(other))
    return int((a != b).sum()) if a.shape == b.shape else a.size


def _records(out: Path) -> list[dict[str, Any]]:
    lines = (out / PREDICTIONS_FILE).read_text().splitlines()
    return [{name: value for name, value in json.loads(line).items() if name not in _TIMES} for line in lines]


def _alike(a: Any, b: Any) -> bool:
    """Equal but for the last bits of a number."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_alike(a[key], b[key]) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_alike, a, b))
    if isinstance(a, float) and isinstance(b, float):
        return abs(a - b) <= 1e-12 * max(abs(a), abs(b))
    return bool(a == b)


def _table_lines(record: StagesRecord) -> Iterator[str]:
    size = "×".join(map(str, record.size_px))
    yield (
        f"{record.bundle}, {record.engine}, {record.images} pictures of {size}, 1 thread, {record.rounds} rounds, "
        f"load {record.load_average:.1f} before"
    )
    yield f"{'':26}{'CPU ms a picture':>18}{'engine runs':>14}"
    for row in (*record.stages, *record.loops):
        yield f"{row.name:26}{row.ms:18.3f}{row.of_engine:14.2f}"
    yield f"decode, engine and pack are {100 * record.unavoidable:.0f} % of masks only"
    for one in record.commands:
        yield (
            f"runtime.predict {one.flags}: {one.before_ms:.2f} → {one.after_ms:.2f} CPU ms a picture, "
            f"{one.ratio:.2f} of before; {one.files} files, {one.pixels} pixels and {one.records} records differ"
        )


if __name__ == "__main__":
    run_command(main, StagesSettings, "python -m benchmarks.checks.stages")
