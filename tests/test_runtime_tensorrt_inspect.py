"""The inspector's JSON, in the shapes of NVIDIA's examples. Not run on a device."""

import json

import pytest

from runtime.device.plan_facts import prove_int8, read_layers, summarise_layers
from segcore.bundle.guard_record import DiceScore, GuardRecord
from segcore.errors import InputError

INT8 = "Thirty-two wide channel vectorized row major Int8 format"
FP16 = "Channel major FP16 format where channel % 8 == 0"


def tensor_10(kind: str) -> dict:
    return {"Name": "t", "Location": "Device", "Dimensions": [1, 16, 8, 8], "Format/Datatype": kind}


def tensor_11(kind: str) -> dict:
    return {"Name": "t", "Dimensions": [1, 16, 8, 8], "Format": "Row major linear format", "DataType": kind}


def layer(name, kind, tensor, read, written, weights=None, nodes=()):
    found = {"Name": name, "LayerType": f"Cask{kind}", "Inputs": [tensor(read)], "Outputs": [tensor(written)]}
    found |= {"ParameterType": kind} if tensor is tensor_10 else {"LayerType": kind}
    found |= {"Weights": {"Type": weights, "Count": 9}} if weights else {}
    found |= {"Metadata": "\x1e".join(f"[ONNX Layer: {node}]" for node in nodes)} if nodes else {}
    return found


def engine(tensor, int8, half, *, head="Half") -> str:
    """A stem, a residual convolution, two side by side, a head in float, and two reformats."""
    layers = [
        layer("Reformatting CopyNode for Input Tensor 0 to stem\x1erelu", "Reformat", tensor, "UInt8", half),
        layer("stem\x1e/stem/Relu", "Convolution", tensor, int8, int8, "Int8", ["/stem/Conv", "/stem/Relu"]),
        layer("/res/Conv + /res/Add", "Convolution", tensor, int8, int8, "Int8", ["/res/Conv", "/res/Add"]),
        layer("/a/Conv || /b/Conv", "Convolution", tensor, int8, half, "Int8", ["/a/Conv", "/b/Conv"]),
        layer("Reformatting CopyNode for Output", "Reformat", tensor, half, half),
        layer("/head/Conv", "Convolution", tensor, half, "Float", head, ["/head/Conv"]),
        layer("resize", "Resize", tensor, "Float", "Float"),
    ]
    names = {"Bindings": ["input", "logits"]} if tensor is tensor_10 else {"I/O Tensors": [{"Name": "input"}]}
    return json.dumps({"Layers": layers, **names}).replace("\\u001e", "\x1e")  # TensorRT does not escape it


def guard(*int8_nodes: str) -> GuardRecord:
    score = DiceScore(mean=0.9, p05=0.8)
    return GuardRecord(
        engine="onnxruntime",
        engine_version="1.23.2",
        cases=8,
        max_drop_points=0.1,
        max_p05_drop_points=0.5,
        min_speedup=1.05,
        fp32=score,
        int8=score,
        steps=(),
        layers=8,
        int8_nodes=int8_nodes,
    )


FORMATS = [(tensor_10, INT8, FP16), (tensor_10, "Int8", "Half"), (tensor_11, "Int8", "Half")]


@pytest.mark.parametrize(("tensor", "int8", "half"), FORMATS)
def test_layers_are_counted_by_type(tensor, int8, half):
    layers = read_layers(engine(tensor, int8, half))
    assert layers[1].name == "stem + /stem/Relu"
    assert layers[1].nodes == ("/stem/Conv", "/stem/Relu")
    found = summarise_layers(layers)
    assert found.layers == 7
    assert found.by_precision == {"INT8": 3, "FP16": 2, "UINT8": 1, "FP32": 1}
    assert (found.weighted, found.weighted_int8, found.reformats) == (4, 3, 2)
    assert found.not_int8 == ("/head/Conv",)
    assert found.reformat_share is None


def test_reformats_share_of_the_time():
    layers = read_layers(engine(tensor_10, INT8, FP16))
    times = {one.name.replace(" + relu", "\x1erelu"): 1.0 for one in layers} | {"/head/Conv": 5.0}
    assert summarise_layers(layers, times).reformat_share == pytest.approx(2 / 11)
    assert summarise_layers(layers, {}).reformat_share is None


@pytest.mark.parametrize(("tensor", "int8", "half"), FORMATS)
def test_int8_is_proven_where_every_quantised_node_is(tensor, int8, half):
    layers = read_layers(engine(tensor, int8, half))
    nodes = ("/stem/Conv", "/res/Conv", "/a/Conv", "/b/Conv")
    proof = prove_int8(layers, guard(*nodes))
    assert (proof.proven, proof.expected, proof.found, proof.missing, proof.unseen) == (True, 4, 4, (), ())
    head = prove_int8(layers, guard(*nodes, "/head/Conv"))
    assert (head.proven, head.expected, head.found, head.missing) == (False, 5, 4, ("/head/Conv",))
    gone = prove_int8(layers, guard(*nodes, "/c/Conv"))  # the engine names it nowhere
    assert (gone.proven, gone.found, gone.missing, gone.unseen) == (False, 4, (), ("/c/Conv",))
    assert not prove_int8(layers, guard()).proven


def test_int8_weights_alone_do_not_count():
    """Weights stored in 8 bits, the convolution computed in 16: TensorRT does so where it finds no kernel."""
    layers = read_layers(engine(tensor_10, INT8, FP16, head="Int8"))
    assert summarise_layers(layers).not_int8 == ("/head/Conv",)


def test_int8_pictures_with_float_weights_do_not_count():
    text = json.dumps({"Layers": [layer("conv", "Convolution", tensor_10, INT8, FP16, "Half")]})
    assert summarise_layers(read_layers(text)).not_int8 == ("conv",)


def test_what_is_not_the_inspectors_json_is_refused():
    with pytest.raises(InputError, match="must give JSON with Layers, does not"):
        read_layers("no JSON")
    with pytest.raises(InputError, match="must give JSON with Layers, does not"):
        read_layers("[]")
    with pytest.raises(
        InputError, match=r"gives names only; build the engine with this sam2edge, which asks for"
    ):
        read_layers('{"Layers": ["stem + relu", "head"], "Bindings": []}')
