"""The few CUDA calls that running an engine takes, behind one small interface.

cuda-python first: NVIDIA's own, with wheels for aarch64. pycuda where the user has it instead (it must be compiled on
the device).
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Protocol

import numpy as np

from segcore.errors import InputError


class CudaError(RuntimeError):
    """A CUDA call failed; the text holds CUDA's own words."""


@dataclass(frozen=True)
class Device:
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

    def device(self) -> Device: ...

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
        from runtime.trt.cuda_python import CudaPython

        return CudaPython()
    if find_spec("pycuda") is not None:
        from runtime.trt.cuda_pycuda import PyCuda

        return PyCuda()
    raise InputError(
        "cuda-python: must be installed to run TensorRT, is not; run pip install 'sam2edge[tensorrt]', with the major "
        "version of the device's CUDA (JetPack 6: 'cuda-python<13')"
    )


def no_gpu(reason: str) -> InputError:
    """The one line for a machine on which CUDA finds no GPU."""
    return InputError(
        f"GPU: must be there to build or run a TensorRT engine, is not (CUDA: {reason}); run this on the device, "
        "or use --engine onnxruntime with the tensorrt-onnx bundle"
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


def paired(cuda: Cuda, shape: tuple[int, ...], dtype: np.dtype[Any], stack: ExitStack) -> Buffers:
    """Allocates both, and frees them when `stack` closes."""
    host = cuda.pinned(shape, dtype)
    stack.callback(cuda.free_pinned, host)
    pointer = cuda.allocate(host.nbytes)
    stack.callback(cuda.free, pointer)
    return Buffers(host, pointer)
