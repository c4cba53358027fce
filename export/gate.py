"""The parity gate: an exported model counts only if the engines compute the masks that torch computes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from export.int8.guard import POINT, case_dice
from export.job import Job
from runtime.buckets import model_files
from runtime.engines.seam import Engine
from runtime.parity import check_parity
from segcore.bundle.folder import hash_file
from segcore.bundle.golden import (
    GRAPH_SUFFIXES,
    WholeWay,
    golden_masks,
    golden_pictures,
    graphs_digest,
    mask_digest,
    save_golden,
)
from segcore.bundle.manifest import Manifest
from segcore.dataset.case import Case
from segcore.errors import GateError
from segcore.picture.preprocess import InputSpec, prepare


@dataclass(frozen=True)
class Reference:
    """Pictures, and what torch computes for them.

    Attributes:
        inputs: N×H×W×C uint8.
        logits: N×K×h×w float32.
        sizes_px: height and width of each mask.
        truths: true masks of class indices; empty for golden cases.
    """

    inputs: np.ndarray
    logits: np.ndarray
    sizes_px: tuple[tuple[int, int], ...]
    truths: tuple[np.ndarray, ...] = ()


def golden_reference(graph: nn.Module, inputs: np.ndarray) -> Reference:
    """Torch's answer to the golden inputs, N×H×W×C uint8; masks are compared at the input's size."""
    return Reference(
        inputs, _torch_logits(graph, inputs), ((inputs.shape[1], inputs.shape[2]),) * len(inputs)
    )


def real_reference(graph: nn.Module, cases: Sequence[Case], spec: InputSpec) -> Reference:
    """Torch's answer to labelled cases; masks are compared at the images' own sizes.

    Args:
        graph: in eval mode.
        cases: labelled.
        spec: the graph's input.
    """
    inputs, truths = [], []
    for case in cases:
        image, truth = case.image(), case.mask()
        inputs.append(prepare(image, spec, name=f"case {case.id}"))
        truths.append(truth)
    stacked = np.stack(inputs)
    sizes = tuple((truth.shape[0], truth.shape[1]) for truth in truths)
    return Reference(stacked, _torch_logits(graph, stacked), sizes, tuple(truths))


def keep_golden(job: Job, engine: Engine, reference: Reference, *, file: str) -> None:
    """Writes golden cases. Their logits are torch's; those of int8 are the engine's own: int8 is another function.

    Args:
        job: its precision and folder.
        engine: opened on the file that they are for.
        reference: the golden inputs, with torch's answer.
        file: name of the file.
    """
    save_golden(job.folder, reference.inputs, _golden_logits(job, engine, reference), file=file)


def keep_whole_way(job: Job, engine: Engine, reference: Reference, promised: Manifest) -> None:
    """`keep_golden` of the model itself, with pictures and masks of the whole way, which are the engine's own.

    Args:
        job: its precision and folder.
        engine: opened on the model.
        reference: the golden inputs, with torch's answer.
        promised: all of the new bundle's manifest that changes a mask.
    """
    spec, output = promised.input, promised.output
    pictures = golden_pictures(spec)
    whole = WholeWay(
        pictures,
        golden_masks(pictures, engine.run, spec, output),
        mask_digest(promised, (file.size_px for file in model_files(promised))),
        graphs_digest(
            {
                path.relative_to(job.folder).as_posix(): hash_file(path)
                for path in job.folder.rglob("*")
                if path.name.endswith(GRAPH_SUFFIXES)
            }
        ),
    )
    save_golden(job.folder, reference.inputs, _golden_logits(job, engine, reference), whole=whole)


def _golden_logits(job: Job, engine: Engine, reference: Reference) -> np.ndarray:
    return engine.run(reference.inputs) if job.precision == "int8" else reference.logits


def gate_engines(
    job: Job, engines: Mapping[str, Engine], references: Mapping[str, Reference]
) -> dict[str, float]:
    """Compares every engine with torch.

    Args:
        job: its parity limits, and the parent's output and classes.
        engines: opened on the exported model, by name.
        references: "golden", and "real" where there are labelled cases.

    Returns:
        The figures for the manifest: `ENGINE_golden_mean_share`, `ENGINE_real_worst_share`, `dice_torch`,
        `dice_ENGINE`, `dice_change_points` (the most negative over engines), …

    Raises:
        GateError: an engine differs by more than the limits, or its output is constant.
    """
    manifest = job.parent
    figures: dict[str, float] = {}
    failures = []
    for kind, reference in references.items():
        figures[f"{kind}_cases"] = float(len(reference.inputs))
        if reference.truths:
            figures["dice_torch"] = float(np.mean(case_dice(reference.logits, reference.truths, manifest)))
        for name, engine in engines.items():
            logits = engine.run(reference.inputs)
            parity = check_parity(logits, reference.logits, manifest.output, reference.sizes_px)
            figures[f"{name}_{kind}_mean_share"] = parity.mean_share
            figures[f"{name}_{kind}_worst_share"] = parity.worst_share
            if reference.truths:
                figures[f"dice_{name}"] = float(np.mean(case_dice(logits, reference.truths, manifest)))
            failures += [
                f"{name} against torch on {kind} cases: {failure}"
                for failure in parity.failures(job.parity_limits)
            ]
    if failures:
        raise GateError("; ".join(failures))
    if "dice_torch" in figures:
        changes = [(figures[f"dice_{name}"] - figures["dice_torch"]) / POINT for name in engines]
        figures["dice_change_points"] = min(changes)
    return figures


def _torch_logits(graph: nn.Module, inputs: np.ndarray) -> np.ndarray:
    """N×H×W×C uint8 → N×K×h×w float32, one picture at a time as the engines do."""
    with torch.inference_mode():
        return np.concatenate([graph(torch.from_numpy(picture[None])).numpy() for picture in inputs])
