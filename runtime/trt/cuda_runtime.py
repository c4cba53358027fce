"""The few CUDA calls that running an engine takes, behind one small interface.

cuda-python where it is installed: NVIDIA's own, with wheels for aarch64, kept in step with CUDA. pycuda where the user
has it instead, or asks for it with --cuda-library; it must be compiled on the device.
"""

from __future__ import annotations

import atexit
import ctypes
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Literal, Protocol, get_args

import numpy as np

from segcore.errors import InputError

CudaLibrary = Literal["cuda-python", "pycuda"]
CHOICE = "SAM2EDGE_CUDA_LIBRARY"
"""Environment variable that holds --cuda-library, so that processes which a command starts use the same one."""
_RUNTIMES = ("cuda.bindings.runtime", "cuda.cudart")
"""cuda-python's bindings of the runtime API: since 12.6, and before."""
_INSTALL_CUDA = (
    "run: pip install 'cuda-python==13.*', with 12 in place of 13 where CUDA is 12 (JetPack 6); or build pycuda and "
    "give --cuda-library pycuda"
)
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


def choose_cuda(library: CudaLibrary | None) -> None:
    """What a command's --cuda-library says, for this process and those that it starts; None leaves the choice open."""
    if library:
        os.environ[CHOICE] = library


def open_cuda() -> Cuda:
    """Opens CUDA with the library that was chosen, else with cuda-python, else with pycuda.

    Raises:
        InputError: it is not installed, does not load, or there is no GPU.
    """
    wanted = os.environ.get(CHOICE)
    if wanted and wanted not in get_args(CudaLibrary):
        raise InputError(f"{CHOICE}: must be one of {', '.join(get_args(CudaLibrary))}, got {wanted}")
    if wanted == "pycuda" or (not wanted and not _cuda_python_is_there() and _is_there("pycuda")):
        return PyCuda()
    return CudaPython()


def _cuda_python_is_there() -> bool:
    """Its own modules are asked for: any folder named cuda, such as the one in /usr/local, passes as `cuda`."""
    return any(_is_there(name) for name in _RUNTIMES)


