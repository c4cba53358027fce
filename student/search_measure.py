"""Makes a candidate's model file with random weights, and times candidates against each other.

Latency does not depend on what the weights are, only on the graph, as long as 8-bit ranges are sane: batch norms
therefore get the statistics of a few phantoms, which also calibrate INT8.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing, nullcontext, redirect_stderr
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path

import numpy as np

from export.model_file import MODEL_FILES
from export.model_file import write_model as write_model_file
from runtime.engine import OPENED_BY, open_engine
from runtime.interleaved import Timed, time_interleaved
from segcore.case import Case, PhantomSource
from segcore.phantom import PHANTOM_CLASSES
from segcore.preprocess import InputSpec, output_spec, prepare
from student.design import Design

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


def draw_pictures(spec: InputSpec) -> np.ndarray:
    """One phantom of each kind as the network takes it, N×H×W×C uint8."""
    return np.stack([prepare(case.image(), spec) for case in _phantoms()])


def _phantoms() -> list[Case]:
    return [Case(kind, kind, PhantomSource(kind, 0, 7), "train") for kind in PHANTOM_CLASSES]


def write_model(design: Design, bench: Bench, folder: Path) -> None:
    """Exports a design with random weights in the search's format and precision.

    Args:
        design: what to build.
        bench: engine, precision, input.
        folder: is made; `bench.model_file` goes there.
    """
    import torch

    from segcore.learn.deploy import DeployGraph
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
        write_model_file(
            graph,
            bench.spec,
            output,
            folder / MODEL_FILES[bench.format],
            to=bench.format,
            precision=bench.precision,
            calibration=_phantoms(),
        )


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
            timed.append(Timed(run=_caller(engine.run, batches), predict=_nothing))
        samples = time_interleaved(timed, rounds=rounds, burst_s=BURST_S, progress=progress)
    return [float(np.median(np.concatenate(sample.engine_ms))) for sample in samples]


def _caller(
    run: Callable[[np.ndarray], np.ndarray], batches: Sequence[np.ndarray]
) -> Callable[[int], object]:
    return lambda i: run(batches[i % len(batches)])


def _nothing(_: int) -> None:
    """The whole way from picture to mask is not timed here."""
