"""INT8 under guard: calibrate, judge Dice, return layers to float, fine-tune if asked, and measure speed.

The order is from cheap to dear; what keeps the bounds first is taken. Every step is in the manifest.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from export.attention import has_attention
from export.data import ExportData
from export.guard import Bounds, Returned, Trial, rank_layers, return_layers, try_layers
from export.judge import Judge
from export.model_file import calibrate, write_float
from export.source import as_graph, open_network
from export.speed import measure_speedup
from runtime.engine import OPENED_BY, available_threads, installed, open_engine
from segcore.bundle import Bundle
from segcore.command import log
from segcore.errors import GateError
from segcore.guard_record import GuardRecord, GuardStep, SpeedRatio
from segcore.learn.deploy import DeployGraph

if TYPE_CHECKING:
    from torch import nn

    from export.calibrated import Calibrated
    from export.command import ExportSettings

_TIMED_PICTURES = 8


@dataclass(frozen=True)
class Candidate:
    """A network of the source's function, or nearly, that may take INT8 better.

    Attributes:
        what: was done to it, for the record; "" for the source as it is.
        graph: in eval mode.
        onnx_path: the same as an ONNX file, in FP32.
        qat_epochs: of quantisation-aware fine-tuning behind it.
    """

    what: str
    graph: DeployGraph
    onnx_path: Path
    qat_epochs: int = 0


@dataclass(frozen=True)
class Kept:
    """An INT8 model that keeps the bounds; its file is written."""

    candidate: Candidate
    calibrated: Calibrated
    trial: Trial
    returned: Returned | None = None


def write_guarded(
    settings: ExportSettings,
    source: Bundle,
    graph: DeployGraph,
    data: ExportData,
    path: Path,
    scratch: Path,
    *,
    to: str,
) -> tuple[GuardRecord, DeployGraph]:
    """Writes the INT8 model file at `path`.

    Args:
        settings: the bounds, and which remedies are allowed.
        source: torch bundle.
        graph: its network, in eval mode.
        data: calibration and guard cases.
        path: model file to write.
        scratch: folder for what is thrown away.
        to: a key of `MODEL_FILES`.

    Returns:
        The record for the manifest, and the graph that was quantised: fine-tuned, if that was needed.

    Raises:
        GateError: no INT8 keeps the bounds, or it is not faster.
    """
    engine = next(name for name in OPENED_BY[to] if installed(name))
    open_model = partial(open_engine, engine, precision="int8", threads=available_threads())
    manifest = source.manifest
    onnx_path, fp32_path = write_float(graph, manifest.input, manifest.output, scratch, to=to)
    judge = Judge(data.guard, manifest, fp32_path, open_model)
    fp32 = judge.fp32
    log(
        f"guard: FP32 in {engine}: Dice {fp32.mean:.4f}, 5th percentile {fp32.p05:.4f}, {len(data.guard)} cases"
    )
    steps: list[GuardStep] = []
    kept = None
    for candidates in _rounds(settings, source, Candidate("", graph, onnx_path), scratch):
        kept = _try_round(settings, source, data, judge, candidates, path, steps, to=to)
        if kept:
            break
    if kept is None:
        raise GateError(_accuracy_message(settings, judge, steps[-1]))
    sensitivity = kept.returned.sensitivity if kept.returned else ()
    if settings.rank_layers and not sensitivity:
        log(f"guard: ranking {len(kept.calibrated.layers)} layers, each alone in INT8")
        sensitivity = rank_layers(kept.calibrated, judge.judge, scratch / path.name)
    speeds: tuple[SpeedRatio, ...] = ()
    nodes: tuple[str, ...] = ()
    if to == "tensorrt-onnx":
        from export.qdq import int8_nodes

        nodes = int8_nodes(path)
        log("guard: speed: unmeasured; TensorRT runs on the device, where export.kit measures it")
    else:
        speeds = _speeds(settings, to=to, int8_path=path, fp32_path=fp32_path, judge=judge)
    record = GuardRecord(
        engine=engine,
        engine_version=judge.engine_version,
        cases=len(data.guard),
        max_drop_points=settings.max_drop_points,
        max_p05_drop_points=settings.max_p05_drop_points,
        min_speedup=settings.min_speedup,
        fp32=fp32,
        int8=kept.trial.judged.int8,
        steps=tuple(steps),
        layers=len(kept.calibrated.layers),
        float_layers=kept.returned.float_layers() if kept.returned else (),
        int8_nodes=nodes,
        sensitivity=sensitivity,
        speeds=speeds,
        qat_epochs=kept.candidate.qat_epochs,
    )
    return record, kept.candidate.graph


def _try_round(
    settings: ExportSettings,
    source: Bundle,
    data: ExportData,
    judge: Judge,
    candidates: Iterator[Candidate],
    path: Path,
    steps: list[GuardStep],
    *,
    to: str,
) -> Kept | None:
    """Every candidate with all layers in INT8, then the best of them with layers in float; None: all failed."""
    bounds = Bounds(settings.max_drop_points, settings.max_p05_drop_points, settings.max_steps)
    tried: list[Kept] = []
    for candidate in candidates:
        log(f"calibrating int8 on {len(data.calibration)} train cases")
        calibrated = calibrate(
            candidate.onnx_path,
            to=to,
            cases=data.calibration,
            spec=source.manifest.input,
            transformer=has_attention(source.manifest),
        )
        what = f"every layer in INT8{candidate.what}"
        trial = try_layers(calibrated, judge.judge, bounds, path, what=what, log=log)
        steps.append(trial.step)
        tried.append(Kept(candidate, calibrated, trial))
        if trial.step.passed:
            return tried[-1]
    best = min(tried, key=lambda one: one.trial.judged.drop_points)
    returned = return_layers(best.calibrated, judge.judge, bounds, path, what=best.candidate.what, log=log)
    if returned is None:
        return None
    steps += returned.steps
    if not returned.trial.step.passed:
        return None
    return Kept(best.candidate, best.calibrated, returned.trial, returned)


def _rounds(
    settings: ExportSettings, source: Bundle, plain: Candidate, scratch: Path
) -> Iterator[Iterator[Candidate]]:
    """First what costs no training, then what does, if that was asked for."""
    yield _untrained(source, plain, scratch)
    if settings.qat:
        yield _tuned(settings, source, scratch)


def _untrained(source: Bundle, plain: Candidate, scratch: Path) -> Iterator[Candidate]:
    """The network as it is; and a student with its channels levelled, which helps or harms: the guard will see."""
    yield plain
    if has_attention(source.manifest):
        return
    from export.equalise import equalise
    from student.network import Student

    network = open_network(source)
    assert isinstance(network, Student), network  # the controls among the teachers are of the family, too
    log("guard: levelling the channels' ranges")
    yield _candidate(", channels levelled", equalise(network), source, scratch)


def _tuned(settings: ExportSettings, source: Bundle, scratch: Path) -> Iterator[Candidate]:
    from export.qat import finetune

    epochs = settings.qat_epochs
    log(f"guard: fine-tuning under fake quantisation, {epochs} epochs")
    tuned = finetune(
        source,
        data=str(settings.data),
        soft=settings.soft,
        epochs=epochs,
        seed=0,
        split_seed=settings.split_seed,
    )
    log(f"guard: Dice under fake quantisation {tuned.dice_before:.4f} before, {tuned.dice_after:.4f} after")
    yield _candidate(f", {epochs} epochs fine-tuned", tuned.network, source, scratch, qat_epochs=epochs)


def _candidate(
    what: str, network: nn.Module, source: Bundle, scratch: Path, *, qat_epochs: int = 0
) -> Candidate:
    spec, output = source.manifest.input, source.manifest.output
    graph = as_graph(network, spec)
    onnx_path, _ = write_float(graph, spec, output, scratch, to="onnx", name="candidate")
    return Candidate(what, graph, onnx_path, qat_epochs)


def _speeds(
    settings: ExportSettings, *, to: str, int8_path: Path, fp32_path: Path, judge: Judge
) -> tuple[SpeedRatio, ...]:
    """INT8 against FP32 in every installed engine that opens the format.

    Raises:
        GateError: it is fast enough in none of them.
    """
    threads = available_threads()
    speeds = []
    for name in (name for name in OPENED_BY[to] if installed(name)):
        speed = measure_speedup(
            name,
            partial(open_engine, name, precision="int8", threads=threads),
            int8_path,
            fp32_path,
            judge.inputs[:_TIMED_PICTURES],
            threads=threads,
        )
        speeds.append(speed)
        log(
            f"guard: {name} {speed.engine_version}, {threads} threads: INT8 is {speed.speedup:.2f} times as fast as "
            f"FP32 ({speed.low:.2f} to {speed.high:.2f} over {speed.rounds} rounds)"
        )
    best = max(speeds, key=lambda speed: speed.speedup)
    if best.speedup < settings.min_speedup:
        raise GateError(
            f"int8: must be at least {settings.min_speedup:g} times as fast as fp32, got {best.speedup:.2f} in "
            f"{best.engine} {best.engine_version}; export --precision fp32, or lower --min-speedup"
        )
    return tuple(speeds)


def _accuracy_message(settings: ExportSettings, judge: Judge, last: GuardStep) -> str:
    remedy = "" if settings.qat else "add --qat, "
    return (
        f"int8: must lose at most {settings.max_drop_points:g} points of fp32's Dice {judge.fp32.mean:.4f} "
        f"({settings.max_p05_drop_points:g} of the 5th percentile {judge.fp32.p05:.4f}), lost "
        f"{last.drop_points:.2f} ({last.p05_drop_points:.2f}) with {last.what}; {remedy}raise --max-drop-points, or "
        "export --precision fp16"
    )
