"""CUDA's two Python libraries over the memory of this computer, for our code around them. They say nothing of CUDA.

`HostGpu` is the GPU: memory, streams whose work is done when they are waited for, and in each thread a stack of current
contexts. `cuda_python` and `pycuda` are modules over it with the names that our code uses, and as strict: in pycuda a
call without a current context fails, and what is freed is not freed again.
"""

import ctypes
import sys
import threading
import types
from importlib.util import spec_from_loader
from itertools import count

import numpy as np

LIBRARIES = ("cuda-python", "pycuda")


class HostGpu:
    """A GPU of host memory; `fails_at` numbers the allocation that finds none left."""

    def __init__(self, fails_at: int = -1) -> None:
        self.memory, self.pinned, self.queues, self.events = {}, {}, {}, set()
        self.handles, self.fails_at, self.allocations = count(1, 1), fails_at, 0
        self.present, self.threads = True, threading.local()

    @property
    def held(self):
        return len(self.memory) + len(self.pinned) + len(self.queues) + len(self.events)

    @property
    def contexts(self):
        if not hasattr(self.threads, "stack"):
            self.threads.stack = []
        return self.threads.stack

    def allocate(self, size):
        """An address, or None where there is no memory."""
        self.allocations += 1
        if self.allocations == self.fails_at:
            return None
        array = np.zeros(max(size, 1), np.uint8)
        self.memory[array.ctypes.data] = array
        return array.ctypes.data

    def pin(self, size):
        array = np.zeros(max(size, 1), np.uint8)
        self.pinned[array.ctypes.data] = array
        return array

    def stream(self):
        handle = next(self.handles)
        self.queues[handle] = []
        return handle

    def copy(self, to, source, size, stream):
        known = {**self.memory, **self.pinned}
        for address in (to, source):
            assert size <= known[address].nbytes
        self.queues[stream].append(lambda: ctypes.memmove(to, source, size))

    def wait(self, stream):
        while self.queues[stream]:
            self.queues[stream].pop(0)()

    def event(self):
        handle = next(self.handles)
        self.events.add(handle)
        return handle


def install(monkeypatch_setitem, gpu, library):
    """Puts a library over `gpu` where an import finds it.

    Args:
        monkeypatch_setitem: `monkeypatch.setitem`, or `dict.__setitem__` for good.
        gpu: a `HostGpu`.
        library: one of LIBRARIES.
    """
    made = {"cuda-python": cuda_python, "pycuda": pycuda}[library](gpu)
    parts = made.__name__.split(".")
    for i in range(1, len(parts)):
        name = ".".join(parts[:i])
        package = types.ModuleType(name)
        package.__path__, package.__spec__ = [], spec_from_loader(name, None)
        monkeypatch_setitem(sys.modules, name, package)
    monkeypatch_setitem(sys.modules, made.__name__, made)


def _module(name):
    module = types.ModuleType(name)
    module.__spec__ = spec_from_loader(name, None)
    return module


class _Status(int):
    name = "cudaSuccess"


def cuda_python(gpu):
    """cuda.bindings.runtime: every call gives a tuple that begins with the status."""
    rt = _module("cuda.bindings.runtime")
    good, no_memory, no_device = _Status(0), _Status(2), _Status(100)
    no_memory.name, no_device.name = "cudaErrorMemoryAllocation", "cudaErrorNoDevice"
    texts = {0: b"no error", 2: b"out of memory", 100: b"no CUDA-capable device is detected"}
    rt.cudaError_t = types.SimpleNamespace(
        cudaSuccess=good, cudaErrorMemoryAllocation=no_memory, cudaErrorNoDevice=no_device
    )
    rt.cudaStreamNonBlocking = 1
    rt.cudaMemcpyKind = types.SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)
    orin = types.SimpleNamespace(
        name=b"Orin\0\0", major=8, minor=7, multiProcessorCount=8, totalGlobalMem=7620 << 20, integrated=1
    )

    def allocate(size):
        pointer = gpu.allocate(size)
        return (good, pointer) if pointer else (no_memory, None)

    def pin(size):
        return good, gpu.pin(size).ctypes.data

    def do(call):
        def run(*words):
            call(*words)
            return (good,)

        return run

    rt.cudaGetErrorString = lambda status: (good, texts[int(status)])
    rt.cudaGetDeviceCount = lambda: (good, 1) if gpu.present else (no_device, 0)
    rt.cudaGetDeviceProperties = lambda device: (good, orin)
    rt.cudaMemGetInfo = lambda: (good, 1 << 20, 2 << 20)
    rt.cudaMalloc, rt.cudaMallocHost = allocate, pin
    rt.cudaFree, rt.cudaFreeHost = do(gpu.memory.__delitem__), do(gpu.pinned.__delitem__)
    rt.cudaStreamCreateWithFlags = lambda flags: (good, gpu.stream())
    rt.cudaStreamSynchronize, rt.cudaStreamDestroy = do(gpu.wait), do(gpu.queues.__delitem__)
    rt.cudaMemcpyAsync = do(lambda to, source, size, kind, stream: gpu.copy(to, source, size, stream))
    rt.cudaEventCreate = lambda: (good, gpu.event())
    rt.cudaEventRecord, rt.cudaEventSynchronize = do(lambda event, stream: None), do(lambda event: None)
    rt.cudaEventElapsedTime = lambda start, end: (good, 1.5)
    rt.cudaEventDestroy = do(gpu.events.remove)
    return rt


