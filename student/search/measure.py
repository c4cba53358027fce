"""The measuring of a search: model files of candidates, their timing batch by batch, then the finalists together.

Latency does not depend on what the weights are, only on the graph, as long as 8-bit ranges are sane: weights
are random, and batch norms get the statistics of a few phantoms, which also calibrate INT8. All that was
measured is in a file, so that an interrupted search goes on.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing, nullcontext, redirect_stderr
from dataclasses import asdict, dataclass, field
from io import StringIO
from pathlib import Path

import numpy as np
from pydantic import TypeAdapter

from export.model_file import MODEL_FILES, write_int8, write_model
from runtime.engines.seam import OPENED_BY, open_engine
from runtime.timing.latency import ModelCalls, others_share, read_processor_times, time_interleaved
from segcore.command import Progress
from segcore.dataset.case import Case, PhantomSource
from segcore.errors import reading
from segcore.outfolder import write_text
from segcore.phantom import PHANTOM_CLASSES
from segcore.picture.preprocess import InputSpec, output_spec, prepare
from student.design import PRESETS, Design
from student.search.candidates import Candidate
from student.search.plan import (
    BATCH,
    FINALISTS,
    REACH,
    Measurement,
    front_of,
    next_batch,
    on_one_scale,
    spread_sample,
)

MEASURED, MODELS = "measured.json", "models"
SPREAD_SHARE = 1 / 3
"""Of the time, at most, for the first sample."""
BURST_S = 0.1


@dataclass(frozen=True)
class Bench:
    """What is the same for every candidate of a search.

    Attributes:
        spec: of the input; square, 8 bits.
        classes: that the model tells apart, besides the background.
        pictures: as the network takes them, N×H×W×C uint8.
    """

    engine: str
    precision: str
    threads: int
    spec: InputSpec
    classes: int
    seed: int
    pictures: np.ndarray = field(repr=False)

    @property
    def model_file(self) -> str:
        """Name of the file that the engine opens."""
        return MODEL_FILES[self.format]

    @property
    def format(self) -> str:
        """The format of the model's file: the one that is the engine's own, if it has one."""
        able = [name for name, engines in OPENED_BY.items() if self.engine in engines]
        return min(able, key=lambda name: OPENED_BY[name].index(self.engine))


@dataclass(frozen=True)
class FinalRun:
    """The last run.

    Attributes:
        ms: median milliseconds by name, the anchor's included.
        other_load_share: of processor time that other programs took meanwhile, 0–1; None where unknown.
    """

    ms: dict[str, float]
    other_load_share: float | None


def explore(
    candidates: Sequence[Candidate],
    bench: Bench,
    folder: Path,
    *,
    budget_ms: float,
    rounds: int,
    seconds: float,
    used: Callable[[], float],
) -> list[Measurement]:
    """Measures candidates until time is up or nothing is left that could be better; at least one batch.

    Args:
        candidates: the first is the anchor.
        bench: how they are measured.
        folder: keeps what was measured, and the models.
        budget_ms: where to look.
        rounds: of each batch's timing.
        seconds: for all of it.
        used: seconds that went by in this process.
    """
    measured = read_measured(folder)
    before = sum(one.took_s for one in measured)  # by a search that was interrupted
    presets = [c for c in candidates if c.name in PRESETS]
    sample: list[Candidate] | None = None
    with Progress[None](label="measured", done=len(measured), unit="design") as bar:
        while True:
            ms = on_one_scale(measured)
            gone = before + used()
            if not ms:
                batch = presets or list(candidates[:BATCH])
            else:
                if sample is None:
                    sample = spread_sample(candidates, ms, budget_ms)
                left = [c for c in sample if c.name not in ms] if gone < SPREAD_SHARE * seconds else []
                batch = left[:BATCH] or next_batch(candidates, ms, budget_ms)
            each_s = sum(one.took_s for one in measured) / max(len(measured), 1)
            if not batch or (measured and gone + len(batch) * each_s > seconds):
                return measured
            measured += _measure_batch(batch, candidates[0], bench, folder, rounds=rounds, first=not measured)
            write_text(folder / MEASURED, json.dumps([asdict(one) for one in measured]))
            kept = sum(t <= budget_ms for t in on_one_scale(measured).values())
            bar.note(f"{kept} within {budget_ms:g} ms")
            bar.update(len(measured) - bar.n)


_MEASUREMENTS = TypeAdapter(list[Measurement])


def read_measured(folder: Path) -> list[Measurement]:
    """What an interrupted search has measured."""
    path = folder / MEASURED
    if not path.is_file():
        return []
    with reading(str(path), "what a search measured", remedy="remove it to measure again"):
        return _MEASUREMENTS.validate_json(path.read_bytes())


def _measure_batch(
    batch: Sequence[Candidate], anchor: Candidate, bench: Bench, folder: Path, *, rounds: int, first: bool
) -> list[Measurement]:
    begin = time.monotonic()
    others = [c for c in batch if c != anchor]
    ms = _time_group([anchor, *others], bench, folder, rounds=rounds)
    took_s = (time.monotonic() - begin) / len(batch)
    return [
        Measurement(c.name, ms[c.name], ms[anchor.name], took_s) for c in ([anchor] if first else []) + others
    ]


def final_run(
    wanted: Sequence[Candidate],
    candidates: Sequence[Candidate],
    ms: dict[str, float],
    bench: Bench,
    folder: Path,
    *,
    budget_ms: float,
    rounds: int,
) -> FinalRun:
    """Times the finalists together, freshly opened; if none keeps the budget, the next ones down the front.

    Args:
        wanted: finalists in any case (proxies that were trained); without them the front near the budget.
        candidates: all; the first is the anchor.
        ms: what was measured so far.
        bench: how they are measured.
        folder: of the search.
        budget_ms: what one of them should keep.
        rounds: of the timing.
    """
    front = [c for c in front_of(candidates, ms) if ms[c.name] <= REACH * budget_ms and c not in wanted]
    groups = [list(wanted)] if wanted else []
    while front:
        groups.append(front[-FINALISTS:])
        front = front[:-FINALISTS]
    found: dict[str, float] = {}
    before = read_processor_times()
    for group in groups:
        anchor = candidates[0]
        found |= _time_group(list(dict.fromkeys([anchor, *group])), bench, folder, rounds=rounds)
        if any(found[c.name] <= budget_ms for c in group):
            break
    return FinalRun(found, others_share(before, read_processor_times()))


def _time_group(group: Sequence[Candidate], bench: Bench, folder: Path, *, rounds: int) -> dict[str, float]:
    paths = [_model_of(candidate, bench, folder / MODELS) for candidate in group]
    times = time_models(paths, bench, rounds=rounds)
    return {candidate.name: ms for candidate, ms in zip(group, times, strict=True)}


def _model_of(candidate: Candidate, bench: Bench, models: Path) -> Path:
    """The candidate's model file, made where there is none yet; never a half one."""
    folder = models / candidate.name
    if not folder.exists():
        partial = models / f"{candidate.name}.partial"
        write_random_model(candidate.design, bench, partial)
        partial.rename(folder)
    return folder / bench.model_file


