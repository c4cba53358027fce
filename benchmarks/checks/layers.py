"""Where a model's time goes, layer by layer: OpenVINO's own counters, with the work that each layer does.

Counters cost time of their own, and small models feel it. So only the layers' *shares* are taken from them; times are
these shares of the latency that the same model has without counters.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from runtime.engines.openvino_engine import cpu_settings, import_openvino

CONVOLUTION, TRANSPOSED, MATRIX = "convolution", "transposed convolution", "matrix product"
INPUT, RESIZE, JOIN, POOLING, LAYOUT, OTHER = (
    "input conversion",
    "resize, shuffle",
    "add, concat",
    "pooling",
    "reorder",
    "other",
)
KINDS = (CONVOLUTION, TRANSPOSED, MATRIX, INPUT, RESIZE, JOIN, POOLING, LAYOUT, OTHER)
"""What layers are grouped by, in the order of tables and plots."""

_KIND_OF = {
    **dict.fromkeys(("Convolution", "GroupConvolution"), CONVOLUTION),
    **dict.fromkeys(("Deconvolution", "ConvolutionBackpropData", "GroupConvolutionBackpropData"), TRANSPOSED),
    **dict.fromkeys(("MatMul", "FullyConnected", "ScaledAttn"), MATRIX),
    **dict.fromkeys(("Interpolate", "DepthToSpace", "SpaceToDepth"), RESIZE),
    **dict.fromkeys(("Subgraph", "Eltwise", "Concat", "Concatenation", "Add", "Multiply"), JOIN),
    **dict.fromkeys(("MaxPool", "AvgPool", "Pooling", "ReduceMean", "Reduce"), POOLING),
    **dict.fromkeys(("Reorder", "Transpose", "Reshape", "Convert", "FakeQuantize"), LAYOUT),
}
_BURST_S = 0.25


@dataclass(frozen=True)
class Work:
    """What one convolution or matrix product computes.

    Attributes:
        macs: multiply-accumulates a picture.
        inputs: channels in, of one group.
        outputs: channels out, of one group.
        label: `32→64 3×3 at 16×16`, channels, kernel and size of the result.
    """

    macs: int
    inputs: int
    outputs: int
    label: str


@dataclass(frozen=True)
class Layer:
    """One executed layer; several operations of the graph may be fused into it.

    Attributes:
        name: of the operation that it is named after.
        operations: every operation fused into it.
        kind: one of `KINDS`.
        executed_as: the engine's name for its kernel, "brgconv_avx512_I8".
        share: of the time of all layers, 0–1.
        counted_us: by the counter, microseconds a picture.
        work: of a convolution; None for others.
    """

    name: str
    operations: tuple[str, ...]
    kind: str
    executed_as: str
    share: float
    counted_us: float
    work: Work | None = None

    @property
    def precision(self) -> str:
        """In what it computed: i8, f32, …, the end of the kernel's name."""
        return self.executed_as.rpartition("_")[2].lower()

    @property
    def macs(self) -> int:
        return self.work.macs if self.work else 0


@dataclass(frozen=True)
class Profile:
    """A model's layers, in the order of execution.

    Attributes:
        latency_ms: of the engine alone, without counters; the mean of the fastest tenth, as peaks are of the fastest.
        slowdown: the same with counters, divided by it.
        inferences: how many were averaged.
    """

    layers: tuple[Layer, ...]
    latency_ms: float
    slowdown: float
    inferences: int

    def share(self, *kinds: str) -> float:
        """Share of the time that layers of these kinds take, 0–1."""
        return sum(layer.share for layer in self.layers if layer.kind in kinds)

    def ms(self, layer: Layer) -> float:
        """A layer's time: its share of the latency without counters."""
        return layer.share * self.latency_ms

    def rate_gmac_s(self, *layers: Layer) -> float:
        """Multiply-accumulates of these layers divided by their time, in 1e9 a second; 0 if that was too short."""
        took_ms = sum(self.ms(layer) for layer in layers)
        return sum(layer.macs for layer in layers) / 1e6 / took_ms if took_ms else 0.0


