"""From an opened torch bundle to the files of an exported one: graph, gate, golden cases, manifest, last check."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from export.data import ExportData
from export.gate import gate_engines, golden_reference, keep_golden, real_reference
from export.int8 import write_guarded
from export.model_file import MODEL_FILES, write_model
from export.source import open_graph
from export.variants import write_variants
from runtime.engine import EXTRAS, OPENED_BY, Engine, available_threads, installed, open_engine
from runtime.parity import ParityLimits
from runtime.verify import verify_bundle
from segcore.bundle import Bundle, open_bundle, seal_bundle
from segcore.command import log
from segcore.errors import GateError, need
from segcore.golden import golden_inputs
from segcore.guard_record import GuardRecord
from segcore.host import made_now
from segcore.learn.deploy import DeployGraph
from segcore.manifest import Manifest

if TYPE_CHECKING:
    from export.command import ExportSettings

FORMATS = {"onnx": "onnx", "openvino": "openvino", "tensorrt": "tensorrt-onnx"}
"""`--to` → the format of the bundle that is written here."""


def write_bundle(
    settings: ExportSettings, source: Bundle, data: ExportData | None, limits: ParityLimits, folder: Path
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
        path = folder / MODEL_FILES[to]
        guard, written = _write_model(settings, source, graph, data, path, Path(scratch), to=to)
        variants = write_variants(settings, source, written, guard, data, folder, Path(scratch), to=to)
        prompt, prompt_gate = parent.prompt, dict[str, float]()
        if prompt is not None:
            from export.promptable import write_parts

            prompt, prompt_gate = write_parts(
                graph.network, parent, folder, Path(scratch), to=to, precision=settings.precision
            )
    references = {"golden": golden_reference(graph, golden_inputs(parent.input))}
    if data and data.validation:
        references["real"] = real_reference(graph, data.validation, parent)
    counts = ", ".join(f"{len(reference.inputs)} {kind}" for kind, reference in references.items())
    log(f"comparing with torch on {counts} cases")
    with ExitStack() as stack:
        engines = _open_engines(settings.precision, to, folder / MODEL_FILES[to], stack)
        gate = gate_engines(engines, references, parent, limits)
        keep_golden(settings.precision, next(iter(engines.values())), references["golden"], folder)
    manifest = seal_bundle(
        folder,
        **{
            **source.child_fields(),
            "name": f"{parent.name}, {settings.precision.upper()}",
            "format": to,
            "precision": settings.precision,
            "data": data.record if data else parent.data,
            "gate": {**gate, **prompt_gate},
            "guard": guard,
            "made": made,
            "model_file": MODEL_FILES[to],
            "variants": variants,
            "prompt": prompt,
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
) -> tuple[GuardRecord | None, DeployGraph]:
    """The guard's record of int8, and the network that was written: another one where the guard needed that."""
    if settings.precision == "int8":
        assert data is not None  # `export.command` asks for it
        return write_guarded(settings, source, graph, data, path, scratch, to=to)
    manifest = source.manifest
    write_model(graph, manifest.input, manifest.output, path, to=to, precision=settings.precision)
    return None, graph


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


def _check_sealed(folder: Path) -> None:
    """An export counts as done when the runtime has opened it."""
    found = verify_bundle(open_bundle(folder))
    if found.failures:
        raise GateError(f"the sealed bundle in {found.engine}: {'; '.join(found.failures)}")
