"""A TensorRT engine at work: pinned buffers, one stream an image in flight, nothing allocated per call.

The library is handed in: TensorRT, or TensorRT for RTX, which has its names. Not run on a device; every name is checked
against NVIDIA's bindings (tests/test_runtime_tensorrt_api.py).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from runtime.engines.seam import GraphTensor
from runtime.engines.stream import in_order
from runtime.trt.cuda_runtime import Buffers, Cuda, GpuDevice, allocate_buffers, open_cuda
from runtime.trt.library import load_error
from runtime.trt.log import open_log
from segcore.errors import InputError

if TYPE_CHECKING:
    import tensorrt as trt


@dataclass
class _ContextSlot:
    """What one batch in flight needs: its own context and stream, so that copies overlap with computing.

    Attributes:
        count: images of the batch under way.
    """

    context: trt.IExecutionContext
    stream: int
    inputs: Buffers
    outputs: Buffers
    count: int = 0


class TensorRtEngine:
    """One plan, deserialised, with `streams` slots.

    Attributes:
        version: of the library.
        batch: images a call of the plan; static.
        inputs: the one that the plan takes; see `runtime.engines.seam.Engine`.
        outputs: the one that it gives.
    """

    def __init__(
        self, library: Any, model_path: Path, *, streams: int, check_device: Callable[[GpuDevice], None]
    ) -> None:
        """Opens a plan.

        Args:
            library: the module tensorrt, or that of TensorRT for RTX.
            model_path: the plan.
            streams: batches under way at once, at most.
            check_device: refuses a GPU that the plan is not for, before the library sees the file.

        Raises:
            InputError: no GPU or one that is refused, a plan that does not load, or too little memory.
        """
        self.version: str = library.__version__
        self._library = library
        self._slots: list[_ContextSlot] = []
        self._log = open_log(library)
        with ExitStack() as stack:  # whatever fails half-way, what was allocated before is freed
            self._cuda: Cuda = open_cuda()
            stack.callback(self._cuda.close)
            check_device(self._cuda.device())
            stack.callback(self._forget_engine)
            self._runtime: trt.Runtime = library.Runtime(self._log)
            self._check_plan(model_path)
            engine = self._runtime.deserialize_cuda_engine(model_path.read_bytes())
            if engine is None:
                raise load_error(str(model_path), self.version, self._log.lines)
            self._engine = engine
            self._input, self._output = self._io_names(model_path)
            self._input_shape = _tensor_shape(engine, self._input)
            self._output_shape = _tensor_shape(engine, self._output)
            # `_io_names` has looked at the types.
            self.inputs = (GraphTensor("uint8", self._input_shape, (self._input,)),)
            self.outputs = (GraphTensor("float32", self._output_shape, (self._output,)),)
            self.batch: int = self._input_shape[0]
            for _ in range(max(1, streams)):
                self._slots.append(self._open_slot(stack))
                stack.callback(self._slots.clear)  # runs first: contexts go before the memory they point to
            self._stack = stack.pop_all()

    def _check_plan(self, model_path: Path) -> None:
        """Refuses a plan before it is loaded, where the library can tell from its first bytes."""

    def _create_context(self) -> trt.IExecutionContext | None:
        return self._engine.create_execution_context()

    def _open_slot(self, stack: ExitStack) -> _ContextSlot:
        inputs = allocate_buffers(self._cuda, self._input_shape, np.dtype(np.uint8), stack)
        outputs = allocate_buffers(self._cuda, self._output_shape, np.dtype(np.float32), stack)
        stream = self._cuda.stream()
        stack.callback(self._cuda.destroy_stream, stream)
        context = self._create_context()
        if context is None:  # TensorRT found no memory for it
            raise InputError(
                f"memory: must be enough for {len(self._slots) + 1} engine contexts, is not; give fewer streams"
            )
        for name, buffers in ((self._input, inputs), (self._output, outputs)):
            if not context.set_tensor_address(name, buffers.pointer):
                raise RuntimeError(f"set_tensor_address {name}: {self._log.lines}")
        return _ContextSlot(context, stream, inputs, outputs)

    def run(self, batch: np.ndarray) -> np.ndarray:
        """N×H×W×C uint8 → logits N×K×h×w float32. N beyond the plan's batch is taken in parts, one after the other."""
        logits = np.empty((len(batch), *self._output_shape[1:]), np.float32)
        slot = self._slots[0]
        for start in range(0, len(batch), self.batch):
            self._submit_batch(slot, batch[start : start + self.batch])
            logits[start : start + slot.count] = self._collect_logits(slot)
        return logits

    def stream(self, batches: Iterable[np.ndarray], *, in_flight: int) -> Generator[np.ndarray, None, None]:
        """Logits of one batch after another, in order; see `runtime.engines.seam.Engine`.

        At most as many are under way as there are streams. Copies of one overlap with computing of another.
        """
        idle = deque(self._slots)

        def begin(batch: np.ndarray) -> _ContextSlot:
            slot = idle.popleft()
            try:
                self._submit_batch(slot, batch)
            except BaseException:
                idle.append(slot)
                raise
            return slot

        def finish(slot: _ContextSlot) -> np.ndarray:
            logits: np.ndarray = self._collect_logits(slot).copy()
            idle.append(slot)
            return logits

        return in_order(
            batches,
            begin,
            finish,
            # One in flight a slot: `begin` always finds one that is idle.
            in_flight=max(1, min(in_flight, len(self._slots))),
            # Waited for, not only forgotten: until then its copies write into our buffers.
            drop=lambda slot: self._cuda.synchronize(slot.stream),
        )

    def _submit_batch(self, slot: _ContextSlot, batch: np.ndarray) -> None:
        """Copies the images to pinned memory and queues copy, computing and copy; returns at once."""
        if not 1 <= len(batch) <= self.batch or batch.shape[1:] != self._input_shape[1:]:
            raise ValueError(
                f"batch must be 1 to {self.batch} pictures of {self._input_shape[1:]}, got {batch.shape}"
            )
        slot.count = len(batch)
        slot.inputs.host[: len(batch)] = batch
        # A short batch leaves old images behind it; nobody reads their logits.
        self._cuda.copy_in(slot.inputs.pointer, slot.inputs.host, slot.stream)
        self._launch_context(slot)
        self._cuda.copy_out(slot.outputs.host, slot.outputs.pointer, slot.stream)

    def _launch_context(self, slot: _ContextSlot) -> None:
        if not slot.context.execute_async_v3(slot.stream):
            raise RuntimeError(f"execute_async_v3 failed: {self._log.lines[-1:]}")

    def _collect_logits(self, slot: _ContextSlot) -> np.ndarray:
        """Waits; the slot's own memory, valid until its next batch."""
        self._cuda.synchronize(slot.stream)
        return slot.outputs.host[: slot.count]

    def time_engine(self, calls: int) -> tuple[float, ...]:
        """GPU time of each of `calls` runs in milliseconds, without copies, between two events in the stream."""
        slot = self._slots[0]
        with ExitStack() as stack:
            start, end = self._cuda.event(), self._cuda.event()
            stack.callback(self._cuda.destroy_event, start)
            stack.callback(self._cuda.destroy_event, end)
            times = []
            for _ in range(calls):
                self._cuda.record(start, slot.stream)
                self._launch_context(slot)
                self._cuda.record(end, slot.stream)
                times.append(self._cuda.elapsed_ms(start, end))
            return tuple(times)

    def profile_layers(self, calls: int) -> dict[str, float]:
        """Each layer's mean time in milliseconds; the layers wait for each other, so the sum is above a run's time."""
        profiler = open_profiler(self._library)
        # A context of its own: with a profiler it waits after every layer, and the slots' are not to.
        context = self._create_context()
        if context is None:
            raise InputError("memory: must be enough for one more engine context, is not; give fewer streams")
        slot = self._slots[0]
        context.set_tensor_address(self._input, slot.inputs.pointer)
        context.set_tensor_address(self._output, slot.outputs.pointer)
        context.profiler = profiler
        for _ in range(calls):
            context.execute_async_v3(slot.stream)
            self._cuda.synchronize(slot.stream)
        return {name: total / calls for name, total in profiler.total_ms.items()}

    def layer_information(self) -> str:
        """The inspector's JSON of all layers, for `runtime.trt.layers.read_layers`."""
        inspector = self._engine.create_engine_inspector()
        text: str = inspector.get_engine_information(self._library.LayerInformationFormat.JSON)
        return text

    def device_memory_mib(self) -> float:
        """GPU memory of all slots' contexts and buffers; the weights are the plan's size and not in it."""
        buffers = sum(slot.inputs.host.nbytes + slot.outputs.host.nbytes for slot in self._slots)
        return (_context_bytes(self._engine) * len(self._slots) + buffers) / 2**20

    def close(self) -> None:
        """Frees contexts, buffers, streams and the engine, in this order; a second call does nothing."""
        self._stack.close()

    def _forget_engine(self) -> None:
        self.__dict__.pop("_engine", None)
        self.__dict__.pop("_runtime", None)

    def _io_names(self, plan: Path) -> tuple[str, str]:
        """Names of the one uint8 input and the one float32 output."""
        library, engine = self._library, self._engine
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        inputs = [name for name in names if engine.get_tensor_mode(name) == library.TensorIOMode.INPUT]
        outputs = [name for name in names if engine.get_tensor_mode(name) == library.TensorIOMode.OUTPUT]
        types = [engine.get_tensor_dtype(name) for name in (*inputs, *outputs)]
        if len(inputs) != 1 or len(outputs) != 1 or types != [library.DataType.UINT8, library.DataType.FLOAT]:
            raise InputError(
                f"engine {plan}: must have one uint8 input and one float32 output, has {len(inputs)} and "
                f"{len(outputs)} of {[str(one) for one in types]}; export it again"
            )
        return inputs[0], outputs[0]


def open_profiler(library: Any) -> Any:
    """A profiler of a library's own kind, whose `total_ms` adds up what is reported of each layer."""

    class LayerTimes(library.IProfiler):
        def __init__(self) -> None:
            library.IProfiler.__init__(self)
            self.total_ms: dict[str, float] = {}

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            self.total_ms[layer_name] = self.total_ms.get(layer_name, 0.0) + ms

    return LayerTimes()


def _tensor_shape(engine: trt.ICudaEngine, name: str) -> tuple[int, ...]:
    dims = engine.get_tensor_shape(name)
    return tuple(int(dims[i]) for i in range(len(dims)))


def _context_bytes(engine: trt.ICudaEngine) -> int:
    """GPU memory of one execution context, without weights. The first name is there from TensorRT 10 on."""
    name = "device_memory_size_v2" if hasattr(engine, "device_memory_size_v2") else "device_memory_size"
    return int(getattr(engine, name))
