"""INT8 under guard: calibrate, judge Dice, return layers to float, fine-tune if asked, and measure speed.

The order is from cheap to dear; what keeps the bounds first is taken. Every step is in the manifest. An INT8 that is
not faster in the engine that will run it is not worth its error, so the speed is a gate, too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from export.int8.equalise import equalise
from export.int8.guard import (
    FloatChoice,
    Judge,
    Trial,
    has_attention,
    rank_layers,
    return_layers,
    try_layers,
)
from export.int8.qdq import int8_nodes
from export.job import Finetuning, GuardPlan, Job
from export.model_file import CalibratedGraph, calibrate, write_float
from runtime.engines.seam import Engine
from runtime.timing.latency import ModelCalls, speedups, time_interleaved
from segcore.bundle.guard_record import GuardRecord, GuardStep, SpeedRatio
from segcore.command import log
from segcore.errors import GateError
from segcore.learn.network import DeployGraph
from segcore.picture.preprocess import InputSpec
from segcore.words import bounded_ratio
from student.network import Student

_ROUNDS, _TIMED_PICTURES = 5, 8


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
class Int8Model:
    """A candidate in INT8, as its file was written.

    Attributes:
        candidate: the network.
        calibrated: it with its ranges.
        trial: what the model loses.
        choice: the layers that are in float; None where none is.
    """

    candidate: Candidate
    calibrated: CalibratedGraph
    trial: Trial
    choice: FloatChoice | None = None


def write_guarded(job: Job, graph: DeployGraph) -> tuple[GuardRecord, DeployGraph]:
    """Writes the INT8 model file.

    Args:
        job: its plan of the guard holds the bounds, and which remedies are allowed.
        graph: the source's network, in eval mode.

    Returns:
        The record for the manifest, and the graph that was quantised: fine-tuned, if that was needed.

    Raises:
        GateError: no INT8 keeps the bounds, or it is not faster.
    """
    engine, cases = job.engines[0], job.data.guard
    spec, output = job.parent.input, job.parent.output
    onnx_path, fp32_path = write_float(
        graph, spec, output, job.scratch, to=job.format, bundle_sha256=job.source.sha256
    )
    judge = Judge(cases, job.parent, fp32_path, partial(job.open_model, engine))
    fp32 = judge.fp32
    log(f"guard: FP32 in {engine}: Dice {fp32.mean:.4f}, 5th percentile {fp32.p05:.4f}, {len(cases)} cases")
    steps: list[GuardStep] = []
    model = None
    for candidates in _candidate_rounds(job, Candidate("", graph, onnx_path)):
        model = _try_round(job, judge, candidates, steps)
        if model:
            break
    if model is None:
        raise GateError(_accuracy_message(job.guard, judge, steps[-1]))
    sensitivity = model.choice.sensitivity if model.choice else ()
    if job.guard.rank_layers and not sensitivity:
        log(f"guard: ranking {len(model.calibrated.layers)} layers, each alone in INT8")
        sensitivity = rank_layers(model.calibrated, judge.judge, job.scratch / job.model_path.name)
    speeds: tuple[SpeedRatio, ...] = ()
    nodes: tuple[str, ...] = ()
    if job.target == "tensorrt":
        nodes = int8_nodes(job.model_path)
        log("guard: speed: unmeasured; TensorRT runs on the device, where export.kit measures it")
    else:
        speeds = _gate_speed(job, job.model_path, fp32_path, judge.inputs)
    record = GuardRecord(
        engine=engine,
        engine_version=judge.engine_version,
        cases=len(cases),
        max_drop_points=job.guard.bounds.drop_points,
        max_p05_drop_points=job.guard.bounds.p05_drop_points,
        min_speedup=job.guard.speedup,
        fp32=fp32,
        int8=model.trial.judged.int8,
        steps=tuple(steps),
        layers=len(model.calibrated.layers),
        float_layers=model.choice.float_layers() if model.choice else (),
        int8_nodes=nodes,
        sensitivity=sensitivity,
        speeds=speeds,
        qat_epochs=model.candidate.qat_epochs,
    )
    return record, model.candidate.graph


def calibrate_network(job: Job, onnx_path: Path, spec: InputSpec) -> CalibratedGraph:
    """Finds the 8-bit ranges of the source's network, or of one that was made of it, at some input."""
    return calibrate(
        onnx_path,
        to=job.format,
        cases=job.data.calibration,
        spec=spec,
        transformer=has_attention(job.parent),
    )


def _try_round(
    job: Job, judge: Judge, candidates: Iterator[Candidate], steps: list[GuardStep]
) -> Int8Model | None:
    """Every candidate with all layers in INT8, then the best of them with layers in float; None: all failed."""
    bounds, path = job.guard.bounds, job.model_path
    tried: list[Int8Model] = []
    for candidate in candidates:
        log(f"calibrating int8 on {len(job.data.calibration)} train cases")
        calibrated = calibrate_network(job, candidate.onnx_path, job.parent.input)
        what = f"every layer in INT8{candidate.what}"
        trial = try_layers(calibrated, judge.judge, bounds, path, what=what, log=log)
        steps.append(trial.step)
        tried.append(Int8Model(candidate, calibrated, trial))
        if trial.step.passed:
            return tried[-1]
    best = min(tried, key=lambda one: one.trial.judged.drop_points)
    choice = return_layers(best.calibrated, judge.judge, bounds, path, what=best.candidate.what, log=log)
    if choice is None:
        return None
    steps += choice.steps
    if not choice.trial.step.passed:
        return None
    return Int8Model(best.candidate, best.calibrated, choice.trial, choice)


