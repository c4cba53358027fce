"""SAM2-UNet's graph, adapters and receptive fields included: what its ONNX must look like, and compute."""

import numpy as np
import pytest

pytest.importorskip("onnx")
torch = pytest.importorskip("torch")
pytest.importorskip("sam2")

from export.graph.onnx_export import write_onnx  # noqa: E402
from runtime.engines.seam import open_engine  # noqa: E402
from segcore.learn.network import DeployGraph  # noqa: E402
from segcore.picture.preprocess import InputSpec, output_spec  # noqa: E402
from teacher.decoders.supervised_heads import STRIDE, FinestHead  # noqa: E402
from teacher.systems.sam2_unet import MEAN_STD, build_sam2_unet  # noqa: E402
from teacher.tuning.tune import adapted_encoder  # noqa: E402

SPEC = InputSpec(height_px=64, width_px=64, channels=1, mean=MEAN_STD[1][0], std=MEAN_STD[1][1])


def test_the_graph_keeps_the_contract(tmp_path):
    torch.manual_seed(0)
    output = output_spec(("tooth", "caries"), STRIDE)
    network = build_sam2_unet(encoder="tiny", outputs=output.channels)
    adapted_encoder(network.encoder, {"adapter_kind": "adapter", "adapter_width": 8})
    for name, p in network.encoder.named_parameters():
        if "adapter" in name and p.abs().sum() == 0:  # so that adapters change something
            torch.nn.init.normal_(p, std=0.05)
    for module in network.modules():  # and batch norms are not the identity
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_mean, -0.1, 0.1)
    graph = DeployGraph(FinestHead(network), SPEC).eval()
    write_onnx(graph, SPEC, output, tmp_path / "m.onnx")
    picture = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 1), np.uint8)
    engine = open_engine("onnxruntime", tmp_path / "m.onnx", precision="fp32", threads=1)
    logits = engine.run(picture)
    engine.close()
    assert logits.shape == (1, 3, 16, 16)
    with torch.no_grad():
        assert np.allclose(logits, graph(torch.from_numpy(picture)).numpy(), atol=1e-4)
