"""Builds one engine plan from one ONNX file, in this process. `runtime.trt.build` runs it in one of its own."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import tensorrt as trt

from runtime.trt.cuda_runtime import open_cuda
from runtime.trt.library import STRONGLY_TYPED, Release, build_error, parse_error, release_of
from runtime.trt.log import open_log
from runtime.trt.plan_request import BuiltPlan, MemoryLimits, PlanRequest, available_mib, memory_limits
from runtime.trt.progress import PhaseBars
from runtime.trt.target import identify_device
from segcore.command import log
from segcore.outfolder import write_bytes

OPTIMIZATION_LEVEL = 3  # TensorRT's default; 4 and 5 try more kernels for longer and take more memory
_MIB = 1 << 20


def build_plan(request: PlanRequest) -> BuiltPlan:
    """Writes `request.plan`.

    Raises:
        InputError: no GPU, too little memory, or a graph that TensorRT refuses.
    """
    release = release_of(trt.__version__)
    cuda = open_cuda()
    with ExitStack() as stack:
        stack.callback(cuda.close)
        device = cuda.device()
        identity = identify_device(trt.__version__, device)
        # On a Jetson CUDA counts the page cache as taken, the kernel does not: MemAvailable is the truth there.
        free = available_mib() if device.integrated else min(available_mib(), cuda.free_mib())
        limits = memory_limits(free, request.workspace_mib)
        has_monitor = release >= (10, 0)
        logger = open_log(trt, show=not has_monitor)
        log(
            f"building {request.plan.name} from {request.onnx.name} with TensorRT {trt.__version__} "
            f"for {identity.gpu}: {free} MiB free, workspace {limits.workspace_mib} MiB, "
            f"trials {limits.tactic_dram_mib} MiB"
        )

        def gave_up() -> Exception:
            return build_error(
                logger.lines, version=trt.__version__, gpu=identity.gpu, file=request.onnx.name, free_mib=free
            )

        try:
            builder = trt.Builder(logger)
        except TypeError:  # pybind11: factory function returned nullptr
            raise gave_up() from None
        network = builder.create_network(_network_flags(release))
        _parse_graph(network, request.onnx, logger)
        config = builder.create_builder_config()
        _configure_builder(config, limits, release)
        flags = _set_precision(config, network, request.precision, release)
        _load_timing_cache(config, request.timing_cache)
        # What differs between releases is imported on its release alone: elsewhere its names do not exist.
        if has_monitor:
            from runtime.trt.v10 import show_progress

            bars = PhaseBars()
            stack.callback(bars.close)
            show_progress(config, bars)
        plan = builder.build_serialized_network(network, config)
        if plan is None:
            raise gave_up()
        write_bytes(request.plan, memoryview(plan))
        _save_timing_cache(config, request.timing_cache)
        return BuiltPlan(flags, identity, limits)


def _network_flags(release: Release) -> int:
    if release >= STRONGLY_TYPED:
        from runtime.trt import strongly_typed

        return strongly_typed.network_flags()
    from runtime.trt import weakly_typed

    return weakly_typed.network_flags()


def _set_precision(
    config: trt.IBuilderConfig, network: trt.INetworkDefinition, precision: str, release: Release
) -> tuple[str, ...]:
    if release >= STRONGLY_TYPED:
        from runtime.trt import strongly_typed

        return strongly_typed.FLAGS
    from runtime.trt import weakly_typed

    return weakly_typed.set_precision(config, network, precision)


def _parse_graph(network: trt.INetworkDefinition, onnx: Path, logger: Any) -> None:
    parser = trt.OnnxParser(network, logger)
    if parser.parse(onnx.read_bytes()):
        return
    if not parser.num_errors:
        raise parse_error(onnx.name, trt.__version__, "", logger.lines[-1] if logger.lines else "no reason")
    error = parser.get_error(0)
    # node() is the node's number in the graph, -1 where none is to blame; 8.6 has no node_name().
    node = f"number {error.node()}" if error.node() >= 0 else ""
    raise parse_error(onnx.name, trt.__version__, node, error.desc())


def _configure_builder(config: trt.IBuilderConfig, limits: MemoryLimits, release: Release) -> None:
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, limits.workspace_mib * _MIB)
    config.set_memory_pool_limit(trt.MemoryPoolType.TACTIC_DRAM, limits.tactic_dram_mib * _MIB)
    config.builder_optimization_level = OPTIMIZATION_LEVEL
    # The inspector then names every layer's types: the proof that INT8 is INT8. It costs kilobytes in the plan.
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    # On by default, TF32 keeps 10 bits of FP32's 23: an fp32 bundle would not compute what it says. And no REFIT: an
    # engine that can be refitted gives up the fusions that need equal scales.
    config.clear_flag(trt.BuilderFlag.TF32)
    if release < (10, 0):
        from runtime.trt.v8 import drop_tactic_sources

        drop_tactic_sources(config)


def _load_timing_cache(config: trt.IBuilderConfig, path: Path | None) -> None:
    """The stored timings where they fit this device and version, else an empty cache."""
    stored = path.read_bytes() if path is not None and path.is_file() else b""
    cache = config.create_timing_cache(stored)
    if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
        if stored:
            log(f"timing cache {path}: made by another TensorRT or GPU, or damaged; starting an empty one")
        config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)


def _save_timing_cache(config: trt.IBuilderConfig, path: Path | None) -> None:
    cache = config.get_timing_cache()
    if path is not None and cache is not None:
        write_bytes(path, memoryview(cache.serialize()))
