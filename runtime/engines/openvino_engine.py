"""OpenVINO on the CPU: opens IR (model.xml with model.bin) and ONNX, and keeps what it compiled in a cache.

The cache has a folder for each model, precision, version, device and setting; any of it may be deleted any time.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Generator, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from runtime.engines.seam import EngineOptions, GraphTensor, open_error
from runtime.engines.stream import in_order
from segcore.bundle.folder import hash_file
from segcore.errors import InputError

_TYPES = {"u8": "uint8", "f32": "float32"}
"""OpenVINO's names of types that our graphs have at their ends → numpy's."""


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


@dataclass(frozen=True)
class _InferSlot:
    """An infer request with its own memory: images B×H×W×C uint8, logits B×K×h×w float32, B the graph's batch."""

    request: Any
    images: np.ndarray
    logits: np.ndarray


class OpenVinoEngine:
    """One compiled model; one infer request, used again for every image, and a stream's own."""

    def __init__(
        self, model_path: Path, *, precision: str, threads: int, streams: int = 1, cache: Path | None = None
    ) -> None:
        openvino = import_openvino()
        self.version = openvino.__version__.split("-")[0]  # without the build's number and branch
        core, settings = openvino.Core(), cpu_settings(threads, streams)
        if cache is not None:
            settings["CACHE_DIR"] = str(
                cache_folder(
                    cache,
                    model_path,
                    precision=precision,
                    engine=f"openvino {openvino.__version__}",
                    device=_describe_processor(core),
                    settings=settings,
                )
            )
        try:
            self._compiled = core.compile_model(str(model_path), "CPU", settings)
            self.inputs = graph_tensors(self._compiled.inputs)
            self.outputs = graph_tensors(self._compiled.outputs)
            self._slot = self._open_slot()
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]  # the lines before it name OpenVINO's source files
            raise open_error(model_path, f"openvino {self.version}", reason) from error

    def run(self, batch: np.ndarray) -> np.ndarray:
        """N×H×W×C uint8 → logits N×K×h×w float32."""
        slot = self._slot
        logits = np.empty((len(batch), *slot.logits.shape[1:]), np.float32)
        for n in range(0, len(batch), len(slot.images)):
            part = batch[n : n + len(slot.images)]
            slot.images[: len(part)] = part  # what an earlier call left in the rest is computed in vain
            slot.request.infer(share_outputs=True)  # no copy of its own: the next line copies
            logits[n : n + len(part)] = slot.logits[: len(part)]
        return logits

    def stream(self, batches: Iterable[np.ndarray], *, in_flight: int) -> Generator[np.ndarray, None, None]:
        """Logits of batches in order; see `runtime.engines.seam.Engine`.

        The infer requests are those of an AsyncInferQueue without its callbacks: waiting for the oldest keeps the
        order, bounds what is under way, and raises an error where it belongs.
        """
        free: list[_InferSlot] = []

        def begin(batch: np.ndarray) -> tuple[_InferSlot, int]:
            slot = free.pop() if free else self._open_slot()
            slot.images[: len(batch)] = batch
            slot.request.start_async()
            return slot, len(batch)

        def finish(begun: tuple[_InferSlot, int]) -> np.ndarray:
            slot, count = begun
            slot.request.wait()
            logits = np.array(slot.logits[:count])  # copied: the slot's next batch overwrites them
            free.append(slot)
            return logits

        yield from in_order(batches, begin, finish, in_flight=in_flight, drop=finish)

    def _open_slot(self) -> _InferSlot:
        request = self._compiled.create_infer_request()
        return _InferSlot(request, request.get_input_tensor().data, request.get_output_tensor().data)

    def close(self) -> None:
        """Frees the request and the compiled model."""
        del self._slot, self._compiled


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


def _describe_processor(core: Any) -> str:
    """The processor's name and what it computes in; names alone can be as vague as "AMD EPYC"."""
    able = sorted(core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"))
    return f"{core.get_property('CPU', 'FULL_DEVICE_NAME')} {' '.join(able)}"


def cache_folder(
    cache: Path,
    model_path: Path,
    *,
    precision: str,
    engine: str,
    device: str,
    settings: dict[str, Any],
) -> Path:
    """Makes the folder for one model under exactly these conditions, or finds it.

    Args:
        cache: of all models.
        model_path: the model's file; the weights beside it (.bin) count too.
        precision: fp32, fp16 or int8.
        engine: its name and full version.
        device: what it compiles for.
        settings: that it compiles with.

    Raises:
        InputError: `cache` is a file.
    """
    # OpenVINO's own cache tells models apart, but neither precisions nor thread counts: 2026.4.1 loads what was made
    # for two threads when asked for one. So everything that matters goes into the folder's name.
    files = [path for path in (model_path, model_path.with_suffix(".bin")) if path.is_file()]
    what = {
        "model": [hash_file(path).sha256 for path in files],
        "precision": precision,
        "engine": engine,
        "device": device,
        "settings": settings,
    }
    key = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:32]
    try:
        (cache / key).mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise InputError(f"--cache {cache}: must be a folder, is a file; name another") from None
    return cache / key
