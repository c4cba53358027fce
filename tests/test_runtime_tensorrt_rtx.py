"""NVIDIA's own parser and compiler read what is exported for TensorRT, and refuse what is broken, in their own words."""

import importlib.util
import json
import os
import sys
import types
from pathlib import Path

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")

from export.__main__ import ExportSettings, export_bundle  # noqa: E402
from export.compiler import judge_graphs  # noqa: E402
from runtime.engines.seam import EngineOptions, engines_for, installed  # noqa: E402
from runtime.trt import cuda_runtime, rtx  # noqa: E402
from runtime.trt.build import run_apart  # noqa: E402
from runtime.trt.rtx import ENGINE, Compilation, CompileRequest, compile_apart  # noqa: E402
from runtime.verify import verify_bundle  # noqa: E402
from segcore.bundle.folder import open_bundle  # noqa: E402
from segcore.bundle.manifest import CompiledGraph, EngineTarget  # noqa: E402
from segcore.errors import GateError, InputError  # noqa: E402

there = pytest.mark.skipif(
    not installed(ENGINE), reason="TensorRT for RTX is not installed (Linux on x86-64 only)"
)


@there
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_it_compiles_every_graph_that_is_exported(exported, precision):
    manifest = open_bundle(exported("tensorrt", precision)).manifest
    files, guard = {name for name in manifest.files if name.endswith(".onnx")}, manifest.guard
    assert {graph.file for graph in manifest.compiled.graphs} == files
    assert len(files) == (1 if precision == "fp32" else 2)
    assert manifest.compiled.compiler.startswith("TensorRT for RTX 1.")
    for graph in manifest.compiled.graphs:
        assert not graph.refused
        assert graph.layers > 20
        assert graph.plan_bytes > 100_000
        assert graph.activation_bytes > 0
        assert graph.seconds > 0
        assert 10 < graph.kernels < graph.layers
        # Whatever was quantised came through the compiler's fusion in INT8.
        assert graph.int8_found == graph.int8_expected == (len(guard.int8_nodes) if guard else 0)


@there
def test_a_graph_that_it_refuses_is_told_with_its_node(exported, tmp_path):
    path = exported("tensorrt", "fp32") / "model.onnx"
    model = onnx.load(path)
    (node, *_) = (node for node in model.graph.node if node.op_type == "Relu")
    node.op_type = "Celestial"
    (tmp_path / "bad.onnx").write_bytes(model.SerializeToString())
    found = compile_apart(CompileRequest(tmp_path / "bad.onnx", ("8.6",))).graph
    assert found.refused.startswith(f"node {node.name}: ")
    assert "Plugin not found" in found.refused
    assert "\n" not in found.refused
    with pytest.raises(GateError) as caught:
        judge_graphs(tmp_path, must_compile=True)
    assert str(caught.value).startswith("bad.onnx: must compile with TensorRT for RTX 1.")
    verdict = judge_graphs(tmp_path, must_compile=False)
    assert [graph.refused for graph in verdict.graphs] == [found.refused]


@there
def test_what_is_no_graph_is_refused(tmp_path):
    (tmp_path / "bad.onnx").write_bytes(b"not a graph")
    found = compile_apart(CompileRequest(tmp_path / "bad.onnx", ("8.6",))).graph
    assert found.refused
    assert not found.layers


def kill_self(number):
    os.kill(os.getpid(), number)


def test_a_compiler_that_dies_is_a_refusal(monkeypatch, tmp_path):
    # Its process is a real one; only what it does in there is another thing.
    monkeypatch.setattr(
        rtx, "run_apart", lambda _, __, *, what, died: run_apart(kill_self, 9, what=what, died=died)
    )
    compilation = compile_apart(CompileRequest(tmp_path / "m.onnx", ("8.6",)))
    assert compilation.version == ""
    assert compilation.graph == CompiledGraph(
        file="m.onnx",
        refused="the compiler's process died (the system killed it, most likely for want of memory)",
    )


def test_a_refusal_ends_the_export_unless_it_is_told_not_to(torch_bundle, monkeypatch, tmp_path):
    def refuse(request):
        graph = CompiledGraph(file=request.onnx.name, refused="node head: it would rather not")
        return Compilation("9.9", graph)

    monkeypatch.setattr("export.compiler.installed", lambda _: True)
    monkeypatch.setattr("export.compiler.compile_apart", refuse)
    settings = ExportSettings(bundle=torch_bundle, to="tensorrt", out=tmp_path / "out")
    with pytest.raises(
        GateError, match=r"must compile with TensorRT for RTX 9\.9, does not: node head: it would rather"
    ):
        export_bundle(settings)
    assert list(tmp_path.iterdir()) == []
    export_bundle(settings.model_copy(update={"builder_check": False}))
    told = json.loads((tmp_path / "out/manifest.json").read_text())["compiled"]
    assert told["graphs"][0]["refused"] == "node head: it would rather not"
    assert "refused: node head: it would rather not" in (tmp_path / "out/MODEL_CARD.md").read_text()


