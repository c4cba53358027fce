"""NVIDIA's own parser and compiler read what is exported for TensorRT, and refuse what is broken, in their own words."""

import json
import os

import pytest

onnx = pytest.importorskip("onnx")

from export.__main__ import ExportSettings, export_bundle  # noqa: E402
from export.compiler import judge_graphs  # noqa: E402
from runtime.trt import rtx  # noqa: E402
from runtime.trt.build import run_apart  # noqa: E402
from runtime.trt.rtx import CompileRequest, compile_apart, is_there  # noqa: E402
from segcore.bundle.folder import open_bundle  # noqa: E402
from segcore.bundle.manifest import CompiledGraph  # noqa: E402
from segcore.errors import GateError, InputError  # noqa: E402

there = pytest.mark.skipif(not is_there(), reason="TensorRT for RTX is not installed (Linux on x86-64 only)")


@there
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_it_compiles_every_graph_that_is_exported(exported, precision):
    manifest = open_bundle(exported("tensorrt", precision)).manifest
    files = {name for name in manifest.files if name.endswith(".onnx")}
    assert {graph.file for graph in manifest.compiled.graphs} == files
    assert len(files) == (1 if precision == "fp32" else 2)
    assert manifest.compiled.compiler.startswith("TensorRT for RTX 1.")
    for graph in manifest.compiled.graphs:
        assert not graph.refused
        assert graph.layers > 20
        assert graph.plan_bytes > 100_000
        assert graph.activation_bytes > 0
        assert graph.seconds > 0


@there
def test_a_graph_that_it_refuses_is_told_with_its_node(exported, tmp_path):
    path = exported("tensorrt", "fp32") / "model.onnx"
    model = onnx.load(path)
    (node, *_) = (node for node in model.graph.node if node.op_type == "Relu")
    node.op_type = "Celestial"
    (tmp_path / "bad.onnx").write_bytes(model.SerializeToString())
    _, found = compile_apart(CompileRequest(tmp_path / "bad.onnx", ("8.6",)))
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
    _, found = compile_apart(CompileRequest(tmp_path / "bad.onnx", ("8.6",)))
    assert found.refused
    assert not found.layers


def kill_self(number):
    os.kill(os.getpid(), number)


def test_a_compiler_that_dies_is_a_refusal(monkeypatch, tmp_path):
    # Its process is a real one; only what it does in there is another thing.
    monkeypatch.setattr(
        rtx, "run_apart", lambda _, __, *, what, died: run_apart(kill_self, 9, what=what, died=died)
    )
    version, found = compile_apart(CompileRequest(tmp_path / "m.onnx", ("8.6",)))
    assert version == ""
    assert found == CompiledGraph(
        file="m.onnx",
        refused="the compiler's process died (the system killed it, most likely for want of memory)",
    )


def test_a_refusal_ends_the_export_unless_it_is_told_not_to(torch_bundle, monkeypatch, tmp_path):
    def refuse(request):
        return "9.9", CompiledGraph(file=request.onnx.name, refused="node head: it would rather not")

    monkeypatch.setattr("export.compiler.is_there", lambda: True)
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
    monkeypatch.setattr("export.compiler.is_there", lambda: False)
    assert judge_graphs(tmp_path, must_compile=True) is None
    assert (
        "not judged by NVIDIA's compiler: to have it, pip install 'sam2edge[tensorrt-rtx]'"
        in capsys.readouterr().err
    )


def test_a_library_that_is_not_there_or_does_not_load_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr(rtx, "PACKAGES", ("tensorrt_of_nobody",))
    with pytest.raises(
        InputError, match=r"^TensorRT for RTX: must be installed, is not; run: pip install 'sam2edge"
    ):
        rtx.import_rtx()
    (tmp_path / "tensorrt_of_nobody.py").write_text("raise ImportError('libtensorrt_rtx.so.1: cannot open')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(
        InputError, match=r"^tensorrt_of_nobody: must load, does not \(libtensorrt_rtx.so.1: cannot"
    ):
        rtx.import_rtx()
