"""What this machine can do at most: INT8 and FP32 convolutions and memory, measured through the engine itself.

A model's rate is then told as a share of a peak that was measured on the machine, with the engine, at the thread
count in question, not of a data sheet's. The peak is the best of a few stacks of dense convolutions, in the fastest
of many calls, so that no real model is above it. Calls take about a millisecond: between the time slices that other
programs take, some of them run undisturbed, where a longer burst never would.

Source: Williams, Waterman and Patterson, Roofline: an insightful visual performance model for multicore
architectures, CACM 52(4), 2009.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from runtime.engines.seam import installed, open_engine
from runtime.timing.latency import busy_remark, others_share, read_processor_times
from segcore.errors import InputError, need

SECONDS = 6.0
"""Of measuring, at least."""
_IN_A_ROW, _LEAST_ROUNDS = 4, 2
"""Calls of one stack before the next one's turn, and turns of each, at least."""
_NAP_S = 0.002
"""Who slept is given a whole time slice where other programs want the processor too."""
_COPY_BYTES = 128 * 2**20
"""Copied from one array to another; together they are eight times the last cache of the machines we know."""
_COPY_SHARE = 0.15
"""Of the measuring time, for memory; the rest is for convolutions."""


@dataclass(frozen=True)
class ConvStack:
    """A stack of dense k×k convolutions, C → C channels on a square picture, with ReLU between them."""

    channels: int
    size_px: int
    kernel_px: int
    layers: int

    @property
    def macs(self) -> int:
        """As models' are counted: at the border, the padding too, which kernels skip."""
        return self.layers * (self.channels * self.kernel_px * self.size_px) ** 2


STACKS = {
    "fp32": (
        ConvStack(64, 28, 3, 4),
        ConvStack(128, 28, 3, 1),
        ConvStack(128, 28, 3, 2),
        ConvStack(256, 28, 3, 1),
    ),
    "int8": (
        ConvStack(64, 28, 3, 8),
        ConvStack(128, 28, 3, 4),
        ConvStack(256, 28, 3, 1),
        ConvStack(256, 28, 3, 2),
    ),
}
"""What is tried. On a Zen 5 core the rate hardly depends on the channels from 64 on. A picture of 28 px is as small as
it may be: of smaller ones so much is border that their rates pass what the arithmetic units can do."""


@dataclass(frozen=True)
class Roofline:
    """Peaks of one engine at one thread count; a GMAC/s is 1e9 multiply-accumulates a second.

    Attributes:
        int8_gmac_s: of 8-bit convolutions; None where the engine opens no 8-bit model.
        fp32_gmac_s: of 32-bit convolutions.
        bandwidth_gb_s: copying memory far larger than the caches, 1e9 bytes read and written a second.
        other_load_share: share of the machine's processor time that other programs took meanwhile, 0–1.
    """

    engine: str
    engine_version: str
    threads: int
    int8_gmac_s: float | None
    fp32_gmac_s: float
    bandwidth_gb_s: float
    other_load_share: float | None = None


def share_of_peak(macs: int, ms: float, gmac_s: float) -> float:
    """Share of a peak, 0–1, that a model of `macs` multiply-accumulates reaches with `ms` a picture."""
    return macs / (1e6 * ms) / gmac_s


def describe_roofline(roofline: Roofline) -> str:
    """`Peak of openvino 2026.4.1, 1 thread: INT8 537 GMAC/s, FP32 136 GMAC/s, memory 41 GB/s.`"""
    threads = f"{roofline.threads} thread{'s' * (roofline.threads != 1)}"
    int8 = "" if roofline.int8_gmac_s is None else f"INT8 {roofline.int8_gmac_s:.0f} GMAC/s, "
    return (
        f"Peak of {roofline.engine} {roofline.engine_version}, {threads}: "
        f"{int8}FP32 {roofline.fp32_gmac_s:.0f} GMAC/s, memory {roofline.bandwidth_gb_s:.0f} GB/s."
        f"{busy_remark(roofline.other_load_share)}"
    )


def measure_roofline(engine: str, threads: int, *, seconds: float = SECONDS) -> Roofline:
    """Measures the peaks of this machine.

    Args:
        engine: a key of `runtime.engines.seam.ENGINES`; it must open ONNX.
        threads: CPU threads of the engine, and of the copy.
        seconds: time for the measurements; opening the engines comes on top (about two seconds).

    Raises:
        InputError: onnx or the engine is not installed.
    """
    if not installed("onnx"):
        raise need("onnx", "export")
    with TemporaryDirectory() as name, ExitStack() as opened:
        folder = Path(name)
        calls: list[tuple[str, int, Callable[[], object]]] = []
        version = ""
        for precision in ("fp32", "int8"):
            for i, stack in enumerate(STACKS[precision]):
                path = folder / f"{precision}-{i}.onnx"
                _write_probe(stack, path, int8=precision == "int8")
                try:
                    model = open_engine(engine, path, precision=precision, threads=threads)
                except InputError:
                    if precision == "fp32":
                        raise
                    continue
                opened.enter_context(closing(model))
                version = model.version
                picture = _probe_picture(stack)
                calls.append((precision, stack.macs, lambda run=model.run, x=picture: run(x)))  # type: ignore[misc]
        before = read_processor_times()
        times = _time_fastest([call for _, _, call in calls], seconds * (1 - _COPY_SHARE))
    bandwidth = measure_bandwidth(threads, seconds=seconds * _COPY_SHARE)
    rates: dict[str, list[float]] = {"fp32": [], "int8": []}
    for (precision, macs, _), best_s in zip(calls, times, strict=True):
        rates[precision].append(macs / best_s / 1e9)
    return Roofline(
        engine=engine,
        engine_version=version,
        threads=threads,
        int8_gmac_s=max(rates["int8"], default=None),
        fp32_gmac_s=max(rates["fp32"]),
        bandwidth_gb_s=bandwidth,
        other_load_share=others_share(before, read_processor_times()),
    )


