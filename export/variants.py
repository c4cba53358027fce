"""Other files of the same network: more input sizes, more pictures a call, and TensorRT's strongly typed graph."""

from __future__ import annotations

from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from export.attention import has_attention
from export.data import ExportData
from export.gate import gate_engines, golden_reference, keep_golden, real_reference
from export.guard import Bounds
from export.judge import POINT, Judge, case_dice
from export.model_file import MODEL_FILES, calibrate, write_float, write_model
from export.source import as_graph
from export.typed_files import type_for_tensorrt
from runtime.engine import OPENED_BY, available_threads, installed, open_engine
from runtime.parity import PARITY_LIMITS, UNGATED
from segcore.bundle import Bundle
from segcore.command import log
from segcore.errors import GateError, InputError
from segcore.golden import golden_inputs
from segcore.guard_record import GuardRecord, points_text
from segcore.learn.deploy import DeployGraph
from segcore.manifest import Variant
from segcore.preprocess import InputSpec

if TYPE_CHECKING:
    from export.command import ExportSettings


def write_variants(
    settings: ExportSettings,
    source: Bundle,
    graph: DeployGraph,
    guard: GuardRecord | None,
    data: ExportData | None,
    folder: Path,
    scratch: Path,
    *,
    to: str,
) -> tuple[Variant, ...]:
    """Writes the files beside the main one, which is there.

    Args:
        settings: of the command.
        source: torch bundle.
        graph: what the main file was made of.
        guard: of the main file: the same layers stay in float.
        data: calibrates int8 at the other sizes.
        folder: of the bundle.
        scratch: for what is thrown away.
        to: a key of `MODEL_FILES`.

    Raises:
        GateError: int8 loses too much at another size, or a graph breaks a rule of TensorRT.
        InputError: a size that the network cannot take.
    """
    spec, suffix = source.manifest.input, Path(MODEL_FILES[to]).suffix
    variants: list[Variant] = []
    sizes = [size for size in dict.fromkeys(settings.size) if (size, size) != spec.size_px]
    if sizes:
        assert data is not None  # `export.command` asks for it
        trained = _mean_dice(graph, source, data, spec)
    for size in sizes:
        other = spec.model_copy(update={"height_px": size, "width_px": size})
        name = f"{size}x{size}"
        variant = Variant(
            file=f"model-{name}{suffix}", golden=f"golden-{name}.npz", height_px=size, width_px=size
        )
        log(f"writing size {size}")
        assert data is not None
        _check_size(settings, source, graph, data, other, trained=trained)
        _write_size(settings, source, graph, guard, data, other, folder / variant.file, scratch, to=to)
        _save_golden(settings.precision, source, graph, other, folder, variant, to=to)
        variants.append(variant)
    for batch in dict.fromkeys(settings.batch):
        if batch == 1:
            continue
        variant = Variant(
            file=f"model-b{batch}{suffix}", height_px=spec.height_px, width_px=spec.width_px, batch=batch
        )
        log(f"writing batch {batch}")
        _write_batch(settings, source, graph, folder / MODEL_FILES[to], folder / variant.file, batch, to=to)
        variants.append(variant)
    if to == "tensorrt-onnx":
        main = Variant(file=MODEL_FILES[to], height_px=spec.height_px, width_px=spec.width_px)
        variants += type_for_tensorrt(settings.precision, [main, *variants], source.manifest, folder)
    return tuple(variants)