def test_without_it_the_export_says_so(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("export.compiler.installed", lambda _: False)
    assert judge_graphs(tmp_path, must_compile=True) is None
    assert (
        "not judged by NVIDIA's compiler: to have it, pip install 'sam2edge[tensorrt-rtx]'"
        in capsys.readouterr().err
    )


def test_a_library_that_is_not_there_or_does_not_load_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr("runtime.engines.seam._IMPORTED_AS", {ENGINE: ("tensorrt_of_nobody",)})
    with pytest.raises(
        InputError,
        match=r"^tensorrt-rtx: must be installed, is not; run: pip install 'sam2edge\[tensorrt-rtx\]'",
    ):
        rtx.import_rtx()
    (tmp_path / "tensorrt_of_nobody.py").write_text("raise ImportError('libtensorrt_rtx.so.1: cannot open')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(
        InputError, match=r"^tensorrt_of_nobody: must load, does not \(libtensorrt_rtx.so.1: cannot"
    ):
        rtx.import_rtx()


# --- a target of its own: --to tensorrt-rtx ---


@there
def test_one_command_makes_an_engine_for_rtx_cards(torch_bundle, exported, tmp_path):
    settings = ExportSettings(bundle=torch_bundle, to="tensorrt-rtx", precision="fp16", out=tmp_path / "out")
    manifest = export_bundle(settings)
    assert (manifest.format, manifest.precision, manifest.model_file) == (
        "tensorrt-rtx",
        "fp16",
        "model.plan",
    )
    assert manifest.engine_target.compute_capability == "8.0, 8.6, 8.9, 12.0"
    assert manifest.engine_target.onnx == "model-fp16typed.onnx"
    (graph,) = manifest.compiled.graphs
    assert manifest.files["model.plan"].bytes == graph.plan_bytes
    assert engines_for(open_bundle(tmp_path / "out")) == ("tensorrt-rtx",)
    card = (tmp_path / "out/MODEL_CARD.md").read_text()
    assert (
        "Runs only on NVIDIA GPUs of compute capability 8.0, 8.6, 8.9, 12.0, with TensorRT for RTX 1." in card
    )
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    # The same of a bundle of graphs, for Turing alone.
    asked = {
        "bundle": exported("tensorrt", "fp16"),
        "compute_capability": ("7.5",),
        "out": tmp_path / "turing",
    }
    assert export_bundle(settings.model_copy(update=asked)).engine_target.compute_capability == "7.5"
    with pytest.raises(InputError, match=r"--out .*: must not exist yet, it does; add --overwrite"):
        export_bundle(settings)
    with pytest.raises(
        InputError, match=r"^--compute-capability: must be of 7\.5, 8\.0, .*, got 8\.7; 8\.6 is that of"
    ):
        export_bundle(
            settings.model_copy(update={**asked, "compute_capability": ("8.7",), "out": tmp_path / "no"})
        )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "turing"]


@there
@pytest.mark.skipif(Path("/dev/nvidia0").exists(), reason="there is a GPU")
def test_the_library_itself_says_what_is_missing_where_there_is_no_gpu(torch_bundle, tmp_path):
    export_bundle(ExportSettings(bundle=torch_bundle, to="tensorrt-rtx", out=tmp_path / "out"))
    with pytest.raises(InputError, match=r"^(GPU: must be there|cuda-python: must be installed)"):
        verify_bundle(open_bundle(tmp_path / "out"))


# --- opening an engine, over a stand-in: there is no card here ---


