"""Every name of TensorRT's and of CUDA's that the runtime uses exists in NVIDIA's own bindings of each version.

TensorRT's binding wheels import on a CPU over a library of dummy symbols. From their docstrings a type stub is written
(tests/tensorrt_stub.py), and mypy checks the modules that serve a version against it (tests/tensorrt_names.py): classes,
enum members, methods, properties, argument names and types. Behaviour is not checked: no engine is built here.

The wheels are fetched with pip once, into SYS_PREFIX/tensorrt-bindings.
"""

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from runtime.engines.seam import import_names, installed
from runtime.trt.library import STRONGLY_TYPED, ReleaseRange, release_of

ROOT = Path(__file__).parents[1]
STORE = Path(sys.prefix) / "tensorrt-bindings"
WHEELS = {
    "8.6.1": "tensorrt-bindings",
    "10.3.0": "tensorrt-cu12-bindings",
    "10.13.3.9": "tensorrt-cu12-bindings",
    "10.16.1.11": "tensorrt-cu12-bindings",
    "11.4.0.106": "tensorrt-cu13-bindings",
}
CUDA_WHEELS = {  # what pip has for aarch64 too; 12.2 has cuda.cudart, the others cuda.bindings.runtime
    "12.2.1": ("cuda-python==12.2.1",),
    "12.9.5": ("cuda-bindings==12.9.5", "cuda-pathfinder<2"),
    "13.5.0": ("cuda-bindings==13.5.0", "cuda-pathfinder<2"),
}
SYMBOLS = """\
createInferBuilder_INTERNAL createInferRefitter_INTERNAL createInferRuntime_INTERNAL createNvOnnxParser_INTERNAL
createNvOnnxParserRefitter_INTERNAL getNvOnnxParserVersion getPluginRegistry getBuilderPluginRegistry
initLibNvInferPlugins _ZN11nvuffparser15createUffParserEv _ZN11nvuffparser8FieldMapC1EPKcPKvNS_9FieldTypeEi
_ZN14nvcaffeparser117createCaffeParserEv _ZN14nvcaffeparser123shutdownProtobufLibraryEv
"""
# A module, a piece of it, and what a slip of the pen makes of it: each must be found.
SLIPS = [
    ("plan", "config.set_memory_pool_limit(", "config.set_memory_pool_limits("),
    ("plan", "trt.MemoryPoolType.WORKSPACE", "trt.MemoryPoolType.WORKSPACES"),
    ("plan", "ignore_mismatch=False", "ignore_mismatches=False"),
    ("plan", "error.desc()", "error.description()"),
    ("v10", "def phase_finish(", "def phase_finished("),
    ("execution", "def report_layer_time(", "def report_layer_times("),
    ("execution", "library.TensorIOMode.INPUT", "library.TensorIOMode.IN"),
    (
        "execution",
        "set_tensor_address(name, buffers.pointer)",
        "set_tensor_address(buffers.pointer, name)",
    ),
    ("execution", "engine.num_io_tensors", "engine.num_tensors"),
    ("log", "library.ILogger.WARNING", "library.ILogger.WARN"),
    ("strongly_typed", "STRONGLY_TYPED)\n", "STRONG_TYPED)\n"),
]


def fetched(folder: Path, *wheels: str) -> Path:
    """The wheels unpacked in `folder`, by pip if they are not there yet; a skip that says why if that fails."""
    if not folder.exists():
        partial = folder.with_name(f"{folder.name}.{os.getpid()}")
        words = [
            "pip",
            "install",
            "-q",
            "--no-deps",
            "--only-binary=:all:",
            "--target",
            str(partial),
            *wheels,
        ]
        done = subprocess.run([sys.executable, "-m", *words], capture_output=True, text=True, check=False)
        if done.returncode:
            shutil.rmtree(partial, ignore_errors=True)
            reason = (done.stderr.strip().splitlines() or ["pip failed"])[-1]
            pytest.skip(
                f"{' '.join(wheels)} for Python {sys.version_info[0]}.{sys.version_info[1]}: {reason}"
            )
        partial.rename(folder)
    return folder


