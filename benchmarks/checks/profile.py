"""Where a model's time goes, layer by layer, and what keeps it from the machine's peak.

`python -m benchmarks.checks.profile --bundle B --threads 1 --out O` asks OpenVINO's per-layer counters, groups the
layers, and compares the convolutions with the peak that `runtime.timing.roofline` measures on the spot. It writes

    O/profile.md     in words and tables: shares of time, rates against the peak, why a goal is missed
    O/layers.csv     a line a layer
    O/profile.png    the share of time by kind of layer

Counters cost time of their own, and small models feel it. So only the layers' *shares* are taken from them; times are
these shares of the latency that the same model has without counters.
"""

from __future__ import annotations

import csv
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from benchmarks.measuring import check_libraries, new_png_figure, results_folder
from benchmarks.report.subject import name_subjects, open_bundles
from runtime.engines.openvino_engine import cpu_settings, import_openvino
from runtime.engines.probe import ensure_opens
from runtime.engines.seam import choose_engine
from runtime.timing.roofline import Roofline, describe_roofline, measure_roofline
from segcore import words
from segcore.bundle.golden import golden_inputs
from segcore.command import Settings, log, print_result, run_command
from segcore.host import describe_host
from segcore.tables import Table, table_of

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
"""OpenVINO's names of layers, as it executes them and as the graph has them; others are of kind `OTHER`."""
_BURST_S = 0.25
SHARE_GOAL, RATE_GOAL = 0.80, 0.40
"""Of the time in convolutions; of the measured peak that these reach."""
_NAMED = 3
"""Layers or kinds that a sentence names."""
_LANES, _QUAD = 16, 4
"""A 512-bit vector holds 16 results of 32 bits; an 8-bit product adds four inputs into each (AVX-512 VNNI)."""
_KIND_HEAD = ("layers", "number", "share of time", "ms", "MACs", "GMAC/s", "of the peak", "computed in")
_KIND_WORDS = (True, False, False, False, False, False, False, True)
_LAYER_HEAD = ("layer", "kind", "share of time", "ms", "MACs", "GMAC/s", "of the peak", "kernel")
_LAYER_WORDS = (True, True, False, False, False, False, False, True)
_KIND_COLOURS = (
    "#0072b2",
    "#56b4e9",
    "#004c7a",
    "#999999",
    "#e69f00",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#cccccc",
)
"""One a kind, blues for what multiplies. Source: Okabe and Ito, Color universal design, 2008."""
_NARROWEST_WRITTEN = 0.045
"""Shares below are too narrow for their number."""


class ProfileSettings(Settings):
    """`python -m benchmarks.checks.profile` shows where the time of exported bundles goes, against the machine's peak.

    Writes layers.csv, profile.md and profile.png. OpenVINO alone has the counters, so the bundles must open in it.
    """

    bundle: tuple[Path, ...] = Field(min_length=1)
    """An exported bundle; give the flag once for each."""
    out: Path
    """New folder."""
    threads: int = Field(1, ge=1)
    """CPU threads."""
    seconds: float = Field(4.0, gt=0)
    """Time to measure each bundle, and once more the peaks."""
    overwrite: bool = False
    """Replace a finished --out."""


def main(settings: ProfileSettings) -> None:
    """Measures, writes the folder, prints a table a bundle and one JSON line."""
    check_libraries("matplotlib")
    bundles = open_bundles(settings.bundle)
    engines = [choose_engine(b, "openvino") for b in bundles]
    subjects = name_subjects(list(zip(bundles, engines, strict=True)))
    with results_folder(settings, {"command": "benchmarks.checks.profile"}) as folder:
        log("measuring the peaks")
        roofline = measure_roofline("openvino", settings.threads, seconds=settings.seconds)
        found = []
        for subject in subjects:
            log(f"profiling {subject.name}")
            picture = golden_inputs(subject.manifest.input)[:1]
            ensure_opens("openvino", subject.bundle, subject.manifest.model_file, threads=settings.threads)
            path = subject.bundle.model_path
            profile = profile_model(path, picture, threads=settings.threads, seconds=settings.seconds)
            found.append(BundleProfile(subject.name, subject.manifest.precision, profile, roofline))
        write_layers(folder / "layers.csv", found)
        (folder / "profile.md").write_text(describe_profiles(found, host=describe_host()))
        draw_profiles(found, folder / "profile.png")
    for one in found:
        table = kind_table(one)
        print(f"{table.title}\n{table.plain()}")
        print("\n".join(sentences(one)) + "\n")
    print_result(
        profile=str(settings.out / "profile.md"),
        peaks={"int8_gmac_s": roofline.int8_gmac_s, "fp32_gmac_s": roofline.fp32_gmac_s},
        models=[
            {
                "name": one.name,
                "latency_ms": one.profile.latency_ms,
                "convolution_share": one.convolution_share,
                "convolution_share_of_peak": one.share_of_peak,
            }
            for one in found
        ],
    )


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


