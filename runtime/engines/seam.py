"""The engine seam: an opened engine takes 8-bit images and gives logits; a caller knows no more of it.

One file per engine, imported when asked for; an engine that is not installed is an error that names the
extra.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

import numpy as np

from segcore.bundle.folder import Bundle
from segcore.bundle.manifest import EngineTarget, Manifest, Variant
from segcore.errors import InputError
from segcore.host import read_l4t

ENGINES = {
    "openvino": "runtime.engines.openvino_engine",
    "onnxruntime": "runtime.engines.onnxruntime_engine",
    "tensorrt": "runtime.trt.engine",
    "tensorrt-rtx": "runtime.trt.rtx",
}
"""Engine's name → the module whose `open_model` opens it."""

EXTRAS = {
    "openvino": "openvino",
    "onnxruntime": "onnx",
    "tensorrt": "tensorrt",
    "tensorrt-rtx": "tensorrt-rtx",
}
ON_GPU = ("tensorrt", "tensorrt-rtx")
_IMPORTED_AS = {"tensorrt-rtx": ("tensorrt_rtx_bindings", "tensorrt_rtx")}
"""Engine's name → names of its library, where they are not the same."""

OPENED_BY = {
    "openvino": ("openvino",),
    "onnx": ("onnxruntime", "openvino"),
    # Its numbers only: onnxruntime is slower in INT8 than in FP32. Not OpenVINO, which computes Concat → signed Q/DQ
    # → convolution wrongly (tests/test_export_qdq.py notices when that changes).
    "tensorrt-onnx": ("onnxruntime",),
    "tensorrt": ("tensorrt",),
    "tensorrt-rtx": ("tensorrt-rtx",),
}
"""Bundle format → engines that can open it; the bundle's native one first."""

_MOST_SHOWN = 10
"""Tensors of a graph that an error names."""

BUILDS_FROM = ("tensorrt-onnx", "onnx")
"""Formats that a TensorRT engine is built from."""


@dataclass(frozen=True)
class GraphTensor:
    """A tensor that an opened graph takes or gives.

    Attributes:
        type: numpy's name of it, "uint8"; the engine's own for what numpy does not have.
        shape: of fixed sides; a side that is not fixed is -1.
        names: every name that the engine knows it by.
    """

    type: str
    shape: tuple[int, ...]
    names: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.type} {'×'.join('?' if side < 0 else str(side) for side in self.shape)}"


class Engine(Protocol):
    """An opened model, whose graph takes a fixed number of images a call: its batch, 1 or more.

    Attributes:
        version: of the library, "2026.4.1".
        inputs: what the graph takes.
        outputs: what it gives.
    """

    version: str
    inputs: tuple[GraphTensor, ...]
    outputs: tuple[GraphTensor, ...]

    def run(self, batch: np.ndarray) -> np.ndarray:
        """N×H×W×C uint8 → logits N×K×h×w float32 at the head's stride.

        N is any number: the graph is called as often as it takes, its last call with room to spare. On the CPU several
        threads may call it at once; a GPU's engine is for the thread that opened it.
        """
        ...

    def stream(self, batches: Iterable[np.ndarray], *, in_flight: int) -> Generator[np.ndarray, None, None]:
        """Logits of one batch after another, in order, while the engine works on those that follow.

        The next batch is pulled when fewer than `in_flight` are under way. Where the source fails, the logits of the
        batches before it come first. Closing the generator waits for what is under way and lets it go.

        Args:
            batches: each 1 to the graph's batch of images, N×H×W×C uint8, not changed afterwards.
            in_flight: batches under way at most.
        """
        ...

    def close(self) -> None:
        """Lets go of the model's memory; the engine cannot run afterwards."""
        ...


@dataclass(frozen=True)
class EngineOptions:
    """What `open_engine` is asked for besides the file. An engine takes of it what means something to it."""

    precision: str
    threads: int
    streams: int = 1
    target: EngineTarget | None = None
    cache: Path | None = None


def engines_for(bundle: Bundle) -> tuple[str, ...]:
    """Names of the engines that can open a bundle, installed or not.

    Raises:
        InputError: the bundle holds a torch model, which no engine opens.
    """
    form = bundle.manifest.format
    if form not in OPENED_BY:
        raise InputError(
            f"bundle {bundle.folder}: must be exported first, got {form} format; "
            f"run python -m export --bundle {bundle.folder} --to openvino --precision fp32 --out OUT"
        )
    return OPENED_BY[form]


def builds_tensorrt(manifest: Manifest) -> bool:
    """Whether a TensorRT engine can be built from a bundle.

    Not from an onnx bundle in int8: it was quantised for CPUs, and TensorRT would read its 8-bit numbers wrongly.
    """
    return manifest.format in BUILDS_FROM and (manifest.format, manifest.precision) != ("onnx", "int8")


def import_names(package: str) -> tuple[str, ...]:
    """Names under which a library can be there: the package's own, for most."""
    return _IMPORTED_AS.get(package, (package,))


def installed(package: str) -> bool:
    """Whether a library, or the one of an engine, can be imported, without importing it."""
    return any(find_spec(name) is not None for name in import_names(package))


