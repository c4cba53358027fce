import numpy as np
import pytest

onnx = pytest.importorskip("onnx")

from export.graph.onnx_export import check_onnx  # noqa: E402
from segcore.bundle.folder import open_bundle  # noqa: E402


@pytest.fixture
def fp32(exported):
    bundle = open_bundle(exported("onnx", "fp32"))
    return onnx.load(bundle.model_path), bundle.manifest


def test_graph_keeps_the_contract(fp32):
    model, _ = fp32
    assert model.ir_version <= 10
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 17)]
    assert model.graph.node[0].op_type == "Cast"
    assert not {"BatchNormalization", "Identity", "Dropout"} & {node.op_type for node in model.graph.node}


def test_no_path_of_this_machine_travels(fp32, tmp_path_factory):
    model, _ = fp32
    assert str(tmp_path_factory.getbasetemp()).encode() not in model.SerializeToString()
    assert b".py" not in model.SerializeToString()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda m: setattr(m, "ir_version", 11), r"IR version must be at most 10, got 11"),
        (lambda m: setattr(m.opset_import[0], "version", 18), r"must be of opset 17 alone, got \{'': 18\}"),
        (
            lambda m: setattr(m.graph.input[0].type.tensor_type.shape.dim[0], "dim_param", "n"),
            r"inputs and outputs .* must be .*, got .*'picture': \(2, \[0, 64, 64, 1\]\)",
        ),
    ],
    ids=["ir", "opset", "dynamic batch"],
)
def test_breaches_are_named(fp32, spoil, message):
    model, manifest = fp32
    spoil(model)
    with pytest.raises(RuntimeError, match=message):
        check_onnx(model, manifest.input, manifest.output)


def test_a_graph_of_another_size_is_noticed(fp32):
    model, manifest = fp32
    with pytest.raises(RuntimeError, match=r"must be .*\[1, 96, 64, 1\].*, got .*\[1, 64, 64, 1\]"):
        check_onnx(model, manifest.input.model_copy(update={"height_px": 96}), manifest.output)


def test_fp16_halves_the_weights_and_nothing_else(exported):
    full, half = (open_bundle(exported("onnx", p)) for p in ("fp32", "fp16"))
    assert half.model_path.stat().st_size < 0.52 * full.model_path.stat().st_size
    model = onnx.load(half.model_path)
    sixteen = [t for t in model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT16]
    assert min(np.prod(t.dims) for t in sixteen) >= 256
    inputs = {name for node in model.graph.node if node.op_type != "Cast" for name in node.input}
    assert not inputs & {t.name for t in sixteen}  # every operator still computes in 32 bits


def test_what_no_picture_has_a_part_in_is_computed_at_export():
    from onnx import helper, numpy_helper

    from export.graph.onnx_export import fold_constants

    constants = {"a": [1.0, 2.0], "b": [10.0, 20.0], "unread": [0.0]}
    nodes = [
        helper.make_node("Add", ["a", "b"], ["sum"]),
        helper.make_node("Mul", ["sum", "a"], ["product"]),
        helper.make_node("Add", ["picture", "product"], ["logits"]),
    ]
    ends = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [2]) for name in ("picture", "logits")
    ]
    tensors = [numpy_helper.from_array(np.array(v, np.float32), k) for k, v in constants.items()]
    graph = helper.make_graph(nodes, "test", ends[:1], ends[1:], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    fold_constants(model)
    onnx.checker.check_model(model, full_check=True)
    assert [node.output[0] for node in model.graph.node] == ["logits"]
    (folded,) = model.graph.initializer
    np.testing.assert_array_equal(numpy_helper.to_array(folded), [11.0, 44.0])


def test_a_bundles_network_is_traced_once(torch_bundle, tmp_path, monkeypatch):
    import torch

    from export.graph.onnx_export import write_onnx
    from export.pipeline import open_graph

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    source = open_bundle(torch_bundle)
    spec, output = source.manifest.input, source.manifest.output
    traced = []
    theirs = torch.onnx.export
    monkeypatch.setattr(torch.onnx, "export", lambda *a, **k: (traced.append(1), theirs(*a, **k)))

    def write(name, graph, sha256=source.sha256, **more):
        """The file, and whether the network was traced for it."""
        before, path = len(traced), tmp_path / name
        write_onnx(graph, spec, output, path, bundle_sha256=sha256, **more)
        return path.read_bytes(), len(traced) > before

    graph = open_graph(source)
    first, was_traced = write("first.onnx", graph)
    assert was_traced
    assert write("alone.onnx", graph, sha256="") == (first, True)  # what is not a bundle's is not kept
    assert write("again.onnx", open_graph(source)) == (first, False)
    assert write("half.onnx", graph, half_weights=True)[1] is False
    assert write("three.onnx", graph, batch=3)[1]
    assert write("other.onnx", graph, sha256="0" * 64) == (first, True)
    with torch.no_grad():
        next(graph.network.parameters()).mul_(2)
    changed, was_traced = write("changed.onnx", graph)
    assert was_traced
    assert changed != first
    for kept in (tmp_path / "cache").rglob("trace.onnx"):
        kept.write_bytes(kept.read_bytes()[:-1] + b"x")
    assert write("damaged.onnx", open_graph(source)) == (first, True)