@pytest.fixture(scope="session")
def dummies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with libnvinfer and its companions, each a link to one library of functions that return null."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("TensorRT's bindings need a C compiler for the library of dummies; there is none")
    folder = tmp_path_factory.mktemp("dummies")
    source = folder / "stub.c"
    source.write_text("".join(f"void*{name}(void){{return 0;}}\n" for name in SYMBOLS.split()))
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(folder / "stub.so"), str(source)], check=True)
    for library in ("nvinfer", "nvinfer_plugin", "nvonnxparser", "nvparsers"):
        for major in (8, 10, 11):
            (folder / f"lib{library}.so.{major}").symlink_to("stub.so")
    return folder


def run_over(dummies: Path, version: str, *words: str) -> str:
    """Runs Python with the version's bindings in its path; its stdout."""
    bindings = fetched(STORE / version, f"{WHEELS[version]}=={version}")
    environment = {
        **os.environ,
        "LD_LIBRARY_PATH": str(dummies),
        "PYTHONPATH": os.pathsep.join((str(bindings), str(ROOT))),
    }
    done = subprocess.run(
        [sys.executable, *words], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="session")
def stubs(dummies, tmp_path_factory):
    """Writes the stub of a version once."""
    folder = tmp_path_factory.mktemp("stubs")

    def stub(version: str) -> Path:
        if not (folder / version).exists():
            run_over(dummies, version, str(ROOT / "tests/tensorrt_stub.py"), str(folder / version))
        return folder / version

    return stub


def serves(path: Path) -> ReleaseRange | None:
    """The releases that a module is for; None where it neither imports TensorRT at its top nor is handed it."""
    tree = ast.parse(path.read_text())
    imports = any(isinstance(n, ast.Import) and n.names[0].name == "tensorrt" for n in tree.body)
    if path.stem == "rtx" or not (imports or "library: Any" in path.read_text()):
        return None
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "SERVES":
            return eval(
                ast.unparse(node.value), {"ReleaseRange": ReleaseRange, "STRONGLY_TYPED": STRONGLY_TYPED}
            )
    return ReleaseRange()


def modules_for(version: str) -> list[str]:
    paths = sorted((ROOT / "runtime/trt").glob("*.py"))
    return [f"runtime.trt.{p.stem}" for p in paths if (found := serves(p)) and release_of(version) in found]


