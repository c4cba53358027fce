"""SAM 2's encoder with our decoder as one graph: what its ONNX must look like, and INT8 of it for both engines."""

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
torch = pytest.importorskip("torch")
pytest.importorskip("sam2")
pytest.importorskip("nncf")

from export.model_file import calibrate, write_model  # noqa: E402
from export.rules.check import check_graph  # noqa: E402
from runtime.engines.seam import open_engine  # noqa: E402
from segcore.dataset.dataset import open_dataset  # noqa: E402
from segcore.learn.network import DeployGraph  # noqa: E402
from segcore.picture.preprocess import InputSpec, output_spec, prepare  # noqa: E402
from teacher.decoders.supervised_heads import FinestHead  # noqa: E402
from teacher.systems.s2agscunet import build_s2agscunet  # noqa: E402

SPEC = InputSpec(height_px=64, width_px=64, channels=1, mean=(0.45,) * 3, std=(0.23,) * 3)
BLOCKS = 12  # of Hiera tiny


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """The graph in FP32 as ONNX, from random weights, and pictures to calibrate with."""
    torch.manual_seed(0)
    network = FinestHead(build_s2agscunet(encoder="tiny", outputs=1)).eval()
    path = tmp_path_factory.mktemp("teacher") / "fp32.onnx"
    output = output_spec(("lung",), 4)
    write_model(DeployGraph(network, SPEC).eval(), SPEC, output, path, to="onnx", precision="fp32")
    return path, open_dataset("phantom:cxr:12").split("train", limit=2)


def relative_error(found, expected):
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def run(engine, path, picture):
    opened = open_engine(engine, path, precision="int8", threads=1)
    logits = opened.run(picture)
    opened.close()
    return logits


def test_layer_norm_is_one_operator_and_positions_are_folded(teacher):
    """A decomposed LayerNorm collapses in FP16 (NVIDIA/TensorRT#3657); positions depend on the size alone."""
    graph = onnx.load(teacher[0]).graph
    kinds = [node.op_type for node in graph.node]
    assert kinds.count("LayerNormalization") == 2 * BLOCKS
    assert "Sqrt" not in kinds
    fixed = {tensor.name for tensor in graph.initializer}
    for node in graph.node:  # nothing is computed that the picture has no part in
        assert set(node.input) - fixed - {""}, node.name


@pytest.mark.parametrize(
    ("to", "engine", "file"), [("openvino", "openvino", "m.xml"), ("tensorrt-onnx", "onnxruntime", "m.onnx")]
)
def test_int8_of_a_teacher(teacher, tmp_path, to, engine, file):
    fp32, cases = teacher
    picture = prepare(cases[0].image(), SPEC)[None]
    expected = run("onnxruntime", fp32, picture)
    found = calibrate(fp32, to=to, cases=cases, spec=SPEC, transformer=True)
    attention = [name for name in found.layers if ".attn." in name or ".mlp." in name]
    assert len(attention) >= 4 * BLOCKS  # qkv, proj and two of the MLP in each block
    found.write(tmp_path / file)
    int8 = relative_error(run(engine, tmp_path / file, picture), expected)
    assert 1e-4 < int8 < 0.5
    found.write(tmp_path / file, in_float=found.layers)
    assert relative_error(run(engine, tmp_path / file, picture), expected) < min(1e-3, int8)


def test_tensorrts_graph_of_a_teacher_keeps_the_rules(teacher, tmp_path):
    fp32, cases = teacher
    calibrate(fp32, to="tensorrt-onnx", cases=cases, spec=SPEC).write(tmp_path / "m.onnx")
    model = onnx.load(tmp_path / "m.onnx")
    for version in ("8.6", "10.3"):
        assert [f for f in check_graph(model, version) if f.severity == "error"] == []
    after = {name for node in model.graph.node if node.op_type == "QuantizeLinear" for name in node.input[:1]}
    made_by = {name: node.op_type for node in model.graph.node for name in node.output}
    assert not {"Softmax"} & {made_by.get(name) for name in after}  # attention stays in float
