"""Opset 18 graphs brought down to 17 compute the same; what cannot be said in 17 is an error."""

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from export.graph.onnx_export import to_opset_17  # noqa: E402

X = np.random.default_rng(0).normal(size=(1, 4, 6, 6)).astype(np.float32)


def model_of(*nodes, outputs=("y",), **constants) -> onnx.ModelProto:
    graph = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, X.shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return onnx.shape_inference.infer_shapes(model)  # the checker wants the outputs' shapes


def run(model) -> list[np.ndarray]:
    return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(
        None, {"x": X}
    )


@pytest.mark.parametrize(
    "model",
    [
        model_of(helper.make_node("Split", ["x"], ["y", "z"], axis=1, num_outputs=2), outputs=("y", "z")),
        model_of(helper.make_node("Pad", ["x", "pads"], ["y"]), pads=np.array([0, 0, 1, 2, 0, 0, 3, 4])),
        model_of(helper.make_node("ReduceMean", ["x", "axes"], ["y"], keepdims=1), axes=np.array([2, 3])),
        model_of(helper.make_node("ReduceMax", ["x", "axes"], ["y"], keepdims=0), axes=np.array([1])),
        model_of(helper.make_node("ReduceSum", ["x", "axes"], ["y"], keepdims=0), axes=np.array([1])),
        model_of(
            helper.make_node("Resize", ["x", "", "scales"], ["y"], mode="linear", antialias=0),
            scales=np.array([1, 1, 2, 2], np.float32),
        ),
        model_of(helper.make_node("Relu", ["x"], ["y"])),
    ],
    ids=lambda model: model.graph.node[0].op_type,
)
def test_lowered_graphs_compute_the_same(model):
    expected = run(model)
    to_opset_17(model)
    onnx.checker.check_model(model, full_check=True)
    assert model.opset_import[0].version == 17
    for found, wanted in zip(run(model), expected, strict=True):
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            model_of(helper.make_node("Mish", ["x"], ["y"])),
            r"^ONNX graph: Mish must exist in opset 17, does not$",
        ),
        (
            model_of(
                helper.make_node("Resize", ["x", "", "scales"], ["y"], mode="linear", antialias=1),
                scales=np.array([1, 1, 0.5, 0.5], np.float32),
            ),
            r"^ONNX graph: Resize with antialias must be of opset 18$",
        ),
        (
            model_of(
                helper.make_node("Pad", ["x", "pads", "", "axes"], ["y"]),
                pads=np.array([1, 1]),
                axes=np.array([2]),
            ),
            r"^ONNX graph: Pad with axes must be of opset 18$",
        ),
        (
            model_of(helper.make_node("LpPool", ["x"], ["y"], kernel_shape=[2, 2])),
            r"^ONNX graph: LpPool must be the same in opsets 17 and 18, is not$",
        ),
    ],
)
def test_what_opset_17_cannot_say_is_an_error(model, message):
    with pytest.raises(RuntimeError, match=message):
        to_opset_17(model)