def rtx_stand_in(gpu, version="1.7.1.116"):
    """What RtxEngine names of the library. An engine halves its pictures; kernels are what contexts were made."""
    library = types.ModuleType("tensorrt_rtx_bindings")
    library.__spec__ = importlib.util.spec_from_loader(library.__name__, None)
    library.__version__, library.validity, library.kernels_made = version, (0, 0), 0

    class ILogger:
        ERROR, WARNING, INFO = 1, 2, 3

    class Kernels:
        def __init__(self):
            self.held = b""

        def deserialize(self, blob):
            self.held = bytes(blob)
            return True

        def serialize(self):
            return self.held

    class Config:
        def create_runtime_cache(self):
            return Kernels()

        def set_runtime_cache(self, kernels):
            self.kernels = kernels
            return True

    class Context:
        def set_tensor_address(self, name, pointer):
            setattr(self, name, pointer)
            return True

        def execute_async_v3(self, stream):
            def compute():
                halves = gpu.memory[self.picture].astype(np.float32) / 2
                gpu.memory[self.logits][...] = halves.view(np.uint8)

            gpu.queues[stream].append(compute)
            return True

    class Engine:
        num_io_tensors = 2

        def get_tensor_name(self, i):
            return ("picture", "logits")[i]

        def get_tensor_mode(self, name):
            return name

        def get_tensor_shape(self, name):
            return (1, 2, 2, 1) if name == "picture" else (1, 1, 2, 2)

        def get_tensor_dtype(self, name):
            return "uint8" if name == "picture" else "float"

        def create_runtime_config(self):
            return Config()

        def create_execution_context(self, config):
            if not config.kernels.held:
                library.kernels_made += 1
                config.kernels.held = b"kernels"
            return Context()

    class Runtime:
        engine_header_size = 4

        def __init__(self, logger):
            pass

        def get_engine_validity(self, header):
            assert header == b"plan"
            return library.validity

        def deserialize_cuda_engine(self, plan):
            return Engine()

    library.ILogger, library.Runtime = ILogger, Runtime
    library.TensorIOMode = types.SimpleNamespace(INPUT="picture", OUTPUT="logits")
    library.DataType = types.SimpleNamespace(UINT8="uint8", FLOAT="float")
    library.EngineValidity = types.SimpleNamespace(VALID=0, SUBOPTIMAL=1, INVALID=2)
    members = {"VERSION_MISMATCH": 1, "UNSUPPORTED_CC": 2, "OLD_CUDA_DRIVER": 4}
    library.EngineInvalidityDiagnostics = types.SimpleNamespace(__members__=members)
    return library


TARGET = EngineTarget(
    tensorrt="1.7.1.116",
    gpu="RTX",
    compute_capability="8.6, 8.7",
    platform="any",
    onnx="model.onnx",
    onnx_sha256="0" * 64,
)


@pytest.fixture
def card(monkeypatch, tmp_path, cuda_stand_ins):
    """Opens an engine on a computer with a card of compute capability 8.7: (library, gpu, open)."""
    gpu = cuda_stand_ins.HostGpu()
    library = rtx_stand_in(gpu)
    monkeypatch.setenv(cuda_runtime.CHOICE, "cuda-python")
    cuda_stand_ins.install(monkeypatch.setitem, gpu, "cuda-python")
    monkeypatch.setitem(sys.modules, library.__name__, library)
    (tmp_path / "model.plan").write_bytes(b"plan and more")

    def open_engine(target=TARGET):
        options = EngineOptions("int8", 1, 2, target, tmp_path / "cache")
        return rtx.open_model(tmp_path / "model.plan", options)

    return library, gpu, open_engine


def test_kernels_are_compiled_once_and_kept(card):
    library, gpu, open_engine = card
    for _ in range(2):
        engine = open_engine()
        assert engine.run(np.full((3, 2, 2, 1), 90, np.uint8)).tolist() == [[[[45, 45], [45, 45]]]] * 3
        engine.close()
        assert gpu.held == 0
    assert library.kernels_made == 1


@pytest.mark.parametrize(
    ("target", "validity", "said"),
    [
        (
            {"tensorrt": "1.6.0.1"},
            (0, 0),
            r"must be of TensorRT for RTX 1\.7\.1\.116, which is here, is of 1\.6\.0\.1",
        ),
        (
            {"compute_capability": "8.9"},
            (0, 0),
            r"compiled for this GPU \(Orin, compute capability 8\.7\), is for 8\.9",
        ),
        (
            {},
            (2, 5),
            r"on this card, is not \(VERSION_MISMATCH, OLD_CUDA_DRIVER\); compile it again: python -m export",
        ),
        (None, (0, 0), "must say in its manifest what it was compiled for, does not"),
    ],
)
def test_an_engine_for_something_else_is_refused_in_one_line(card, target, validity, said):
    library, gpu, open_engine = card
    library.validity = validity
    with pytest.raises(InputError, match=said):
        open_engine(None if target is None else TARGET.model_copy(update=target))
    assert gpu.held == 0