@dataclass(frozen=True)
class BundleProfile:
    """A bundle's profile beside the peak of its precision.

    Attributes:
        name: unique among those shown together.
        precision: of the bundle; int8 is held against the INT8 peak, all others against FP32's.
    """

    name: str
    precision: str
    profile: Profile
    roofline: Roofline

    @property
    def peak_gmac_s(self) -> float:
        int8 = self.roofline.int8_gmac_s if self.precision == "int8" else None
        return int8 or self.roofline.fp32_gmac_s

    @property
    def convolutions(self) -> tuple[Layer, ...]:
        """Transposed ones and matrix products among them: all that multiplies and accumulates."""
        return tuple(layer for layer in self.profile.layers if layer.work)

    @property
    def convolution_share(self) -> float:
        return sum(layer.share for layer in self.convolutions)

    @property
    def share_of_peak(self) -> float:
        """What the convolutions reach of the peak while they run, 0–1."""
        return self.profile.rate_gmac_s(*self.convolutions) / self.peak_gmac_s

    def layer_share_of_peak(self, layer: Layer) -> float:
        return self.profile.rate_gmac_s(layer) / self.peak_gmac_s


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
        plain_s += [took for took, _ in _run_burst(requests[0], lambda: None)]
        counted += _run_burst(requests[1], lambda: requests[1].profiling_info)
    fast = sorted(counted, key=lambda sample: sample[0])[: _count_of_tenth(counted)]
    mean_us = np.mean([[node.real_time.total_seconds() * 1e6 for node in info] for _, info in fast], axis=0)
    layers = []
    for node, us in zip(fast[0][1], mean_us.tolist(), strict=True):
        operations, before_first = executed.get(node.node_name, ((node.node_name,), False))
        mine = next((work[name] for name in operations if name in work), None)
        # Constants and what was fused away took no time and are left out; a small convolution that took none stays.
        if us > 0 or mine:
            kind = INPUT if before_first else _KIND_OF.get(node.node_type, OTHER)
            share = us / float(mean_us.sum())
            layers.append(Layer(node.node_name, operations, kind, node.exec_type, share, us, mine))
    plain_ms = 1e3 * float(np.mean(sorted(plain_s)[: _count_of_tenth(plain_s)]))
    counted_ms = 1e3 * float(np.mean([took for took, _ in fast]))
    return Profile(tuple(layers), plain_ms, counted_ms / plain_ms, len(fast))


def _count_of_tenth(samples: Sequence[object]) -> int:
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


def _run_burst(request: Any, after: Callable[[], Any]) -> list[tuple[float, Any]]:
    """Seconds of each inference of one burst, with what `after` said of it; the first is not timed."""
    request.infer(share_outputs=True)
    samples: list[tuple[float, Any]] = []
    end = time.perf_counter() + _BURST_S
    while not samples or time.perf_counter() < end:
        begin = time.perf_counter()
        request.infer(share_outputs=True)
        samples.append((time.perf_counter() - begin, after()))
    return samples


def title(one: BundleProfile) -> str:
    """`nano INT8: 0.6 ms, 1 thread, OpenVINO 2026.4.1`."""
    where = f"{words.plural(one.roofline.threads, 'thread')}, OpenVINO {one.roofline.engine_version}"
    return f"{one.name}: {words.figures(one.profile.latency_ms)} ms, {where}"


