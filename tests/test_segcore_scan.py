"""The pixels of one file are the same in training (`Case.image`) and in prediction (`Scan.picture`), to the bit."""

import numpy as np
import pytest

from segcore.dataset import scan_cases
from segcore.dataset.case import Case
from segcore.medical.read import read_scan
from segcore.phantom import phantom_case
from segcore.picture.preprocess import prepare

pytest.importorskip("pydicom")

WINDOW = {"WindowCenter": 90, "WindowWidth": 40}
TWELVE_BITS = {"bits": 12, "WindowCenter": 900, "WindowWidth": 400, "Modality": "DX"}
HOUNSFIELD = {"RescaleSlope": 1, "RescaleIntercept": -1024, "WindowCenter": 40, "WindowWidth": 400}
MONOCHROME1 = {"PhotometricInterpretation": "MONOCHROME1"}


def cases_of(path) -> list[Case]:
    return scan_cases.cases_of("a", path, None)


def fed(cases: list[Case], path, window: str | None, depth: str) -> None:
    """Checks every slice of a file, and that the network is fed something of it."""
    pytest.importorskip("torch")
    from segcore.learn.loader import TrainingSet, training_input

    spec = training_input(
        cases, (32, 40), {1: ((0.5,), (0.25,)), 3: ((0.5,) * 3, (0.25,) * 3)}, window=window
    )
    assert spec.depth == depth
    trained = TrainingSet(cases, spec, classes=1, seed=0, augment=None).images
    scan = read_scan(path)
    predicted = np.stack([prepare(scan.picture(i, spec.depth), spec) for i in range(scan.slices)])
    np.testing.assert_array_equal(predicted, trained)
    assert len(np.unique(trained)) > 20


@pytest.mark.parametrize(
    ("factor", "dtype", "tags", "window", "depth"),
    [
        (1, np.uint8, {}, None, "uint8"),
        (1, np.uint8, WINDOW, None, "uint8"),
        (1, np.uint8, {**WINDOW, **MONOCHROME1}, None, "uint8"),
        (1, np.uint8, WINDOW, "50,200", "uint8"),
        (16, np.uint16, TWELVE_BITS, None, "uint16"),
        (16, np.uint16, {**TWELVE_BITS, **MONOCHROME1}, None, "uint16"),
        (5, np.uint16, HOUNSFIELD, "lung", "float32"),
        (5, np.uint16, HOUNSFIELD, None, "float32"),
        (5, np.int16, {}, "bone", "float32"),
    ],
)
def test_a_dicom_is_fed_alike(dicom_files, tmp_path, factor, dtype, tags, window, depth):
    grey = phantom_case("ct", 3, size_px=64)[0]
    path = dicom_files.make_dicom(tmp_path / "a.dcm", (grey.astype(int) * factor).astype(dtype), **tags)
    fed(cases_of(path), path, window, depth)


def test_a_data_set_mixes_8_bit_files_with_and_without_a_window(dicom_files, tmp_path):
    """Stored values of 8 bits are the picture: a window that a file brings changes what is shown, not what is fed."""
    grey = phantom_case("cxr", 3, size_px=64)[0]
    with_one = dicom_files.make_dicom(tmp_path / "a.dcm", grey, **WINDOW)
    without = dicom_files.make_dicom(tmp_path / "b.dcm", grey)
    for path in (with_one, without):
        np.testing.assert_array_equal(read_scan(path).picture(0, "uint8"), grey)
        np.testing.assert_array_equal(cases_of(path)[0].image(), grey)
    assert (read_scan(with_one).display(0) != grey).any()


def test_a_series_and_a_nifti_are_fed_alike(dicom_files, tmp_path):
    nibabel = pytest.importorskip("nibabel")
    volume = np.stack([phantom_case("ct", i, size_px=64)[0] for i in range(3)]).astype(np.int16) * 5 - 1000
    dicom_files.make_series(tmp_path / "ct", volume)
    nibabel.save(
        nibabel.Nifti1Image(volume.transpose(2, 1, 0), np.diag([-1.0, -1, 2, 1])), tmp_path / "v.nii"
    )
    for path in (tmp_path / "ct", tmp_path / "v.nii"):
        fed(cases_of(path), path, "lung", "float32")
