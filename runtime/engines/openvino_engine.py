"""OpenVINO on the CPU: opens IR (model.xml with model.bin) and ONNX, and keeps what it compiled in a cache.

The cache has an entry for each model, precision, version, device and setting; any of it may be deleted any time.
"""

from __future__ import annotations

import sys
from collections.abc import Generator, Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from runtime.engines.seam import EngineOptions, GraphTensor, open_error, run_error
from runtime.engines.stream import in_order
from segcore.bundle.folder import hash_file
from segcore.cache import GIB, open_private_entry, read_private, write_private
from segcore.errors import InputError

_TYPES = {
    **{f"f{bits}": f"float{bits}" for bits in (16, 32, 64)},
    **{
        f"{sign}{bits}": f"{name}{bits}"
        for sign, name in (("u", "uint"), ("i", "int"))
        for bits in (8, 16, 32, 64)
    },
    "boolean": "bool",
}
"""OpenVINO's names of types → numpy's."""
_COMPILED = "compiled.blob"
_MOST_CACHE_BYTES = 2 * GIB


def open_model(model_path: Path, options: EngineOptions) -> OpenVinoEngine:
    """Compiles a model for the CPU; see `runtime.engines.seam.open_engine`. IR and ONNX are made for no one
    device."""
    return OpenVinoEngine(
        model_path,
        precision=options.precision,
        threads=options.threads,
        streams=options.streams,
        cache=options.cache,
    )


