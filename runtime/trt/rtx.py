"""TensorRT for RTX: NVIDIA's ONNX parser and compiler as a package of the Python index, which compiles without a GPU.

The parser is TensorRT's own, the API that of TensorRT 11, every network strongly typed. Its engines are for RTX cards.
For a Jetson it is the judge at hand: it says whether NVIDIA's code reads and compiles a graph, not how the board's own
TensorRT will.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from time import perf_counter
from types import ModuleType
from typing import Any

from runtime.engines.seam import installed
from runtime.trt.build import run_apart
from runtime.trt.library import one_line
from runtime.trt.plan_request import available_mib
from segcore.bundle.manifest import CompiledGraph
from segcore.errors import InputError

PACKAGES = ("tensorrt_rtx_bindings", "tensorrt_rtx")
"""Names under which it is imported: of the wheels, and of NVIDIA's own archive."""
EXTRA = "tensorrt-rtx"
JUDGED_FOR = "8.6"
"""Compute capability that graphs are judged for: of those that it knows the nearest below a Jetson Orin's 8.7."""
_MOST_MIB = 8192
"""Address space of the process that compiles; students take 1 GiB, S2AgScUNet tiny 2."""
_ACTIVATIONS = re.compile(r"Total Activation Memory: (\d+) bytes")


class CompilerDied(Exception):
    """The compiler's process ended without an answer."""


@dataclass(frozen=True)
class CompileRequest:
    """What to compile, in a process of its own.

    Attributes:
        onnx: the graph.
        capabilities: compute capabilities to compile for, such as "8.6".
        plan: the file to write, or None to throw the engine away.
    """

    onnx: Path
    capabilities: tuple[str, ...]
    plan: Path | None = None


def is_there() -> bool:
    """Whether it is installed, under either name."""
    return any(installed(name) for name in PACKAGES)


def import_rtx() -> ModuleType:
    """The library.

    Raises:
        InputError: it is not installed, or does not load.
    """
    for name in PACKAGES:
        if installed(name):
            try:
                return import_module(name)
            except (ImportError, OSError) as error:
                raise InputError(
                    f"{name}: must load, does not ({one_line(str(error))}); bindings and libraries must be of one "
                    f"version: pip install --force-reinstall 'sam2edge[{EXTRA}]'"
                ) from None
    raise InputError(f"TensorRT for RTX: must be installed, is not; run: pip install 'sam2edge[{EXTRA}]'")


def compile_apart(request: CompileRequest) -> tuple[str, CompiledGraph]:
    """Compiles a graph in a child process whose memory is bounded.

    Returns:
        The library's version, and what it made of the graph; where it refused, its own words.

    Raises:
        InputError: the library does not load.
    """
    try:
        answer: tuple[str, CompiledGraph] = run_apart(_compile, request, what=request.onnx.name, died=_died)
    except CompilerDied as death:
        return "", CompiledGraph(file=request.onnx.name, refused=str(death))
    return answer


def _died(exitcode: int, *, file: str) -> CompilerDied:
    why = "the system killed it, most likely for want of memory" if exitcode == -9 else f"signal {-exitcode}"
    return CompilerDied(f"the compiler's process died ({why})")


def _compile(request: CompileRequest) -> tuple[str, CompiledGraph]:
    _bound_memory()
    trt = import_rtx()
    logger, lines = _logger(trt)
    started = perf_counter()
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    name = request.onnx.name
    if not parser.parse(request.onnx.read_bytes()):
        return trt.__version__, CompiledGraph(file=name, refused=_parser_words(parser, lines))
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)  # as in runtime.trt.plan: fp32 is to mean 32 bits
    config.num_compute_capabilities = len(request.capabilities)
    for place, capability in enumerate(request.capabilities):
        config.set_compute_capability(
            getattr(trt.ComputeCapability, f"SM{capability.replace('.', '')}"), place
        )
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        errors = [text for severe, text in lines if severe]
        return trt.__version__, CompiledGraph(
            file=name, refused=one_line(errors[0] if errors else "no reason")
        )
    if request.plan is not None:
        request.plan.write_bytes(memoryview(plan))
    used = [int(found[1]) for _, text in lines if (found := _ACTIVATIONS.search(text))]
    return trt.__version__, CompiledGraph(
        file=name,
        layers=network.num_layers,
        plan_bytes=plan.nbytes,
        activation_bytes=max(used, default=0),
        seconds=round(perf_counter() - started, 2),
    )


def _parser_words(parser: Any, lines: list[tuple[bool, str]]) -> str:
    if not parser.num_errors:
        return one_line(lines[-1][1]) if lines else "no reason"
    error = parser.get_error(0)
    node = f"node {error.node_name()}: " if error.node() >= 0 else ""
    return node + one_line(error.desc())


def _logger(trt: ModuleType) -> tuple[Any, list[tuple[bool, str]]]:
    """A logger, and its lines: (whether it is an error, text)."""
    lines = list[tuple[bool, str]]()

    class Log(trt.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, msg: str) -> None:
            if int(severity) <= int(trt.ILogger.INFO):
                lines.append((int(severity) <= int(trt.ILogger.ERROR), msg))

    return Log(), lines


def _bound_memory() -> None:
    import resource  # of Linux, where alone the wheels are

    most = min(_MOST_MIB, available_mib()) << 20
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
