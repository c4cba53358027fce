"""An engine's layers: as TensorRT's inspector gives them, or as its compiler logs them; and whether INT8 is INT8.

The inspector needs a GPU. Not run on a device: the tests' texts follow NVIDIA's examples. Formats read:

* TensorRT 8.6 and 10: a tensor's `Format/Datatype` is a sentence, "Thirty-two wide channel vectorized row major Int8
  format", or a bare type, "Half" (from its code generator).
* TensorRT 11: that field is split into a format and a data type, and `Bindings` became `I/O Tensors`.
* The compiler of TensorRT for RTX 1.7 logs each layer in a line when it is done, without a GPU; seen here.

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
from dataclasses import dataclass
from typing import Any

from segcore.errors import InputError, reading

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
_WEIGHTED = re.compile(r"conv|correlation|gemm|matrixmultiply|matmul|fullyconnected", re.IGNORECASE)
_LOGGED = re.compile(
    r"^\s*Name: (?P<name>.+?), LayerType: (?P<kind>\w+), Inputs: \[(?P<inputs>.*?)\]"
    r"(?:, Constants: \[(?P<constants>.*?)\])?, Outputs: \[(?P<outputs>.*?)\], "
    r"(?:TacticName|StreamId|Metadata): (?P<rest>.*)$",
    re.MULTILINE,
)


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

    @property
    def words(self) -> str:
        """20 of 22 quantised convolutions and matrix products compute in INT8; in float: head, stem."""
        text = f"{self.found} of {self.expected} quantised convolutions and matrix products compute in INT8"
        if self.missing:
            text += f"; in float: {', '.join(self.missing)}"
        if self.unseen:
            text += f"; not named in the engine: {', '.join(self.unseen)}"
        return text


def read_layers(text: str) -> tuple[EngineLayer, ...]:
    """The layers in an inspector's JSON, in the order they run.

    Raises:
        InputError: no JSON, or names only: the engine was built without detailed verbosity.
    """
    with reading("engine inspector", "JSON with Layers", remedy="build the engine with this sam2edge"):
        # Not strict: TensorRT puts the bare separators \x1e and \x1f into its strings.
        raw = json.loads(text, strict=False)
        layers = raw.get("Layers") if isinstance(raw, dict) else None
        if not isinstance(layers, list):
            raise ValueError("no list of Layers")
    if not all(isinstance(layer, dict) for layer in layers):
        raise InputError(
            "engine inspector: must describe every layer, gives names only; build the engine with this sam2edge, "
            "which asks for ProfilingVerbosity.DETAILED"
        )
    return tuple(_parse_layer(layer) for layer in layers)


def read_logged_layers(text: str) -> tuple[EngineLayer, ...]:
    """The layers in what TensorRT for RTX logs after compiling, with its logger and profile at their most verbose.

    A line a layer: `Name: …, LayerType: …, Inputs: [ { Name: …, Datatype: Int8, … }], Constants: […], Outputs: […],
    TacticName: …, Metadata: [ONNX Layer: …]`. The first constant of a weighted layer is its weights.
    """
    return tuple(
        EngineLayer(
            name=found["name"],
            kind=found["kind"],
            nodes=tuple(re.findall(r"\[ONNX Layer: ([^\]]+)\]", found["rest"])),
            input_type=_logged_type(found["inputs"]) or "?",
            output_type=_logged_type(found["outputs"]) or "?",
            weights_type=_logged_type(found["constants"] or "") if _WEIGHTED.search(found["kind"]) else "",
        )
        for found in _LOGGED.finditer(text)
    )


def _logged_type(tensors: str) -> str:
    found = re.search(r"Datatype: (\w+)", tensors)
    return _find_type(found[1]) if found else ""


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


def prove_int8(layers: Collection[EngineLayer], int8_nodes: Collection[str]) -> Int8Proof:
    """Looks in the engine for each convolution and matrix product that the guard's graph has in INT8.

    TensorRT fuses nodes into layers and names them all; what else the graph leaves in float may be in float here.

    Args:
        layers: of the engine.
        int8_nodes: from the guard's record in the bundle's manifest.
    """
    wanted = set(int8_nodes)
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