def check_engine_installed(name: str) -> None:
    """Raises `InputError`, which says how to install it, where an engine's library is not there."""
    if not installed(name):
        raise InputError(f"{name}: must be installed, is not; {how_to_install(name)}")


def how_to_install(name: str) -> str:
    """What to do for an engine's library. On a Jetson TensorRT comes with JetPack: the Python index has none for it."""
    if name == "tensorrt" and read_l4t():
        return (
            "run: sudo apt install python3-libnvinfer, and use a virtual environment made with --system-site-packages "
            "(PyPI's tensorrt does not run on a Jetson)"
        )
    return f"run: pip install 'sam2edge[{EXTRAS[name]}]'"


def choose_engine(bundle: Bundle, wanted: str | None = None) -> str:
    """The engine to use: the one asked for, else the first installed one that is able, in `_by_default`'s order.

    Raises:
        InputError: the bundle was not exported, there is no such engine, it cannot open this format, or it is not
            installed.
    """
    able = engines_for(bundle)
    if wanted is None:
        ranked = _by_default(able, bundle.manifest.precision)
        wanted = next((engine for engine in ranked if installed(engine)), ranked[0])
    if wanted not in ENGINES:
        raise InputError(f"--engine {wanted}: must be one of {', '.join(ENGINES)}, got {wanted}")
    if wanted not in able:
        raise InputError(
            f"--engine {wanted}: must be able to open {bundle.manifest.format}, is not; use --engine {able[0]}, "
            "or export the model to another format"
        )
    check_engine_installed(wanted)
    return wanted


def _by_default(able: Sequence[str], precision: str) -> list[str]:
    """Openvino first; but on ARM, where it computes an INT8 bundle in FP32, onnxruntime before it."""
    first = "onnxruntime" if precision == "int8" and on_arm() else "openvino"
    return sorted(able, key=lambda engine: engine != first)


def on_arm() -> bool:
    """Whether this is a 64-bit ARM processor."""
    return platform.machine().lower() in ("aarch64", "arm64")


def open_engine(
    name: str,
    model_path: Path,
    *,
    precision: str,
    threads: int,
    streams: int = 1,
    target: EngineTarget | None = None,
    cache: Path | None = None,
) -> Engine:
    """Opens a model file with an engine.

    Args:
        name: a key of `ENGINES`.
        model_path: the model's file, `Bundle.model_path` or that of a variant.
        precision: of the bundle; fp32, fp16 or int8.
        threads: CPU threads the engine may use, all streams together.
        streams: batches that it works on at once; 1 for the shortest time of each.
        target: what a tensorrt engine was built for; None for other formats.
        cache: folder where what the engine compiles is kept for the next time; for OpenVINO, others compile little.

    Raises:
        InputError: the engine is not installed, or cannot open the file.
    """
    check_engine_installed(name)
    options = EngineOptions(precision, threads, streams, target, cache)
    engine: Engine = import_module(ENGINES[name]).open_model(model_path, options)
    return engine


def check_graph(engine: Engine, model_path: Path, manifest: Manifest, variant: Variant) -> None:
    """Holds an opened graph against what the manifest says of it; see `segcore.picture.preprocess` for the contract.

    Raises:
        InputError: it takes or gives something else: masks of it would be wrong, or not come at all.
    """
    (height, width), stride = variant.size_px, manifest.output.stride
    images = (variant.batch, height, width, manifest.input.channels)
    logits = (variant.batch, manifest.output.channels, -(-height // stride), -(-width // stride))
    check_tensors(
        model_path, "take", [str(one) for one in engine.inputs], [str(GraphTensor("uint8", images))]
    )
    check_tensors(
        model_path, "give", [str(one) for one in engine.outputs], [str(GraphTensor("float32", logits))]
    )


def check_tensors(model_path: Path, verb: str, found: Sequence[str], wanted: Sequence[str]) -> None:
    """Raises `InputError` where a graph does not "take", or "give", the tensors that its bundle promises."""
    if list(found) != list(wanted):
        raise InputError(
            f"model {model_path}: must {verb} {', '.join(wanted)} as its bundle says, "
            f"{verb}s {', '.join(found[:_MOST_SHOWN]) or 'nothing'}; do not use this bundle"
        )


def open_error(model_path: Path, library: str, reason: str) -> InputError:
    """The one line for a model file that an engine on the CPU does not open.

    Args:
        model_path: the file.
        library: of the engine, with its version.
        reason: the line of the library's message that says it.
    """
    return InputError(f"model {model_path}: must open in {library}, does not ({reason}); export it again")


class RunError(InputError):
    """An engine opened a model and cannot compute it."""


def run_error(model_path: Path, library: str, reason: str) -> RunError:
    """The one line for a model that an engine on the CPU opened and cannot compute; arguments as of `open_error`."""
    return RunError(f"model {model_path}: must run in {library}, does not ({reason}); export it again")


def choose_threads(wanted: int | None) -> int:
    """CPU threads of an engine: as many as are asked for, else all that this process may use.

    Raises:
        InputError: fewer than one is asked for.
    """
    if wanted is not None and wanted < 1:
        raise InputError(f"--threads: must be at least 1, got {wanted}")
    return wanted or available_threads()


def available_threads() -> int:
    """CPU threads this process may use (a container may have fewer than the machine)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
