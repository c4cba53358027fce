"""Exports a torch bundle: graph, gate, golden cases, manifest, and a last check that the runtime opens it."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from export.model_file import MODEL_FILES, write_model
from runtime.apart import check_apart
from runtime.engine import EXTRAS, OPENED_BY, available_threads, installed, open_engine
from runtime.parity import LIMITS, UNGATED, Limits, percent
from runtime.verify import verify_bundle
from segcore.bundle import Bundle, Manifest, open_bundle, seal_bundle
from segcore.command import Settings, log, print_result
from segcore.errors import GateError, InputError, need
from segcore.golden import golden_inputs, save_golden
from segcore.host import made_now
from segcore.outfolder import out_folder

if TYPE_CHECKING:
    from export.data import ExportData
    from export.gate import Reference
    from runtime.engine import Engine

_NEEDED = {
    "onnx": ("torch", "onnx", "onnxscript"),
    "openvino": ("torch", "onnx", "onnxscript", "openvino", "nncf"),
}


class ExportSettings(Settings):
    """Turns a torch bundle into one that runs without torch, and proves that it computes the same masks.

    Masks of procedural golden cases, and of validation cases with --data, are compared with torch's: at most
    0.1 % of pixels may differ in fp32 and 0.5 % in fp16. For int8 the change in Dice is reported. Exit
    status 3: the gate failed, nothing was written.
    """

    bundle: Path
    """Folder of a bundle in torch format."""
    to: Literal["onnx", "openvino"]
    """onnx runs in onnxruntime and OpenVINO; openvino (IR) in OpenVINO."""
    precision: Literal["fp32", "fp16", "int8"] = "fp32"
    """fp16: 16-bit weights, 32-bit arithmetic on CPUs; int8 needs --data and --to openvino."""
    data: str | None = None
    """Dataset: its train split calibrates int8, its validation split takes part in the gate."""
    out: Path
    """Folder to write: the exported bundle."""
    overwrite: bool = False
    """Replace OUT if it is there."""
    calibration_cases: int = Field(128, gt=0)
    """At most so many train cases calibrate int8."""
    split_seed: int | None = None
    """Seed of the dataset's split; by default the one in the bundle."""


def main(settings: ExportSettings) -> None:
    """Exports, and prints the gate's figures and one JSON line."""
    manifest = export_bundle(settings)
    for name, value in manifest.gate.items():
        print(f"{name:32}{percent(value) if name.endswith('_share') else f'{value:.4g}'}")
    size = sum(entry.bytes for entry in manifest.files.values())
    print_result(
        bundle=str(settings.out),
        sha256=open_bundle(settings.out).sha256,
        name=manifest.name,
        model_bytes=sum(e.bytes for n, e in manifest.files.items() if n.startswith("model.")),
        bundle_bytes=size,
        gate=manifest.gate,
    )


def export_bundle(settings: ExportSettings, *, limits: Limits | None = None) -> Manifest:
    """Writes the exported bundle.

    Args:
        settings: of the command.
        limits: of the gate against torch; by default the precision's (int8 is not gated against torch).

    Raises:
        InputError: settings that do not go together, or a bundle or data that cannot be used.
        GateError: the exported model computes other masks than torch; nothing is left behind.
    """
    source = open_bundle(settings.bundle)
    _check_settings(settings, source)
    check_apart(settings.out, settings.bundle, "--bundle")
    for package in _NEEDED[settings.to]:
        if not installed(package):
            raise need(package, "export")
    from export.data import open_export_data

    int8 = settings.precision == "int8"
    data = settings.data and open_export_data(
        settings.data,
        source.manifest,
        calibration_cases=settings.calibration_cases if int8 else 0,
        split_seed=settings.split_seed,
    )
    if limits is None:
        limits = UNGATED if int8 else LIMITS[settings.precision]
    made_from = {**settings.model_dump(mode="json", exclude={"out", "overwrite"}), "parent": source.sha256}
    with out_folder(settings.out, made_from, overwrite=settings.overwrite, keep_on_error=False) as folder:
        return _export(settings, source, data or None, limits, folder)


