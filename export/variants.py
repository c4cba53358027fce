"""Other files of the same network: more input sizes, more pictures a call, and TensorRT's strongly typed graph."""

from __future__ import annotations

from contextlib import closing
from functools import partial
from pathlib import Path

import numpy as np

from export.gate import gate_engines, golden_reference, keep_golden, real_reference
from export.int8.guard import POINT, Judge, case_dice
from export.int8.guarded import calibrate_network
from export.job import Job
from export.model_file import write_float, write_model
from export.typed_files import type_for_tensorrt
from segcore.bundle.golden import golden_inputs
from segcore.bundle.guard_record import GuardRecord, points_text
from segcore.bundle.manifest import Variant
from segcore.command import log
from segcore.errors import GateError, InputError
from segcore.learn.network import DeployGraph
from segcore.picture.preprocess import InputSpec


def write_variants(job: Job, graph: DeployGraph, guard: GuardRecord | None) -> tuple[Variant, ...]:
    """Writes the files beside the main one, which is there.

    Args:
        job: names the sizes and batches, and has cases where there are sizes.
        graph: what the main file was made of.
        guard: of the main file: the same layers stay in float.

    Raises:
        GateError: int8 loses too much at another size, or a graph breaks a rule of TensorRT.
        InputError: a size that the network cannot take.
    """
    spec, suffix = job.parent.input, job.model_path.suffix
    variants: list[Variant] = []
    sizes = [size for size in dict.fromkeys(job.inputs.sizes_px) if (size, size) != spec.size_px]
    trained = _mean_dice(job, graph, spec) if sizes else float("nan")
    for size in sizes:
        other = spec.model_copy(update={"height_px": size, "width_px": size})
        name = f"{size}x{size}"
        variant = Variant(
            file=f"model-{name}{suffix}", golden=f"golden-{name}.npz", height_px=size, width_px=size
        )
        log(f"writing size {size}")
        _check_size(job, graph, other, trained=trained)
        _write_size(job, graph, guard, other, job.folder / variant.file)
        _gate_size(job, graph, other, variant)
        variants.append(variant)
    for batch in dict.fromkeys(job.inputs.batches):
        if batch == 1:
            continue
        variant = Variant(
            file=f"model-b{batch}{suffix}", height_px=spec.height_px, width_px=spec.width_px, batch=batch
        )
        log(f"writing batch {batch}")
        _write_batch(job, job.folder / variant.file, batch)
        variants.append(variant)
    if job.target == "tensorrt":
        main = Variant(file=job.model_path.name, height_px=spec.height_px, width_px=spec.width_px)
        variants += type_for_tensorrt(job, [main, *variants])
    return tuple(variants)


def _write_size(job: Job, graph: DeployGraph, guard: GuardRecord | None, spec: InputSpec, path: Path) -> None:
    output = job.parent.output
    other = DeployGraph(graph.network, spec).eval()
    if guard is None:
        write_model(other, spec, output, path, to=job.format, precision=job.precision, scratch=job.scratch)
        return
    name = f"fp32-{spec.height_px}"
    onnx_path, fp32 = write_float(other, spec, output, job.scratch, to=job.format, name=name)
    calibrated = calibrate_network(job, onnx_path, spec)
    # A name that this graph does not have would be refused.
    in_float = {one.layer for one in guard.float_layers}.intersection(calibrated.layers)
    calibrated.write(path, in_float=in_float)
    judge = Judge(job.data.guard, job.parent, fp32, partial(job.open_model, guard.engine), spec=spec)
    judged = judge.judge(path)
    log(
        f"guard: size {spec.height_px}: FP32 {judge.fp32.mean:.4f}, INT8 {judged.int8.mean:.4f}, "
        f"{points_text(judged.drop_points)} points lost ({points_text(judged.p05_drop_points)} of the 5th percentile)"
    )
    bounds = job.guard.bounds
    if not judged.keeps(bounds):
        raise GateError(
            f"--size {spec.height_px}: int8 must lose at most {bounds.drop_points:g} points "
            f"({bounds.p05_drop_points:g} of the 5th percentile), lost {judged.drop_points:.2f} "
            f"({judged.p05_drop_points:.2f}); leave this size out, or raise --max-drop-points"
        )


def _check_size(job: Job, graph: DeployGraph, spec: InputSpec, *, trained: float) -> None:
    """Whether the network still knows its organs at this size; parity with torch would not show that it does not.

    Args:
        job: the bound, and the validation cases that tell.
        graph: at the size of its training.
        spec: the input at the other size.
        trained: Dice of `graph` on them.

    Raises:
        GateError: it does not.
        InputError: it cannot take the size at all.
    """
    parent, most = job.parent, job.inputs.drop_points
    try:
        at_size = _mean_dice(job, graph, spec)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"--size {spec.height_px}: must be a size that {parent.name} can take, is not ({reason}); leave it out"
        ) from error
    lost = (trained - at_size) / POINT
    log(f"size {spec.height_px}: Dice {at_size:.4f} in fp32, {trained:.4f} at {parent.input.height_px}")
    if lost > most:
        raise GateError(
            f"--size {spec.height_px}: fp32 must lose at most {most:g} "
            f"point{'s' * (most != 1)} of the Dice at {parent.input.height_px} px, "
            f"{trained:.4f}, lost {lost:.2f}; leave this size out, train at it, or raise --max-size-drop-points"
        )


def _mean_dice(job: Job, graph: DeployGraph, spec: InputSpec) -> float:
    """Of torch, 0–1, over the validation cases at one input size."""
    reference = real_reference(DeployGraph(graph.network, spec).eval(), job.data.validation, spec)
    return float(np.mean(case_dice(reference.logits, reference.truths, job.parent)))


def _write_batch(job: Job, path: Path, batch: int) -> None:
    """The main file for more pictures a call: only its ends hold the batch, and INT8 keeps the ranges that it has."""
    if job.target == "openvino":
        from export.graph.openvino_export import rebatch_ir

        rebatch_ir(job.model_path, path, batch)
    else:
        from export.graph.onnx_export import rebatch_onnx

        rebatch_onnx(job.model_path, path, batch, job.parent.input, job.parent.output)


def _gate_size(job: Job, graph: DeployGraph, spec: InputSpec, variant: Variant) -> None:
    """Gates the file of another size against torch, as the main one is, and writes its golden cases."""
    reference = golden_reference(DeployGraph(graph.network, spec).eval(), golden_inputs(spec))
    name = job.engines[0]
    with closing(job.open_model(name, job.folder / variant.file)) as engine:
        gate_engines(job, {name: engine}, {"golden": reference})
        keep_golden(job, engine, reference, file=variant.golden)
