"""The real pycuda, compiled here as docs/jetson.md says, under our code; below it a CUDA driver of this computer's memory.

pycuda comes from the Python index in source only, and its compilation takes minutes, once: it is kept in SYS_PREFIX/pycuda
with CUDA's header. What is below pycuda is tests/cuda_driver.c: no GPU is claimed. Needs a C++ compiler and, the first
time, the index; skipped with the reason elsewhere.
"""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DRIVER = Path(__file__).with_name("cuda_driver.c")
STORE = Path(sys.prefix) / "pycuda"
PYCUDA = "pycuda==2026.1"
HEADERS = "nvidia-cuda-runtime-cu12==12.9.79"
# cudaProfiler.h is in a wheel of its own; pycuda wants these three of it.
PROFILER = """\
#include <cuda.h>
typedef enum CUoutput_mode_enum { CU_OUT_KEY_VALUE_PAIR, CU_OUT_CSV } CUoutput_mode;
extern "C" CUresult cuProfilerInitialize(const char *, const char *, CUoutput_mode);
extern "C" CUresult cuProfilerStart(void);
extern "C" CUresult cuProfilerStop(void);
"""
SITE = """\
CUDA_ROOT = {root!r}
CUDA_ENABLE_CURAND = False
CUDADRV_LIB_DIR = [{lib!r}]
"""
# What an engine does with CUDA, in another thread than the one that opened it; then what must not pass.
ROUND_TRIP = """
import ctypes, gc, sys
from concurrent.futures import ThreadPoolExecutor
import numpy as np
from runtime.trt.cuda_runtime import CudaError, GpuDevice, choose_cuda, open_cuda

driver = ctypes.CDLL("libcuda.so.1")
choose_cuda("pycuda")
cuda = open_cuda()
assert type(cuda).__name__ == "PyCuda" and "pycuda._driver" in sys.modules
assert cuda.device() == GpuDevice("Orin", "8.7", 8, 7620, integrated=True), cuda.device()
assert cuda.free_mib() == 1

def use():
    there, back = (cuda.pinned((2, 3), np.dtype(np.float32)) for _ in range(2))
    there[...] = np.arange(6).reshape(2, 3)
    pointer, stream = cuda.allocate(there.nbytes), cuda.stream()
    start, end = cuda.event(), cuda.event()
    cuda.record(start, stream)
    cuda.copy_in(pointer, there, stream)
    cuda.copy_out(back, pointer, stream)
    cuda.record(end, stream)
    assert not back.any()  # nothing is copied before the stream is waited for
    cuda.synchronize(stream)
    assert (back == there).all()
    assert cuda.elapsed_ms(start, end) == 1.5
    assert driver.driver_held() == 6 and driver.driver_contexts() == 0
    for event in (start, end):
        cuda.destroy_event(event)
    cuda.destroy_stream(stream)
    cuda.free(pointer)
    for array in (there, back):
        cuda.free_pinned(array)
    assert driver.driver_held() == 0, driver.driver_held()
    assert driver.driver_contexts() == 0

use()
with ThreadPoolExecutor(1) as pool:
    pool.submit(use).result()
try:
    cuda.allocate(1 << 30)
except CudaError as error:
    assert "out of memory" in str(error), error
else:
    raise AssertionError("memory without end")
kept = cuda.stream()
cuda.close()
assert driver.driver_held() == 0 and driver.driver_contexts() == 0
print("round trip done")
"""
# A name of pycuda's that our code uses, and what a slip of the pen makes of it.
SLIPS = [
    ("driver.mem_alloc(", "driver.memory_alloc("),
    ("driver.pagelocked_empty(", "driver.page_locked_empty("),
    ("array.base.free()", "array.base.release()"),
    ("driver.memcpy_htod_async(pointer, array,", "driver.memcpy_htod_async(array, pointer,"),
    ("driver.memcpy_dtoh_async(", "driver.memcpy_dtoh("),
    (".time_till(", ".time_to("),
    ("attribute.INTEGRATED", "attribute.IS_INTEGRATED"),
    ("device.retain_primary_context()", "device.primary_context()"),
    ("stream.handle)", "stream.pointer)"),
    ("self._context.push()", "None"),
    ("self._kept.pop(pointer).free()", "None"),
]


def build(*words: str, **environment: str) -> None:
    subprocess.run(
        words, check=True, capture_output=True, text=True, env={**os.environ, **environment}, cwd=STORE
    )


def compile_driver(*more: str) -> None:
    """libcuda.so.1 in the store, and the name that a linker looks for."""
    folder = STORE / "lib"
    folder.mkdir(exist_ok=True)
    include = f"-I{STORE}/cuda/include"
    build(
        "cc", "-w", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", include, "-o", "lib/libcuda.so.1", *more
    )
    (folder / "libcuda.so").unlink(missing_ok=True)
    (folder / "libcuda.so").symlink_to("libcuda.so.1")


