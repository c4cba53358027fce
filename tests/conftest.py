"""Fixtures of the export and runtime tests: a briefly trained student of 64 px, and its exports."""

import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

# Before torch is imported, and inherited by every command that a test starts: tiny tensors on several threads only
# wait for each other, many times longer when the machine is shared.
os.environ.setdefault("OMP_NUM_THREADS", "1")

DATA = "phantom:cxr:24"


@pytest.fixture(scope="session")
def torch_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """LightUNet base 8 at 64 px, trained for seconds: its masks are not empty, not full, and not good."""
    torch = pytest.importorskip("torch")
    import numpy as np
    from safetensors.torch import save_file

    from segcore.bundle import DataRecord, seal_bundle
    from segcore.dataset import open_dataset, split_counts
    from segcore.host import made_now
    from segcore.learn.deploy import DeployGraph
    from segcore.preprocess import InputSpec, output_spec, prepare, resize_mask
    from student.design import unet
    from student.network import GREY_MEAN_STD, build_student

    torch.manual_seed(0)
    dataset = open_dataset(DATA)
    mean, std = GREY_MEAN_STD
    spec = InputSpec(height_px=64, width_px=64, channels=1, mean=mean, std=std)
    network = build_student(unet(8), channels=1, outputs=1)
    graph = DeployGraph(network, spec)
    cases = dataset.split("train", limit=8)
    pictures = torch.from_numpy(np.stack([prepare(case.image(), spec) for case in cases]))
    masks = torch.from_numpy(
        np.stack([resize_mask(case.mask(), spec.size_px) for case in cases])[:, None]
    ).float()
    optimiser = torch.optim.Adam(graph.parameters(), 1e-2)
    for _ in range(60):
        optimiser.zero_grad()
        torch.nn.functional.binary_cross_entropy_with_logits(graph(pictures), masks).backward()
        optimiser.step()
    folder = tmp_path_factory.mktemp("student") / "torch"
    folder.mkdir()
    save_file(network.eval().state_dict(), folder / "model.safetensors")
    parameters = sum(p.numel() for p in network.parameters())
    seal_bundle(
        folder,
        name="lightunet-8",
        kind="student",
        format="torch",
        precision="fp32",
        architecture="student",
        architecture_settings=unet(8).model_dump(mode="json"),
        classes=dataset.classes,
        input=spec,
        output=output_spec(dataset.classes, 1),
        parameters=parameters,
        trained_parameters=parameters,
        macs=47_800_000,
        pretrained="no pretrained weights",
        data=DataRecord(
            name=dataset.name,
            sha256=dataset.sha256,
            split_sha256=dataset.split_sha256,
            counts=split_counts(dataset),
        ),
        settings={"seed": 0},
        made=made_now(),
        model_file="model.safetensors",
    )
    return folder


@pytest.fixture(scope="session")
def exported(torch_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """Exports the student once for each format and precision that a test asks for."""
    for package in ("onnx", "onnxscript", "onnxruntime", "openvino", "nncf"):
        if find_spec(package) is None:  # not imported here: openvino must be imported with its telemetry off
            pytest.skip(f"{package} is not installed")
    from export.command import ExportSettings, export_bundle

    folder = tmp_path_factory.mktemp("exported")

    def export(to: str, precision: str) -> Path:
        out = folder / f"{to}-{precision}"
        if not out.exists():
            data = DATA if precision == "int8" else None
            settings = {"bundle": torch_bundle, "to": to, "precision": precision, "data": data, "out": out}
            export_bundle(ExportSettings(**settings, calibration_cases=8))
        return out

    return export
