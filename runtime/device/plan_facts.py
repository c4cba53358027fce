"""What the device report says of TensorRT alone: time without copies, memory, layers, and whether INT8 is INT8."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass

from runtime.device.report import Percentiles, TensorRTFacts, percentiles
from runtime.engines.seam import EngineOptions
from runtime.trt.engine import open_model
from runtime.trt.layers import EngineSummary, prove_int8, read_layers, summarise_layers
from segcore.bundle.folder import Bundle
from segcore.bundle.guard_record import GuardRecord

_TIMED_CALLS, _PROFILED_CALLS = 500, 50  # a profiled call waits after every layer


@dataclass(frozen=True)
class EngineInspection:
    """Figures of one TensorRT engine; as in `runtime.device.report.DeviceReport`."""

    latency_no_copies_ms: Percentiles
    device_memory_mib: float
    facts: TensorRTFacts


def inspect_engine(bundle: Bundle, *, build_s: float | None) -> EngineInspection:
    """Opens a tensorrt bundle's engine, times it on the GPU, and asks it for its layers.

    Args:
        bundle: in tensorrt format, built on this device.
        build_s: seconds that building took; None where it was not built now.
    """
    manifest = bundle.manifest
    options = EngineOptions(manifest.precision, threads=1, target=manifest.engine_target)
    with closing(open_model(bundle.model_path, options)) as engine:
        return EngineInspection(
            latency_no_copies_ms=percentiles([engine.time_engine(_TIMED_CALLS)]),
            device_memory_mib=engine.device_memory_mib(),
            facts=engine_facts(
                engine.layer_information(),
                engine.profile_layers(_PROFILED_CALLS),
                precision=manifest.precision,
                guard=manifest.guard,
                build_s=build_s,
            ),
        )


def engine_facts(
    inspected: str,
    times_ms: Mapping[str, float],
    *,
    precision: str,
    guard: GuardRecord | None,
    build_s: float | None,
) -> TensorRTFacts:
    """Layers by precision, reformats, and whether INT8 is proven.

    Args:
        inspected: JSON of TensorRT's EngineInspector.
        times_ms: of each layer, by its name.
        precision: of the bundle.
        guard: which layers were to stay in float; None where no guard ran.
        build_s: seconds that building took.
    """
    layers = read_layers(inspected)
    summary = summarise_layers(layers, times_ms)
    proven, why = None, f"{precision} was asked for"
    if precision == "int8" and guard is not None and guard.int8_nodes:
        proof = prove_int8(layers, guard.int8_nodes)
        proven = proof.proven
        why = proof.words
    elif precision == "int8":
        proven, why = _prove_by_count(summary)
    return TensorRTFacts(
        build_s=build_s,
        layers_by_precision=summary.by_precision,
        reformats=summary.reformats,
        reformat_share=summary.reformat_share,
        int8_proven=proven,
        int8_why=why,
    )


def _prove_by_count(summary: EngineSummary) -> tuple[bool, str]:
    """Without a list of the quantised nodes nothing says what may be in float: INT8 is proven if all are in INT8."""
    why = f"{summary.weighted_int8} of {summary.weighted} convolutions compute in INT8"
    if summary.not_int8:
        why += f"; in float, and no guard's record says that they may be: {', '.join(summary.not_int8)}"
    return summary.weighted > 0 and not summary.not_int8, why