def kind_table(one: BundleProfile) -> Table:
    """One row a kind of layer that occurs, the longest first."""
    profile = one.profile
    kinds = sorted({layer.kind for layer in profile.layers}, key=lambda kind: -profile.share(kind))
    rows = []
    for kind in kinds:
        layers = [layer for layer in profile.layers if layer.kind == kind]
        numbers = _number_cells(one, layers)
        rows.append([kind, str(len(layers)), *numbers, ", ".join(sorted({x.precision for x in layers}))])
    return table_of(title(one), _KIND_HEAD, rows, words=_KIND_WORDS)


def _number_cells(one: BundleProfile, layers: Sequence[Layer]) -> list[str]:
    share, macs = sum(layer.share for layer in layers), sum(layer.macs for layer in layers)
    texts = [words.percent(share, 1), f"{share * one.profile.latency_ms:.3f}"]
    if not macs or not share:
        return [*texts, "–", "–", "–"]
    rate = one.profile.rate_gmac_s(*layers)
    return [*texts, words.count(macs), f"{rate:.0f}", words.percent(rate / one.peak_gmac_s, 0)]


def sentences(one: BundleProfile) -> list[str]:
    """What the profile says, with the reason where a goal is missed."""
    profile, peak = one.profile, one.peak_gmac_s
    share, rate = one.convolution_share, one.share_of_peak
    kind = "INT8" if one.precision == "int8" else "FP32"
    said = [
        f"{words.percent(share, 0)} of the time is in convolutions (goal {words.percent(SHARE_GOAL, 0)}), which reach "
        f"{words.percent(rate, 0)} of the measured {kind} peak of {peak:.0f} GMAC/s (goal "
        f"{words.percent(RATE_GOAL, 0)}); all of the latency counted, it is {words.percent(share * rate, 0)}."
    ]
    if rate > 1:
        said.append(
            "More than the peak: this machine was busy while it was measured; measure again when it is quiet."
        )
    if share < SHARE_GOAL:
        rest = [layer for layer in profile.layers if not layer.work]
        kinds = sorted({layer.kind for layer in rest}, key=lambda kind: -profile.share(kind))[:_NAMED]
        parts = []
        for name in kinds:
            worst = max((layer for layer in rest if layer.kind == name), key=lambda layer: layer.share)
            part, most = words.percent(profile.share(name), 1), words.percent(worst.share, 1)
            parts.append(f"{name} {part} (most: {worst.name}, {most})")
        said.append(f"Missed, time in convolutions: the rest is {'; '.join(parts)}.")
    if rate < RATE_GOAL:
        said.append(f"Missed, rate of the convolutions: what costs most is {_slowest_convolutions(one)}.")
    if one.precision == "int8" and (wide := [x for x in one.convolutions if x.precision != "i8"]):
        said.append(f"Not computed in 8 bits: {', '.join(_layer_label(layer) for layer in wide)}.")
    said.append(
        f"Counters changed the latency by {words.signed(100 * (profile.slowdown - 1), 1)} %; the times here are "
        f"shares by the counters of the latency without them ({profile.inferences} inferences)."
    )
    return said


def _slowest_convolutions(one: BundleProfile) -> str:
    """The convolutions that lose most time against the goal, and why."""

    def lost(layer: Layer) -> float:
        return one.profile.ms(layer) - layer.macs / 1e6 / (RATE_GOAL * one.peak_gmac_s)

    worst = sorted(one.convolutions, key=lost, reverse=True)[:_NAMED]
    return "; ".join(
        f"{_layer_label(layer)}, {words.percent(layer.share, 0)} of the time at "
        f"{words.percent(one.layer_share_of_peak(layer), 0)} of the peak{_reason_words(one, layer)}"
        for layer in worst
        if lost(layer) > 0
    )


def _reason_words(one: BundleProfile, layer: Layer) -> str:
    work = layer.work
    assert work is not None
    if one.precision == "int8" and layer.precision != "i8":
        return f" (computed in {layer.precision})"
    reasons = []
    if work.outputs < _LANES:
        reasons.append(f"{work.outputs} of {_LANES} lanes filled by channels out")
    if one.precision == "int8" and work.inputs < _QUAD:
        reasons.append(f"{work.inputs} of {_QUAD} products of a lane filled by channels in")
    return f" ({', '.join(reasons)})" if reasons else ""


