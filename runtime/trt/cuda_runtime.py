"""The few CUDA calls that running an engine takes, behind one small interface.

cuda-python first: NVIDIA's own, with wheels for aarch64. pycuda where the user has it instead (it must be compiled on
the device).
"""

from __future__ import annotations

import ctypes
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Protocol

import numpy as np

from segcore.errors import InputError

_NO_GPU = ("cudaErrorNoDevice", "cudaErrorInsufficientDriver", "cudaErrorInitializationError")


class CudaError(RuntimeError):
    """A CUDA call failed; the text holds CUDA's own words."""


@dataclass(frozen=True)
class GpuDevice:
    """The first GPU that CUDA shows (CUDA_VISIBLE_DEVICES chooses).

    Attributes:
        name: "Orin".
        compute_capability: "8.7".
        multiprocessors: how many.
        memory_mib: in all; shared with the CPU where `integrated`.
        integrated: GPU and CPU share their memory, as on a Jetson.
    """

    name: str
    compute_capability: str
    multiprocessors: int
    memory_mib: int
    integrated: bool


class Cuda(Protocol):
    """CUDA, opened on the first GPU. Pointers and stream handles are integers; what is made must be freed."""

    library: str

    def device(self) -> GpuDevice: ...

    def free_mib(self) -> int:
        """Memory of the GPU that nobody has taken, MiB. Makes a context if there is none."""
        ...

    def allocate(self, size: int) -> int:
        """Bytes of the GPU's memory; their address there."""
        ...

    def free(self, pointer: int) -> None: ...

    def pinned(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
        """An array that the system does not move or swap: only such memory is copied while the GPU computes."""
        ...

    def free_pinned(self, array: np.ndarray) -> None: ...

    def stream(self) -> int:
        """A queue of work for the GPU; the handle that TensorRT takes."""
        ...

    def synchronize(self, stream: int) -> None:
        """Waits until the stream's work is done."""
        ...

    def destroy_stream(self, stream: int) -> None: ...

    def copy_in(self, pointer: int, array: np.ndarray, stream: int) -> None:
        """Host to GPU, when the stream gets to it; `array` is pinned."""
        ...

    def copy_out(self, array: np.ndarray, pointer: int, stream: int) -> None:
        """GPU to host, when the stream gets to it; `array` is pinned."""
        ...

    def event(self) -> Any:
        """A mark in a stream, with a time."""
        ...

    def record(self, event: Any, stream: int) -> None: ...

    def elapsed_ms(self, start: Any, end: Any) -> float:
        """GPU time between two recorded events; waits for the second."""
        ...

    def destroy_event(self, event: Any) -> None: ...

    def close(self) -> None: ...


def open_cuda() -> Cuda:
    """Opens CUDA with cuda-python, else with pycuda.

    Raises:
        InputError: neither is installed, or there is no GPU.
    """
    if find_spec("cuda") is not None:
        return CudaPython()
    if find_spec("pycuda") is not None:
        return PyCuda()
    raise InputError(
        "cuda-python: must be installed to run TensorRT, is not; run pip install 'sam2edge[tensorrt]', with the major "
        "version of the device's CUDA (JetPack 6: 'cuda-python<13')"
    )


@dataclass(frozen=True)
class Buffers:
    """Pinned host memory and the GPU's memory of the same size.

    Attributes:
        host: the array that Python reads and writes.
        pointer: of the GPU's copy.
    """

    host: np.ndarray
    pointer: int


def allocate_buffers(cuda: Cuda, shape: tuple[int, ...], dtype: np.dtype[Any], stack: ExitStack) -> Buffers:
    """Allocates both, and frees them when `stack` closes."""
    host = cuda.pinned(shape, dtype)
    stack.callback(cuda.free_pinned, host)
    pointer = cuda.allocate(host.nbytes)
    stack.callback(cuda.free, pointer)
    return Buffers(host, pointer)


# --- cuda-python ---


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
    """CUDA through cuda-python, NVIDIA's bindings of the runtime API (12.2 to 13).

    The runtime API makes and shares the GPU's primary context by itself.
    """

    def __init__(self) -> None:
        self._rt = import_runtime()
        self.library = "cuda-python"
        self._pinned: dict[int, int] = {}  # an array's address → the pointer to free
        try:
            status, count = self._rt.cudaGetDeviceCount()
        except RuntimeError as error:  # 12.x raises "Failed to dlopen libcuda.so.1" where there is no driver
            raise no_gpu_error(str(error)) from None
        if self._status_name(status) in _NO_GPU:
            raise no_gpu_error(self._status_text(status))
        self._check_status("cudaGetDeviceCount", status)
        if not count:
            raise no_gpu_error("no device")

    def device(self) -> GpuDevice:
        found = self._check_call("cudaGetDeviceProperties", self._rt.cudaGetDeviceProperties(0))
        return GpuDevice(
            name=bytes(found.name).split(b"\0")[0].decode(errors="replace"),
            compute_capability=f"{found.major}.{found.minor}",
            multiprocessors=int(found.multiProcessorCount),
            memory_mib=int(found.totalGlobalMem) >> 20,
            integrated=bool(found.integrated),
        )

    def free_mib(self) -> int:
        status, free, _ = self._rt.cudaMemGetInfo()
        self._check_status("cudaMemGetInfo", status)
        return int(free) >> 20

    def allocate(self, size: int) -> int:
        return int(self._check_call("cudaMalloc", self._rt.cudaMalloc(size)))

    def free(self, pointer: int) -> None:
        self._check_call("cudaFree", self._rt.cudaFree(pointer))

    def pinned(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
        size = int(np.prod(shape)) * dtype.itemsize
        pointer = int(self._check_call("cudaMallocHost", self._rt.cudaMallocHost(size)))
        memory = memoryview((ctypes.c_ubyte * size).from_address(pointer))
        array: np.ndarray = np.frombuffer(memory, dtype).reshape(shape)
        self._pinned[array.ctypes.data] = pointer
        return array

    def free_pinned(self, array: np.ndarray) -> None:
        self._check_call("cudaFreeHost", self._rt.cudaFreeHost(self._pinned.pop(array.ctypes.data)))

    def stream(self) -> int:
        return int(
            self._check_call(
                "cudaStreamCreateWithFlags",
                self._rt.cudaStreamCreateWithFlags(self._rt.cudaStreamNonBlocking),
            )
        )

    def synchronize(self, stream: int) -> None:
        self._check_call("cudaStreamSynchronize", self._rt.cudaStreamSynchronize(stream))

    def destroy_stream(self, stream: int) -> None:
        self._check_call("cudaStreamDestroy", self._rt.cudaStreamDestroy(stream))

    def copy_in(self, pointer: int, array: np.ndarray, stream: int) -> None:
        kind = self._rt.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._check_call(
            "cudaMemcpyAsync",
            self._rt.cudaMemcpyAsync(pointer, array.ctypes.data, array.nbytes, kind, stream),
        )

    def copy_out(self, array: np.ndarray, pointer: int, stream: int) -> None:
        kind = self._rt.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._check_call(
            "cudaMemcpyAsync",
            self._rt.cudaMemcpyAsync(array.ctypes.data, pointer, array.nbytes, kind, stream),
        )

    def event(self) -> Any:
        return self._check_call("cudaEventCreate", self._rt.cudaEventCreate())

    def record(self, event: Any, stream: int) -> None:
        self._check_call("cudaEventRecord", self._rt.cudaEventRecord(event, stream))

    def elapsed_ms(self, start: Any, end: Any) -> float:
        self._check_call("cudaEventSynchronize", self._rt.cudaEventSynchronize(end))
        return float(self._check_call("cudaEventElapsedTime", self._rt.cudaEventElapsedTime(start, end)))

    def destroy_event(self, event: Any) -> None:
        self._check_call("cudaEventDestroy", self._rt.cudaEventDestroy(event))

    def close(self) -> None:
        """Nothing to do: the primary context ends with the process."""

    def _check_call(self, function: str, answer: tuple[Any, ...]) -> Any:
        """The value of `(status, value)`, or None of `(status,)`."""
        self._check_status(function, answer[0])
        return answer[1] if len(answer) > 1 else None

    def _check_status(self, function: str, status: Any) -> None:
        if status != self._rt.cudaError_t.cudaSuccess:
            raise CudaError(f"{function}: {self._status_text(status)}")

    def _status_text(self, status: Any) -> str:
        _, text = self._rt.cudaGetErrorString(status)
        return f"{bytes(text).decode(errors='replace')} ({self._status_name(status)})"

    def _status_name(self, status: Any) -> str:
        return str(status.name)  # an IntEnum


# --- pycuda ---


class PyCuda:
    """CUDA through pycuda, for a user who has it and not cuda-python.

    Uses the primary context, the one that TensorRT's runtime calls use too. Not run on a device. Every name was looked
    up in pycuda 2026.1's source, src/wrapper/wrap_cudadrv.cpp.
    """

    def __init__(self) -> None:
        import pycuda.driver as driver

        self._driver = driver
        self.library = "pycuda"
        try:
            driver.init()
            self._device = driver.Device(0)
        except driver.Error as error:
            raise no_gpu_error(str(error)) from None
        self._context = self._device.retain_primary_context()
        self._context.push()
        # pycuda frees memory and streams when their objects go; so they are kept by address.
        self._kept: dict[int, Any] = {}

    def device(self) -> GpuDevice:
        major, minor = self._device.compute_capability()
        attribute = self._driver.device_attribute
        return GpuDevice(
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


def no_gpu_error(reason: str) -> InputError:
    """The one line for a machine on which CUDA finds no GPU."""
    return InputError(
        f"GPU: must be there to build or run a TensorRT engine, is not (CUDA: {reason}); run this on the device, "
        "or use --engine onnxruntime with the tensorrt-onnx bundle"
    )