def draw_pictures(spec: InputSpec) -> np.ndarray:
    """One phantom of each kind as the network takes it, N×H×W×C uint8."""
    return np.stack([prepare(case.image(), spec) for case in _phantoms()])


def _phantoms() -> list[Case]:
    return [Case(kind, kind, PhantomSource(kind, 0, 7), "train") for kind in PHANTOM_CLASSES]


def write_random_model(design: Design, bench: Bench, folder: Path) -> None:
    """Exports a design with random weights in the search's format and precision.

    Args:
        design: what to build.
        bench: engine, precision, input.
        folder: is made; `bench.model_file` goes there.
    """
    import torch

    from segcore.learn.network import DeployGraph
    from student.network import build_student, sealed_form

    torch.manual_seed(bench.seed)
    output = output_spec([str(k) for k in range(bench.classes)], stride=design.logits_stride)
    network = build_student(design, channels=bench.spec.channels, outputs=output.channels)
    graph = DeployGraph(network, bench.spec)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # statistics of all that is seen, not a moving average
    with torch.no_grad():
        graph.train()(torch.from_numpy(bench.pictures))
    graph = DeployGraph(sealed_form(network.eval()), bench.spec).eval()
    folder.mkdir(parents=True, exist_ok=True)
    quiet_if_int8 = redirect_stderr(StringIO()) if bench.precision == "int8" else nullcontext()
    with quiet_if_int8:  # NNCF 3 draws a progress bar for every model
        path = folder / bench.model_file
        if bench.precision == "int8":
            write_int8(graph, bench.spec, output, path, to=bench.format, cases=_phantoms())
        else:
            write_model(graph, bench.spec, output, path, to=bench.format, precision=bench.precision)


def time_models(
    paths: Sequence[Path], bench: Bench, *, rounds: int, progress: Callable[[], object] = lambda: None
) -> list[float]:
    """Opens the models and times them in turns; median milliseconds of a call of the engine, each.

    The picture goes in and logits come out; reading a file, resizing and the mask are not the model's and not timed.
    """
    batches = [picture[None].copy() for picture in bench.pictures]
    with ExitStack() as opened:
        timed = []
        for path in paths:
            engine = open_engine(bench.engine, path, precision=bench.precision, threads=bench.threads)
            opened.enter_context(closing(engine))
            # The whole way from picture to mask is not timed here.
            timed.append(ModelCalls(run=_call_in_turn(engine.run, batches), predict=lambda _: None))
        samples = time_interleaved(timed, rounds=rounds, burst_s=BURST_S, progress=progress)
    return [float(np.median(np.concatenate(sample.engine_ms))) for sample in samples]


def _call_in_turn(
    run: Callable[[np.ndarray], np.ndarray], batches: Sequence[np.ndarray]
) -> Callable[[int], object]:
    return lambda i: run(batches[i % len(batches)])
