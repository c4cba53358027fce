"""Our code around TensorRT, with a stand-in for TensorRT and CUDA in ordinary memory: order, reuse, release, messages.

Not run on a device. The stand-in's names are those that tests/test_runtime_tensorrt_api.py checks against NVIDIA's bindings;
its streams do nothing until they are waited for, so a result that is read too early is wrong here too.
"""

import importlib
import importlib.util
import os
import subprocess
import sys
import types
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from runtime.engines.seam import EngineOptions
from runtime.trt import cuda_runtime
from runtime.trt.cuda_runtime import CudaError, GpuDevice
from runtime.trt.engine import open_model
from runtime.trt.plan_request import PlanRequest
from runtime.trt.target import identify_device
from segcore.bundle.folder import open_bundle, seal_bundle
from segcore.bundle.golden import save_golden
from segcore.bundle.manifest import DataRecord
from segcore.errors import InputError
from segcore.host import made_now
from segcore.picture.preprocess import InputSpec, output_spec

ORIN = GpuDevice("Orin", "8.7", 8, 7620, integrated=True)
SHAPES = {"picture": (2, 4, 4, 1), "logits": (2, 1, 2, 2)}


def compute_logits(pictures):
    """What the stand-in's engine computes: every second pixel, less 128."""
    return np.ascontiguousarray(pictures[:, None, ::2, ::2, 0].astype(np.float32) - 128)


def tensorrt_stand_in(gpu, version):
    """A module with what our code names. An engine picks pixels; a builder does what `trt.script` says."""
    trt = types.ModuleType("tensorrt")
    trt.__spec__ = importlib.util.spec_from_loader("tensorrt", None)
    trt.__version__, trt.contexts, trt.calls, trt.script = version, [], [], {}

    class Kind(int):
        def __new__(cls, number, name):
            made = super().__new__(cls, number)
            made.name = name
            return made

    def enum(*names):
        return types.SimpleNamespace(**{name: Kind(i, name) for i, name in enumerate(names)})

    class Plain:
        def __init__(self, *_):
            pass

    class ILogger(Plain):
        ERROR, WARNING, INFO = Kind(1, "ERROR"), Kind(2, "WARNING"), Kind(3, "INFO")
        Severity = Kind

    class Context:
        def __init__(self):
            self.addresses, self.profiler = {}, None
            if "contexts" in trt.script:
                trt.contexts.append(self)

        def set_tensor_address(self, name, pointer):
            self.addresses[name] = pointer
            return True

        def execute_async_v3(self, stream):
            def compute():
                pictures = gpu.memory[self.addresses["picture"]].reshape(SHAPES["picture"])
                logits = compute_logits(pictures)
                gpu.memory[self.addresses["logits"]][...] = logits.view(np.uint8).ravel()
                if self.profiler:
                    self.profiler.report_layer_time("conv", 2.0)

            gpu.queues[stream].append(compute)
            return True

    class Engine:
        num_io_tensors, device_memory_size, device_memory_size_v2 = 2, 1 << 20, 1 << 20

        def get_tensor_name(self, i):
            return list(SHAPES)[i]

        def get_tensor_mode(self, name):
            return trt.TensorIOMode.INPUT if name == "picture" else trt.TensorIOMode.OUTPUT

        def get_tensor_shape(self, name):
            return SHAPES[name]

        def get_tensor_dtype(self, name):
            return trt.DataType.UINT8 if name == "picture" else trt.script.get("output", trt.DataType.FLOAT)

        def create_execution_context(self):
            return Context() if len(trt.contexts) < trt.script.get("contexts", 99) else None

    class Runtime:
        def __init__(self, logger):
            self.logger = logger

        def deserialize_cuda_engine(self, plan):
            trt.calls.append(plan)
            if plan != b"plan":
                self.logger.log(ILogger.ERROR, "magic tag does not match")
                return None
            return Engine()

    class Recorder:
        def __getattr__(self, name):
            return lambda *words, **named: trt.calls.append((name, *words)) or trt.script.get(name, True)

    class Builder:
        def __init__(self, logger):
            self.logger = logger

        def create_network(self, flags):
            trt.calls.append(("create_network", flags))
            return types.SimpleNamespace(num_layers=0, num_outputs=0)

        def create_builder_config(self):
            trt.config = Recorder()
            return trt.config

        def build_serialized_network(self, network, config):
            for line in trt.script.get("log", ()):
                self.logger.log(ILogger.ERROR, line)
            return trt.script.get("plan")

    class OnnxParser:
        num_errors = 1

        def __init__(self, network, logger): ...

        def parse(self, model):
            return not trt.script.get("parser")

        def get_error(self, i):
            return types.SimpleNamespace(node=lambda: 12, desc=lambda: trt.script["parser"])

    trt.ILogger, trt.IProfiler, trt.IProgressMonitor, trt.Runtime = ILogger, Plain, Plain, Runtime
    trt.Builder, trt.OnnxParser, trt.ICudaEngine, trt.IExecutionContext = Builder, OnnxParser, Engine, Context
    trt.IBuilderConfig, trt.INetworkDefinition, trt.ILayer = Recorder, Plain, Plain
    trt.DataType, trt.TensorIOMode = enum("FLOAT", "HALF", "UINT8"), enum("NONE", "INPUT", "OUTPUT")
    trt.BuilderFlag = enum("FP16", "INT8", "OBEY_PRECISION_CONSTRAINTS", "TF32")
    trt.NetworkDefinitionCreationFlag = enum("EXPLICIT_BATCH", "STRONGLY_TYPED")
    trt.MemoryPoolType, trt.ProfilingVerbosity = enum("WORKSPACE", "TACTIC_DRAM"), enum("DETAILED")
    trt.LayerType = enum(
        *"CONVOLUTION DECONVOLUTION MATRIX_MULTIPLY NORMALIZATION SOFTMAX DEQUANTIZE CONSTANT".split()  # noqa: SIM905
    )
    trt.TacticSource = enum("CUBLAS", "CUBLAS_LT", "CUDNN")
    return trt