def _candidate_rounds(job: Job, plain: Candidate) -> Iterator[Iterator[Candidate]]:
    """First what costs no training, then what does, if that was asked for."""
    yield _untrained_candidates(job, plain)
    if job.guard.finetuning:
        yield _tuned_candidates(job, job.guard.finetuning)


def _untrained_candidates(job: Job, plain: Candidate) -> Iterator[Candidate]:
    """The network as it is; and a student with its channels levelled, which helps or harms: the guard will see."""
    yield plain
    network = plain.graph.network
    if not isinstance(network, Student):  # the controls among the teachers are of the family, too
        return
    log("guard: levelling the channels' ranges")
    graph = DeployGraph(equalise(network), job.parent.input).eval()
    yield _write_candidate(job, ", channels levelled", graph)


def _tuned_candidates(job: Job, plan: Finetuning) -> Iterator[Candidate]:
    """The student, fine-tuned under fake quantisation."""
    from export.int8.qat import finetune  # here: it brings all that a training needs

    log(f"guard: fine-tuning under fake quantisation, {plan.epochs} epochs")
    tuned = finetune(job.source, plan, scratch=job.scratch)
    log(f"guard: Dice under fake quantisation {tuned.dice_before:.4f} before, {tuned.dice_after:.4f} after")
    graph = DeployGraph(tuned.network, job.parent.input).eval()
    yield _write_candidate(job, f", {plan.epochs} epochs fine-tuned", graph, qat_epochs=plan.epochs)


def _write_candidate(job: Job, what: str, graph: DeployGraph, *, qat_epochs: int = 0) -> Candidate:
    """A graph with its file, which overwrites that of the candidate before: that one's graph is in memory by then."""
    spec, output = job.parent.input, job.parent.output
    onnx_path, _ = write_float(graph, spec, output, job.scratch, to="onnx", name="candidate")
    return Candidate(what, graph, onnx_path, qat_epochs)


def _accuracy_message(plan: GuardPlan, judge: Judge, last: GuardStep) -> str:
    remedy = "" if plan.finetuning else "add --qat, "
    return (
        f"int8: must lose at most {plan.bounds.drop_points:g} points of fp32's Dice {judge.fp32.mean:.4f} "
        f"({plan.bounds.p05_drop_points:g} of the 5th percentile {judge.fp32.p05:.4f}), lost "
        f"{last.drop_points:.2f} ({last.p05_drop_points:.2f}) with {last.what}; {remedy}raise --max-drop-points, or "
        "export --precision fp16"
    )


def _gate_speed(
    job: Job, int8_path: Path, fp32_path: Path, inputs: Sequence[np.ndarray]
) -> tuple[SpeedRatio, ...]:
    """INT8 against FP32 in every installed engine that opens the format.

    FP16 is not timed beside them: on a CPU those bundles hold 16-bit weights and compute in FP32.

    Args:
        job: says how much faster INT8 has to be.
        int8_path: one model file.
        fp32_path: the other.
        inputs: pictures, each 1×H×W×C uint8; the first few are used.

    Raises:
        GateError: it is fast enough in none of them.
    """
    speeds = []
    for name in job.engines:
        speed = _measure_speedup(job, name, (int8_path, fp32_path), inputs[:_TIMED_PICTURES])
        speeds.append(speed)
        log(
            f"guard: {name} {speed.engine_version}, {job.threads} threads: "
            f"INT8 is {bounded_ratio(speed.speedup)} times as fast as FP32 "
            f"({bounded_ratio(speed.low)} to {bounded_ratio(speed.high)} over {speed.rounds} rounds)"
        )
    best = max(speeds, key=lambda speed: speed.speedup)
    least = job.guard.speedup
    if best.speedup < least:
        raise GateError(
            f"int8: must be at least {least:g} times as fast as fp32, got {bounded_ratio(best.speedup)} in "
            f"{best.engine} {best.engine_version}; export --precision fp32, or lower --min-speedup"
        )
    return tuple(speeds)


def _measure_speedup(
    job: Job, name: str, paths: tuple[Path, Path], inputs: Sequence[np.ndarray]
) -> SpeedRatio:
    """Times INT8 and FP32 in turns in one run of an engine, and compares their medians."""
    with ExitStack() as stack:
        engines = [stack.enter_context(closing(job.open_model(name, path))) for path in paths]
        int8, fp32 = time_interleaved([_timed_engine(engine, inputs) for engine in engines], rounds=_ROUNDS)
        version = engines[0].version
    speedup, low, high = speedups(int8, fp32)
    return SpeedRatio(
        engine=name,
        engine_version=version,
        threads=job.threads,
        against="fp32",
        speedup=speedup,
        low=low,
        high=high,
        rounds=_ROUNDS,
    )


def _timed_engine(engine: Engine, inputs: Sequence[np.ndarray]) -> ModelCalls:
    return ModelCalls(run=lambda i: engine.run(inputs[i % len(inputs)]))
