"""What the device report says of TensorRT alone: time without copies, memory, layers, and whether INT8 is INT8.

Layers come from TensorRT's EngineInspector as text, and become figures here. Not run on a device: the tests' texts
follow NVIDIA's examples. Formats read:

* TensorRT 8.6 and 10: a tensor's `Format/Datatype` is a sentence, "Thirty-two wide channel vectorized row major Int8
  format", or a bare type, "Half" (from its code generator).
* TensorRT 11: that field is split into a format and a data type, and `Bindings` became `I/O Tensors`.

Source:
    NVIDIA's "Engine Inspector" (docs.nvidia.com/deeplearning/tensorrt/10.16.1/inference-library/engine-tools.html) and
    "Migrating IEngineInspector Usage from TensorRT 10.x to 11.x"; field names, type names and the separators in
    `Metadata` as trt-engine-explorer reads them (NVIDIA/TensorRT tools/experimental/trt-engine-explorer, trex/layer.py,
    activations.py, parser.py).
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Collection, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from runtime.device.report import Percentiles, TensorRTFacts, percentiles
from runtime.engines.seam import EngineOptions
from runtime.trt.engine import open_model
from segcore.bundle.folder import Bundle
from segcore.bundle.guard_record import GuardRecord
from segcore.errors import InputError

_TIMED_CALLS, _PROFILED_CALLS = 500, 50  # a profiled call waits after every layer
# How TensorRT writes a type → our name of it.
_TYPES = {
    "int8": "INT8",
    "uint8": "UINT8",
    "fp16": "FP16",
    "half": "FP16",
    "fp32": "FP32",
    "float": "FP32",
    "bf16": "BF16",
    "bfloat16": "BF16",
    "fp8": "FP8",
    "int4": "INT4",
    "int32": "INT32",
    "int64": "INT64",
    "bool": "BOOL",
}
_WEIGHTED = re.compile(r"conv|gemm|matrixmultiply|fullyconnected", re.IGNORECASE)


@dataclass(frozen=True)
class EngineInspection:
    """Figures of one TensorRT engine; as in `runtime.device.report.DeviceReport`."""

    latency_no_copies_ms: Percentiles
    device_memory_mib: float
    facts: TensorRTFacts


@dataclass(frozen=True)
class EngineLayer:
    """One layer of an engine: one kernel, mostly, and several nodes of the graph.

    Attributes:
        name: TensorRT's; the nodes it fused, joined by " + ".
        kind: "Convolution", "Reformat", …
        nodes: ONNX nodes in it, where TensorRT says them.
        input_type: of its first input; INT8, FP16, FP32, … or "?".
        output_type: of its first output.
        weights_type: of its weights; empty where it has none or does not say.
    """

    name: str
    kind: str
    nodes: tuple[str, ...]
    input_type: str
    output_type: str
    weights_type: str = ""

    @property
    def is_weighted(self) -> bool:
        """A convolution, transposed convolution or matrix product: what INT8 is for."""
        return _WEIGHTED.search(self.kind) is not None

    @property
    def is_int8(self) -> bool:
        """It computes in 8 bits: what it reads is INT8, and its weights, where it says, too."""
        return self.input_type == "INT8" and self.weights_type in ("", "INT8")


@dataclass(frozen=True)
class EngineSummary:
    """Figures for the device report.

    Attributes:
        layers: in all.
        by_precision: number of layers by the type of their first input.
        weighted: convolutions and matrix products.
        weighted_int8: those of them in INT8.
        reformats: layers that only change a tensor's type or layout.
        reformat_share: of the layers' time, 0–1; None where nothing was profiled.
        not_int8: names of the weighted layers that are not in INT8.
    """

    layers: int
    by_precision: dict[str, int]
    weighted: int
    weighted_int8: int
    reformats: int
    reformat_share: float | None
    not_int8: tuple[str, ...]


@dataclass(frozen=True)
class Int8Proof:
    """Whether an engine computes in INT8 what the guard quantised.

    Attributes:
        proven: every node that was to be INT8 is found in the engine, in a layer that is.
        expected: nodes that were to be INT8.
        found: how many of them are.
        missing: layers of the engine that hold such a node and are not in INT8.
        unseen: nodes that no layer of the engine names.
    """

    proven: bool
    expected: int
    found: int
    missing: tuple[str, ...]
    unseen: tuple[str, ...]


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
        proof = prove_int8(layers, guard)
        proven = proof.proven
        why = f"{proof.found} of {proof.expected} quantised convolutions and matrix products compute in INT8"
        if proof.missing:
            why += f"; in float: {', '.join(proof.missing)}"
        if proof.unseen:
            why += f"; not named in the engine: {', '.join(proof.unseen)}"
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


def read_layers(text: str) -> tuple[EngineLayer, ...]:
    """The layers in an inspector's JSON, in the order they run.

    Raises:
        InputError: no JSON, or names only: the engine was built without detailed verbosity.
    """
    try:
        # Not strict: TensorRT puts the bare separators \x1e and \x1f into its strings.
        raw = json.loads(text, strict=False)
        layers = raw["Layers"]
    except (ValueError, TypeError, KeyError):
        raise InputError(
            "engine inspector: must give JSON with Layers, does not; build the engine with this sam2edge"
        ) from None
    if not all(isinstance(layer, dict) for layer in layers):
        raise InputError(
            "engine inspector: must describe every layer, gives names only; build the engine with this sam2edge, "
            "which asks for ProfilingVerbosity.DETAILED"
        )
    return tuple(_parse_layer(layer) for layer in layers)


def summarise_layers(
    layers: Collection[EngineLayer], times_ms: Mapping[str, float] | None = None
) -> EngineSummary:
    """Counts; with `times_ms` by layer name, from `profile_layers`, the share of time that reformats take."""
    weighted = [layer for layer in layers if layer.is_weighted]
    reformats = [layer for layer in layers if layer.kind.lower() == "reformat"]
    share = None
    if times_ms and (total := sum(times_ms.values())) > 0:
        of_name = {_readable_name(name): ms for name, ms in times_ms.items()}
        share = sum(of_name.get(layer.name, 0.0) for layer in reformats) / total
    return EngineSummary(
        layers=len(layers),
        by_precision=dict(Counter(layer.input_type for layer in layers).most_common()),
        weighted=len(weighted),
        weighted_int8=sum(layer.is_int8 for layer in weighted),
        reformats=len(reformats),
        reformat_share=share,
        not_int8=tuple(layer.name for layer in weighted if not layer.is_int8),
    )


def prove_int8(layers: Collection[EngineLayer], guard: GuardRecord) -> Int8Proof:
    """Looks in the engine for each convolution and matrix product that the guard's graph has in INT8.

    TensorRT fuses nodes into layers and names them all; what else the graph leaves in float may be in float here.

    Args:
        layers: of the engine.
        guard: from the bundle's manifest, with `int8_nodes`.
    """
    wanted = set(guard.int8_nodes)
    found: set[str] = set()
    missing = []
    for layer in layers:
        held = wanted & _node_names(layer)
        if layer.is_weighted and held:
            found |= held if layer.is_int8 else set()
            missing += [] if layer.is_int8 else [layer.name]
    unseen = wanted.difference(*(_node_names(layer) for layer in layers))
    proven = bool(wanted) and found == wanted
    return Int8Proof(proven, len(wanted), len(found), tuple(missing), tuple(sorted(unseen)))


def _node_names(layer: EngineLayer) -> set[str]:
    """Names of the graph's nodes in a layer: from its metadata, and from its name."""
    return {*layer.nodes, *(part.strip() for part in re.split(r" \+ |\|\|", layer.name))}


