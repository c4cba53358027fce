"""Every part of the family leaves torch and comes back the same; presets run their convolutions in 8 bits."""

from importlib.util import find_spec

import numpy as np
import pytest
import torch

from segcore.learn.network import DeployGraph
from segcore.picture.preprocess import InputSpec, output_spec
from student.design import PRESETS, Design
from student.network import Student, build_student, sealed_form

for package in ("onnx", "onnxscript", "onnxruntime", "openvino", "nncf"):
    if find_spec(package) is None:  # not imported here: openvino must be imported with its telemetry off
        pytest.skip(f"{package} is not installed", allow_module_level=True)

QUARTER = {"stem": "strided", "stem_stride": 4, "widths": (16, 32), "depths": (1, 1), "up_depths": (1,)}
PARTS = {
    "nano": PRESETS["nano"],
    "base": PRESETS["base"],
    "reparam": Design(**QUARTER, block="reparam"),
    "separable-concat-bilinear": Design(**QUARTER, block="separable", skip="concat", up="bilinear"),
    "inverted-shuffle-head": Design(**QUARTER, block="inverted", up="shuffle", head_upscale=2),
    "residual-transposed-hardswish": Design(
        **QUARTER, block="residual", up="transposed", activation="hardswish"
    ),
    "unshuffle-pool": Design(**QUARTER | {"stem": "unshuffle"}, down="pool"),
}
SPEC = InputSpec(height_px=64, width_px=96, channels=3, mean=(0.5,) * 3, std=(0.25,) * 3)


def lively(design: Design, channels: int, outputs: int) -> Student:
    """Untrained, with running statistics as if it were trained."""
    torch.manual_seed(0)
    network = build_student(design, channels=channels, outputs=outputs).eval()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.uniform_(-0.2, 0.2)
            module.running_var.uniform_(0.3, 1.0)
    return sealed_form(network)


@pytest.mark.parametrize("name", PARTS)
def test_every_part_gives_the_same_logits_in_onnxruntime(name, tmp_path):
    from export.graph.onnx_export import write_onnx
    from runtime.engines.seam import open_engine

    design = PARTS[name]
    graph = DeployGraph(lively(design, 3, 3), SPEC).eval()
    output = output_spec(("a", "b"), design.logits_stride)
    write_onnx(graph, SPEC, output, tmp_path / "model.onnx")
    engine = open_engine("onnxruntime", tmp_path / "model.onnx", precision="fp32", threads=1)
    pictures = np.random.default_rng(0).integers(0, 256, (2, 64, 96, 3), np.uint8)
    with torch.no_grad():
        expected = graph(torch.from_numpy(pictures)).numpy()
    assert expected.std() > 0
    assert np.abs(engine.run(pictures) - expected).max() < 1e-4 * max(1.0, np.abs(expected).max())


@pytest.mark.parametrize("name", ["nano", "small", "base"])
def test_every_convolution_of_a_preset_runs_in_8_bits(name, tmp_path):
    from export.graph.onnx_export import write_onnx
    from export.graph.openvino_export import import_openvino, quiet

    openvino = import_openvino()
    design = PRESETS[name]
    spec = InputSpec(height_px=64, width_px=64, channels=1, mean=(0.5,), std=(0.25,))
    write_onnx(
        DeployGraph(lively(design, 1, 1), spec).eval(),
        spec,
        output_spec(("a",), design.logits_stride),
        tmp_path / "model.onnx",
    )
    with quiet():
        import nncf

        picture = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 1), np.uint8)
        quantised = nncf.quantize(
            openvino.Core().read_model(str(tmp_path / "model.onnx")),
            nncf.Dataset([picture]),
            preset=nncf.QuantizationPreset.PERFORMANCE,
            subset_size=1,
        )
    compiled = openvino.Core().compile_model(quantised, "CPU", {"PERF_COUNT": True})
    request = compiled.create_infer_request()
    request.infer([picture])
    layers = [p for p in request.profiling_info if p.node_type in ("Convolution", "Eltwise")]
    assert len([p for p in layers if p.node_type == "Convolution"]) >= 10
    assert [p.node_name for p in layers if not p.exec_type.endswith(("I8", "i8", "u8"))] == []