def _check_settings(settings: ExportSettings, source: Bundle) -> None:
    if settings.precision != "int8":
        return
    if source.manifest.kind == "teacher":
        raise InputError(
            "--precision int8: must be fp32 or fp16 for a teacher, got int8 (it comes in a later version); "
            "distil a student and quantise that"
        )
    if settings.to == "onnx":
        raise InputError(
            "--precision int8: must be fp32 or fp16 with --to onnx, got int8 (it comes in a later version); "
            "use --to openvino"
        )
    if settings.data is None:
        raise InputError(
            "--data: must be given for --precision int8, got none; its train split calibrates the ranges"
        )


def _export(
    settings: ExportSettings, source: Bundle, data: ExportData | None, limits: Limits, folder: Path
) -> Manifest:
    from export.gate import gate_engines, golden_reference, real_reference
    from export.source import open_graph

    parent, made = source.manifest, made_now()
    graph = open_graph(source)
    log(f"writing {settings.to} {settings.precision}")
    calibration = data.calibration if data and settings.precision == "int8" else ()
    if calibration:
        log(f"calibrating int8 on {len(calibration)} train cases")
    write_model(
        graph,
        parent.input,
        parent.output,
        folder,
        to=settings.to,
        precision=settings.precision,
        calibration=calibration,
    )
    references = {"golden": golden_reference(graph, golden_inputs(parent.input))}
    if data and data.validation:
        references["real"] = real_reference(graph, data.validation, parent)
    counts = ", ".join(f"{len(reference.inputs)} {kind}" for kind, reference in references.items())
    log(f"comparing with torch on {counts} cases")
    with ExitStack() as stack:
        engines = _open_engines(settings, folder, stack)
        gate = gate_engines(engines, references, parent, limits)
        _save_golden(settings, engines, references["golden"], folder)
    carried = {name: value for name, value in parent if name not in {"files", "metrics", "schema_version"}}
    manifest = seal_bundle(
        folder,
        **{
            **carried,
            "name": f"{parent.name}, {settings.precision.upper()}",
            "format": settings.to,
            "precision": settings.precision,
            "parent": source.sha256,
            "data": data.record if data else parent.data,
            "gate": gate,
            "made": made,
            "lineage": (*parent.lineage, parent.made),
            "model_file": MODEL_FILES[settings.to],
        },
    )
    _check_sealed(folder)
    return manifest


def _open_engines(settings: ExportSettings, folder: Path, stack: ExitStack) -> dict[str, Engine]:
    """Every installed engine that can open the result; an absent one is named on stderr."""
    engines = {}
    for name in OPENED_BY[settings.to]:
        if not installed(name):
            log(f"{name} is not installed: the gate goes without it (pip install 'sam2edge[{EXTRAS[name]}]')")
            continue
        path = folder / MODEL_FILES[settings.to]
        engines[name] = open_engine(name, path, precision=settings.precision, threads=available_threads())
        stack.callback(engines[name].close)
    if not engines:
        raise need(OPENED_BY[settings.to][0], EXTRAS[OPENED_BY[settings.to][0]])
    return engines


def _save_golden(
    settings: ExportSettings, engines: dict[str, Engine], reference: Reference, folder: Path
) -> None:
    """Golden logits are torch's; those of int8 are the engine's own, because int8 is another function."""
    logits = reference.logits
    if settings.precision == "int8":
        logits = next(iter(engines.values())).run(reference.inputs)
    save_golden(folder, reference.inputs, logits)


def _check_sealed(folder: Path) -> None:
    """An export counts as done when the runtime has opened it."""
    found = verify_bundle(open_bundle(folder))
    if found.failures:
        raise GateError(f"the sealed bundle in {found.engine}: {'; '.join(found.failures)}")
