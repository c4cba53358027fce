"""Training on CT in Hounsfield units: the window the user names is what the network is fed, and travels on."""

import gzip
import shutil
from pathlib import Path

import numpy as np
import pytest

from segcore.bundle.folder import open_bundle
from segcore.command import parse_settings
from segcore.dataset.dataset import open_dataset
from segcore.dataset.scan_cases import open_scan
from segcore.errors import InputError
from segcore.learn.settings import TrainSettings
from segcore.phantom import phantom_case
from segcore.picture.preprocess import InputSpec

torch = pytest.importorskip("torch")
pydicom = pytest.importorskip("pydicom")
nibabel = pytest.importorskip("nibabel")

VOLUMES, SLICES, SIZE_PX = 5, 2, 32
MEAN_STD = {1: ((0.5,), (0.25,))}


@pytest.fixture(scope="module")
def ct(tmp_path_factory, dicom_files) -> Path:
    """Five CT series of two slices with NIfTI masks; grey 0 to 255 of a phantom is -1000 to 400 Hounsfield units."""
    folder = tmp_path_factory.mktemp("ct")
    (folder / "masks").mkdir()
    for number in range(VOLUMES):
        drawn = [phantom_case("ct", number * SLICES + i, size_px=SIZE_PX) for i in range(SLICES)]
        stored = np.stack([24 + grey * (1400 / 255) for grey, _ in drawn]).round().astype(np.uint16)
        masks = np.stack([mask for _, mask in drawn])
        masks[:, 12:20, 12:20] = 1
        tags = {"RescaleSlope": 1, "RescaleIntercept": -1024, "PatientID": f"HOSP-{number}"}
        dicom_files.make_series(folder / "images" / f"v{number}", stored, origin_mm=(0, 0, 0), **tags)
        affine = np.diag(
            [-0.5, -0.5, 2.0, 1.0]
        )  # the builder's spacing, from left-posterior to right-anterior axes
        nibabel.save(
            nibabel.Nifti1Image(masks.transpose(2, 1, 0), affine), folder / "masks" / f"v{number}.nii.gz"
        )
    return folder


def test_padding_takes_no_part_in_the_range_that_is_measured(ct, dicom_files, tmp_path):
    from segcore.learn.loader import training_input

    shutil.copytree(ct, tmp_path / "ct")
    for path in (tmp_path / "ct" / "images").rglob("*.dcm"):
        item = pydicom.dcmread(path)
        pixels = item.pixel_array.copy()
        pixels[:6] = 40_000
        item.PixelData, item.PixelPaddingValue = pixels.tobytes(), 40_000
        item["PixelPaddingValue"].VR = "US"
        item.save_as(path)
    found = {}
    for folder in (ct, tmp_path / "ct"):
        cases = open_dataset(str(folder)).split("train")
        found[folder] = training_input(cases, (SIZE_PX, SIZE_PX), MEAN_STD).window
    assert cases[0].image().max() == 40_000 - 1024  # the values themselves stay
    assert found[tmp_path / "ct"][1] == pytest.approx(found[ct][1], abs=50)


def test_the_loader_feeds_what_the_window_makes_of_hounsfield_units(ct):
    from segcore.learn.loader import TrainingSet, training_input

    cases = open_dataset(str(ct)).split("train")
    size = (SIZE_PX, SIZE_PX)
    spec = training_input(cases, size, MEAN_STD, window="lung")
    assert (spec.depth, spec.window, spec.window_name) == ("float32", (-1350.0, 150.0), "lung")
    data = TrainingSet(cases, spec, classes=1, seed=0, augment=None)
    for i, case in enumerate(cases):
        expected = np.clip((case.image() + 1350) * (255 / 1500), 0, 255).round()
        np.testing.assert_array_equal(data.images[i, ..., 0], expected)
        np.testing.assert_array_equal(data.masks[i], case.mask())
    measured = training_input(cases, size, MEAN_STD)
    assert measured.window_name == ""
    assert -1000 <= measured.window[0] < measured.window[1] <= 400


def test_a_window_of_hounsfield_units_is_refused_for_8_bit_pictures():
    from segcore.learn.loader import training_input

    with pytest.raises(InputError) as caught:
        training_input(open_dataset("phantom:ct:12").split("train"), (32, 32), MEAN_STD, window="bone")
    assert str(caught.value) == (
        "--window bone: must be used on Hounsfield units, got uint8 images (ct-0000), whose grey values have no unit; "
        "leave --window away, or give LOW,HIGH in their own values"
    )


def test_a_window_is_checked_before_any_data_is_read():
    argv = ["--data", "D", "--out", "O"]
    assert parse_settings(TrainSettings, "train", [*argv, "--window=-1000,0.5"]).window == "-1000,0.5"
    for wrong in ("brain", "3,2", "0,inf"):
        with pytest.raises(InputError) as caught:
            parse_settings(TrainSettings, "train", [*argv, "--window", wrong])
        assert str(caught.value) == (
            f"--window: must be lung, soft-tissue, bone or LOW,HIGH with LOW < HIGH, got {wrong}"
        )