OURS = ("plan", "v10", "v8", "weakly_typed", "strongly_typed")


@pytest.fixture(params=["cuda-python", "pycuda"])
def bench(monkeypatch, request, cuda_stand_ins):
    """Our modules over a stand-in of a TensorRT version and of each CUDA library: (tensorrt, gpu)."""

    def open_bench(version="10.3.0", fails_at=-1):
        cuda_runtime._primary_context.cache_clear()
        gpu = cuda_stand_ins.HostGpu(fails_at)
        trt = tensorrt_stand_in(gpu, version)
        monkeypatch.setitem(sys.modules, "tensorrt", trt)
        monkeypatch.setenv(cuda_runtime.CHOICE, request.param)
        cuda_stand_ins.install(monkeypatch.setitem, gpu, request.param)
        for module in OURS:
            monkeypatch.delitem(sys.modules, f"runtime.trt.{module}", raising=False)
        return trt, gpu

    yield open_bench
    for module in OURS:
        sys.modules.pop(f"runtime.trt.{module}", None)
    cuda_runtime._primary_context.cache_clear()


def open_plan(path, *, streams, target):
    return open_model(path, EngineOptions("int8", 1, streams, target))


def build_plan(request):
    return importlib.import_module("runtime.trt.plan").build_plan(request)


def plan_file(tmp_path, content=b"plan"):
    path = tmp_path / "model.plan"
    path.write_bytes(content)
    return path


def target(version="10.3.0"):
    return identify_device(version, ORIN).target_for(onnx="model.onnx", onnx_sha256="0" * 64, flags=())


def pictures(n, first=0):
    return np.stack([np.full((4, 4, 1), first + i, np.uint8) for i in range(n)])


def sums(logits):
    assert (logits == logits[:, :, :1, :1]).all()
    return (logits[:, 0, 0, 0] + 128).astype(int).tolist()


