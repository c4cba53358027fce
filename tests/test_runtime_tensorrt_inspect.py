"""The inspector's JSON, in the shapes of NVIDIA's examples. Not run on a device."""

import json

import pytest

from runtime.trt.layers import prove_int8, read_layers, read_logged_layers, summarise_layers
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
    proof = prove_int8(layers, nodes)
    assert (proof.proven, proof.expected, proof.found, proof.missing, proof.unseen) == (True, 4, 4, (), ())
    head = prove_int8(layers, [*nodes, "/head/Conv"])
    assert (head.proven, head.expected, head.found, head.missing) == (False, 5, 4, ("/head/Conv",))
    gone = prove_int8(layers, [*nodes, "/c/Conv"])  # the engine names it nowhere
    assert (gone.proven, gone.found, gone.missing, gone.unseen) == (False, 4, (), ("/c/Conv",))
    assert not prove_int8(layers, ()).proven


def test_int8_weights_alone_do_not_count():
    """Weights stored in 8 bits, the convolution computed in 16: TensorRT does so where it finds no kernel."""
    layers = read_layers(engine(tensor_10, INT8, FP16, head="Int8"))
    assert summarise_layers(layers).not_int8 == ("/head/Conv",)


def test_int8_pictures_with_float_weights_do_not_count():
    text = json.dumps({"Layers": [layer("conv", "Convolution", tensor_10, INT8, FP16, "Half")]})
    assert summarise_layers(read_layers(text)).not_int8 == ("conv",)


def test_what_is_not_the_inspectors_json_is_refused():
    with pytest.raises(InputError, match="must be JSON with Layers, is damaged"):
        read_layers("no JSON")
    with pytest.raises(InputError, match="must be JSON with Layers, is damaged"):
        read_layers("[]")
    with pytest.raises(
        InputError, match=r"gives names only; build the engine with this sam2edge, which asks for"
    ):
        read_layers('{"Layers": ["stem + relu", "head"], "Bindings": []}')


LOGGED = """\
Layers:
Name: down.1.0_myl0_5, LayerType: correlation, Inputs: [ { Name: a, Dimensions: [1,8,32,32], Datatype: Int8, Format: \
(NHWC) }], Constants: [ { Name: w, Dimensions: [16,8,3,3], Datatype: Int8, Format: (NHWC) }, { Name: s, Dimensions: [1]\
, Datatype: Float, Format: (NHWC) }], Outputs: [ { Name: b, Dimensions: [1,16,32,32], Datatype: Float, Format: (NHWC) }]\
, TacticName: stub, StreamId: 0, Metadata: [ONNX Layer: down.1.0][ONNX Layer: a.DequantizeLinear]
Name: __myl_Mul_6, LayerType: kgen, Inputs: [ { Name: b, Dimensions: [1], Datatype: Float, Format: (NHWC) }], Outputs: \
[ { Name: c, Dimensions: [1], Datatype: Int8, Format: (NHWC) }], TacticName: x, StreamId: 0, Metadata: [ONNX Layer: relu]
Name: head_7, LayerType: correlation, Inputs: [ { Name: c, Dimensions: [1], Datatype: Half, Format: (NHWC) }], Constants\
: [ { Name: w, Dimensions: [1], Datatype: Half, Format: (NHWC) }], Outputs: [ { Name: d, Dimensions: [1], Datatype: \
Float, Format: (NHWC) }], TacticName: stub, StreamId: 0, Metadata: [ONNX Layer: head]
Bindings:
"""


def test_layers_that_the_compiler_logs():
    layers = read_logged_layers(LOGGED)
    assert [(layer.kind, layer.input_type, layer.weights_type, layer.output_type) for layer in layers] == [
        ("correlation", "INT8", "INT8", "FP32"),
        ("kgen", "FP32", "", "INT8"),
        ("correlation", "FP16", "FP16", "FP32"),
    ]
    assert prove_int8(layers, ["down.1.0"]).proven
    proof = prove_int8(layers, ["down.1.0", "head"])
    assert proof.words == (
        "1 of 2 quantised convolutions and matrix products compute in INT8; in float: head_7"
    )