def small(ct: Path, out: Path, **more):
    from student.design import unet
    from student.distill import DistillSettings

    return DistillSettings(
        data=str(ct), out=out, size=32, epochs=1, batch_size=2, warmup_epochs=0, device="cpu",
        design=unet(4).model_dump(mode="json"), **more,
    )  # fmt: skip


@pytest.fixture(scope="module")
def student(ct, tmp_path_factory) -> Path:
    from student.distill import main as distill

    out = tmp_path_factory.mktemp("student") / "a"
    distill(small(ct, out, window="lung"))
    return out


def test_a_student_of_ct_carries_its_window_and_no_header(student, ct, dicom_files):
    manifest = open_bundle(student).manifest
    assert (manifest.input.window_name, manifest.input.window) == ("lung", (-1350.0, 150.0))
    assert manifest.settings["window"] == "lung"
    assert InputSpec.model_validate_json(manifest.input.model_dump_json()) == manifest.input
    assert dicom_files.told(student, ct / "images") == []


def test_what_is_made_of_a_student_of_ct_holds_no_header(student, ct, dicom_files, tmp_path, capfd):
    """An export with golden pictures, which teaches, too: soft labels, a benchmark and predictions."""
    for package in ("onnx", "onnxscript", "onnxruntime", "jinja2"):
        pytest.importorskip(package)
    from benchmarks.report.run import main as benchmark
    from benchmarks.report.settings import BenchmarkSettings
    from export.__main__ import ExportSettings
    from export.__main__ import main as export
    from runtime.predict.__main__ import PredictSettings
    from runtime.predict.__main__ import main as predict
    from teacher.label import LabelSettings
    from teacher.label import main as label

    made, onnx = tmp_path / "made", tmp_path / "made" / "onnx"
    export(ExportSettings(bundle=student, data=str(ct), out=onnx, to="onnx", precision="fp32"))
    label(LabelSettings(bundle=(onnx,), data=str(ct), out=made / "soft", device="cpu"))
    benchmark(BenchmarkSettings(bundle=(onnx,), data=str(ct), out=made / "report", skip_latency=True))
    predict(
        PredictSettings(
            bundle=onnx, image=ct / "images", out=made / "masks", threads=1, to=("png", "nifti", "json")
        )
    )
    said = capfd.readouterr()
    (made / "said.txt").write_text(said.out + said.err)
    assert {"golden.npz", "predictions.jsonl", "report.html", "v0.nii.gz"} <= {
        p.name for p in made.rglob("*")
    }
    assert dicom_files.told(made, ct / "images") == []
    (onnx / "note.gz").write_bytes(gzip.compress(b"of Mustermann"))  # what there would be to find is found
    assert dicom_files.told(made, ct / "images") == ["onnx/note.gz: Mustermann"]


@pytest.mark.parametrize(("window", "got"), [(None, None), ("soft-tissue", "-160,240")])
def test_a_live_teacher_must_share_the_window(student, ct, tmp_path, window, got):
    from student.distill import main as distill

    with pytest.raises(InputError) as caught:
        distill(small(ct, tmp_path / "b", teacher=student, window=window))
    text = str(caught.value)
    assert text.startswith(
        "--window: must be the teacher's, -1350,150, with --teacher, who sees the student's"
    )
    assert text.endswith("; give that window, or use --soft")
    assert got is None or f"got {got};" in text
    assert list(tmp_path.iterdir()) == []  # the right window can follow at once


def test_a_live_teacher_of_the_same_window_teaches(student, ct, tmp_path):
    from student.distill import main as distill

    distill(small(ct, tmp_path / "b", teacher=student, window="-1350,150"))
    assert open_bundle(tmp_path / "b").manifest.input.window == (-1350.0, 150.0)


def test_dicom_segmentations_are_masks_too(student, ct, tmp_path):
    pytest.importorskip("highdicom")
    from segcore.medical.mask_files import write_masks

    dataset = open_dataset(str(ct))
    (tmp_path / "masks").mkdir()
    shutil.copytree(ct / "images", tmp_path / "images")
    for volume in {case.volume: None for case in dataset.cases}:
        masks = np.stack([case.mask() for case in dataset.cases if case.volume == volume])
        scan = open_scan(tmp_path / "images" / volume)
        write_masks(tmp_path / "masks", volume, scan, masks, open_bundle(student).manifest, ["dicom-seg"])
    assert sorted(path.name for path in (tmp_path / "masks").iterdir()) == [
        f"v{i}.dcm" for i in range(VOLUMES)
    ]
    again = open_dataset(str(tmp_path))
    assert again.split_sha256 == dataset.split_sha256
    for case, same in zip(again.cases, dataset.cases, strict=True):
        np.testing.assert_array_equal(case.mask(), same.mask())