def _is_there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):  # a package above it is not there, or is none
        return False


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
    """The bindings of CUDA's runtime API.

    Raises:
        InputError: they are not installed, or do not load.
    """
    for name in _RUNTIMES:
        if _is_there(name):
            try:
                return import_module(name)
            except (ImportError, OSError) as error:
                raise InputError(f"cuda-python: must load, does not ({error}); {_INSTALL_CUDA}") from None
    raise InputError(f"cuda-python: must be installed to run an engine on a GPU, is not; {_INSTALL_CUDA}")


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
    """CUDA through pycuda.

    In pycuda a context belongs to the thread that pushed it, so every call pushes the GPU's primary context, the one
    that TensorRT uses too, and pops it: any thread may call. Its objects free what they hold when they are deleted,
    for which the context must be current as well; so they are kept by number until they are freed.
    """

    library = "pycuda"

    def __init__(self) -> None:
        self._driver = _import_pycuda()
        self._device, self._context = _primary_context()
        self._kept: dict[int, Any] = {}

    @contextmanager
    def _current(self, call: str) -> Iterator[Any]:
        """Pycuda's driver module, with the context current in this thread; an error of the call is a `CudaError`."""
        try:
            self._context.push()
            try:
                yield self._driver
            finally:
                self._context.pop()
        except self._driver.Error as error:
            raise CudaError(f"{call}: {error}") from None

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
        with self._current("mem_get_info") as driver:
            free, _ = driver.mem_get_info()
        return int(free) >> 20

    def allocate(self, size: int) -> int:
        with self._current("mem_alloc") as driver:
            memory = driver.mem_alloc(size)
        self._kept[int(memory)] = memory
        return int(memory)

    def free(self, pointer: int) -> None:
        with self._current("mem_free"):
            self._kept.pop(pointer).free()

    def pinned(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
        with self._current("pagelocked_empty") as driver:
            array: np.ndarray = driver.pagelocked_empty(shape, dtype)
        return array

    def free_pinned(self, array: np.ndarray) -> None:
        with self._current("host allocation's free"):
            array.base.free()  # type: ignore[union-attr]  # its base is pycuda's PagelockedHostAllocation

    def stream(self) -> int:
        with self._current("Stream") as driver:
            stream = driver.Stream()
        handle = int(stream.handle)
        self._kept[handle] = stream
        return handle

    def synchronize(self, stream: int) -> None:
        with self._current("Stream.synchronize"):
            self._kept[stream].synchronize()

    def destroy_stream(self, stream: int) -> None:
        with self._current("Stream's end"):
            del self._kept[stream]

    def copy_in(self, pointer: int, array: np.ndarray, stream: int) -> None:
        with self._current("memcpy_htod_async") as driver:
            driver.memcpy_htod_async(pointer, array, self._kept[stream])

    def copy_out(self, array: np.ndarray, pointer: int, stream: int) -> None:
        with self._current("memcpy_dtoh_async") as driver:
            driver.memcpy_dtoh_async(array, pointer, self._kept[stream])

    def event(self) -> int:
        with self._current("Event") as driver:
            event = driver.Event()
        self._kept[id(event)] = event
        return id(event)

    def record(self, event: int, stream: int) -> None:
        with self._current("Event.record"):
            self._kept[event].record(self._kept[stream])

    def elapsed_ms(self, start: int, end: int) -> float:
        with self._current("Event.time_till"):
            self._kept[end].synchronize()
            return float(self._kept[start].time_till(self._kept[end]))

    def destroy_event(self, event: int) -> None:
        with self._current("Event's end"):
            del self._kept[event]

    def close(self) -> None:
        """Frees what is left. The primary context stays until the process ends."""
        with self._current("close"):
            self._kept.clear()


def _import_pycuda() -> Any:
    """pycuda.driver.

    Raises:
        InputError: it is not installed, was compiled for another numpy, or finds no driver.
    """
    if not _is_there("pycuda"):
        raise InputError(
            "pycuda: must be installed for --cuda-library pycuda, is not; build it where CUDA's compiler is: "
            "PATH=/usr/local/cuda/bin:$PATH pip install pycuda (docs/jetson.md), or use --cuda-library cuda-python"
        )
    try:
        return import_module("pycuda.driver")
    except (ImportError, OSError) as error:
        if "libcuda" in str(error):  # "libcuda.so.1: cannot open shared object file"
            raise no_gpu_error(str(error)) from None
        raise InputError(
            f"pycuda: must load with numpy {np.__version__}, does not ({error}); it runs with the numpy that it was "
            "compiled for: pip install 'numpy<2' for JetPack 6's, or compile it again "
            "(pip install --force-reinstall --no-cache-dir --no-binary pycuda pycuda); or use --cuda-library "
            "cuda-python"
        ) from None


@cache
def _primary_context() -> tuple[Any, Any]:
    """The first GPU and its primary context.

    Retained once and until the process ends: a pycuda context that is let go leaves itself current in the thread that
    does so, and the next call of anybody there fails. It must be told to detach: pycuda's destructor takes a primary
    context for one of its own, and warns on stderr that it cannot be destroyed.

    Raises:
        InputError: there is no GPU.
    """
    driver = _import_pycuda()
    try:
        driver.init()
        device = driver.Device(0)
        context = device.retain_primary_context()
    except driver.Error as error:
        raise no_gpu_error(str(error)) from None
    atexit.register(context.detach)
    return device, context


def no_gpu_error(reason: str) -> InputError:
    """The one line for a machine on which CUDA finds no GPU."""
    return InputError(
        f"GPU: must be there to build or run a TensorRT engine, is not (CUDA: {reason}); run this on the device, "
        "or use --engine onnxruntime with the tensorrt-onnx bundle"
    )
