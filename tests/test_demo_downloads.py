"""The files that a reader takes along: neutral names, masks that read back as they were."""

import json
import zipfile
from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from demo.case.downloads import PAGE, formats_for, write_mask_files
from segcore.bundle.manifest import Manifest
from segcore.errors import InputError
from segcore.medical.mask_files import read_mask_file
from segcore.picture.scan import Scan

MANIFEST = Manifest.model_validate(
    json.loads(
        """{
  "name": "net", "kind": "student", "format": "onnx", "precision": "int8", "architecture": "unet",
  "architecture_settings": {}, "classes": ["lung"], "parameters": 1, "trained_parameters": 1, "macs": 1,
  "input": {"height_px": 8, "width_px": 8, "channels": 1, "mean": [0.5], "std": [0.5]},
  "output": {"activation": "sigmoid", "channels": 1, "stride": 1},
  "pretrained": "no pretrained weights", "data": {"name": "phantom:cxr", "sha256": "a", "split_sha256": "b"},
  "made": {"command": "c", "time": "2026-01-01T00:00:00+00:00", "commit": "c", "python": "3", "host": "h", "versions": {}},
  "model_file": "model.onnx", "files": {"model.onnx": {"sha256": "HASH", "bytes": 1}}
}""".replace("HASH", "0" * 64)
    )
)
TWO = MANIFEST.model_copy(
    update={
        "classes": ("lung", "heart"),
        "output": MANIFEST.output.model_copy(update={"activation": "softmax", "channels": 3}),
    }
)
MASK = np.zeros((6, 10), np.uint8)
MASK[1:5, 2:8] = 1


def scan(slices: int = 1, **changes) -> Scan:
    picture = np.arange(60, dtype=np.uint8).reshape(6, 10)
    made = Scan("Mustermann Erika.png", "image", slices, (6, 10), lambda _: picture, lambda _: picture)
    return replace(made, **changes)


def test_a_segmentation_is_offered_for_dicom_only():
    assert [one.key for one in formats_for(scan())] == ["png", "nifti", "json", "page"]
    assert [one.key for one in formats_for(scan(kind="dicom"))] == [
        "png",
        "nifti",
        "dicom-seg",
        "json",
        "page",
    ]
    assert formats_for(scan())[-1] == PAGE


def test_files_of_one_picture_have_neutral_names_and_hold_the_mask(tmp_path):
    made = write_mask_files(scan(), MASK[None], MANIFEST, tmp_path, ["json", "png", "nifti"])
    assert {path.name for path in made} == {"mask.png", "mask.nii.gz", "case.json"}
    assert all(path.parent == tmp_path and path.is_file() for path in made)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "mask.png")), MASK * 255)
    np.testing.assert_array_equal(read_mask_file(tmp_path / "mask.nii.gz", scan())[0], MASK)


def test_json_has_measurements_and_not_the_name_of_the_file(tmp_path):
    spaced = scan(spacing_mm=(2.0, 0.5))
    made = write_mask_files(
        spaced, MASK[None], MANIFEST, tmp_path, ["json", "png"], threshold=0.3, bundle_sha256="b" * 64
    )
    text = (tmp_path / "case.json").read_text()
    record = json.loads(text)
    assert "Mustermann" not in text
    assert record["scan"]["name"] == "case"
    assert record["model"]["threshold"] == 0.3
    assert record["model"]["bundle_sha256"] == "b" * 64
    assert record["files"] == {"png": ["mask.png"]}
    assert record["details"]["measurements"][0]["area"] == 24.0  # 24 pixels of 1 mm²
    assert record["notice"] == "Research use only, not a medical device."
    assert made[-1].name == "case.json"


def test_a_series_is_one_file_of_each_format(tmp_path):
    masks = np.stack([MASK * 0, MASK, MASK * 2])
    series = scan(3, spacing_mm=(1.0, 1.0), slice_spacing_mm=5.0)
    made = write_mask_files(series, masks, TWO, tmp_path, ["png", "json"])
    assert [path.name for path in made] == ["mask-png.zip", "case.json"]
    with zipfile.ZipFile(made[0]) as archive:
        assert archive.namelist() == ["mask/0001.png", "mask/0002.png", "mask/0003.png"]
        np.testing.assert_array_equal(
            np.asarray(Image.open(BytesIO(archive.read("mask/0003.png")))), MASK * 2
        )
    record = json.loads(made[1].read_text())
    assert [one["volume"] for one in record["details"]["measurements"]] == [0.12, 0.12]  # 24 voxels of 5 mm³
    assert record["model"]["threshold"] is None


def test_json_gives_shares_of_a_reference_class(tmp_path):
    mask = MASK.copy()
    mask[1:5, 2:4] = 2  # 8 of 24 pixels
    write_mask_files(scan(), mask[None], TWO, tmp_path, ["json"], reference="lung")
    found = json.loads((tmp_path / "case.json").read_text())["details"]["measurements"]
    assert found[1]["share_of_reference"] == 8 / 24


def test_dicom_segmentation_reads_back_and_names_no_patient_in_the_json(tmp_path, dicom_files):
    pytest.importorskip("highdicom")
    from segcore.medical.read import read_scan

    (tmp_path / "out").mkdir()
    rng = np.random.default_rng(0)
    source = dicom_files.make_dicom(
        tmp_path / "erika.dcm", rng.integers(0, 255, (6, 10), np.uint8), Modality="DX"
    )
    opened = read_scan(source)
    made = write_mask_files(opened, MASK[None], MANIFEST, tmp_path / "out", ["dicom-seg", "json"])
    assert [path.name for path in made] == ["mask-seg.dcm", "case.json"]
    np.testing.assert_array_equal(read_mask_file(made[0], opened)[0], MASK)
    assert json.loads(made[1].read_text())["files"] == {"dicom-seg": ["mask-seg.dcm"]}
    text = made[1].read_text()
    assert [word for word in (*dicom_files.PATIENT.values(), "erika") if word in text] == []


def test_a_format_that_cannot_be(tmp_path):
    with pytest.raises(InputError) as caught:
        write_mask_files(scan(), MASK[None], MANIFEST, tmp_path, ["png", "tiff"])
    assert str(caught.value) == "format: must be one of png, nifti, dicom-seg, json, got tiff"
    with pytest.raises(InputError, match="DICOM"):
        write_mask_files(scan(), MASK[None], MANIFEST, tmp_path, ["dicom-seg"])
    assert list(tmp_path.iterdir()) == []
    made = write_mask_files(scan(), MASK[None], MANIFEST, tmp_path, ["png", "dicom-seg"])
    assert [path.name for path in made] == ["mask.png", "not-written.txt"]
    assert "must be DICOM" in made[1].read_text()


def test_the_heading_tells_what_is_to_be_known_of_a_scan():
    from demo.page.html_pieces import case_heading

    assert "no volume" not in case_heading(scan())
    told = replace(
        scan(), uneven="4 mm and not 2 mm between a and b", remarks=lambda: ("1 file <b> damaged",)
    )
    heading = case_heading(told)
    assert "no volume, as slices are not evenly spaced (4 mm and not 2 mm between a and b)" in heading
    assert "1 file &lt;b&gt; damaged" in heading
    assert [one.key for one in formats_for(told)] == ["png", "json", "page"]
