"""Fixtures of the export and runtime tests: a briefly trained student of 64 px, and its exports."""

import ast
import importlib
import inspect
import os
import platform
import tempfile
from collections.abc import Callable
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from segcore.bundle.manifest import Manifest
    from segcore.command import Settings
    from student.design import Design

# Before torch is imported, and inherited by every command that a test starts: tiny tensors on several threads only
# wait for each other, many times longer when the machine is shared.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# The user's cache is not filled with what tests make; what other programs keep there is found all the same: Playwright's
# browsers, and matplotlib's list of fonts, which takes seconds to make.
_caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
os.environ.setdefault("PLAYWRIGHT_BROWSERS_PATH", str(_caches / "ms-playwright"))
os.environ.setdefault("MPLCONFIGDIR", str(_caches / "matplotlib"))
_scratch = tempfile.TemporaryDirectory(prefix="sam2edge-tests-cache-")
os.environ["XDG_CACHE_HOME"] = _scratch.name

DATA = "phantom:cxr:24"


@pytest.fixture(scope="session")
def torch_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """LightUNet base 8 at 64 px, trained for seconds: its masks are not empty, not full, and not good."""
    pytest.importorskip("torch")
    from student.design import unet

    return train_briefly(unet(8), "lightunet-8", tmp_path_factory.mktemp("student") / "torch")


@pytest.fixture(scope="session")
def plain_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small student of plain blocks with sums, which fragile_student can make hopeless."""
    pytest.importorskip("torch")
    from student.design import Design

    design = Design(stem="strided", stem_stride=2, widths=(16, 16), depths=(1, 1), up_depths=(1,))
    return train_briefly(design, "plain", tmp_path_factory.mktemp("student") / "plain")


def train_briefly(design: "Design", name: str, folder: Path) -> Path:
    """Trains a student at 64 px for seconds, and seals it."""
    import numpy as np
    import torch
    from safetensors.torch import save_file

    from segcore.bundle.folder import seal_bundle
    from segcore.bundle.manifest import DataRecord
    from segcore.dataset.dataset import open_dataset, split_counts
    from segcore.host import made_now
    from segcore.learn.network import DeployGraph
    from segcore.picture.preprocess import InputSpec, output_spec, prepare, resize_mask
    from student.network import GREY_MEAN_STD, build_student

    torch.manual_seed(0)
    dataset = open_dataset(DATA)
    mean, std = GREY_MEAN_STD
    spec = InputSpec(height_px=64, width_px=64, channels=1, mean=mean, std=std)
    network = build_student(design, channels=1, outputs=1)
    graph = DeployGraph(network, spec)
    cases = dataset.split("train", limit=8)
    pictures = torch.from_numpy(np.stack([prepare(case.image(), spec) for case in cases]))
    masks = torch.from_numpy(
        np.stack([resize_mask(case.mask(), spec.size_px) for case in cases])[:, None]
    ).float()
    optimiser = torch.optim.Adam(graph.parameters(), 1e-2)
    for _ in range(60):
        optimiser.zero_grad()
        logits = torch.nn.functional.interpolate(graph(pictures), masks.shape[2:])
        torch.nn.functional.binary_cross_entropy_with_logits(logits, masks).backward()
        optimiser.step()
    folder.mkdir()
    save_file(network.eval().state_dict(), folder / "model.safetensors")
    parameters = sum(p.numel() for p in network.parameters())
    seal_bundle(
        folder,
        name=name,
        kind="student",
        format="torch",
        precision="fp32",
        architecture="student",
        architecture_settings=design.model_dump(mode="json"),
        classes=dataset.classes,
        input=spec,
        output=output_spec(dataset.classes, design.logits_stride),
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
def settings_of() -> "Callable[[str], type[Settings]]":
    """The settings of a command: `settings_of("runtime.predict")` is what `python -m runtime.predict` parses."""

    def find(module: str) -> "type[Settings]":
        source = importlib.import_module(module)
        if hasattr(source, "__path__"):
            source = importlib.import_module(f"{module}.__main__")
        calls = (
            node for node in ast.walk(ast.parse(inspect.getsource(source))) if isinstance(node, ast.Call)
        )
        name = next(ast.unparse(call.args[1]) for call in calls if ast.unparse(call.func) == "run_command")
        settings: type[Settings] = getattr(source, name)
        return settings

    return find


@pytest.fixture(scope="session")
def exact_int8() -> None:
    """Skips where OpenVINO does not compute the uint8 graph as ONNX defines it."""
    skip_where_int8_saturates()


def skip_where_int8_saturates() -> None:
    """There OpenVINO and onnxruntime, which is exact, give other masks, and no bundle of `--to onnx --precision int8`
    passes its last check."""
    if int8_saturates():
        pytest.skip("8-bit products saturate in 16 bits on this processor")


@pytest.fixture(scope="session", name="int8_saturates")
def whether_int8_saturates() -> bool:
    """Whether OpenVINO's INT8 is not what ONNX defines, here."""
    return int8_saturates()


