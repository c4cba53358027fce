"""TensorRT's Q/DQ graph: placement by TensorRT's rules, numbers by onnxruntime and OpenVINO."""

import gc
import weakref
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from segcore.dataset.case import Case, PhantomSource
from segcore.learn.network import DeployGraph
from segcore.picture.preprocess import InputSpec, output_spec, prepare
from student.design import PRESETS, Design, unet
from student.network import build_student, sealed_form

for package in ("onnx", "onnxscript", "onnxruntime"):
    if find_spec(package) is None:
        pytest.skip(f"{package} is not installed", allow_module_level=True)

import onnx  # noqa: E402
from onnx import TensorProto, helper, numpy_helper, version_converter  # noqa: E402
from onnx.reference import ReferenceEvaluator  # noqa: E402

from export.graph.onnx_export import check_onnx, write_onnx  # noqa: E402
from export.graph.ranges import Magnitudes  # noqa: E402
from export.int8.qdq import (  # noqa: E402
    calibrate_qdq,
    rewrite_transposed,
    to_uint8,
)
from export.rules.check import VERSIONS, check_versions  # noqa: E402
from runtime.engines.seam import open_engine  # noqa: E402

SPEC = InputSpec(height_px=64, width_px=64, channels=1, mean=(0.5,), std=(0.25,))
CASES = [Case(id=str(i), patient=str(i), source=PhantomSource("cxr", i, 0), split="train") for i in range(4)]
QUARTER = {"stem": "strided", "stem_stride": 4, "widths": (16, 32), "depths": (1, 1), "up_depths": (1,)}
DESIGNS = {
    "small": PRESETS["small"],
    "lightunet": PRESETS["lightunet"],
    "reparam": Design(**QUARTER, block="reparam"),
    "concat-transposed": Design(**QUARTER, skip="concat", up="transposed"),
    "residual-pool-bilinear": Design(
        **QUARTER | {"depths": (2, 2)}, block="residual", down="pool", up="bilinear"
    ),
    "residual-hardswish": Design(**QUARTER, block="residual", activation="hardswish"),
    "inverted-shuffle-head": Design(**QUARTER, block="inverted", up="shuffle", head_upscale=2),
    "unshuffle": Design(**QUARTER | {"stem": "unshuffle"}, down="pool"),
}


@pytest.fixture(scope="module")
def pictures():
    sources = [PhantomSource("cxr", i, 1) for i in range(3)]
    return np.stack([prepare(source.image(), SPEC) for source in sources])


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory):
    """Design's name → its float file, its calibrated graph and its output, made once."""
    made = {}

    def make(name: str):
        if name not in made:
            design = DESIGNS[name]
            path, output = (
                tmp_path_factory.mktemp(name) / "fp32.onnx",
                output_spec(("a", "b"), design.logits_stride),
            )
            write_onnx(DeployGraph(lively(design), SPEC).eval(), SPEC, output, path)
            made[name] = path, calibrate_qdq(path, CASES, SPEC), output
        return made[name]

    return make


def lively(design: Design) -> torch.nn.Module:
    """Untrained, with running statistics as if it were trained."""
    torch.manual_seed(0)
    network = build_student(design, channels=1, outputs=3).eval()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.uniform_(-0.2, 0.2)
            module.running_var.uniform_(0.3, 1.0)
    return sealed_form(network)


def run(engine: str, path: Path, pictures: np.ndarray) -> np.ndarray:
    return open_engine(engine, path, precision="int8", threads=1).run(pictures)


def error(found: np.ndarray, expected: np.ndarray) -> float:
    """Relative RMS."""
    return float(np.sqrt(np.mean((found - expected) ** 2) / np.mean(expected**2)))


def findings(model: onnx.ModelProto) -> list[str]:
    found = check_versions(model, VERSIONS)
    return [f"{version}: {finding}" for version in VERSIONS for finding in found[version]]


@pytest.mark.parametrize("name", DESIGNS)
def test_every_design_follows_the_rules_and_keeps_its_logits(name, calibrated, pictures, tmp_path):
    fp32, model, output = calibrated(name)
    model.write(tmp_path / "int8.onnx")
    written = onnx.load(tmp_path / "int8.onnx")
    check_onnx(written, SPEC, output)
    depthwise = "C2" if name.startswith("inverted") else None  # a warning: TensorRT's kernels are not known
    assert [f for f in findings(written) if depthwise is None or f"warning {depthwise} " not in f] == []
    expected = run("onnxruntime", fp32, pictures)
    bound = 0.1 if "hardswish" in name else 0.05  # its −0.4…∞ wastes half of a symmetric range
    assert 0 < error(run("onnxruntime", tmp_path / "int8.onnx", pictures), expected) < bound


