"""From an opened torch bundle to the files of an exported one: graph, gate, golden cases, manifest, last check."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from torch import nn

from export.compiler import judge_graphs
from export.gate import gate_engines, golden_reference, keep_whole_way, real_reference
from export.int8.guarded import write_guarded
from export.job import Job
from export.model_file import write_model
from export.variants import write_variants
from runtime.engines.probe import remember_opened
from runtime.engines.seam import EXTRAS, OPENED_BY, Engine
from runtime.verify import verify_bundle
from segcore.bundle.folder import Bundle, open_bundle, seal_bundle
from segcore.bundle.golden import golden_inputs
from segcore.bundle.guard_record import GuardRecord
from segcore.bundle.manifest import Manifest
from segcore.command import log
from segcore.errors import GateError, InputError, need
from segcore.host import made_now
from segcore.learn.network import DeployGraph
from student.network import load_student
from teacher.system import load_teacher


def write_bundle(job: Job) -> Manifest:
    """Writes the exported bundle into the job's folder.

    Raises:
        GateError: a gate or the guard failed.
    """
    parent, made = job.parent, made_now()
    graph = open_graph(job.source)
    log(f"writing {job.target} {job.precision}")
    guard, written = _write_main_file(job, graph)
    variants = write_variants(job, written, guard)
    prompt, prompt_gate = parent.prompt, dict[str, float]()
    if prompt is not None:
        from export.promptable import write_parts

        prompt, prompt_gate = write_parts(job, graph.network)
    compiled = None
    if job.target == "tensorrt" and job.judge:
        nodes = guard.int8_nodes if guard else ()
        compiled = judge_graphs(job.folder, must_compile=job.must_compile, int8_nodes=nodes)
    references = {"golden": golden_reference(graph, golden_inputs(parent.input))}
    if job.data.validation:
        references["real"] = real_reference(graph, job.data.validation, parent.input)
    counts = ", ".join(f"{len(reference.inputs)} {kind}" for kind, reference in references.items())
    log(f"comparing with torch on {counts} cases")
    with ExitStack() as stack:
        engines = _open_engines(job, stack)
        gate = gate_engines(job, engines, references)
        promised = parent.model_copy(
            update={"format": job.format, "precision": job.precision, "variants": variants, "prompt": prompt}
        )
        keep_whole_way(job, next(iter(engines.values())), references["golden"], promised)
    manifest = seal_bundle(
        job.folder,
        **{
            **job.source.child_fields(),
            "name": f"{parent.name}, {job.precision.upper()}",
            "format": job.format,
            "precision": job.precision,
            "data": job.data.record,
            "gate": {**gate, **prompt_gate},
            "guard": guard,
            "made": made,
            "model_file": job.model_path.name,
            "variants": variants,
            "prompt": prompt,
            "compiled": compiled,
        },
    )
    _check_sealed(job.folder, opened=list(engines))
    return manifest


def open_graph(bundle: Bundle) -> DeployGraph:
    """A torch bundle's network, student or teacher, inside the graph contract: 8-bit picture in, logits out.

    Returns:
        The graph, in eval mode.

    Raises:
        InputError: the bundle is not in torch format.
    """
    manifest = bundle.manifest
    if manifest.format != "torch":
        raise InputError(
            f"bundle {bundle.folder}: must be in torch format, got {manifest.format}; "
            "export the bundle that it was made from"
        )
    network: nn.Module = load_teacher(bundle) if manifest.kind == "teacher" else load_student(bundle)
    return DeployGraph(network, manifest.input).eval()


def _write_main_file(job: Job, graph: DeployGraph) -> tuple[GuardRecord | None, DeployGraph]:
    """The guard's record of int8, and the network that was written: another one where the guard needed that."""
    if job.precision == "int8":
        return write_guarded(job, graph)
    spec, output = job.parent.input, job.parent.output
    write_model(
        graph,
        spec,
        output,
        job.model_path,
        to=job.format,
        precision=job.precision,
        scratch=job.scratch,
        bundle_sha256=job.source.sha256,
    )
    return None, graph


def _open_engines(job: Job, stack: ExitStack) -> dict[str, Engine]:
    """Every installed engine that can open the result; an absent one is named on stderr."""
    engines = {}
    for name in OPENED_BY[job.format]:
        if name not in job.engines:
            log(f"{name} is not installed: the gate goes without it (pip install 'sam2edge[{EXTRAS[name]}]')")
            continue
        engines[name] = job.open_model(name, job.model_path)
        stack.callback(engines[name].close)
    if not engines:
        raise need(OPENED_BY[job.format][0], EXTRAS[OPENED_BY[job.format][0]])
    return engines


def _check_sealed(folder: Path, *, opened: Sequence[str]) -> None:
    """An export counts as done when the runtime has opened it.

    Args:
        folder: of the bundle.
        opened: the engines in which the gate has opened and run its model file.
    """
    bundle = open_bundle(folder)
    for engine in opened:
        remember_opened(engine, bundle, bundle.manifest.model_file)
    found = verify_bundle(bundle)
    if found.failures:
        raise GateError(f"the sealed bundle in {found.engine}: {'; '.join(found.failures)}")
