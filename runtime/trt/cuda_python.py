"""CUDA through cuda-python, NVIDIA's bindings of the runtime API (12.2 to 13)."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from runtime.trt.cuda_runtime import CudaError, Device, no_gpu
from segcore.errors import InputError

_NO_GPU = ("cudaErrorNoDevice", "cudaErrorInsufficientDriver", "cudaErrorInitializationError")


def import_runtime() -> Any:
    """The bindings of CUDA's runtime API: `cuda.bindings.runtime` since 12.6; before it, `cuda.cudart`.

    Raises:
        InputError: a package named cuda is there, but not these bindings, or they do not load.
    """
    try:
        from cuda.bindings import runtime

        return runtime
    except ImportError as newer:
        try:
            from cuda import cudart

            return cudart
        except ImportError:
            raise InputError(
                f"cuda-python: must load, does not ({newer}); run pip install --force-reinstall 'sam2edge[tensorrt]', "
                "with the major version of the device's CUDA (JetPack 6: 'cuda-python<13')"
            ) from None


class CudaPython:
    """See `runtime.trt.cuda_runtime.Cuda`. The runtime API makes and shares the GPU's primary context by itself."""

    def __init__(self) -> None:
        self._rt = import_runtime()
        self.library = "cuda-python"
        self._pinned: dict[int, int] = {}  # an array's address → the pointer to free
        try:
            status, count = self._rt.cudaGetDeviceCount()
        except RuntimeError as error:  # 12.x raises "Failed to dlopen libcuda.so.1" where there is no driver
            raise no_gpu(str(error)) from None
        if self._name(status) in _NO_GPU:
            raise no_gpu(self._words(status))
        self._check("cudaGetDeviceCount", status)
        if not count:
            raise no_gpu("no device")

    def device(self) -> Device:
        found = self._call("cudaGetDeviceProperties", self._rt.cudaGetDeviceProperties(0))
        return Device(
            name=bytes(found.name).split(b"\0")[0].decode(errors="replace"),
            compute_capability=f"{found.major}.{found.minor}",
            multiprocessors=int(found.multiProcessorCount),
            memory_mib=int(found.totalGlobalMem) >> 20,
            integrated=bool(found.integrated),
        )

    def free_mib(self) -> int:
        status, free, _ = self._rt.cudaMemGetInfo()
        self._check("cudaMemGetInfo", status)
        return int(free) >> 20

    def allocate(self, size: int) -> int:
        return int(self._call("cudaMalloc", self._rt.cudaMalloc(size)))

    def free(self, pointer: int) -> None:
        self._call("cudaFree", self._rt.cudaFree(pointer))

    def pinned(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
        size = int(np.prod(shape)) * dtype.itemsize
        pointer = int(self._call("cudaMallocHost", self._rt.cudaMallocHost(size)))
        memory = memoryview((ctypes.c_ubyte * size).from_address(pointer))
        array: np.ndarray = np.frombuffer(memory, dtype).reshape(shape)
        self._pinned[array.ctypes.data] = pointer
        return array

    def free_pinned(self, array: np.ndarray) -> None:
        self._call("cudaFreeHost", self._rt.cudaFreeHost(self._pinned.pop(array.ctypes.data)))

    def stream(self) -> int:
        return int(
            self._call(
                "cudaStreamCreateWithFlags",
                self._rt.cudaStreamCreateWithFlags(self._rt.cudaStreamNonBlocking),
            )
        )

    def synchronize(self, stream: int) -> None:
        self._call("cudaStreamSynchronize", self._rt.cudaStreamSynchronize(stream))

    def destroy_stream(self, stream: int) -> None:
        self._call("cudaStreamDestroy", self._rt.cudaStreamDestroy(stream))

    def copy_in(self, pointer: int, array: np.ndarray, stream: int) -> None:
        kind = self._rt.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call(
            "cudaMemcpyAsync",
            self._rt.cudaMemcpyAsync(pointer, array.ctypes.data, array.nbytes, kind, stream),
        )

    def copy_out(self, array: np.ndarray, pointer: int, stream: int) -> None:
        kind = self._rt.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call(
            "cudaMemcpyAsync",
            self._rt.cudaMemcpyAsync(array.ctypes.data, pointer, array.nbytes, kind, stream),
        )

    def event(self) -> Any:
        return self._call("cudaEventCreate", self._rt.cudaEventCreate())

    def record(self, event: Any, stream: int) -> None:
        self._call("cudaEventRecord", self._rt.cudaEventRecord(event, stream))

    def elapsed_ms(self, start: Any, end: Any) -> float:
        self._call("cudaEventSynchronize", self._rt.cudaEventSynchronize(end))
        return float(self._call("cudaEventElapsedTime", self._rt.cudaEventElapsedTime(start, end)))

    def destroy_event(self, event: Any) -> None:
        self._call("cudaEventDestroy", self._rt.cudaEventDestroy(event))

    def close(self) -> None:
        """Nothing to do: the primary context ends with the process."""

    def _call(self, function: str, answer: tuple[Any, ...]) -> Any:
        """The value of `(status, value)`, or None of `(status,)`."""
        self._check(function, answer[0])
        return answer[1] if len(answer) > 1 else None

    def _check(self, function: str, status: Any) -> None:
        if status != self._rt.cudaError_t.cudaSuccess:
            raise CudaError(f"{function}: {self._words(status)}")

    def _words(self, status: Any) -> str:
        _, text = self._rt.cudaGetErrorString(status)
        return f"{bytes(text).decode(errors='replace')} ({self._name(status)})"

    def _name(self, status: Any) -> str:
        return str(status.name)  # an IntEnum