@pytest.mark.parametrize("name", ["small", "lightunet", "residual-pool-bilinear"])
def test_layers_go_back_to_float_one_by_one_and_all(name, calibrated, pictures, tmp_path):
    fp32, model, _ = calibrated(name)
    before = model.quantised().SerializeToString()
    for layer in model.layers[::3]:
        written = model.quantised(in_float=[layer])
        # P4 is what was asked for: the skip of this Add in float.
        assert [f for f in findings(written) if f"warning P4 at {layer}:" not in f] == []
        assert pairs_of(written, layer) == []
        assert unread(written) == []
        alone = model.quantised(in_float=[other for other in model.layers if other != layer])
        assert findings(alone) == []
        assert unread(alone) == []
    assert model.quantised().SerializeToString() == before  # nothing is kept from one call to the next
    model.write(tmp_path / "float.onnx", in_float=model.layers)
    written = onnx.load(tmp_path / "float.onnx")
    assert not {"QuantizeLinear", "DequantizeLinear"} & {node.op_type for node in written.graph.node}
    expected = run("onnxruntime", fp32, pictures)
    assert error(run("onnxruntime", tmp_path / "float.onnx", pictures), expected) < 1e-6


def pairs_of(model: onnx.ModelProto, layer: str) -> list[str]:
    """The pairs before a node."""
    node = next(node for node in model.graph.node if node.name == layer)
    return [name for name in node.input if name.endswith("_dequantized")]


def unread(model: onnx.ModelProto) -> list[str]:
    """What a node gives or a constant holds, and nothing reads."""
    read = {name for node in model.graph.node for name in node.input} | {o.name for o in model.graph.output}
    made = [name for node in model.graph.node for name in node.output]
    return [name for name in [*made, *(t.name for t in model.graph.initializer)] if name not in read]


def test_an_unknown_layer_is_named(calibrated):
    with pytest.raises(ValueError, match=r"must name layers of the graph, got heat$"):
        calibrated("small")[1].quantised(in_float=["heat", "head"])


def test_layers_are_named_as_torch_names_them(calibrated):
    assert calibrated("concat-transposed")[1].layers == (
        "stem.0",
        "down.0.0",
        "shrink.0.0",
        "down.1.0",
        "up.0",
        "merge.0.0.concat",
        "merge.0.0",
        "head",
    )


def test_layers_too_narrow_for_8_bits_stay_float(calibrated):
    _, model, _ = calibrated("lightunet")
    narrow = {node.name for node in model.graph.of("Conv") if node.name not in model.layers}
    assert narrow == {"down.0.0", "down.0.3", "merge.3.3", "head"}  # 1 → 8, 8 → 8 and 8 → 3 channels


def test_of_a_residual_add_the_skip_alone_is_quantised(calibrated):
    _, model, _ = calibrated("residual-pool-bilinear")
    written = model.quantised()
    adds = [node for node in written.graph.node if node.op_type == "Add"]
    assert len(adds) == 6
    assert [len(pairs_of(written, node.name)) for node in adds] == [1] * 6
    widened = next(node for node in adds if node.name == "down.1.1.body.0.add")  # shortcut 1×1 + body 3×3
    kernels = {
        node.output[0]: len(numpy_helper.to_array(weight)[0, 0])
        for node in model.model.graph.node
        for weight in model.model.graph.initializer
        if node.op_type == "Conv" and weight.name == node.input[1]
    }
    quantised = pairs_of(written, widened.name)[0].removesuffix("_dequantized")
    other = next(name for name in widened.input if not name.endswith("_dequantized"))
    assert (kernels[quantised], kernels[other]) == (1, 3)


def test_one_scale_runs_through_a_concat(calibrated):
    written = calibrated("concat-transposed")[1].quantised()
    concat = next(node for node in written.graph.node if node.op_type == "Concat")
    quantisers = {node.output[0]: node for node in written.graph.node if node.op_type == "DequantizeLinear"}
    merge = next(node for node in written.graph.node if node.name == "merge.0.0")
    assert len({quantisers[name].input[1] for name in [*concat.input, merge.input[0]]}) == 1