def test_run_takes_any_number_of_pictures_and_allocates_once(bench, tmp_path):
    _, gpu = bench()
    engine = open_plan(plan_file(tmp_path), streams=1, target=target())
    assert (engine.version, engine.batch) == ("10.3.0", 2)
    assert gpu.allocations == 2
    first = engine.run(pictures(5))
    assert first.shape == (5, 1, 2, 2)
    assert first.dtype == np.float32
    assert sums(first) == [0, 1, 2, 3, 4]
    assert sums(engine.run(pictures(1, 9))) == [9]
    assert sums(first) == [0, 1, 2, 3, 4]  # not the engine's own memory
    assert gpu.allocations == 2
    with pytest.raises(ValueError, match="batch must be 1 to 2 pictures of"):
        engine.run(np.zeros((1, 5, 4, 1), np.uint8))
    engine.close()
    assert gpu.held == 0
    engine.close()


def test_stream_keeps_order_and_pulls_no_further_than_it_may(bench, tmp_path):
    _, gpu = bench()
    engine = open_plan(plan_file(tmp_path), streams=3, target=target())
    pulled = []

    def source():
        for i in range(7):
            pulled.append(i)
            yield pictures(1 + i % 2, 10 * i)

    seen = []
    for logits in engine.stream(source(), in_flight=2):
        seen.append(sums(logits)[0] // 10)
        assert len(pulled) - len(seen) <= 1
    assert seen == list(range(7))
    kept = list(engine.stream([pictures(2, i) for i in range(9)], in_flight=99))
    assert [sums(logits) for logits in kept] == [
        [i, i + 1] for i in range(9)
    ]  # the caller's own, not overwritten
    broken = engine.stream([pictures(1, 1), np.zeros((1, 1, 1, 1), np.uint8)], in_flight=2)
    assert sums(next(broken)) == [1]
    with pytest.raises(ValueError, match="batch must be"):
        next(broken)
    left = engine.stream(source(), in_flight=3)
    next(left)
    left.close()  # the caller has seen enough: nothing stays under way
    assert not any(gpu.queues.values())
    assert sums(engine.run(pictures(2, 3))) == [3, 4]
    engine.close()
    assert gpu.held == 0


def test_figures_for_the_device_report(bench, tmp_path):
    for version in ("8.6.2", "10.3.0"):
        _, gpu = bench(version)
        engine = open_plan(plan_file(tmp_path), streams=2, target=target(version))
        assert engine.time_engine(3) == (1.5, 1.5, 1.5)
        gpu.wait(next(iter(gpu.queues)))
        assert engine.profile_layers(4) == {"conv": 2.0}
        assert engine.device_memory_mib() == pytest.approx(2 + 2 * (32 + 32) / 2**20)
        engine.close()
        assert gpu.held == 0


@pytest.mark.parametrize("fails_at", [1, 2, 3, 4])
def test_what_was_allocated_is_freed_when_memory_runs_out(bench, tmp_path, fails_at):
    _, gpu = bench(fails_at=fails_at)
    with pytest.raises(
        CudaError, match=r"(cudaMalloc: out of memory|mem_alloc: cuMemAlloc failed: out of memory)"
    ):
        open_plan(plan_file(tmp_path), streams=2, target=target())
    assert gpu.held == 0


def test_engines_that_do_not_open_leave_nothing_behind(bench, tmp_path):
    trt, gpu = bench()
    with pytest.raises(
        InputError, match=r"must be built for TensorRT 10\.3\.0 .* got one for TensorRT 8\.6\.2"
    ):
        open_plan(plan_file(tmp_path), streams=1, target=target("8.6.2"))
    assert trt.calls == []  # refused before TensorRT saw the file
    with pytest.raises(
        InputError, match=r"must load in TensorRT 10\.3\.0, does not \(magic tag does not match\); build"
    ):
        open_plan(plan_file(tmp_path, b"damaged"), streams=1, target=target())
    trt.script["contexts"] = 1
    with pytest.raises(
        InputError, match="memory: must be enough for 2 engine contexts, is not; give fewer streams"
    ):
        open_plan(plan_file(tmp_path), streams=2, target=target())
    trt.script = {"output": trt.DataType.HALF}
    with pytest.raises(InputError, match="must have one uint8 input and one float32 output"):
        open_plan(plan_file(tmp_path), streams=1, target=target())
    assert gpu.held == 0


def test_any_thread_may_ask_and_leaves_no_context_behind(bench, tmp_path):
    """The page answers in threads of its own; pycuda's contexts belong to a thread."""
    _, gpu = bench()
    with ThreadPoolExecutor(1) as opener, ThreadPoolExecutor(1) as other:
        path = plan_file(tmp_path)
        engine = opener.submit(open_plan, path, streams=1, target=target()).result()
        assert sums(other.submit(engine.run, pictures(2, 4)).result()) == [4, 5]
        assert other.submit(engine.time_engine, 2).result() == (1.5, 1.5)
        other.submit(engine.close).result()
        assert other.submit(lambda: list(gpu.contexts)).result() == []
    assert gpu.held == 0
    again = open_plan(path, streams=1, target=target())
    assert sums(again.run(pictures(1, 7))) == [7]
    again.close()


def test_without_a_gpu_one_line_says_so(bench):
    _, gpu = bench()
    gpu.present = False
    with pytest.raises(
        InputError, match=r"^GPU: must be there to build or run a TensorRT engine, is not \(CUDA: "
    ):
        cuda_runtime.open_cuda()


def request(tmp_path, precision="int8"):
    (tmp_path / "model.onnx").write_bytes(b"graph")
    cache = tmp_path / "timings"
    return PlanRequest(tmp_path / "model.onnx", tmp_path / "model.plan", precision, cache, 200)


@pytest.mark.parametrize("version", ["8.6.2", "10.3.0", "10.13.3", "11.4.0"])
def test_a_plan_is_built_with_the_versions_own_settings(bench, tmp_path, version, capsys):
    trt, gpu = bench(version)
    trt.script |= {"plan": b"plan", "get_tactic_sources": 0b1111}
    trt.script |= {"get_timing_cache": types.SimpleNamespace(serialize=lambda: b"timings")}
    built = build_plan(request(tmp_path))
    assert (tmp_path / "model.plan").read_bytes() == b"plan"
    assert (tmp_path / "timings").read_bytes() == b"timings"
    weak = version in ("8.6.2", "10.3.0")
    expected = (
        ("FP16", "OBEY_PRECISION_CONSTRAINTS", "INT8", "0 layers held in FP32")
        if weak
        else ("STRONGLY_TYPED",)
    )
    assert built.flags == expected
    assert built.identity.tensorrt == version
    flag = trt.NetworkDefinitionCreationFlag
    assert ("create_network", 1 << int(flag.EXPLICIT_BATCH if weak else flag.STRONGLY_TYPED)) in trt.calls
    assert ("set_memory_pool_limit", trt.MemoryPoolType.WORKSPACE, 200 << 20) in trt.calls
    assert (
        "set_memory_pool_limit",
        trt.MemoryPoolType.TACTIC_DRAM,
        built.limits.tactic_dram_mib << 20,
    ) in trt.calls
    assert ("clear_flag", trt.BuilderFlag.TF32) in trt.calls
    assert (("set_tactic_sources", 0b1000) in trt.calls) == (version == "8.6.2")
    assert trt.config.builder_optimization_level == 3
    assert trt.config.profiling_verbosity == trt.ProfilingVerbosity.DETAILED
    assert hasattr(vars(trt.config).get("progress_monitor"), "step_complete") == (version != "8.6.2")
    assert gpu.held == 0
    assert "building model.plan from model.onnx with TensorRT" in capsys.readouterr().err
    build_plan(request(tmp_path))
    assert ("create_timing_cache", b"timings") in trt.calls  # the second build begins with the first one's


def test_fp32_sets_no_precision_flag(bench, tmp_path):
    trt, _ = bench()
    trt.script |= {"plan": b"plan", "get_timing_cache": None}
    assert build_plan(request(tmp_path, "fp32")).flags == ()
    assert not any(call[0] == "set_flag" for call in trt.calls)


def test_a_build_that_fails_leaves_no_plan(bench, tmp_path):
    trt, gpu = bench()
    trt.script["log"] = [
        "Tactic Device request: 538MB Available: 166MB. Device memory is insufficient to use tactic."
    ]
    with pytest.raises(
        InputError, match=r"memory: must be enough to build model\.onnx with TensorRT 10\.3\.0, was not"
    ):
        build_plan(request(tmp_path))
    trt.script["parser"] = "unsupported operator"
    with pytest.raises(
        InputError, match=r"model\.onnx, node number 12: must be readable by TensorRT 10\.3\.0, is not"
    ):
        build_plan(request(tmp_path))
    assert gpu.held == 0
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]