def _parse_layer(raw: dict[str, Any]) -> EngineLayer:
    weights = raw.get("Weights")
    return EngineLayer(
        name=_readable_name(str(raw.get("Name", ""))),
        kind=str(raw.get("ParameterType") or raw.get("LayerType") or ""),
        nodes=tuple(re.findall(r"\[ONNX Layer: ([^\]]+)\]", _readable_name(str(raw.get("Metadata", ""))))),
        input_type=_first_type(raw.get("Inputs")),
        output_type=_first_type(raw.get("Outputs")),
        weights_type=_find_type(str(weights.get("Type", ""))) if isinstance(weights, dict) else "",
    )


def _first_type(tensors: Any) -> str:
    """The data type of the first of a layer's inputs or outputs."""
    if not isinstance(tensors, list) or not tensors or not isinstance(tensors[0], dict):
        return "?"
    fields = {str(key).lower().replace(" ", ""): str(value) for key, value in tensors[0].items()}
    for key in ("datatype", "format/datatype", "format"):
        if found := _find_type(fields.get(key, "")):
            return found
    return "?"


def _find_type(text: str) -> str:
    """ "Thirty-two wide channel vectorized row major Int8 format" → "INT8"; empty where no type is named."""
    words = re.findall(r"[A-Za-z]+\d*", text)
    return next((_TYPES[word.lower()] for word in words if word.lower() in _TYPES), "")


def _readable_name(text: str) -> str:
    r"""Names with TensorRT's separators \x1e and \x1f written as " + "."""
    return re.sub(r"\s*[\x1e\x1f]\s*", " + ", text)