def int8_saturates() -> bool:
    """On an x86 processor without VNNI or AMX, which adds two products of uint8 × int8 in 16 bits (vpmaddubsw)."""
    if platform.machine().lower() not in ("x86_64", "amd64", "i686"):
        return False  # NEON adds them in 32 bits
    processor = Path("/proc/cpuinfo")
    words = set(processor.read_text().split()) if processor.exists() else set()
    return not words & {"avx512_vnni", "avx_vnni", "amx_int8"}


@pytest.fixture(scope="session")
def fragile_student() -> ModuleType:
    """tests/fragile_student.py, which is a script too: students that INT8 breaks."""
    pytest.importorskip("torch")
    return beside("fragile_student")


@pytest.fixture(scope="session")
def cuda_stand_ins() -> ModuleType:
    """tests/cuda_stand_ins.py: CUDA's two Python libraries over this computer's memory."""
    return beside("cuda_stand_ins")


@pytest.fixture(scope="session")
def benchmark_records() -> ModuleType:
    """tests/benchmark_records.py: records of cases and bundles with every field filled."""
    return beside("benchmark_records")


@pytest.fixture(scope="session")
def dicom_files() -> ModuleType:
    """tests/dicom_files.py: writes DICOM files of a test's own pixels, tags and transfer syntax."""
    pytest.importorskip("pydicom")
    return beside("dicom_files")


@pytest.fixture(scope="session")
def prompted_discs() -> ModuleType:
    """tests/prompted_discs.py: writes a promptable bundle whose answers can be worked out in the head."""
    pytest.importorskip("onnx")
    return beside("prompted_discs")


def beside(name: str) -> ModuleType:
    """A module of this folder, which is no package."""
    spec = spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec
    assert spec.loader
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def manifest() -> "Manifest":
    """Of a model of one class that has no files: what is written beside a mask comes from it."""
    from segcore.bundle.manifest import DataRecord, FileEntry, Manifest
    from segcore.host import made_now
    from segcore.picture.preprocess import InputSpec, output_spec

    classes = ("lung",)
    return Manifest(
        name="Small, INT8",
        kind="student",
        format="openvino",
        precision="int8",
        architecture="student",
        architecture_settings={},
        classes=classes,
        input=InputSpec(height_px=64, width_px=64, channels=1, mean=(0.5,), std=(0.25,)),
        output=output_spec(classes, 4),
        parameters=1,
        trained_parameters=1,
        macs=1,
        pretrained="no pretrained weights",
        data=DataRecord(name="phantom:cxr", sha256="0" * 64, split_sha256="1" * 64),
        made=made_now(),
        model_file="model.xml",
        files={"model.xml": FileEntry(sha256="ab" * 32, bytes=1)},
    )


@pytest.fixture(scope="session")
def three(manifest: "Manifest") -> "Manifest":
    """Of a model of three classes, one of them not in ASCII."""
    from segcore.picture.preprocess import output_spec

    classes = ("left lung", "lesion", "Zähne")
    return manifest.model_copy(update={"classes": classes, "output": output_spec(classes, 4)})


@pytest.fixture(scope="session")
def exported(torch_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """Exports the student once for each format and precision that a test asks for."""
    for package in ("onnx", "onnxscript", "onnxruntime", "openvino", "nncf"):
        if find_spec(package) is None:  # not imported here: openvino must be imported with its telemetry off
            pytest.skip(f"{package} is not installed")
    from export.__main__ import ExportSettings, export_bundle

    folder = tmp_path_factory.mktemp("exported")

    def export(to: str, precision: str) -> Path:
        if (to, precision) == ("onnx", "int8"):
            skip_where_int8_saturates()
        out = folder / f"{to}-{precision}"
        if not out.exists():
            data = DATA if precision == "int8" else None
            settings = {"bundle": torch_bundle, "to": to, "precision": precision, "data": data, "out": out}
            # Not guarded: what a minute's training survives, and how fast this machine is, is no other test's matter.
            unguarded = {"max_drop_points": 100, "max_p05_drop_points": 100, "min_speedup": 0}
            export_bundle(ExportSettings(**settings, **unguarded, calibration_cases=8))
        return out

    return export
