"""TensorRT for RTX: NVIDIA's ONNX parser and compiler as a package of the Python index, which compiles without a GPU.

The parser is TensorRT's own, the API that of TensorRT 11, every network strongly typed. One engine serves every RTX
card from Ampere on, on Linux and Windows; the card's own kernels are compiled when it is opened, and kept. For a
Jetson it is the judge at hand: it says whether NVIDIA's code reads and compiles a graph, not how the board's own
TensorRT will.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from time import perf_counter
from types import ModuleType
from typing import TYPE_CHECKING, Any

from runtime.engines.seam import EXTRAS, EngineOptions, check_engine_installed, import_names, installed
from runtime.trt.build import check_source, plan_files, run_apart, seal_engine
from runtime.trt.cuda_runtime import GpuDevice
from runtime.trt.execution import TensorRtEngine
from runtime.trt.layers import EngineLayer, read_logged_layers
from runtime.trt.library import one_line
from runtime.trt.log import open_log
from runtime.trt.plan_request import available_mib
from segcore.bundle.folder import Bundle, hash_file
from segcore.bundle.manifest import CompiledGraph, CompilerVerdict, EngineTarget, Manifest
from segcore.bundle.story import compiled_words
from segcore.cache import GIB, open_private_entry, read_private, user_cache, write_private
from segcore.command import log
from segcore.errors import GateError, InputError
from segcore.host import made_now
from segcore.outfolder import check_apart, out_folder, write_bytes

if TYPE_CHECKING:
    import tensorrt as trt

ENGINE = "tensorrt-rtx"
JUDGED_FOR = "8.6"
"""Compute capability that graphs are judged for: of those that it knows the nearest below a Jetson Orin's 8.7."""
CAPABILITIES = ("8.0", "8.6", "8.9", "12.0")
"""Ampere, Ada and Blackwell: every RTX card since 2020. Turing's is 7.5."""
_GRAPHS_OF = (11, 0)
"""The TensorRT whose graphs it takes: the strongly typed ones."""
_MOST_MIB = 8192
"""Address space of the process that compiles; students take 1 GiB, S2AgScUNet tiny 2."""
_ACTIVATIONS = re.compile(r"Total Activation Memory: (\d+) bytes")


def import_rtx() -> ModuleType:
    """The library.

    Raises:
        InputError: it is not installed, or does not load.
    """
    check_engine_installed(ENGINE)
    name = next(name for name in import_names(ENGINE) if installed(name))
    try:
        return import_module(name)
    except (ImportError, OSError) as error:
        raise InputError(
            f"{name}: must load, does not ({one_line(str(error))}); bindings and libraries must be of one "
            f"version: pip install --force-reinstall 'sam2edge[{EXTRAS[ENGINE]}]'"
        ) from None


# --- compiling, in a process of its own ---


@dataclass(frozen=True)
class Compilation:
    """What the compiler made of a graph.

    Attributes:
        version: of the library; empty where it died.
        graph: figures; or its own words, where it refused.
        layers: of the engine.
    """

    version: str
    graph: CompiledGraph
    layers: tuple[EngineLayer, ...] = ()


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


def compile_apart(request: CompileRequest) -> Compilation:
    """Compiles a graph in a child process whose memory is bounded.

    Raises:
        InputError: the library does not load, or does not know a compute capability.
    """
    try:
        answer: Compilation = run_apart(_compile, request, what=request.onnx.name, died=_died)
    except CompilerDied as death:
        return Compilation("", CompiledGraph(file=request.onnx.name, refused=str(death)))
    return answer


def _died(exitcode: int, *, file: str) -> CompilerDied:
    why = "the system killed it, most likely for want of memory" if exitcode == -9 else f"signal {-exitcode}"
    return CompilerDied(f"the compiler's process died ({why})")