def import_openvino() -> Any:
    """Imports openvino with its telemetry off.

    `import openvino` sends an event to Google Analytics unless the user opted out beforehand (openvino
    2026.4.1, tools/ovc/__init__.py, enable_opt_in_dialog=False); NNCF does the same. Hospital machines must
    not call out. Both fall back to a stub where openvino_telemetry cannot be imported; a None in sys.modules
    brings that about.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    return openvino


def library_version() -> str:
    """Of the installed library, with its build."""
    version: str = import_openvino().__version__
    return version


def cpu_settings(threads: int, streams: int = 1) -> dict[str, Any]:
    """What every model is compiled with; the profile adds the counters.

    Every precision computes in f32 here, and INT8 layers in i8: fp16 bundles hold 16-bit weights only. The
    hint is pinned because a CPU with bf16 or f16 units would else choose them and change the masks (an f16
    MobileSAM encoder gave one embedding for every image: open-edge-platform/geti#7354).
    """
    settings: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
    }
    if streams > 1:
        settings |= {"PERFORMANCE_HINT": "THROUGHPUT", "NUM_STREAMS": streams}
    return settings


@dataclass
class _InferSlot:
    """An infer request with its own memory: images B×H×W×C uint8, logits B×K×h×w float32, B the graph's batch."""

    request: Any
    images: np.ndarray
    logits: np.ndarray
    used: bool = False


class OpenVinoEngine:
    """One compiled model, and as many infer requests as were needed at once; each is used again."""

    def __init__(
        self, model_path: Path, *, precision: str, threads: int, streams: int = 1, cache: Path | None = None
    ) -> None:
        openvino = import_openvino()
        self.version = openvino.__version__.split("-")[0]  # without the build's number and branch
        self._library = f"openvino {self.version}"
        self._model_path = model_path
        # Two first inferences at once have hung in the library's own initialisation (2026.4.1).
        self._lock = Lock()
        core, settings = openvino.Core(), cpu_settings(threads, streams)
        entry = cache and cache_entry(
            cache,
            model_path,
            precision=precision,
            engine=f"openvino {openvino.__version__}",
            device=_describe_processor(core),
            settings=settings,
        )
        try:
            self._compiled = _compile_model(core, model_path, settings, entry)
            self.inputs = graph_tensors(self._compiled.inputs)
            self.outputs = graph_tensors(self._compiled.outputs)
            self._free = [self._open_slot()]
        except RuntimeError as error:
            raise open_error(model_path, self._library, error_reason(error)) from error

    def run(self, batch: np.ndarray) -> np.ndarray:
        """N×H×W×C uint8 → logits N×K×h×w float32."""
        slot = self._take_slot()
        logits = np.empty((len(batch), *slot.logits.shape[1:]), np.float32)
        try:
            for n in range(0, len(batch), len(slot.images)):
                part = batch[n : n + len(slot.images)]
                slot.images[: len(part)] = part  # what an earlier call left in the rest is computed in vain
                with nullcontext() if slot.used else self._lock:
                    slot.request.infer(share_outputs=True)  # no copy of its own: the next line but one copies
                slot.used = True
                logits[n : n + len(part)] = slot.logits[: len(part)]
        except RuntimeError as error:
            raise run_error(self._model_path, self._library, error_reason(error)) from error
        finally:
            self._free.append(slot)
        return logits

    def stream(self, batches: Iterable[np.ndarray], *, in_flight: int) -> Generator[np.ndarray, None, None]:
        """Logits of batches in order; see `runtime.engines.seam.Engine`.

        The infer requests are those of an AsyncInferQueue without its callbacks: waiting for the oldest keeps the
        order, bounds what is under way, and raises an error where it belongs.
        """

        def begin(batch: np.ndarray) -> tuple[_InferSlot, int]:
            slot = self._take_slot()
            slot.images[: len(batch)] = batch
            slot.request.start_async()
            return slot, len(batch)

        def finish(begun: tuple[_InferSlot, int]) -> np.ndarray:
            slot, count = begun
            try:
                slot.request.wait()
            except RuntimeError as error:
                raise run_error(self._model_path, self._library, error_reason(error)) from error
            slot.used = True
            logits = np.array(slot.logits[:count])  # copied: the slot's next batch overwrites them
            self._free.append(slot)
            return logits

        yield from in_order(batches, begin, finish, in_flight=in_flight, drop=finish)

    def _take_slot(self) -> _InferSlot:
        """One that nobody uses; taking from a list and giving back to it is one step each for Python's threads."""
        try:
            return self._free.pop()
        except IndexError:
            with self._lock:
                return self._open_slot()

    def _open_slot(self) -> _InferSlot:
        request = self._compiled.create_infer_request()
        return _InferSlot(request, request.get_input_tensor().data, request.get_output_tensor().data)

    def close(self) -> None:
        """Frees the requests and the compiled model."""
        del self._free, self._compiled


def graph_tensors(ports: Iterable[Any]) -> tuple[GraphTensor, ...]:
    """What a compiled model takes or gives, by its ports."""
    return tuple(
        GraphTensor(
            _TYPES.get(port.element_type.get_type_name(), port.element_type.get_type_name()),
            tuple(side.get_length() if side.is_static else -1 for side in port.partial_shape),
            tuple(sorted(port.get_names())),
        )
        for port in ports
    )


def error_reason(error: RuntimeError) -> str:
    """The line of an error of the library that says what is wrong; those before it name OpenVINO's source files."""
    return str(error).strip().splitlines()[-1]


def _compile_model(core: Any, model_path: Path, settings: dict[str, Any], entry: Path | None) -> Any:
    """The compiled model, from the cache where an entry holds it.

    Not by OpenVINO's own CACHE_DIR: 2026.4.1 takes a blob with flipped bits without a word, and computes other logits.
    What it gets here are the very bytes that were held against their code.
    """
    kept = read_private(entry, _COMPILED) if entry else None
    if kept is not None:
        try:
            return core.import_model(import_openvino().Tensor(np.frombuffer(kept, np.uint8)), "CPU", settings)
        except RuntimeError:  # this build does not take what it made; it is compiled and written anew
            pass
    compiled = core.compile_model(str(model_path), "CPU", settings)
    if entry:
        write_private(entry, _COMPILED, compiled.export_model().getvalue(), max_bytes=_MOST_CACHE_BYTES)
    return compiled


def _describe_processor(core: Any) -> str:
    """The processor's name and what it computes in; names alone can be as vague as "AMD EPYC"."""
    able = sorted(core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"))
    return f"{core.get_property('CPU', 'FULL_DEVICE_NAME')} {' '.join(able)}"


def cache_entry(
    cache: Path,
    model_path: Path,
    *,
    precision: str,
    engine: str,
    device: str,
    settings: dict[str, Any],
) -> Path | None:
    """Makes the cache's entry for one model under exactly these conditions, or finds it.

    Args:
        cache: of all models.
        model_path: the model's file; the weights beside it (.bin) count too.
        precision: fp32, fp16 or int8.
        engine: its name and full version.
        device: what it compiles for.
        settings: that it compiles with.

    Returns:
        None where the cache cannot be written or is not the user's alone.

    Raises:
        InputError: `cache` is a file.
    """
    if any(path.is_file() for path in (cache, *cache.parents)):
        raise InputError(f"--cache {cache}: must be a folder, is a file; name another")
    # A compiled model does not say what it was compiled for: OpenVINO 2026.4.1 loads what was made for two threads when
    # asked for one. So everything that matters is part of the key.
    files = [path for path in (model_path, model_path.with_suffix(".bin")) if path.is_file()]
    what = {
        "model": [hash_file(path).sha256 for path in files],
        "precision": precision,
        "engine": engine,
        "device": device,
        "settings": settings,
    }
    return open_private_entry(cache, "openvino", what)