def _layer_label(layer: Layer) -> str:
    return layer.work.label if layer.work else layer.name


def describe_profiles(found: Sequence[BundleProfile], *, host: str) -> str:
    """The whole in Markdown: what it says, by kind, layer by layer."""
    roofline = found[0].roofline
    lines = [
        "# Where the time goes",
        "",
        f"{host}. {describe_roofline(roofline)} MACs count what a border pads, which kernels skip: "
        "a layer on a small picture may pass 100 %.",
        "",
        "![share of time by kind of layer](profile.png)",
    ]
    for one in found:
        rows = [
            [
                _layer_label(layer),
                layer.kind,
                *_number_cells(one, [layer]),
                layer.executed_as,
            ]
            for layer in one.profile.layers
        ]
        lines += ["", f"## {title(one)}", "", *(f"* {sentence}" for sentence in sentences(one))]
        lines += ["", kind_table(one).markdown()]
        lines += ["", table_of("", _LAYER_HEAD, rows, words=_LAYER_WORDS).markdown()]
    return "\n".join(lines) + "\n"


def write_layers(path: Path, found: Sequence[BundleProfile]) -> None:
    """One line a layer and model, in the order of execution."""
    with path.open("w", newline="") as file:
        writer: Any = None
        for one in found:
            for layer in one.profile.layers:
                line = {
                    "model": one.name,
                    "layer": layer.name,
                    "operations": " ".join(layer.operations),
                    "kind": layer.kind,
                    "kernel": layer.executed_as,
                    "computed_in": layer.precision,
                    "work": layer.work.label if layer.work else "",
                    "macs": layer.macs,
                    "share": round(layer.share, 6),
                    "ms": round(one.profile.ms(layer), 6),
                    "counted_us": round(layer.counted_us, 3),
                    "share_of_peak": round(one.layer_share_of_peak(layer), 4) if layer.work else "",
                }
                if writer is None:
                    writer = csv.DictWriter(file, line)
                    writer.writeheader()
                writer.writerow(line)


def draw_profiles(found: Sequence[BundleProfile], path: Path) -> None:
    """Writes a PNG with the share of time by kind of layer, the first model on top."""
    figure = new_png_figure(9.6, 1.7 + 0.62 * len(found), dpi=150)
    axes = figure.add_subplot()
    shown = [kind for kind in KINDS if any(one.profile.share(kind) > 0 for one in found)]
    left = [0.0] * len(found)
    for kind in shown:
        colour = _KIND_COLOURS[KINDS.index(kind)]
        shares = [one.profile.share(kind) for one in found]
        axes.barh(range(len(found)), shares, left=left, height=0.62, color=colour, label=kind, zorder=2)
        for row, (start, share) in enumerate(zip(left, shares, strict=True)):
            if share >= _NARROWEST_WRITTEN:
                dark = KINDS.index(kind) in (0, 2, 5, 6)
                axes.text(
                    start + share / 2,
                    row,
                    f"{100 * share:.0f}",
                    ha="center",
                    va="center",
                    fontsize=9,
                    color="white" if dark else "black",
                )
        left = [start + share for start, share in zip(left, shares, strict=True)]
    axes.axvline(SHARE_GOAL, color="black", linewidth=1, linestyle="--", zorder=3)
    axes.set_yticks(range(len(found)), [_bar_label(one) for one in found])
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.set_xticks([0, 0.2, 0.4, 0.6, 0.8, 1.0], ["0", "20", "40", "60", "80", "100"])
    axes.set_xlabel("% of the model's time by kind of layer; dashed: the goal for convolutions")
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(axis="y", length=0)
    figure.legend(loc="outside upper center", ncols=min(5, len(shown)), frameon=False, fontsize=9)
    figure.savefig(path)


def _bar_label(one: BundleProfile) -> str:
    reached = f"convolutions at {words.percent(one.share_of_peak, 0)} of peak"
    return f"{one.name}\n{words.figures(one.profile.latency_ms)} ms, {reached}"


if __name__ == "__main__":
    run_command(main, ProfileSettings, "python -m benchmarks.checks.profile")