def check_names(stubs: Path, sources: Path, modules: list[str]) -> dict[str, list[str]]:
    pytest.importorskip("mypy")
    script = ROOT / "tests/tensorrt_names.py"
    done = subprocess.run(
        [sys.executable, str(script), str(stubs), str(sources), *modules],
        capture_output=True,
        text=True,
        check=False,
        cwd=sources,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    return json.loads(done.stdout)


def test_which_module_serves_which_version():
    weak, strong = "runtime.trt.weakly_typed", "runtime.trt.strongly_typed"
    served = {version: modules_for(version) for version in WHEELS}
    assert [weak in served[v] for v in WHEELS] == [True, True, False, False, False]
    assert [strong in served[v] for v in WHEELS] == [False, False, True, True, True]
    assert ["runtime.trt.v8" in served[v] for v in WHEELS] == [True, False, False, False, False]
    assert ["runtime.trt.v10" in served[v] for v in WHEELS] == [False, True, True, True, True]
    assert all({"runtime.trt.plan", "runtime.trt.execution"} <= set(found) for found in served.values())


@pytest.mark.parametrize("version", WHEELS)
def test_every_name_exists_in(version, stubs, record_property, capsys):
    found = check_names(stubs(version), ROOT, modules_for(version))
    assert found["errors"] == []
    assert {"Builder.build_serialized_network", "IExecutionContext.execute_async_v3"} <= set(found["names"])
    assert "IBuilderConfig.set_timing_cache(ignore_mismatch=)" in found["names"]
    assert len(found["names"]) >= 60
    record_property("names_checked", len(found["names"]))
    with capsys.disabled():
        print(f"\nTensorRT {version}: {len(found['names'])} names checked")


def test_a_slip_is_found(stubs, tmp_path):
    shutil.copytree(ROOT / "runtime", tmp_path / "runtime")
    for module, right, wrong in SLIPS:
        path = tmp_path / f"runtime/trt/{module}.py"
        assert right in path.read_text(), (module, right)
        path.write_text(path.read_text().replace(right, wrong))
    errors = check_names(stubs("11.4.0.106"), tmp_path, modules_for("11.4.0.106"))["errors"]
    for sign in (
        'has no attribute "set_memory_pool_limits"',
        'has no attribute "WORKSPACES"',
        '"ignore_mismatches" for "set_timing_cache"',
        'has no attribute "description"',
        "phase_finished overrides nothing of tensorrt.IProgressMonitor",
        '"set_tensor_address" of "IExecutionContext" has incompatible type',
        'has no attribute "num_tensors"',
        'has no attribute "WARN"',
        'has no attribute "IN"',
        "report_layer_times overrides nothing of tensorrt.IProfiler",
        'has no attribute "STRONG_TYPED"',
    ):
        assert any(sign in error for error in errors), (sign, errors)


def test_a_name_of_another_version_is_found(stubs):
    """TensorRT 11 has no precision flags: a module for 8.6 must not pass as one for 11."""
    errors = check_names(stubs("11.4.0.106"), ROOT, ["runtime.trt.weakly_typed", "runtime.trt.v8"])["errors"]
    assert any('has no attribute "FP16"' in error for error in errors)
    assert any('has no attribute "get_tactic_sources"' in error for error in errors) or any(
        'has no attribute "CUBLAS"' in error for error in errors
    )


def test_every_name_exists_in_tensorrt_for_rtx(tmp_path, capsys):
    """The library itself is here: its stub needs no dummies."""
    name = next((n for n in import_names("tensorrt-rtx") if installed(n)), None)
    if name is None:
        pytest.skip("TensorRT for RTX is not installed (Linux on x86-64 only)")
    words = [str(ROOT / "tests/tensorrt_stub.py"), str(tmp_path / "stub"), name]
    subprocess.run([sys.executable, *words], env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True)
    modules = [f"runtime.trt.{module}" for module in ("rtx", "execution", "log")]
    found = check_names(tmp_path / "stub", ROOT, modules)
    assert found["errors"] == []
    assert {
        "Runtime.get_engine_validity",
        "IRuntimeConfig.set_runtime_cache",
        "IRuntimeCache.serialize",
    } <= set(found["names"])
    with capsys.disabled():
        print(f"\nTensorRT for RTX: {len(found['names'])} names checked")


OVER_BINDINGS = """
import sys, types, tensorrt_bindings
trt = sys.modules["tensorrt"] = tensorrt_bindings
from runtime.trt import execution, plan
from runtime.trt.log import open_log
from runtime.trt.library import release_of

release = release_of(trt.__version__)
logger = open_log(trt)
for severity in (trt.ILogger.ERROR, trt.ILogger.WARNING, trt.ILogger.INFO):
    logger.log(severity, severity.name)
assert logger.lines == ["WARNING", "ERROR"], logger.lines
try:
    trt.Builder(logger)
except TypeError:  # what build_plan expects where TensorRT makes no builder
    pass
else:
    raise AssertionError
profile = execution.open_profiler(trt)
profile.report_layer_time("conv", 1.5), profile.report_layer_time("conv", 0.5)
assert profile.total_ms == {"conv": 2.0}
assert hasattr(trt.ICudaEngine, "device_memory_size_v2") or hasattr(trt.ICudaEngine, "device_memory_size")
flags = plan._network_flags(release)
kinds = trt.NetworkDefinitionCreationFlag
wanted = kinds.EXPLICIT_BATCH if release < (10, 13) else kinds.STRONGLY_TYPED
assert flags == 1 << int(wanted), flags
if release >= (10, 0):
    from runtime.trt.v10 import ProgressMonitor
    from runtime.trt.progress import PhaseBars

    monitor = ProgressMonitor(PhaseBars())
    monitor.phase_start("Build", None, 2), monitor.phase_start("Tactics", "Build", 3)
    assert monitor.step_complete("Build", 0) is True
    monitor.phase_finish("Tactics"), monitor.phase_finish("Build")
else:
    from runtime.trt.v8 import drop_tactic_sources

    sources = trt.TacticSource
    config = types.SimpleNamespace(get_tactic_sources=lambda: 0xFF, set_tactic_sources=lambda x: got.append(x))
    got = []
    drop_tactic_sources(config)
    dropped = (1 << int(sources.CUBLAS)) | (1 << int(sources.CUBLAS_LT)) | (1 << int(sources.CUDNN))
    assert got == [0xFF & ~dropped], got

if release < (10, 13):  # which layers are held in FP32: a chain conv - norm - conv - resize, the last conv quantised or not
    from runtime.trt.weakly_typed import hold_in_float

    class Layer:
        def __init__(self, kind, inputs, output):
            tensor = lambda name: types.SimpleNamespace(name=name, dtype=trt.DataType.FLOAT)
            self.type, self.inputs, self.outputs = kind, [tensor(i) for i in inputs], [tensor(output)]
            self.num_inputs, self.num_outputs, self.precision, self.types = len(inputs), 1, None, {}
            self.get_input, self.get_output = self.inputs.__getitem__, self.outputs.__getitem__

        def set_output_type(self, index, dtype):
            self.types[index] = dtype

    def held(quantised):
        kind = trt.LayerType
        chain = [Layer(kind.CONVOLUTION, ["in"], "a"), Layer(kind.NORMALIZATION, ["a"], "b")]
        if quantised:
            chain.append(Layer(kind.DEQUANTIZE, ["b"], "q"))
        chain += [
            Layer(kind.CONSTANT, [], "bias"),
            Layer(kind.CONVOLUTION, ["q" if quantised else "b"], "c"),
            Layer(kind.ELEMENTWISE, ["c", "bias"], "d"),
            Layer(kind.RESIZE, ["d"], "out"),
        ]
        network = types.SimpleNamespace(
            num_layers=len(chain), get_layer=chain.__getitem__, num_outputs=1, get_output=lambda i: chain[-1].outputs[0]
        )
        count = hold_in_float(network)
        names = [layer.outputs[0].name for layer in chain if layer.precision == trt.DataType.FLOAT]
        assert count == len(names) and all(layer.types for layer in chain if layer.precision)
        return names

    assert held(False) == ["b", "c", "d", "out"], held(False)
    assert held(True) == ["b", "d", "out"], held(True)
print("done", trt.__version__)
"""


@pytest.mark.parametrize("version", WHEELS)
def test_our_classes_work_over_the_bindings_of(version, dummies):
    """Subclasses of TensorRT's, flags and the choice of layers; the network is made up: TensorRT makes none here."""
    assert run_over(dummies, version, "-c", OVER_BINDINGS).startswith("done")


OVER_CUDA = """
import ast, json, sys
from pathlib import Path
from runtime.trt import cuda_runtime
from segcore.errors import InputError

rt = cuda_runtime.import_runtime()
source = Path(cuda_runtime.__file__).read_text()
names, wrong = set(), []
for node in ast.walk(ast.parse(source)):
    if isinstance(node, ast.Attribute) and ast.unparse(node).startswith("self._rt."):
        names.add(ast.unparse(node).removeprefix("self._rt."))
    if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("self._rt."):
        name = ast.unparse(node.func).removeprefix("self._rt.")
        signature = (getattr(rt, name).__doc__ or "").splitlines()[0]
        given = signature.partition("(")[2].rpartition(")")[0]
        if len(node.args) != (given.count(",") + 1 if given.strip() else 0):
            wrong.append(signature)
for name in names:
    value = rt
    for part in name.split("."):
        value = getattr(value, part)
properties = {"name", "major", "minor", "multiProcessorCount", "totalGlobalMem", "integrated"}
assert properties <= set(dir(rt.cudaDeviceProp())) and all(f"found.{p}" in source for p in properties)
assert wrong == [], wrong
assert rt.cudaError_t.cudaErrorNoDevice.name == "cudaErrorNoDevice"
assert all(hasattr(rt.cudaError_t, name) for name in cuda_runtime._NO_GPU)
try:
    cuda_runtime.CudaPython()
    said = "there is a GPU"
except InputError as error:
    said = str(error)
print(json.dumps([rt.__name__, len(names) + len(properties), said]))
"""


@pytest.mark.parametrize("version", CUDA_WHEELS)
def test_every_name_exists_in_cuda_python(version, capsys):
    folder = fetched(STORE / f"cuda-{version}", *CUDA_WHEELS[version])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(folder), str(ROOT)))}
    done = subprocess.run(
        [sys.executable, "-c", OVER_CUDA], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    module, names, said = json.loads(done.stdout)
    assert module == ("cuda.cudart" if version.startswith("12.2") else "cuda.bindings.runtime")
    assert names >= 20
    assert said == "there is a GPU" or said.startswith(
        "GPU: must be there to build or run a TensorRT engine, is not (CUDA: "
    )
    with capsys.disabled():
        print(f"\ncuda-python {version}: {names} names checked")