def measure_bandwidth(threads: int, *, seconds: float) -> float:
    """Copies memory with so many threads: the fastest copy, in 1e9 bytes read and written a second.

    Source: McCalpin, Memory bandwidth and machine balance in current high performance computers, 1995 (STREAM).
    """
    part = _COPY_BYTES // threads // 8
    pairs = [(np.ones(part), np.zeros(part)) for _ in range(threads)]  # written once: their pages exist
    with ThreadPoolExecutor(threads) as pool:

        def copy() -> None:  # numpy lets go of the interpreter's lock while it copies
            list(pool.map(lambda pair: np.copyto(pair[1], pair[0]), pairs))

        (best_s,) = _time_fastest([copy], seconds)
    return 2 * 8 * part * threads / best_s / 1e9


def _time_fastest(calls: list[Callable[[], object]], seconds: float) -> list[float]:
    """Seconds of the fastest call of each; they take turns, so that a slow moment hits none alone."""
    best = [float("inf")] * len(calls)
    end, rounds = time.perf_counter() + seconds, 0
    while rounds < _LEAST_ROUNDS or time.perf_counter() < end:
        for i, call in enumerate(calls):
            time.sleep(_NAP_S)
            for _ in range(_IN_A_ROW):  # the first of them bring the weights back into the cache
                begin = time.perf_counter()
                call()
                best[i] = min(best[i], time.perf_counter() - begin)
        rounds += 1
    return best


def _probe_picture(stack: ConvStack) -> np.ndarray:
    shape = (1, stack.size_px, stack.size_px, stack.channels)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def _write_probe(stack: ConvStack, path: Path, *, int8: bool) -> None:
    """Writes the stack by the graph contract: an 8-bit N×H×W×C picture in, one channel of logits out.

    8-bit layers are written out as Q/DQ: weights int8 by channel, activations uint8 with zero point 0, which is
    what NNCF makes of ReLU networks. Weights are random and keep the activations' spread from layer to layer, as
    denormal numbers would slow FP32 down.
    """
    from onnx import TensorProto, helper, numpy_helper, save

    rng = np.random.default_rng(0)
    nodes, tensors = [], []

    def tensor(name: str, value: np.ndarray) -> str:
        tensors.append(numpy_helper.from_array(value, name))
        return name

    def node(kind: str, inputs: list[str], output: str, **settings: Any) -> str:
        nodes.append(helper.make_node(kind, inputs, [output], name=output, **settings))
        return output

    def quantised(x: str) -> str:
        if not int8:
            return x
        scale = [tensor(f"{x}_scale", np.float32(4 / 255)), tensor(f"{x}_zero", np.uint8(0))]
        return node("DequantizeLinear", [node("QuantizeLinear", [x, *scale], f"{x}_q"), *scale], f"{x}_dq")

    def convolution(x: str, name: str, channels: int, kernel: int) -> str:
        spread = (2 / (stack.channels * kernel**2)) ** 0.5
        weights = rng.normal(0, spread, (channels, stack.channels, kernel, kernel)).astype(np.float32)
        if int8:
            scales = np.abs(weights).max(axis=(1, 2, 3)) / 127
            rounded = np.round(weights / scales[:, None, None, None]).astype(np.int8)
            zero = tensor(f"{name}_zero", np.zeros(channels, np.int8))
            inputs = [tensor(f"{name}_q", rounded), tensor(f"{name}_scale", scales), zero]
            weight = node("DequantizeLinear", inputs, f"{name}_w", axis=0)
        else:
            weight = tensor(f"{name}_w", weights)
        pads = [kernel // 2] * 4
        return node("Conv", [x, weight], name, kernel_shape=[kernel, kernel], pads=pads)

    x = node("Cast", ["picture"], "cast", to=TensorProto.FLOAT)
    x = node("Mul", [x, tensor("one_255th", np.float32(1 / 255))], "scaled")
    x = quantised(node("Transpose", [x], "transposed", perm=[0, 3, 1, 2]))
    for i in range(stack.layers):
        x = quantised(node("Relu", [convolution(x, f"conv{i}", stack.channels, stack.kernel_px)], f"relu{i}"))
    convolution(x, "logits", 1, 1)
    size = stack.size_px
    picture = helper.make_tensor_value_info("picture", TensorProto.UINT8, [1, size, size, stack.channels])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 1, size, size])
    graph = helper.make_graph(nodes, "roofline", [picture], [logits], tensors)
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), path)