def profile_model(model_path: Path, picture: np.ndarray, *, threads: int, seconds: float = 4.0) -> Profile:
    """Runs a model with and without counters, in turns.

    Args:
        model_path: IR or ONNX, by the graph contract.
        picture: 1×H×W×C uint8.
        threads: CPU threads of the engine.
        seconds: how long to measure. The fastest tenth of the inferences is averaged: those that no other program
            interrupted.
    """
    openvino = import_openvino()
    model = openvino.Core().read_model(str(model_path))
    work = work_of(model)
    requests, compiled = [], None
    for counters in (False, True):
        settings = cpu_settings(threads) | {"PERF_COUNT": counters}
        compiled = openvino.Core().compile_model(model, "CPU", settings)
        requests.append(compiled.create_infer_request())
        requests[-1].get_input_tensor().data[:] = picture
    executed = executed_layers(compiled)
    counted: list[tuple[float, Any]] = []
    plain_s: list[float] = []
    end = time.perf_counter() + seconds
    while not counted or time.perf_counter() < end:
        plain_s += [took for took, _ in _burst(requests[0], lambda: None)]
        counted += _burst(requests[1], lambda: requests[1].profiling_info)
    fast = sorted(counted, key=lambda sample: sample[0])[: _tenth(counted)]
    mean_us = np.mean([[node.real_time.total_seconds() * 1e6 for node in info] for _, info in fast], axis=0)
    layers = []
    for node, us in zip(fast[0][1], mean_us.tolist(), strict=True):
        operations, before_first = executed.get(node.node_name, ((node.node_name,), False))
        mine = next((work[name] for name in operations if name in work), None)
        if (
            us > 0 or mine
        ):  # constants and what was fused away took no time; neither do the smallest convolutions
            kind = INPUT if before_first else _KIND_OF.get(node.node_type, OTHER)
            share = us / float(mean_us.sum())
            layers.append(Layer(node.node_name, operations, kind, node.exec_type, share, us, mine))
    plain_ms = 1e3 * float(np.mean(sorted(plain_s)[: _tenth(plain_s)]))
    counted_ms = 1e3 * float(np.mean([took for took, _ in fast]))
    return Profile(tuple(layers), plain_ms, counted_ms / plain_ms, len(fast))


def _tenth(samples: Sequence[object]) -> int:
    return max(1, len(samples) // 10)


def work_of(model: Any) -> dict[str, Work]:
    """The work of every convolution and matrix product of an OpenVINO model, by the operation's name."""
    work = {}
    for op in model.get_ops():
        kind = op.get_type_name()
        if _KIND_OF.get(kind) not in (CONVOLUTION, TRANSPOSED, MATRIX):
            continue
        source, weights, result = (
            tuple(port.get_shape()) for port in (op.input(0), op.input(1), op.output(0))
        )
        if kind == "MatMul":
            inner = source[-2 if op.get_attributes()["transpose_a"] else -1]
            text = "×".join(map(str, result))
            work[op.friendly_name] = Work(prod(result) * inner, inner, result[-1], f"{inner} to {text}")
            continue
        backwards = "Backprop" in kind
        groups = weights[0] if kind.startswith("Group") else 1
        first, second = weights[-4:-2]  # channels of a group: out, in; the other way round where backwards
        inputs, outputs = (first, second) if backwards else (second, first)
        kernel, size = ("×".join(map(str, shape[-2:])) for shape in (weights, result))
        label = f"{groups * inputs}→{groups * outputs} {kernel} at {size}" + (
            f", {groups} groups" * (groups > 1)
        )
        macs = prod(weights) * prod((source if backwards else result)[2:])
        work[op.friendly_name] = Work(macs, inputs, outputs, label)
    return work


def executed_layers(compiled: Any) -> dict[str, tuple[tuple[str, ...], bool]]:
    """Executed layer → the operations fused into it, and whether it comes before the first convolution."""
    found: dict[str, tuple[tuple[str, ...], bool]] = {}
    late: set[str] = set()  # layers that a convolution or matrix product feeds, at whatever distance
    for op in compiled.get_runtime_model().get_ordered_ops():
        info = op.rt_info
        name = op.friendly_name
        kind = info["layerType"].astype(str) if "layerType" in info else ""
        sources = [port.get_source_output().get_node().friendly_name for port in op.inputs()]
        working = _KIND_OF.get(kind) in (CONVOLUTION, TRANSPOSED, MATRIX)
        if working or late.intersection(sources):
            late.add(name)
        fused = info["originalLayersNames"].astype(str) if "originalLayersNames" in info else ""
        found[name] = (tuple(fused.split(",")) if fused else (name,), name not in late)
    return found


def _burst(request: Any, after: Callable[[], Any]) -> list[tuple[float, Any]]:
    """Seconds of each inference of one burst, with what `after` said of it; the first is not timed."""
    request.infer(share_outputs=True)
    samples: list[tuple[float, Any]] = []
    end = time.perf_counter() + _BURST_S
    while not samples or time.perf_counter() < end:
        begin = time.perf_counter()
        request.infer(share_outputs=True)
        samples.append((time.perf_counter() - begin, after()))
    return samples