def prepare() -> None:
    """CUDA's header, and pycuda compiled against it, without optimisation: two to three minutes.

    Raises:
        subprocess.CalledProcessError: no compiler for C++, no index.
    """
    pip = (sys.executable, "-m", "pip", "-q", "--disable-pip-version-check")
    shutil.rmtree(STORE, ignore_errors=True)
    STORE.mkdir()
    build(*pip, "install", "--no-deps", "--target", "headers", HEADERS)
    include = STORE / "cuda/include"
    shutil.copytree(STORE / "headers/nvidia/cuda_runtime/include", include)
    (include / "cudaProfiler.h").write_text(PROFILER)
    compile_driver(str(DRIVER))
    build(*pip, "download", "--no-deps", "--no-build-isolation", "--no-binary", "pycuda", "-d", ".", PYCUDA)
    (archive,) = STORE.glob("pycuda-*.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(STORE, filter="data")
    source = archive.name.removesuffix(".tar.gz")
    (STORE / source / "siteconf.py").write_text(SITE.format(root=f"{STORE}/cuda", lib=f"{STORE}/lib"))
    build(
        *pip, "install", "--target", "site", f"./{source}", CFLAGS="-O0 -g0 -w", LIBRARY_PATH=f"{STORE}/lib"
    )
    (STORE / "ready").touch()


@pytest.fixture(scope="module")
def pycuda():
    """Runs a script with the real pycuda over our driver; what came of it."""
    if shutil.which("cc") is None or shutil.which("c++") is None:
        pytest.skip("pycuda must be compiled, and there is no C++ compiler")
    if not (STORE / "ready").exists():
        try:
            prepare()
        except subprocess.CalledProcessError as error:
            pytest.skip(f"pycuda cannot be made: {(error.stderr.strip().splitlines() or ['no reason'])[-1]}")
    # What it names of the driver must be there when it is loaded: the rest fails when it is called.
    (library,) = (STORE / "site/pycuda").glob(f"_driver*{sysconfig.get_config_var('EXT_SUFFIX')}")
    named = {name.decode() for name in re.findall(rb"\0(cu[A-Z]\w+)(?=\0)", library.read_bytes())}
    ours = set(re.findall(r"^CUresult (cu\w+)\(", DRIVER.read_text(), re.MULTILINE))
    known = {name for name in named if name.removesuffix("_v2") in ours}
    rest = STORE / "rest.c"
    rest.write_text("".join(f"int {name}(void) {{ return 801; }}\n" for name in sorted(named - known)))
    compile_driver(str(DRIVER), str(rest))

    def run(script: str, source: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
        path = os.pathsep.join((str(source), str(STORE / "site")))
        words = {"LD_LIBRARY_PATH": str(STORE / "lib"), "PYTHONPATH": path, **environment}
        return subprocess.run(
            [sys.executable, "-c", script],
            cwd=source,
            env={**os.environ, **words},
            capture_output=True,
            text=True,
            check=False,
        )

    return run


def test_memory_streams_events_and_threads(pycuda):
    done = pycuda(ROUND_TRIP)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "round trip done"
    assert "PyCUDA WARNING" not in done.stderr


def test_without_a_gpu_one_line_says_so(pycuda):
    done = pycuda(ROUND_TRIP, DRIVER_NO_DEVICE="1")
    assert "InputError: GPU: must be there" in done.stderr
    assert "no CUDA-capable device" in done.stderr


@pytest.fixture
def copied(tmp_path):
    """Writes the module, with a piece of it replaced, and what it needs; the folder above its package."""

    def copy(right: str, wrong: str) -> Path:
        for name in (
            "segcore/__init__.py",
            "segcore/errors.py",
            "runtime/__init__.py",
            "runtime/trt/__init__.py",
        ):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            shutil.copy(ROOT / name, tmp_path / name)
        text = (ROOT / "runtime/trt/cuda_runtime.py").read_text()
        assert right in text
        (tmp_path / "runtime/trt/cuda_runtime.py").write_text(text.replace(right, wrong))
        return tmp_path

    return copy


def test_the_copy_without_a_slip_passes(pycuda, copied):
    assert pycuda(ROUND_TRIP, copied("driver.mem_alloc(", "driver.mem_alloc(")).returncode == 0


@pytest.mark.parametrize(("right", "slip"), SLIPS)
def test_a_slip_of_the_pen_is_found(pycuda, copied, right, slip):
    done = pycuda(ROUND_TRIP, copied(right, slip))
    assert done.returncode != 0
    assert "round trip done" not in done.stdout
