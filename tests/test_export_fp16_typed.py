"""TensorRT's strongly typed graph: 16-bit tensors, and what stays in 32 bits."""

from importlib.util import find_spec

import numpy as np
import pytest
import torch
from torch import nn

from segcore.dataset.case import Case, PhantomSource
from segcore.errors import GateError
from segcore.learn.network import DeployGraph
from segcore.picture.preprocess import InputSpec, output_spec, prepare

for package in ("onnx", "onnxscript", "onnxruntime"):
    if find_spec(package) is None:
        pytest.skip(f"{package} is not installed", allow_module_level=True)

import onnx  # noqa: E402
from onnx import TensorProto, numpy_helper, shape_inference  # noqa: E402

from export.graph.fp16_typed import check_fp16_range, run_fp16_typed, to_fp16_typed  # noqa: E402
from export.graph.onnx_export import write_onnx  # noqa: E402
from export.int8.qdq import calibrate_qdq  # noqa: E402
from export.rules.check import check_versions  # noqa: E402

SPEC = InputSpec(height_px=32, width_px=32, channels=1, mean=(0.5,), std=(0.25,))
CASES = [Case(id=str(i), patient=str(i), source=PhantomSource("cxr", i, 0), split="train") for i in range(4)]
TYPED = ("10.13", "10.16", "11.4")
FLOAT, HALF = TensorProto.FLOAT, TensorProto.FLOAT16


class SmallTransformer(nn.Module):
    """Patches, one block of attention and one linear layer, nearest upsampling with a skip, a 1×1 head."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, 32, 4, stride=4)
        self.deeper = nn.Conv2d(32, 32, 3, stride=2, padding=1)
        self.norm, self.norm2 = nn.LayerNorm(32), nn.LayerNorm(32)
        self.qkv, self.proj, self.mlp = nn.Linear(32, 96), nn.Linear(32, 32), nn.Linear(32, 32)
        self.up, self.merge = nn.Conv2d(32, 32, 1), nn.Conv2d(32, 32, 3, padding=1)
        self.head = nn.Conv2d(32, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        skip = torch.relu(self.patches(x))
        x = torch.relu(self.deeper(skip))
        tokens = x.flatten(2).transpose(1, 2)
        q, k, v = self.qkv(self.norm(tokens)).chunk(3, dim=-1)
        weights = torch.softmax(q @ k.transpose(1, 2) / 32**0.5, dim=-1)
        tokens = tokens + self.proj(weights @ v)
        tokens = tokens + torch.relu(self.mlp(self.norm2(tokens)))
        x = tokens.transpose(1, 2).reshape(x.shape)
        x = torch.nn.functional.interpolate(self.up(x), scale_factor=2.0, mode="nearest")
        return self.head(torch.relu(self.merge(skip + x)))


@pytest.fixture(scope="module")
def graphs(tmp_path_factory):
    """The network's float file and its Q/DQ graph."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("fp16") / "fp32.onnx"
    output = output_spec(("a",), 4).model_copy(update={"channels": 2})
    write_onnx(DeployGraph(SmallTransformer().eval(), SPEC).eval(), SPEC, output, path)
    return {"float": onnx.load(path), "qdq": calibrate_qdq(path, CASES, SPEC).quantised()}


@pytest.fixture(scope="module")
def pictures():
    return [prepare(PhantomSource("cxr", i, 1).image(), SPEC)[None] for i in range(3)]


def run(model: onnx.ModelProto, pictures: list[np.ndarray]) -> np.ndarray:
    """Logits of a graph with 32-bit tensors."""
    import onnxruntime

    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, {"picture": picture})[0] for picture in pictures])


def types_of(model: onnx.ModelProto) -> dict[str, int]:
    graph = shape_inference.infer_shapes(model).graph
    values = (*graph.value_info, *graph.input, *graph.output)
    return {v.name: v.type.tensor_type.elem_type for v in values} | {
        t.name: t.data_type for t in graph.initializer
    }


def error(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.sqrt(np.mean((found - expected) ** 2) / np.mean(expected**2)))


@pytest.mark.parametrize(("kind", "bound"), [("float", 0.002), ("qdq", 0.03)])
def test_logits_stay_near(kind, bound, graphs, pictures):
    before = graphs[kind].SerializeToString()
    typed = to_fp16_typed(graphs[kind])
    assert graphs[kind].SerializeToString() == before
    found = run_fp16_typed(typed, pictures)
    assert found.dtype == np.float32
    # In 8 bits a value that moves in its last 16-bit place may round to the next step.
    assert 0 < error(found, run(graphs[kind], pictures)) < bound