def _compile(request: CompileRequest) -> Compilation:
    _bound_memory()
    library = import_rtx()
    targets = [_capability(library, capability) for capability in request.capabilities]
    logger = open_log(library)
    started = perf_counter()
    builder = library.Builder(logger)
    network = builder.create_network(0)
    parser = library.OnnxParser(network, logger)
    name = request.onnx.name
    if not parser.parse(request.onnx.read_bytes()):
        refusal = CompiledGraph(file=name, refused=_parser_words(parser, logger.lines))
        return Compilation(library.__version__, refusal)
    config = builder.create_builder_config()
    config.clear_flag(library.BuilderFlag.TF32)  # as in runtime.trt.plan: fp32 is to mean 32 bits
    config.profiling_verbosity = library.ProfilingVerbosity.DETAILED  # it logs the engine's layers then
    config.num_compute_capabilities = len(targets)
    for place, target in enumerate(targets):
        config.set_compute_capability(target, place)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        reason = next(iter(logger.errors), "no reason")
        return Compilation(library.__version__, CompiledGraph(file=name, refused=one_line(reason)))
    if request.plan is not None:
        write_bytes(request.plan, memoryview(plan))
    seconds = round(perf_counter() - started, 2)
    used = [int(found[1]) for text in logger.details if (found := _ACTIVATIONS.search(text))]
    layers = read_logged_layers("\n".join(text for text in logger.details if text.startswith("Layers:")))
    graph = CompiledGraph(
        file=name,
        layers=network.num_layers,
        kernels=len(layers),
        plan_bytes=plan.nbytes,
        activation_bytes=max(used, default=0),
        seconds=seconds,
    )
    return Compilation(library.__version__, graph, layers)


def _capability(library: ModuleType, capability: str) -> Any:
    known = {
        name: value for name, value in library.ComputeCapability.__members__.items() if name[2:].isdigit()
    }
    try:
        return known[f"SM{capability.replace('.', '')}"]
    except KeyError:
        names = ", ".join(f"{name[2:-1]}.{name[-1]}" for name in sorted(known, key=lambda one: int(one[2:])))
        raise InputError(
            f"--compute-capability: must be of {names}, got {capability}; 8.6 is that of RTX 30, 8.9 of RTX 40, "
            "12.0 of RTX 50"
        ) from None


def _parser_words(parser: Any, lines: Sequence[str]) -> str:
    if not parser.num_errors:
        return one_line(lines[-1]) if lines else "no reason"
    error = parser.get_error(0)
    node = f"node {error.node_name()}: " if error.node() >= 0 else ""
    return node + one_line(error.desc())


def _bound_memory() -> None:
    try:
        import resource
    except ImportError:  # Windows has none
        return
    most = min(_MOST_MIB, available_mib()) << 20
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


# --- a bundle of engines ---


def compile_bundle(
    source: Bundle, out: Path, *, capabilities: tuple[str, ...] = CAPABILITIES, overwrite: bool = False
) -> Manifest:
    """Compiles an engine of each of a bundle's graphs. No GPU is needed, and none is asked.

    Args:
        source: in tensorrt-onnx format, or in onnx format with fp32.
        out: folder to write.
        capabilities: compute capabilities of the cards that shall run it.
        overwrite: replace `out` if it is there.

    Raises:
        InputError: the library is not here, does not know a compute capability, or the bundle is not for it.
        GateError: it refuses a graph; nothing is left behind.
    """
    check_source(source)
    check_apart(out, source.folder, "--bundle")
    check_engine_installed(ENGINE)
    plans = plan_files(source, _GRAPHS_OF)
    settings = {"parent": source.sha256, "to": ENGINE, "compute_capability": list(capabilities)}
    made = made_now()
    compiled, version = list[CompiledGraph](), ""
    with out_folder(out, settings, overwrite=overwrite, resumes=False) as folder:
        for plan in plans:
            log(f"compiling {plan.source.file} for compute capability {', '.join(capabilities)}")
            request = CompileRequest(source.path(plan.source.file), capabilities, folder / plan.plan)
            compilation = compile_apart(request)
            found, version = compilation.graph, compilation.version or version
            log(f"TensorRT for RTX {version} on {found.file}: {compiled_words(found)}")
            if found.refused:
                raise GateError(
                    f"{found.file}: must compile with TensorRT for RTX {version}, does not: {found.refused}"
                )
            compiled.append(found)
        first = next(plan for plan in plans if plan.plan == "model.plan").source
        target = EngineTarget(
            tensorrt=version,
            gpu="RTX",
            compute_capability=", ".join(capabilities),
            platform="any",
            onnx=first.file,
            onnx_sha256=source.manifest.files[first.file].sha256,
            flags=("STRONGLY_TYPED",),
        )
        verdict = CompilerVerdict(
            compiler=f"TensorRT for RTX {version}",
            compute_capability=target.compute_capability,
            graphs=tuple(compiled),
        )
        return seal_engine(source, folder, plans, target, made=made, gate={}, format=ENGINE, compiled=verdict)