def pycuda(gpu):
    """pycuda.driver: objects that free what they hold, each call in a current context."""
    driver = _module("pycuda.driver")
    driver.Error = type("Error", (Exception,), {})
    driver.MemoryError = type("MemoryError", (driver.Error,), {})
    driver.LogicError = type("LogicError", (driver.Error,), {})
    driver.device_attribute = types.SimpleNamespace(MULTIPROCESSOR_COUNT=16, INTEGRATED=18)

    def need_context():
        if not gpu.contexts:
            raise driver.LogicError("explicit_context_dependent failed: invalid device context")

    class Context:
        def push(self):
            gpu.contexts.append(self)

        @staticmethod
        def pop():
            gpu.contexts.pop()

        def detach(self): ...

    class Device:
        def __init__(self, number):
            if not gpu.present:
                raise driver.LogicError("cuDeviceGet failed: invalid device ordinal")

        def name(self):
            return "Orin"

        def compute_capability(self):
            return 8, 7

        def get_attribute(self, attribute):
            return {16: 8, 18: 1}[attribute]

        def total_memory(self):
            return 7620 << 20

        def retain_primary_context(self):
            return Context()

    class Memory:
        def __init__(self, size):
            need_context()
            self.pointer = gpu.allocate(size)
            if self.pointer is None:
                raise driver.MemoryError("cuMemAlloc failed: out of memory")

        def __int__(self):
            return self.pointer

        def free(self):
            need_context()
            del gpu.memory[self.pointer]

    class PagelockedHostAllocation:
        """What an array of pinned memory has as its base."""

        def __init__(self, shape, dtype):
            dtype = np.dtype(dtype)
            self.address = gpu.pin(int(np.prod(shape)) * dtype.itemsize).ctypes.data
            self.__array_interface__ = {
                "shape": tuple(shape),
                "typestr": dtype.str,
                "data": (self.address, False),
                "version": 3,
            }

        def free(self):
            need_context()
            del gpu.pinned[self.address]

    class Stream:
        def __init__(self):
            need_context()
            self.handle = gpu.stream()

        def synchronize(self):
            need_context()
            gpu.wait(self.handle)

        def __del__(self):
            if gpu.contexts:  # pycuda leaks it otherwise
                gpu.queues.pop(self.handle, None)

    class Event:
        def __init__(self):
            need_context()
            self.handle = gpu.event()

        def record(self, stream):
            need_context()

        def synchronize(self):
            need_context()

        def time_till(self, other):
            return 1.5

        def __del__(self):
            if gpu.contexts:
                gpu.events.discard(self.handle)

    def pagelocked_empty(shape, dtype):
        need_context()
        return np.asarray(PagelockedHostAllocation(shape, dtype))

    def htod(pointer, array, stream):
        need_context()
        gpu.copy(pointer, array.ctypes.data, array.nbytes, stream.handle)

    def dtoh(array, pointer, stream):
        need_context()
        gpu.copy(array.ctypes.data, pointer, array.nbytes, stream.handle)

    def free_and_all():
        need_context()
        return 1 << 20, 2 << 20

    driver.init = lambda: None
    driver.Device, driver.Stream, driver.Event = Device, Stream, Event
    driver.mem_alloc, driver.mem_get_info, driver.pagelocked_empty = Memory, free_and_all, pagelocked_empty
    driver.memcpy_htod_async, driver.memcpy_dtoh_async = htod, dtoh
    return driver