@pytest.mark.parametrize("kind", ["float", "qdq"])
def test_typed_graphs_follow_the_rules_and_are_half_the_size(kind, graphs):
    typed = to_fp16_typed(graphs[kind])
    assert [(entry.domain, entry.version) for entry in typed.opset_import] == [("", 19)]
    assert [f for found in check_versions(typed, TYPED).values() for f in found] == []
    assert len(typed.SerializeToString()) < 0.7 * len(graphs[kind].SerializeToString())
    names = [node.name for node in typed.graph.node]
    assert len(names) == len(set(names))


def test_the_same_graph_with_q_dq_is_right_for_every_version(graphs):
    versions = ("8.6", "10.3", *TYPED)
    assert [f for found in check_versions(graphs["qdq"], versions).values() for f in found] == []


@pytest.mark.parametrize("kind", ["float", "qdq"])
def test_what_stays_in_32_bits(kind, graphs):
    typed = to_fp16_typed(graphs[kind])
    types = types_of(typed)
    found: dict[str, set[int]] = {}
    for node in typed.graph.node:
        key = node.name if node.name in ("head", "merge", "patches", "qkv") else node.op_type
        floats = {types[n] for n in (*node.input, *node.output) if n and types[n] in (FLOAT, HALF)}
        found[key] = found.get(key, set()) | floats
    for name in ("LayerNormalization", "Softmax", "Sub", "head"):  # Sub: of the picture's mean
        assert found[name] == {FLOAT}, name
    for name in ("merge", "patches", "qkv", "Relu", "MatMul", "Transpose"):
        assert found[name] >= {HALF}, name
    for name in ("merge", "patches", "qkv", "Relu"):
        assert found[name] == {HALF}, name
    assert types["picture"] == TensorProto.UINT8
    assert types["logits"] == FLOAT


def test_no_cast_parts_a_pair_from_its_layer(graphs):
    typed = to_fp16_typed(graphs["qdq"])
    makers = {name: node for node in typed.graph.node for name in node.output}
    layers = [n for n in typed.graph.node if n.op_type == "Conv" or n.name in ("qkv", "proj", "mlp")]
    assert len(layers) == 8
    assert {makers[name].op_type for node in layers for name in node.input[:2]} == {"DequantizeLinear"}


def test_a_pair_has_one_scale_in_both_types(graphs):
    typed = to_fp16_typed(graphs["qdq"])
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in typed.graph.initializer}
    wide = {t.name: numpy_helper.to_array(t) for t in graphs["qdq"].graph.initializer}
    pairs = {node.output[0]: node for node in typed.graph.node if node.op_type == "QuantizeLinear"}
    checked = 0
    for node in typed.graph.node:
        if node.op_type == "DequantizeLinear":
            scales = [constants[pairs[node.input[0]].input[1]], constants[node.input[1]]]
            assert np.array_equal(*(scale.astype(np.float32) for scale in scales))
            original = wide[node.input[1].removesuffix("_fp16").removesuffix("_fp32")]
            assert (scales[1].astype(np.float32) >= original).all()  # else the largest value is cut
            checked += 1
    assert checked == len(pairs)


def test_attention_between_activations_stays_float(graphs):
    matmuls = [node for node in graphs["qdq"].graph.node if node.op_type == "MatMul"]
    dequantised = {node.name: [name.endswith("_dequantized") for name in node.input] for node in matmuls}
    assert sorted(map(tuple, dequantised.values())) == [(False, False)] * 2 + [(True, True)] * 3
    axes = {
        attribute.i
        for node in graphs["qdq"].graph.node
        if node.op_type == "DequantizeLinear" and node.output[0] in {m.input[1] for m in matmuls}
        for attribute in node.attribute
    }
    assert axes == {1}


def scaled(model: onnx.ModelProto, weight: str, factor: float) -> onnx.ModelProto:
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    tensor = next(t for t in changed.graph.initializer if t.name.endswith(weight))
    values = (numpy_helper.to_array(tensor) * factor).astype(np.float32)
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    return changed


def test_a_weight_beyond_16_bits_is_named(graphs):
    message = r"^node merge: must have constants within ±65504 for 16 bits, network.merge.weight has \d+"
    with pytest.raises(GateError, match=message):
        to_fp16_typed(scaled(graphs["float"], "merge.weight", 1e7))
    to_fp16_typed(scaled(graphs["float"], "head.weight", 1e7))  # which stays in 32 bits


def test_an_activation_beyond_16_bits_is_named(graphs, pictures):
    check_fp16_range(graphs["float"], pictures)
    check_fp16_range(graphs["qdq"], pictures)
    hot = scaled(graphs["float"], "patches.weight", 1e6)
    to_fp16_typed(scaled(graphs["float"], "patches.weight", 1e5))  # nothing to see in the weights
    with pytest.raises(GateError, match=r"^node patches: must give values within ±65504 for 16 bits, gives"):
        check_fp16_range(hot, pictures)