# --- an engine at work, on an RTX card ---


def open_model(model_path: Path, options: EngineOptions) -> TensorRtEngine:
    """Opens an engine; see `runtime.engines.seam.open_engine`.

    Args:
        model_path: the engine.
        options: `streams` batches can be under way at once. `target` is compared with this library and this card
            first. `cache` is where the kernels that are compiled for this card are kept; by default the user's cache.

    Raises:
        InputError: no library or one of another version, no CUDA library, no GPU, or one that the engine is not for.
    """
    return RtxEngine(import_rtx(), model_path, options)


class RtxEngine(TensorRtEngine):
    """An engine of TensorRT for RTX, with the kernels that it compiles for this card.

    Not run on a device; every name is checked against NVIDIA's bindings.
    """

    def __init__(self, library: ModuleType, model_path: Path, options: EngineOptions) -> None:
        target = options.target
        _check_release(target, library.__version__, model_path)
        self._kernels: trt.IRuntimeCache | None = None
        # None where the cache cannot be written, or others may write to it.
        self._kept = open_private_entry(
            user_cache(options.cache),
            "rtx-kernels",
            {"engine": hash_file(model_path).sha256, "version": library.__version__},
        )

        def check_device(device: GpuDevice) -> None:
            if target and device.compute_capability not in target.compute_capability.split(", "):
                raise InputError(
                    f"engine {model_path}: must be compiled for this GPU ({device.name}, compute capability "
                    f"{device.compute_capability}), is for {target.compute_capability}; compile it again with "
                    f"--compute-capability {device.compute_capability}"
                )

        super().__init__(library, model_path, streams=options.streams, check_device=check_device)
        self._keep_kernels()

    def _check_plan(self, model_path: Path) -> None:
        with model_path.open("rb") as file:
            header = file.read(self._runtime.engine_header_size)
        validity, why = self._runtime.get_engine_validity(header)
        if validity == self._library.EngineValidity.INVALID:
            kinds = self._library.EngineInvalidityDiagnostics.__members__
            named = [name for name, bit in kinds.items() if int(bit) & int(why)]
            raise InputError(
                f"engine {model_path}: must be valid for TensorRT for RTX {self.version} on this card, is not "
                f"({', '.join(named) or 'no reason'}); compile it again: {_COMPILE}"
            )

    def _create_context(self) -> trt.IExecutionContext | None:
        config = self._engine.create_runtime_config()
        kernels = self._kernels = self._kernels or config.create_runtime_cache()
        kept = read_private(self._kept, _KERNELS) if self._kept and not self._slots else None
        if kept is not None:
            # Those of another driver or card are refused here, and compiled again.
            kernels.deserialize(kept.tobytes())
        config.set_runtime_cache(kernels)
        return self._engine.create_execution_context(config)

    def _keep_kernels(self) -> None:
        """Writes the kernels that opening compiled, so that the next start need not."""
        if self._kept and self._kernels:
            content = bytes(memoryview(self._kernels.serialize()))
            write_private(self._kept, _KERNELS, content, max_bytes=_MOST_KERNEL_BYTES)

    def _forget_engine(self) -> None:
        self._kernels = None
        super()._forget_engine()


_KERNELS, _MOST_KERNEL_BYTES = "kernels.bin", GIB
_COMPILE = "python -m export --to tensorrt-rtx --bundle B --out OUT, with the bundle B that holds its ONNX"


def _check_release(target: EngineTarget | None, version: str, model_path: Path) -> None:
    """An engine runs with the release that compiled it and no other (NVIDIA's "Engine Compatibility").

    Raises:
        InputError: this is another, or nothing says which.
    """
    if target is None:
        raise InputError(
            f"engine {model_path}: must say in its manifest what it was compiled for, does not; "
            f"compile it again: {_COMPILE}"
        )
    if target.tensorrt != version:
        raise InputError(
            f"engine {model_path}: must be of TensorRT for RTX {version}, which is here, is of {target.tensorrt}; "
            f"compile it again: {_COMPILE}; or install its own: pip install "
            f"tensorrt-rtx-cu12-bindings=={target.tensorrt} tensorrt-rtx-cu12-libs=={target.tensorrt}"
        )
