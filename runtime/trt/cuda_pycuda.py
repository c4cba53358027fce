"""CUDA through pycuda, for a user who has it and not cuda-python.

Not run on a device. Every name was looked up in pycuda 2026.1's source, src/wrapper/wrap_cudadrv.cpp.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from runtime.trt.cuda_runtime import CudaError, Device, no_gpu


class PyCuda:
    """See `runtime.trt.cuda_runtime.Cuda`. Uses the primary context, the one that TensorRT's runtime calls use too."""

    def __init__(self) -> None:
        import pycuda.driver as driver

        self._driver = driver
        self.library = "pycuda"
        try:
            driver.init()
            self._device = driver.Device(0)
        except driver.Error as error:
            raise no_gpu(str(error)) from None
        self._context = self._device.retain_primary_context()
        self._context.push()
        # pycuda frees memory and streams when their objects go; so they are kept by address.
        self._kept: dict[int, Any] = {}

    def device(self) -> Device:
        major, minor = self._device.compute_capability()
        attribute = self._driver.device_attribute
        return Device(
            name=str(self._device.name()),
            compute_capability=f"{major}.{minor}",
            multiprocessors=int(self._device.get_attribute(attribute.MULTIPROCESSOR_COUNT)),
            memory_mib=int(self._device.total_memory()) >> 20,
            integrated=bool(self._device.get_attribute(attribute.INTEGRATED)),
        )

    def free_mib(self) -> int:
        free, _ = self._driver.mem_get_info()
        return int(free) >> 20

    def allocate(self, size: int) -> int:
        try:
            memory = self._driver.mem_alloc(size)
        except self._driver.MemoryError as error:
            raise CudaError(f"mem_alloc: {error}") from None
        self._kept[int(memory)] = memory
        return int(memory)

    def free(self, pointer: int) -> None:
        self._kept.pop(pointer).free()

    def pinned(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
        array: np.ndarray = self._driver.pagelocked_empty(shape, dtype)
        return array

    def free_pinned(self, array: np.ndarray) -> None:
        array.base.free()  # type: ignore[union-attr]  # its base is pycuda's PagelockedHostAllocation

    def stream(self) -> int:
        stream = self._driver.Stream()
        handle = int(stream.handle)
        self._kept[handle] = stream
        return handle

    def synchronize(self, stream: int) -> None:
        self._kept[stream].synchronize()

    def destroy_stream(self, stream: int) -> None:
        del self._kept[stream]

    def copy_in(self, pointer: int, array: np.ndarray, stream: int) -> None:
        self._driver.memcpy_htod_async(pointer, array, self._kept[stream])

    def copy_out(self, array: np.ndarray, pointer: int, stream: int) -> None:
        self._driver.memcpy_dtoh_async(array, pointer, self._kept[stream])

    def event(self) -> Any:
        return self._driver.Event()

    def record(self, event: Any, stream: int) -> None:
        event.record(self._kept[stream])

    def elapsed_ms(self, start: Any, end: Any) -> float:
        end.synchronize()
        return float(start.time_till(end))

    def destroy_event(self, event: Any) -> None:
        """Nothing to do: the event goes with its object."""

    def close(self) -> None:
        self._kept.clear()
        self._context.pop()
