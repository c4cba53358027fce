"""From an opened torch bundle to the files of an exported one: graph, gate, golden cases, manifest, last check."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from export.data import ExportData
from export.gate import Reference, gate_engines, golden_reference, real_reference
from export.int8 import write_guarded
from export.model_file import MODEL_FILES, write_model
from export.source import open_graph
from export.variants import write_variants
from runtime.engine import EXTRAS, OPENED_BY, Engine, available_threads, installed, open_engine
from runtime.parity import Limits
from runtime.verify import verify_bundle
from segcore.bundle import Bundle, Manifest, open_bundle, seal_bundle
from segcore.command import log
from segcore.errors import GateError, need
from segcore.golden import golden_inputs, save_golden
from segcore.guard_record import GuardRecord
from segcore.host import made_now
from segcore.learn.deploy import DeployGraph

if TYPE_CHECKING:
    from export.command import ExportSettings

FORMATS = {"onnx": "onnx", "openvino": "openvino", "tensorrt": "tensorrt-onnx"}
"""`--to` → the format of the bundle that is written here."""


@dataclass(frozen=True)
class Written:
    """The model file, and what is known of it.

    Attributes:
        graph: the torch reference; fine-tuned, where the guard needed that.
        guard: of int8.
    """

    graph: DeployGraph
    guard: GuardRecord | None = None


def write_bundle(
    settings: ExportSettings, source: Bundle, data: ExportData | None, limits: Limits, folder: Path
) -> Manifest:
    """Writes the exported bundle into a working folder.

    Args:
        settings: of the command.
        source: in torch format.
        data: calibration, gate and guard cases; None without --data.
        limits: of the parity gate.
        folder: OUT.partial.

    Raises:
        GateError: a gate or the guard failed.
    """
    parent, made = source.manifest, made_now()
    to = FORMATS[settings.to]
    graph = open_graph(source)
    log(f"writing {settings.to} {settings.precision}")
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        written = _write_model(settings, source, graph, data, folder / MODEL_FILES[to], Path(scratch), to=to)
        variants = write_variants(
            settings, source, written.graph, written.guard, data, folder, Path(scratch), to=to
        )
    references = {"golden": golden_reference(graph, golden_inputs(parent.input))}
    if data and data.validation:
        references["real"] = real_reference(graph, data.validation, parent)
    counts = ", ".join(f"{len(reference.inputs)} {kind}" for kind, reference in references.items())
    log(f"comparing with torch on {counts} cases")
    with ExitStack() as stack:
        engines = _open_engines(settings.precision, to, folder / MODEL_FILES[to], stack)
        gate = gate_engines(engines, references, parent, limits)
        _save_golden(settings.precision, engines, references["golden"], folder)
    carried = {name: value for name, value in parent if name not in {"files", "metrics", "schema_version"}}
    manifest = seal_bundle(
        folder,
        **{
            **carried,
            "name": f"{parent.name}, {settings.precision.upper()}",
            "format": to,
            "precision": settings.precision,
            "parent": source.sha256,
            "data": data.record if data else parent.data,
            "gate": gate,
            "guard": written.guard,
            "made": made,
            "lineage": (*parent.lineage, parent.made),
            "model_file": MODEL_FILES[to],
            "variants": variants,
        },
    )
    _check_sealed(folder)
    return manifest


def _write_model(
    settings: ExportSettings,
    source: Bundle,
    graph: DeployGraph,
    data: ExportData | None,
    path: Path,
    scratch: Path,
    *,
    to: str,
) -> Written:
    if settings.precision == "int8":
        assert data is not None  # `export.command` asks for it
        guard, quantised = write_guarded(settings, source, graph, data, path, scratch, to=to)
        return Written(quantised, guard)
    manifest = source.manifest
    write_model(graph, manifest.input, manifest.output, path, to=to, precision=settings.precision)
    return Written(graph)


def _open_engines(precision: str, to: str, path: Path, stack: ExitStack) -> dict[str, Engine]:
    """Every installed engine that can open the result; an absent one is named on stderr."""
    engines = {}
    for name in OPENED_BY[to]:
        if not installed(name):
            log(f"{name} is not installed: the gate goes without it (pip install 'sam2edge[{EXTRAS[name]}]')")
            continue
        engines[name] = open_engine(name, path, precision=precision, threads=available_threads())
        stack.callback(engines[name].close)
    if not engines:
        raise need(OPENED_BY[to][0], EXTRAS[OPENED_BY[to][0]])
    return engines


def _save_golden(precision: str, engines: dict[str, Engine], reference: Reference, folder: Path) -> None:
    """Golden logits are torch's; those of int8 are the engine's own, because int8 is another function."""
    logits = reference.logits
    if precision == "int8":
        logits = next(iter(engines.values())).run(reference.inputs)
    save_golden(folder, reference.inputs, logits)


def _check_sealed(folder: Path) -> None:
    """An export counts as done when the runtime has opened it."""
    found = verify_bundle(open_bundle(folder))
    if found.failures:
        raise GateError(f"the sealed bundle in {found.engine}: {'; '.join(found.failures)}")