def _write_size(
    settings: ExportSettings,
    source: Bundle,
    graph: DeployGraph,
    guard: GuardRecord | None,
    data: ExportData,
    spec: InputSpec,
    path: Path,
    scratch: Path,
    *,
    to: str,
) -> None:
    manifest = source.manifest
    other = as_graph(graph.network, spec)
    if guard is None:
        write_model(other, spec, manifest.output, path, to=to, precision=settings.precision)
        return
    onnx_path, fp32 = write_float(other, spec, manifest.output, scratch, to=to, name=f"fp32-{spec.height_px}")
    calibrated = calibrate(
        onnx_path, to=to, cases=data.calibration, spec=spec, transformer=has_attention(manifest)
    )
    calibrated.write(path, in_float=_float_names(guard) & set(calibrated.layers))
    open_model = partial(open_engine, guard.engine, precision="int8", threads=available_threads())
    judge = Judge(data.guard, manifest, fp32, open_model, spec=spec)
    judged = judge.judge(path)
    log(
        f"guard: size {spec.height_px}: FP32 {judge.fp32.mean:.4f}, INT8 {judged.int8.mean:.4f}, "
        f"{points_text(judged.drop_points)} points lost ({points_text(judged.p05_drop_points)} of the 5th percentile)"
    )
    if not Bounds(settings.max_drop_points, settings.max_p05_drop_points, 0).allow(judged):
        raise GateError(
            f"--size {spec.height_px}: int8 must lose at most {settings.max_drop_points:g} points "
            f"({settings.max_p05_drop_points:g} of the 5th percentile), lost {judged.drop_points:.2f} "
            f"({judged.p05_drop_points:.2f}); leave this size out, or raise --max-drop-points"
        )


def _check_size(
    settings: ExportSettings,
    source: Bundle,
    graph: DeployGraph,
    data: ExportData,
    spec: InputSpec,
    *,
    trained: float,
) -> None:
    """Whether the network still knows its organs at this size; parity with torch would not show that it does not.

    Args:
        settings: the bound.
        source: torch bundle.
        graph: at the size of its training.
        data: its validation cases tell.
        spec: the input at the other size.
        trained: Dice of `graph` on them.

    Raises:
        GateError: it does not.
        InputError: it cannot take the size at all.
    """
    manifest = source.manifest
    try:
        at_size = _mean_dice(graph, source, data, spec)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"--size {spec.height_px}: must be a size that {manifest.name} can take, is not ({reason}); leave it out"
        ) from error
    lost = (trained - at_size) / POINT
    log(f"size {spec.height_px}: Dice {at_size:.4f} in fp32, {trained:.4f} at {manifest.input.height_px}")
    if lost > settings.max_size_drop_points:
        raise GateError(
            f"--size {spec.height_px}: fp32 must lose at most {settings.max_size_drop_points:g} "
            f"point{'s' * (settings.max_size_drop_points != 1)} of the Dice at {manifest.input.height_px} px, "
            f"{trained:.4f}, lost {lost:.2f}; leave this size out, train at it, or raise --max-size-drop-points"
        )


def _mean_dice(graph: DeployGraph, source: Bundle, data: ExportData, spec: InputSpec) -> float:
    """Of torch, 0–1, over the validation cases at one input size."""
    manifest = source.manifest
    reference = real_reference(as_graph(graph.network, spec), data.validation, manifest, spec=spec)
    return float(np.mean(case_dice(reference.logits, reference.truths, manifest)))


def _float_names(guard: GuardRecord) -> set[str]:
    return {one.layer for one in guard.float_layers}


def _write_batch(
    settings: ExportSettings,
    source: Bundle,
    graph: DeployGraph,
    one: Path,
    path: Path,
    batch: int,
    *,
    to: str,
) -> None:
    """INT8 keeps the ranges that were found for one picture at a time: they change with the batch."""
    manifest = source.manifest
    if settings.precision != "int8":
        write_model(
            graph, manifest.input, manifest.output, path, to=to, precision=settings.precision, batch=batch
        )
    elif to == "openvino":
        from export.openvino_export import rebatch_ir

        rebatch_ir(one, path, batch)
    else:
        from export.onnx_export import rebatch_onnx

        rebatch_onnx(one, path, batch, manifest.input, manifest.output)


def _save_golden(
    precision: str,
    source: Bundle,
    graph: DeployGraph,
    spec: InputSpec,
    folder: Path,
    variant: Variant,
    *,
    to: str,
) -> None:
    """Golden cases at another size, gated against torch like the main ones."""
    reference = golden_reference(as_graph(graph.network, spec), golden_inputs(spec))
    name = next(name for name in OPENED_BY[to] if installed(name))
    path = folder / variant.file
    with closing(open_engine(name, path, precision=precision, threads=available_threads())) as engine:
        limits = UNGATED if precision == "int8" else PARITY_LIMITS[precision]
        gate_engines({name: engine}, {"golden": reference}, source.manifest, limits)
        keep_golden(precision, engine, reference, folder, file=variant.golden)