SITE = """
import importlib.util, sys
def load(path):
    spec = importlib.util.spec_from_file_location("stand_in", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
stand_in, cuda = load({path!r}), load({cuda!r})
gpu = cuda.HostGpu()
cuda.install(dict.__setitem__, gpu, "cuda-python")
trt = sys.modules["tensorrt"] = stand_in.tensorrt_stand_in(gpu, "10.3.0")
stand_in.SHAPES |= dict(picture=(1, 4, 4, 1), logits=(1, 1, 2, 2))
trt.script |= {script}
"""
BUILD = """
import sys
from pathlib import Path
from runtime.trt.build import build_bundle
from runtime.verify import verify_bundle
from segcore.bundle import open_bundle
from segcore.errors import GateError, InputError

if __name__ == "__main__":
    try:
        build_bundle(open_bundle("source"), Path("out"), timing_cache=Path("timings"), workspace_mib=64)
        print(verify_bundle(open_bundle("out")).engine_version)
    except (InputError, GateError) as error:
        print(type(error).__name__, error)
"""


def build_over_stand_in(folder, *, plan=b"plan", error=0.0):
    """Runs `build_bundle` with its child processes; `error` is added to the golden logits."""
    inputs = np.random.default_rng(0).integers(0, 256, (3, 4, 4, 1), np.uint8)
    source = folder / "source"
    source.mkdir()
    (source / "model.onnx").write_bytes(b"\x12\x05graph")  # ONNX by its first bytes
    save_golden(source, inputs, compute_logits(inputs) + error)
    seal_bundle(
        source,
        name="student, INT8",
        kind="student",
        format="tensorrt-onnx",
        precision="int8",
        architecture="student",
        architecture_settings={},
        classes=("lung",),
        input=InputSpec(height_px=4, width_px=4, channels=1, mean=(0.5,), std=(0.25,)),
        output=output_spec(("lung",), 2),
        parameters=1,
        trained_parameters=1,
        macs=1,
        pretrained="no pretrained weights",
        data=DataRecord(name="d", sha256="0" * 64, split_sha256="0" * 64),
        made=made_now(),
        model_file="model.onnx",
    )
    cache = "stand_in.types.SimpleNamespace(serialize=lambda: b'timings')"
    script = f"{{'plan': {plan!r}, 'get_timing_cache': {cache}}}"
    (folder / "sitecustomize.py").write_text(
        SITE.format(path=__file__, cuda=str(Path(__file__).with_name("cuda_stand_ins.py")), script=script)
    )
    (folder / "main.py").write_text(BUILD)
    paths = os.pathsep.join((str(folder), str(Path(__file__).parents[1])))
    return subprocess.run(
        [sys.executable, "main.py"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=True,
    )


def test_a_bundle_is_built_in_a_child_sealed_and_verified(tmp_path):
    assert build_over_stand_in(tmp_path).stdout == "10.3.0\n"
    bundle = open_bundle(tmp_path / "out")
    manifest = bundle.manifest
    assert (tmp_path / "timings").read_bytes() == b"timings"
    assert set(manifest.files) == {"model.plan", "golden.npz", "MODEL_CARD.md"}
    assert manifest.engine_target.gpu == "Orin, 8 multiprocessors"
    assert manifest.engine_target.flags[:3] == ("FP16", "OBEY_PRECISION_CONSTRAINTS", "INT8")
    assert (
        manifest.engine_target.onnx_sha256
        == open_bundle(tmp_path / "source").manifest.files["model.onnx"].sha256
    )
    assert manifest.gate == {
        "golden_cases": 3.0,
        "tensorrt_golden_mean_share": 0.0,
        "tensorrt_golden_worst_share": 0.0,
    }


def test_an_engine_that_computes_other_masks_is_not_kept(tmp_path):
    text = build_over_stand_in(tmp_path, error=100.0).stdout
    assert text.startswith("GateError the built engine in TensorRT 10.3.0: ")
    assert "of pixels differ on average" in text
    assert not list(tmp_path.glob("out*"))


def test_a_build_that_fails_in_the_child_leaves_nothing(tmp_path):
    text = build_over_stand_in(tmp_path, plan=None).stdout
    assert text == (
        "InputError model.onnx: must build with TensorRT 10.3.0, does not (it did not say why); export it again\n"
    )
    assert not list(tmp_path.glob("out*"))


# --- which of CUDA's libraries ---


def test_cuda_python_comes_before_pycuda_unless_one_is_chosen(monkeypatch, cuda_stand_ins):
    monkeypatch.delenv(cuda_runtime.CHOICE, raising=False)
    cuda_runtime._primary_context.cache_clear()
    gpu = cuda_stand_ins.HostGpu()
    cuda_stand_ins.install(monkeypatch.setitem, gpu, "pycuda")
    monkeypatch.setattr(cuda_runtime, "_RUNTIMES", ("nobodys.cuda",))
    assert cuda_runtime.open_cuda().library == "pycuda"
    monkeypatch.undo()
    for library in ("cuda-python", "pycuda"):
        cuda_stand_ins.install(monkeypatch.setitem, gpu, library)
    monkeypatch.setenv(cuda_runtime.CHOICE, "")
    assert cuda_runtime.open_cuda().library == "cuda-python"
    cuda_runtime.choose_cuda("pycuda")
    assert cuda_runtime.open_cuda().library == "pycuda"
    monkeypatch.setenv(cuda_runtime.CHOICE, "cupy")
    with pytest.raises(
        InputError, match="SAM2EDGE_CUDA_LIBRARY: must be one of cuda-python, pycuda, got cupy"
    ):
        cuda_runtime.open_cuda()
    cuda_runtime._primary_context.cache_clear()


def test_a_folder_named_cuda_is_no_cuda_python(tmp_path, monkeypatch):
    (tmp_path / "cuda" / "bin").mkdir(parents=True)
    code = "from runtime.trt import cuda_runtime as c; c._RUNTIMES = ('cuda.no_bindings.runtime', 'cuda.no_cudart')\n"
    code += "try: c.open_cuda()\nexcept c.InputError as error: print(error)"
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith(
        "cuda-python: must be installed to run an engine on a GPU, is not; run: pip install"
    )
    assert "tensorrt" not in done.stdout  # which on a Jetson does not come from there


@pytest.mark.parametrize(
    ("reason", "said"),
    [
        (
            "numpy.core.multiarray failed to import",
            r"^pycuda: must load with numpy \S+, does not \(numpy\.core",
        ),
        (
            "libcuda.so.1: cannot open shared object file",
            r"^GPU: must be there .* \(CUDA: libcuda\.so\.1: cannot",
        ),
    ],
)
def test_a_pycuda_that_does_not_load_is_one_line(tmp_path, monkeypatch, reason, said):
    (tmp_path / "pycuda").mkdir()
    (tmp_path / "pycuda/__init__.py").touch()
    (tmp_path / "pycuda/driver.py").write_text(f"raise ImportError({reason!r})")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv(cuda_runtime.CHOICE, "pycuda")
    cuda_runtime._primary_context.cache_clear()
    with pytest.raises(InputError, match=said):
        cuda_runtime.open_cuda()
    sys.modules.pop("pycuda", None)