def test_the_same_data_give_the_same_file(calibrated, tmp_path):
    fp32, model, _ = calibrated("small")
    again = calibrate_qdq(fp32, CASES, SPEC)
    assert again.layers == model.layers
    assert again.quantised().SerializeToString() == model.quantised().SerializeToString()


def test_weights_have_the_scales_that_onnxruntime_gives_them(calibrated, tmp_path):
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        left = [prepare(case.image(), SPEC)[None] for case in CASES]  # noqa: RUF012

        def get_next(self):
            return {"picture": self.left.pop()} if self.left else None

    fp32, model, _ = calibrated("small")
    options = {"ActivationSymmetric": True, "AddQDQPairToWeight": True, "QuantizeBias": False}
    quantize_static(
        fp32,
        tmp_path / "theirs.onnx",
        Reader(),
        per_channel=True,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
        extra_options=options,
    )
    theirs, ours = weight_scales(onnx.load(tmp_path / "theirs.onnx")), weight_scales(model.quantised())
    assert len(ours) == 17
    for name, scale in ours.items():
        # onnxruntime spreads ±largest over 255 steps of 256, that is over 127.5 each way
        assert scale == pytest.approx(theirs[name], rel=0.005), name


def weight_scales(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    return {
        node.input[0]: constants[node.input[1]]
        for node in model.graph.node
        if node.op_type == "QuantizeLinear" and node.input[0] in constants
    }


def test_an_emptied_channel_gets_no_vanishing_scale(calibrated, tmp_path):
    fp32, _, _ = calibrated("small")
    model = onnx.load(fp32)
    weight = next(t for t in model.graph.initializer if t.name.endswith("down.0.0.weight"))
    values = numpy_helper.to_array(weight).copy()
    values[0], values[1] = 1e-30, 0.0
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    onnx.save(model, tmp_path / "emptied.onnx")
    scale = weight_scales(calibrate_qdq(tmp_path / "emptied.onnx", CASES, SPEC).quantised())[weight.name]
    assert scale[:2] == pytest.approx(np.abs(values).max() / 127 / 2**16)


def test_calibration_holds_one_picture_at_a_time(calibrated):
    alive, most = set(), 0

    class Watched:
        labelled = True

        def __init__(self, index: int) -> None:
            self.index = index

        def image(self) -> np.ndarray:
            nonlocal most
            gc.collect(0)
            image = np.random.default_rng(self.index).integers(0, 256, (64, 64), np.uint8)
            alive.add(self.index)
            weakref.finalize(image, alive.discard, self.index)
            most = max(most, len(alive))
            return image

    cases = [Case(id=str(i), patient=str(i), source=Watched(i), split="train") for i in range(8)]
    calibrate_qdq(calibrated("small")[0], cases, SPEC)
    assert most <= 2
    with pytest.raises(ValueError, match="must have at least one picture, got none"):
        calibrate_qdq(calibrated("small")[0], [], SPEC)


def test_ranges():
    def range_of(*parts: list[float] | np.ndarray) -> float:
        magnitudes = Magnitudes()
        for part in parts:
            magnitudes.add(np.asarray(part, np.float32))
        return magnitudes.range()

    random = np.random.default_rng(0)
    assert range_of(np.zeros(5)) == 0.0
    assert range_of([1.0, -1.0, 1.0]) == pytest.approx(1.0)
    even = random.uniform(-3, 3, 100_000)
    assert range_of(even) == pytest.approx(3.0, rel=0.01)  # nothing to gain by cutting
    assert range_of([*random.normal(size=100_000), 40.0]) < 30.0  # one outlier does not take all the steps
    # In which order the larger values come does not matter, nor in how many parts.
    small, large = random.normal(size=999), 7 * random.normal(size=999)
    assert range_of(small, large) == range_of(large, small) == range_of(np.concatenate([small, large]))


def transposed(kernel: int, stride: int) -> onnx.ModelProto:
    """Cast → ConvTranspose 16 → 16, with a bias."""
    random = np.random.default_rng(0)
    size = (4 - 1) * stride + kernel
    weight = random.normal(size=(16, 16, kernel, kernel)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["picture"], ["x"], to=TensorProto.FLOAT, name="cast"),
            helper.make_node(
                "ConvTranspose", ["x", "up.weight", "up.bias"], ["logits"], name="up", strides=[stride] * 2
            ),
        ],
        "g",
        [helper.make_tensor_value_info("picture", TensorProto.UINT8, [1, 16, 4, 4])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 16, size, size])],
        [
            numpy_helper.from_array(weight, "up.weight"),
            numpy_helper.from_array(random.normal(size=16).astype(np.float32), "up.bias"),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize(("kernel", "stride", "operators"), [(2, 2, 3), (4, 4, 3), (3, 2, 2), (2, 1, 2)])
def test_a_transposed_convolution_becomes_an_equal_1x1(kernel, stride, operators):
    import onnxruntime

    model = transposed(kernel, stride)
    picture = np.random.default_rng(1).integers(0, 256, (1, 16, 4, 4), np.uint8)
    found = []
    for _ in range(2):
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        found.append(session.run(None, {"picture": picture})[0])
        rewrite_transposed(model)
    onnx.checker.check_model(model, full_check=True)
    assert len(model.graph.node) == operators  # with kernel ≠ stride outputs overlap: left as it is
    assert error(found[1], found[0]) < 1e-6


def test_unsigned_activations_are_the_same_numbers(calibrated, pictures, tmp_path):
    _, model, output = calibrated("concat-transposed")
    signed = model.quantised()
    unsigned = to_uint8(signed)
    check_onnx(unsigned, SPEC, output)
    onnx.save(signed, tmp_path / "signed.onnx")
    onnx.save(unsigned, tmp_path / "unsigned.onnx")
    found = [run("onnxruntime", tmp_path / f"{kind}.onnx", pictures) for kind in ("signed", "unsigned")]
    assert np.array_equal(*found)
    sizes = [(tmp_path / f"{kind}.onnx").stat().st_size for kind in ("unsigned", "signed")]
    assert sizes[0] < 0.5 * sizes[1]
    assert any("Q6" in finding for finding in findings(unsigned))  # TensorRT must not see it
    with pytest.raises(ValueError, match=r"must be int8 with zero point 0 for the whole tensor, is not"):
        to_uint8(unsigned)


UNSIGNED = ["concat-transposed", "lightunet", "residual-hardswish"]


@pytest.mark.parametrize("name", UNSIGNED)
def test_onnxruntime_computes_the_unsigned_graph_as_onnx_defines_it(name, calibrated, pictures, tmp_path):
    unsigned = to_uint8(calibrated(name)[1].quantised())
    onnx.save(unsigned, tmp_path / "unsigned.onnx")
    # ONNX's reference has Q/DQ from opset 19 on; what they compute is the same.
    reference = ReferenceEvaluator(version_converter.convert_version(unsigned, 19))
    exact = np.concatenate([reference.run(["logits"], {"picture": one[None]})[0] for one in pictures])
    assert error(run("onnxruntime", tmp_path / "unsigned.onnx", pictures), exact) < 0.01


@pytest.mark.usefixtures("exact_int8")
@pytest.mark.parametrize("name", UNSIGNED)
def test_openvino_and_onnxruntime_agree_on_the_unsigned_graph(name, calibrated, pictures, tmp_path):
    need_openvino()
    onnx.save(to_uint8(calibrated(name)[1].quantised()), tmp_path / "unsigned.onnx")
    found, expected = (
        run(engine, tmp_path / "unsigned.onnx", pictures) for engine in ("openvino", "onnxruntime")
    )
    assert error(found, expected) < 0.01


def test_openvino_still_computes_the_signed_graph_wrongly(calibrated, pictures, tmp_path):
    openvino = need_openvino()
    calibrated("concat-transposed")[1].write(tmp_path / "signed.onnx")
    found, expected = (
        run(engine, tmp_path / "signed.onnx", pictures) for engine in ("openvino", "onnxruntime")
    )
    assert error(found, expected) > 0.05, (
        f"openvino {openvino.__version__} computes Concat → int8 Q/DQ → Conv rightly: once the oldest openvino in "
        "pyproject.toml does, export/int8/qdq.py and its callers can go"
    )


def need_openvino():
    if find_spec("openvino") is None:  # not imported here: its telemetry must be off
        pytest.skip("openvino is not installed")
    from runtime.engines.openvino_engine import import_openvino

    return import_openvino()


def test_unet_is_what_the_preset_says():
    assert DESIGNS["lightunet"] == unet(8)
