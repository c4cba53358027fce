"""Masks out and back: PNG, NIfTI, DICOM-SEG and the JSON record, on hand-made scans."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

pytest.importorskip("highdicom")
pytest.importorskip("nibabel")

import nibabel
from PIL import Image
from pydicom import config as pydicom_config
from pydicom import dcmread
from pydicom.sr._concepts_dict import concepts
from pydicom.uid import generate_uid

from segcore.errors import InputError
from segcore.medical.mask_files import MASK_FORMATS, read_mask_file, write_masks
from segcore.medical.read import read_scan
from segcore.medical.seg.write import _BY_NAME, segment_codes
from segcore.picture.scan import Scan

SIZE = 20, 30
US_FRAMES = "1.2.840.10008.5.1.4.1.1.3.1"
LAYOUTS = ("dx", "dx-frame-of-reference", "us", "capture", "us-frames", "us-one-frame", "ct", "ct-one", "ct-no-places",
           "ct-no-reference", "ct-same-place", "enhanced", "enhanced-down")  # fmt: skip


@pytest.fixture(scope="module")
def scan_of(dicom_files: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Scan]:
    """A scan of a layout's name, as `read_scan` would make it."""
    grey, frames = np.zeros(SIZE, np.uint8), np.zeros((5, *SIZE), np.uint8)

    def series(slices: int, **tags: Any) -> list[Any]:
        ids = {
            key: generate_uid() for key in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")
        }
        plane = {
            "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
            "PixelSpacing": [0.5, 0.7],
            "SliceThickness": 2,
        }
        return [
            dicom_files.dicom(
                np.zeros(SIZE, np.int16),
                **{"Modality": "CT", "ImagePositionPatient": [-9, -8, 2 * i], **ids, **plane, **tags},
            )
            for i in range(slices)
        ]

    def enhanced(step_mm: float) -> list[Any]:
        path = tmp_path_factory.mktemp("enhanced") / "ct.dcm"
        places = [(-9, -8, step_mm * i) for i in range(4)]
        spacing = {"positions_mm": places, "spacing_mm": (0.5, 0.7)}
        return [dcmread(dicom_files.make_enhanced(path, np.zeros((4, *SIZE), np.int16), **spacing))]

    def make(layout: str, **tags: Any) -> Scan:
        # Frame of reference None: left out, as in most files of these kinds.
        flat = {"FrameOfReferenceUID": None, **tags}
        headers = {
            "dx": lambda: [dicom_files.dicom(grey, Modality="DX", PixelSpacing=[0.5, 0.7], **flat)],
            "dx-frame-of-reference": lambda: [dicom_files.dicom(grey, Modality="DX", **tags)],
            "us": lambda: [dicom_files.dicom(grey, Modality="US", **flat)],
            "capture": lambda: [dicom_files.dicom(grey, **flat)],
            "us-frames": lambda: [
                dicom_files.dicom(frames, frames=True, SOPClassUID=US_FRAMES, Modality="US", **flat)
            ],
            "us-one-frame": lambda: [
                dicom_files.dicom(frames[:1], frames=True, SOPClassUID=US_FRAMES, Modality="US", **flat)
            ],
            "ct": lambda: series(6, **tags),
            "ct-one": lambda: series(1, **tags),
            "ct-no-places": lambda: series(6, ImagePositionPatient=None, **tags),
            "ct-no-reference": lambda: series(3, FrameOfReferenceUID=None, **tags),
            "ct-same-place": lambda: series(3, ImagePositionPatient=[0, 0, 0], **tags),
            "enhanced": lambda: enhanced(2.0),
            "enhanced-down": lambda: enhanced(-2.0),
        }[layout]()
        for header in headers:
            del header.PixelData
        slices = int(headers[0].get("NumberOfFrames", len(headers)))
        affine = np.diag([0.7, 0.5, -2.0 if layout == "enhanced-down" else 2.0, 1.0])
        affine[:3, 3] = -9, -8, 0
        placed = layout in ("ct", "ct-one", "ct-no-reference", "enhanced", "enhanced-down")
        return hand_made(slices, header=tuple(headers), affine=affine if placed else None, kind="dicom",
                         slice_spacing_mm=2.0 if placed and slices > 1 else None)  # fmt: skip

    return make


def hand_made(slices: int = 1, **fields: Any) -> Scan:
    def blank(index: int) -> np.ndarray:
        return np.zeros(SIZE, np.uint8)

    told = {"name": "x.dcm", "kind": "image", "spacing_mm": (0.5, 0.7), **fields}
    return Scan(slices=slices, size_px=SIZE, values=blank, display=blank, **told)


def random_masks(slices: int, classes: int) -> np.ndarray:
    masks = np.random.default_rng(0).integers(0, classes + 1, (slices, *SIZE)).astype(np.uint8)
    if slices > 1:
        masks[0] = 0  # a slice that a SEG leaves out
        masks[-1][masks[-1] == 1] = 0  # one without the first class
    return masks


def dciodvfy(path: Path) -> list[str]:
    done = subprocess.run(["dciodvfy", str(path)], capture_output=True, check=False)
    lines = (done.stdout + done.stderr).decode(errors="replace").splitlines()
    return [line for line in lines if line.startswith(("Error", "Warning"))]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_format_gives_the_mask_back(tmp_path, layout, scan_of, three):
    scan = scan_of(layout)
    for name, masks in (
        ("some", random_masks(scan.slices, 3)),
        ("none", np.zeros((scan.slices, *SIZE), np.uint8)),
    ):
        kept = masks.copy()
        written = write_masks(tmp_path, name, scan, masks, three, MASK_FORMATS).files
        assert (masks == kept).all()
        for kind in ("dicom-seg", "nifti"):
            assert (read_mask_file(tmp_path / written[kind][0], scan) == masks).all(), (name, kind)
        png = written["png"][0] if scan.slices == 1 else name
        assert (read_mask_file(tmp_path / png, scan) == masks).all()
        assert not list(tmp_path.rglob("*.tmp")) + list(tmp_path.rglob("*.partial"))


@pytest.mark.skipif(
    shutil.which("dciodvfy") is None, reason="dciodvfy is not installed (Debian: dicom3tools)"
)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_dciodvfy_finds_nothing(tmp_path, layout, scan_of, three, manifest):
    scan = scan_of(layout)
    for model in (manifest, three):
        for masks in (
            random_masks(scan.slices, len(model.classes)),
            np.zeros((scan.slices, *SIZE), np.uint8),
        ):
            write_masks(tmp_path, "mask", scan, masks, model, ["dicom-seg"])
            assert dciodvfy(tmp_path / "mask.dcm") == []


def test_a_segmentation_refers_to_its_source_and_names_the_model(tmp_path, scan_of, three):
    scan = scan_of("ct")
    masks = random_masks(6, 3)
    write_masks(tmp_path, "mask", scan, masks, three, ["dicom-seg"])
    seg = dcmread(tmp_path / "mask.dcm")
    first = scan.header[0]
    assert (seg.StudyInstanceUID, seg.FrameOfReferenceUID) == (
        first.StudyInstanceUID,
        first.FrameOfReferenceUID,
    )
    assert seg.SeriesInstanceUID != first.SeriesInstanceUID
    series = seg.ReferencedSeriesSequence[0]
    assert series.SeriesInstanceUID == first.SeriesInstanceUID
    referred = {item.ReferencedSOPInstanceUID for item in series.ReferencedInstanceSequence}
    assert referred == {header.SOPInstanceUID for header in scan.header}
    assert seg.SegmentationType == "BINARY"
    assert seg.Manufacturer == "sam2edge"
    assert seg.SeriesDescription == "sam2edge Small, INT8, research use only"
    assert seg.ContentLabel == "SEGMENTATION"
    assert [s.SegmentLabel for s in seg.SegmentSequence] == list(three.classes)
    assert {s.SegmentAlgorithmType for s in seg.SegmentSequence} == {"AUTOMATIC"}
    algorithm = seg.SegmentSequence[0].SegmentationAlgorithmIdentificationSequence[0]
    assert (algorithm.AlgorithmName, algorithm.AlgorithmVersion) == ("Small, INT8", "ab" * 32)
    kind = seg.SegmentSequence[0].SegmentedPropertyTypeCodeSequence[0]
    assert (kind.CodeValue, kind.CodingSchemeDesignator, kind.CodeMeaning) == ("39607008", "SCT", "Lung")
    assert kind.SegmentedPropertyTypeModifierCodeSequence[0].CodeMeaning == "Left"
    # Slice 1 is empty and has no frame; class 1 is missing in the last.
    assert seg.NumberOfFrames == 3 * 5 - 1
    assert list(seg.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing) == [0.5, 0.7]


def test_the_bundles_hash_is_the_algorithms_version_where_it_is_given(tmp_path, scan_of, manifest):
    write_masks(
        tmp_path, "mask", scan_of("dx"), random_masks(1, 1), manifest, ["dicom-seg"], bundle_sha256="cd" * 32
    )
    segment = dcmread(tmp_path / "mask.dcm").SegmentSequence[0]
    assert segment.SegmentationAlgorithmIdentificationSequence[0].AlgorithmVersion == "cd" * 32


def test_frames_without_places_refer_by_number(tmp_path, scan_of, manifest):
    scan = scan_of("us-frames")
    masks = np.zeros((5, *SIZE), np.uint8)
    masks[3, 4:9, 5:20] = 1
    write_masks(tmp_path, "mask", scan, masks, manifest, ["dicom-seg"])
    seg = dcmread(tmp_path / "mask.dcm")
    (frame,) = seg.PerFrameFunctionalGroupsSequence
    source = frame.DerivationImageSequence[0].SourceImageSequence[0]
    assert source.ReferencedFrameNumber == 4
    assert source.ReferencedSOPClassUID == US_FRAMES
    assert "FrameOfReferenceUID" not in seg
    assert (seg.pixel_array == masks[3]).all()


@pytest.mark.parametrize("spacing", ["PixelSpacing", "ImagerPixelSpacing"])
def test_a_radiographs_segmentation_has_its_spacing(tmp_path, dicom_files, manifest, spacing):
    path = dicom_files.make_dicom(
        tmp_path / "a.dcm", np.zeros(SIZE, np.uint8), Modality="DX", **{spacing: [0.2, 0.3]}
    )
    write_masks(tmp_path, "mask", read_scan(path), random_masks(1, 1), manifest, ["dicom-seg"])
    shared = dcmread(tmp_path / "mask.dcm").SharedFunctionalGroupsSequence[0]
    assert list(shared.PixelMeasuresSequence[0].PixelSpacing) == [0.2, 0.3]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_writing_leaves_the_source_as_it_was(tmp_path, layout, scan_of, three):
    scan = scan_of(layout)
    before = [header.to_json() for header in scan.header]
    write_masks(tmp_path, "mask", scan, random_masks(scan.slices, 3), three, MASK_FORMATS)
    assert [header.to_json() for header in scan.header] == before


def test_names_of_patients_survive_another_character_set(tmp_path, scan_of, three):
    scan = scan_of("dx", SpecificCharacterSet="ISO_IR 100", PatientName="Müller^Jörg")
    write_masks(tmp_path, "mask", scan, random_masks(1, 3), three, ["dicom-seg"])
    seg = dcmread(tmp_path / "mask.dcm")
    assert (str(seg.PatientName), seg.SegmentSequence[2].SegmentLabel) == ("Müller^Jörg", "Zähne")


def test_a_source_without_what_a_segmentation_refers_to_is_named(tmp_path, scan_of, manifest):
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPClassUID"):
        scan = scan_of("dx", **{keyword: None})
        expected = f"--to dicom-seg: x.dcm must have {keyword} in its header, has none; choose nifti or png"
        with pytest.raises(InputError) as error:
            write_masks(tmp_path, "mask", scan, random_masks(1, 1), manifest, ["json", "dicom-seg"])
        assert str(error.value) == expected
        assert list(tmp_path.iterdir()) == []
        written = write_masks(
            tmp_path, "mask", scan, random_masks(1, 1), manifest, ["png", "nifti", "dicom-seg"]
        )
        assert written.files == {"png": ["mask.png"], "nifti": ["mask.nii.gz"]}
        assert written.failed == {"dicom-seg": expected}
        for file in tmp_path.iterdir():
            file.unlink()


def test_what_may_be_empty_may_be_missing(tmp_path, scan_of, manifest):
    keywords = ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID", "StudyDate",
                "StudyTime", "ReferringPhysicianName")  # fmt: skip
    scan = scan_of("ct", SliceThickness=None, **dict.fromkeys(keywords))
    masks = random_masks(6, 1)
    write_masks(tmp_path, "mask", scan, masks, manifest, ["dicom-seg"])
    assert (read_mask_file(tmp_path / "mask.dcm", scan) == masks).all()
    if shutil.which("dciodvfy"):  # it warns that a DICOMDIR would need what the source does not have
        assert [line for line in dciodvfy(tmp_path / "mask.dcm") if "DICOMDIR" not in line] == []


@pytest.mark.parametrize(("kind", "got"), [("image", "a picture file"), ("nifti", "a NIfTI")])
def test_only_dicom_has_a_segmentation(tmp_path, manifest, kind, got):
    scan = hand_made(name="chest.png", kind=kind)
    expected = f"--to dicom-seg: chest.png must be DICOM, is {got}; choose nifti or png"
    with pytest.raises(InputError) as error:
        write_masks(tmp_path, "mask", scan, random_masks(1, 1), manifest, ["dicom-seg"])
    assert str(error.value) == expected
    assert list(tmp_path.iterdir()) == []
    written = write_masks(tmp_path, "mask", scan, random_masks(1, 1), manifest, ["png", "dicom-seg"])
    assert (written.files, written.failed) == ({"png": ["mask.png"]}, {"dicom-seg": expected})


@pytest.mark.parametrize(
    ("keyword", "value", "kept", "what"),
    [
        ("PatientSex", "MALE", "", "left out"),
        ("PatientBirthDate", "19801301", "", "left out"),
        ("PatientBirthDate", "1980/1/1", "", "left out"),
        ("StudyTime", "25:61", "", "left out"),
        ("StudyDate", "", "", None),
        ("PatientID", "7" * 80, "7" * 64, "shortened"),
        ("StudyID", "a study with a long name", "a study with a l", "shortened"),
        ("AccessionNumber", "1" * 30, "1" * 16, "shortened"),
        ("PatientName", "M" * 100 + "^J", "M" * 64, "shortened"),
        ("StudyDate", "2024-02-29", "", "left out"),
        ("PatientSex", "F ", "F", "shortened"),
    ],
)
def test_a_malformed_header_is_mended_and_told(tmp_path, scan_of, manifest, keyword, value, kept, what):
    for name in ("ct", "dx"):
        scan = scan_of(name)
        for header in scan.header:
            with pydicom_config.disable_value_validation():
                setattr(header, keyword, value)
        written = write_masks(tmp_path, "mask", scan, random_masks(scan.slices, 1), manifest, ["dicom-seg"])
        assert str(dcmread(tmp_path / "mask.dcm").get(keyword)) == kept
        told = () if what is None else (f"DICOM-SEG: {keyword} {what}, which is malformed in the source",)
        assert written.remarks == told
        assert str(scan.header[0].get(keyword)) == value  # the scan's own header stays


def test_a_segmentation_of_frames_in_another_order_lies_on_them(dicom_files, tmp_path, manifest):
    order = [2, 0, 3, 1]
    path = dicom_files.make_enhanced(
        tmp_path / "e.dcm", np.zeros((4, *SIZE), np.uint16), positions_mm=[(0, 0, 3 * k) for k in order],
        SliceThickness=3,
    )  # fmt: skip
    scan = read_scan(path)
    masks = random_masks(4, 1)
    write_masks(tmp_path, "mask", scan, masks, manifest, ["dicom-seg", "nifti"])
    assert (read_mask_file(tmp_path / "mask.dcm", scan) == masks).all()
    assert (read_mask_file(tmp_path / "mask.nii.gz", scan) == masks).all()
    seg = dcmread(tmp_path / "mask.dcm")
    for group, pixels in zip(seg.PerFrameFunctionalGroupsSequence, seg.pixel_array, strict=True):
        z = group.PlanePositionSequence[0].ImagePositionPatient[2]
        assert (pixels == masks[round(z / 3)]).all()
        frame = group.DerivationImageSequence[0].SourceImageSequence[0].ReferencedFrameNumber
        assert order[int(frame) - 1] == round(z / 3)


def test_slices_that_are_no_volume_have_every_file_but_a_nifti(dicom_files, tmp_path, manifest):
    paths = dicom_files.make_series(tmp_path / "ct", np.zeros((5, *SIZE), np.uint16), slice_spacing_mm=2.0)
    paths[2].unlink()
    scan, masks = read_scan(tmp_path / "ct"), random_masks(4, 1)
    written = write_masks(tmp_path, "mask", scan, masks, manifest, MASK_FORMATS)
    assert set(written.files) == {"png", "dicom-seg", "json"}
    assert written.failed["nifti"].startswith(
        "--to nifti: ct must have evenly spaced slices to be a volume, has 4 mm"
    )
    assert written.remarks == (f"slices are no volume: {scan.uneven}",)
    assert json.loads((tmp_path / "mask.json").read_text())["details"]["remarks"] == list(written.remarks)
    assert (read_mask_file(tmp_path / "mask.dcm", scan) == masks).all()


def test_an_unknown_distance_is_nobodys_millimetre(dicom_files, tmp_path, manifest):
    film = dicom_files.make_dicom(
        tmp_path / "dx.dcm", np.zeros(SIZE, np.uint16), Modality="DX", PixelSpacing=[0.2, 0.2]
    )
    write_masks(tmp_path, "dx", read_scan(film), random_masks(1, 1), manifest, ["dicom-seg"])
    measures = dcmread(tmp_path / "dx.dcm").SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    assert list(measures.PixelSpacing) == [0.2, 0.2]
    assert "SliceThickness" not in measures
    clip = dicom_files.make_dicom(
        tmp_path / "us.dcm",
        np.zeros((3, *SIZE), np.uint8),
        frames=True,
        Modality="US",
        PixelSpacing=[0.2, 0.2],
    )
    scan = read_scan(clip)
    write_masks(tmp_path, "us", scan, random_masks(3, 1), manifest, ["nifti"])
    back = read_scan(tmp_path / "us.nii.gz")
    assert nibabel.load(tmp_path / "us.nii.gz").header.get_xyzt_units()[0] == "unknown"
    assert (back.slice_spacing_mm, back.affine) == (None, None)
    assert back.spacing_mm == pytest.approx((0.2, 0.2))


@pytest.mark.parametrize("codes", [(1, 2), (0, 2), (1, 0), (3, 4), (0, 0)])
@pytest.mark.parametrize("unit", ["mm", "micron", "unknown"])
def test_a_nifti_mask_has_both_forms_of_its_image(tmp_path, manifest, codes, unit):
    image = nibabel.Nifti1Image(np.zeros((6, 5, 4), np.uint8) + 9, None)
    turn = np.array([[0.0, -1.5, 0, 7], [1.2, 0, 0, -3], [0, 0, 2.5, 11], [0, 0, 0, 1]])
    shifted = turn.copy()
    shifted[:3, 3] += (10, -5, 30)
    image.set_qform(turn, codes[0])
    image.set_sform(shifted, codes[1])
    image.header.set_xyzt_units(unit)
    nibabel.save(image, tmp_path / "t1.nii.gz")
    source = nibabel.load(tmp_path / "t1.nii.gz").header
    scan = read_scan(tmp_path / "t1.nii.gz")
    write_masks(tmp_path, "mask", scan, np.zeros((scan.slices, *scan.size_px), np.uint8), manifest, ["nifti"])
    written = nibabel.load(tmp_path / "mask.nii.gz").header
    for name in ("qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z",
                 "srow_x", "srow_y", "srow_z", "pixdim", "xyzt_units", "dim"):  # fmt: skip
        np.testing.assert_array_equal(written[name], source[name], err_msg=name)


def test_what_a_library_raises_costs_its_own_file_alone(tmp_path, scan_of, manifest, monkeypatch):
    from segcore.medical import mask_files

    monkeypatch.setattr(mask_files, "encode_nifti", lambda *_, **__: 1 / 0)
    written = write_masks(tmp_path, "mask", scan_of("ct"), random_masks(6, 1), manifest, MASK_FORMATS)
    assert set(written.files) == {"png", "dicom-seg", "json"}
    assert written.failed == {
        "nifti": "--to nifti: x.dcm could not be written (ZeroDivisionError); please report it"
    }


def test_a_vendors_own_kind_of_picture_has_a_segmentation(tmp_path, scan_of, manifest):
    scan = scan_of("ct", SOPClassUID="1.3.46.670589.11.0.0.12.1")
    masks = random_masks(6, 1)
    written = write_masks(tmp_path, "mask", scan, masks, manifest, ["dicom-seg"])
    assert written.failed == {}
    assert (seg_by_pydicom(tmp_path / "mask.dcm", scan) == masks).all()
    source = dcmread(tmp_path / "mask.dcm").SourceImageSequence[0]
    assert source.ReferencedSOPClassUID == "1.3.46.670589.11.0.0.12.1"


def test_what_a_library_cannot_write_is_a_sentence(tmp_path, scan_of, manifest, monkeypatch):
    import highdicom.seg

    def refuse(*_, **__):
        raise ValueError("value of patient_birth_date 'Mustermann' is no date")

    monkeypatch.setattr(highdicom.seg, "Segmentation", refuse)
    written = write_masks(tmp_path, "mask", scan_of("ct"), random_masks(6, 1), manifest, ["png", "dicom-seg"])
    assert written.failed == {
        "dicom-seg": "--to dicom-seg: x.dcm must have a PatientBirthDate that can be written, has not (ValueError); "
        "choose nifti or png"
    }
    assert written.files.keys() == {"png"}


def test_png_is_black_and_white_for_one_class_and_indices_for_several(tmp_path, manifest, three):
    scan = hand_made(name="chest.png")
    masks = random_masks(1, 1)
    assert write_masks(tmp_path, "one", scan, masks, manifest, ["png"]).files == {"png": ["one.png"]}
    assert (np.asarray(Image.open(tmp_path / "one.png")) == 255 * masks[0]).all()
    assert (read_mask_file(tmp_path / "one.png", scan) == 255 * masks).all()
    write_masks(tmp_path, "three", scan, masks, three, ["png"])
    assert (np.asarray(Image.open(tmp_path / "three.png")) == masks[0]).all()


def test_numbered_pngs_replace_only_their_own_kind(tmp_path, three):
    scan = hand_made(slices=12)
    masks = random_masks(12, 3)
    written = write_masks(tmp_path, "scan", scan, masks, three, ["png"]).files
    assert written["png"] == [f"scan/{n:04d}.png" for n in range(1, 13)]
    fewer = hand_made(slices=3)
    write_masks(tmp_path, "scan", fewer, masks[:3], three, ["png"])
    assert len(list((tmp_path / "scan").iterdir())) == 3
    (tmp_path / "scan" / "notes.txt").write_text("mine")
    with pytest.raises(InputError) as error:
        write_masks(tmp_path, "scan", fewer, masks[:3], three, ["png"])
    assert str(error.value) == (
        f"{tmp_path / 'scan'}: must be free for the masks, is there and holds other files; move it away"
    )
    assert (tmp_path / "scan" / "notes.txt").read_text() == "mine"


def test_a_pictures_nifti_keeps_rows_columns_and_spacing(tmp_path, manifest):
    masks = random_masks(1, 1)
    write_masks(tmp_path, "known", hand_made(name="a.png"), masks, manifest, ["nifti"])
    image = nibabel.load(tmp_path / "known.nii.gz")
    assert image.shape == (30, 20)  # columns, rows
    assert (masks[0] == np.asarray(image.dataobj).T).all()
    assert image.header.get_zooms() == pytest.approx((0.7, 0.5))
    assert image.header.get_xyzt_units()[0] == "mm"
    assert image.get_data_dtype() == np.uint8
    write_masks(tmp_path, "unknown", hand_made(name="a.png", spacing_mm=None), masks, manifest, ["nifti"])
    image = nibabel.load(tmp_path / "unknown.nii.gz")
    assert image.header.get_zooms() == (1.0, 1.0)
    assert image.header.get_xyzt_units()[0] == "unknown"


def test_a_dicoms_nifti_lies_where_the_dicom_lies(tmp_path, scan_of, three):
    scan = scan_of("ct")
    write_masks(tmp_path, "mask", scan, random_masks(6, 3), three, ["nifti"])
    image = nibabel.load(tmp_path / "mask.nii.gz")
    assert image.shape == (30, 20, 6)
    # Left and posterior in DICOM are negative right and anterior in NIfTI.
    assert np.allclose(image.affine, [[-0.7, 0, 0, 9], [0, -0.5, 0, 8], [0, 0, 2, 0], [0, 0, 0, 1]])
    assert (image.header["sform_code"], image.header["qform_code"]) == (1, 1)


def test_equal_masks_are_equal_files(tmp_path, scan_of, three):
    scan, masks = scan_of("ct"), random_masks(6, 3)
    for name in ("a", "b"):
        write_masks(tmp_path, name, scan, masks, three, ["nifti", "png"])
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
@pytest.mark.parametrize("flips", [(), (0,), (1, 2)])
def test_a_nifti_mask_of_other_axes_comes_onto_the_grid(tmp_path, scan_of, three, order, flips):
    """As a viewer may save it: axes permuted and turned round, its affine telling so."""
    scan, masks = scan_of("ct"), random_masks(6, 3)
    write_masks(tmp_path, "mask", scan, masks, three, ["nifti"])
    image = nibabel.load(tmp_path / "mask.nii.gz")
    start = nibabel.orientations.io_orientation(np.eye(4))[list(order)]
    start[list(flips), 1] = -1
    other = image.as_reoriented(start)
    nibabel.save(nibabel.Nifti1Image(np.asarray(other.dataobj), other.affine), tmp_path / "other.nii")
    assert (read_mask_file(tmp_path / "other.nii", scan) == masks).all()


def test_a_single_slice_may_have_any_thickness(tmp_path, scan_of, manifest):
    scan, masks = scan_of("ct-one"), random_masks(1, 1)
    thick = np.diag([-1.0, -1.0, 1.0, 1.0]) @ scan.affine @ np.diag([1, 1, 4, 1])
    nibabel.save(nibabel.Nifti1Image(masks.transpose(2, 1, 0), thick), tmp_path / "thick.nii")
    assert (read_mask_file(tmp_path / "thick.nii", scan) == masks).all()


def test_masks_of_another_grid_are_refused(tmp_path, scan_of, three):
    scan, masks = scan_of("ct"), random_masks(6, 3)
    write_masks(tmp_path, "mask", scan, masks, three, ["nifti"])
    path = tmp_path / "mask.nii.gz"
    moved = scan.affine.copy()
    moved[0, 3] += 5
    with pytest.raises(InputError) as error:
        read_mask_file(path, replace(scan, affine=moved))
    assert str(error.value) == (
        f"mask {path}: must lie where x.dcm lies, its affine says another place; save it on the image's grid"
    )
    with pytest.raises(InputError) as error:
        read_mask_file(path, replace(scan, slices=5))
    assert str(error.value) == f"mask {path}: must have the slices of its image, 5, got 6"
    with pytest.raises(InputError) as error:
        read_mask_file(path, replace(scan, size_px=(20, 31)))
    assert str(error.value) == f"mask {path}: must have the size of its image, 20×31, got 20×30"


def test_a_nifti_of_fractions_is_no_mask(tmp_path):
    path = tmp_path / "p.nii"
    nibabel.save(nibabel.Nifti1Image(np.full((30, 20), 0.5, np.float32), np.eye(4)), path)
    with pytest.raises(InputError) as error:
        read_mask_file(path, hand_made())
    assert (
        str(error.value)
        == f"mask {path}: must hold class indices 0 to 255, got fractions; save class indices"
    )


def test_a_segmentation_of_another_picture_is_refused_without_a_uid(tmp_path, scan_of, manifest):
    scan, other = scan_of("ct"), scan_of("ct")
    write_masks(tmp_path, "mask", other, random_masks(6, 1), manifest, ["dicom-seg"])
    with pytest.raises(InputError) as error:
        read_mask_file(tmp_path / "mask.dcm", scan)
    assert str(error.value) == (
        f"mask {tmp_path / 'mask.dcm'}: must refer to x.dcm, refers to another picture or series; "
        "give the mask that was made of it"
    )
    # A mask of more slices than the scan has would lose some in silence.
    with pytest.raises(InputError, match="refers to another picture or series"):
        read_mask_file(tmp_path / "mask.dcm", replace(other, slices=4, header=other.header[:4]))
    with pytest.raises(InputError) as error:
        read_mask_file(tmp_path / "mask.dcm", replace(other, size_px=(20, 31)))
    assert str(error.value) == (
        f"mask {tmp_path / 'mask.dcm'}: must have the size of its image, 20×31, got 20×30"
    )
    with pytest.raises(InputError) as error:
        read_mask_file(tmp_path / "mask.dcm", hand_made(6))
    assert str(error.value) == (
        f"mask {tmp_path / 'mask.dcm'}: must be PNG or NIfTI for a picture that is no DICOM, "
        "got a DICOM segmentation"
    )


def foreign_seg(scan: Scan, pixels: np.ndarray, kind: str, path: Path) -> Path:
    """What another program may write: stacked segments, of a kind of its own."""
    from highdicom import AlgorithmIdentificationSequence
    from highdicom.seg import Segmentation, SegmentDescription
    from pydicom.sr.codedict import codes

    by = AlgorithmIdentificationSequence("other", codes.DCM.ArtificialIntelligence, "1")
    segments = [
        SegmentDescription(k, f"s{k}", codes.SCT.Tissue, codes.SCT.Tissue, "AUTOMATIC", by)
        for k in range(1, pixels.shape[-1] + 1)
    ]
    seg = Segmentation(
        scan.header, pixels.copy(), kind, segments, generate_uid(), 1, generate_uid(), 1, "m", "n", "1", "0"
    )
    seg.save_as(path)
    return path


def test_foreign_segmentations_are_read_or_refused(tmp_path, scan_of):
    scan = scan_of("ct")
    stacked = np.zeros((6, *SIZE, 2), np.uint8)
    stacked[2, :5, :, 0], stacked[3, 5:9, :, 1] = 1, 1
    found = read_mask_file(foreign_seg(scan, stacked, "BINARY", tmp_path / "binary.dcm"), scan)
    assert (found == stacked[..., 0] + 2 * stacked[..., 1]).all()
    path = foreign_seg(scan, stacked, "LABELMAP", tmp_path / "labels.dcm")
    assert (read_mask_file(path, scan) == found).all()
    path = foreign_seg(scan, stacked, "FRACTIONAL", tmp_path / "fractional.dcm")
    with pytest.raises(InputError) as error:
        read_mask_file(path, scan)
    assert str(error.value) == (
        f"mask {path}: must be a binary segmentation, got a fractional one; export it as binary"
    )
    stacked[2, 4, 4, 1] = 1
    path = foreign_seg(scan, stacked, "BINARY", tmp_path / "overlap.dcm")
    with pytest.raises(InputError) as error:
        read_mask_file(path, scan)
    assert str(error.value) == (
        f"mask {path}: must have segments that do not overlap, two share pixels; keep one of them"
    )


def test_what_is_no_mask_is_refused(tmp_path, scan_of, dicom_files, manifest):
    scan = scan_of("dx")
    path = dicom_files.make_dicom(tmp_path / "picture.dcm", np.zeros(SIZE, np.uint8))
    with pytest.raises(InputError) as error:
        read_mask_file(path, scan)
    assert str(error.value) == (
        f"mask {path}: must be a DICOM segmentation, got another kind of DICOM; export the mask as DICOM-SEG"
    )
    write_masks(tmp_path, "mask", scan, random_masks(1, 1), manifest, ["dicom-seg", "nifti"])
    for name in ("mask.dcm", "mask.nii.gz"):
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[: len(whole) - 40])
        with pytest.raises(InputError, match=r"is damaged; copy it again"):
            read_mask_file(tmp_path / name, scan)
    with pytest.raises(InputError) as error:
        read_mask_file(tmp_path / "none.png", scan)
    assert (
        str(error.value)
        == f"mask {tmp_path / 'none.png'}: must be a file or a folder of PNG masks, no such file"
    )
    Image.new("L", (30, 20)).save(tmp_path / "one.png")
    with pytest.raises(InputError) as error:
        read_mask_file(tmp_path / "one.png", scan_of("ct"))
    assert str(error.value) == (
        f"mask {tmp_path / 'one.png'}: must have the slices of its image, 6, got 1; give a folder of PNG masks, "
        "a NIfTI or a DICOM segmentation"
    )
    (tmp_path / "folder").mkdir()
    Image.new("L", (30, 20)).save(tmp_path / "folder" / "0001.png")
    with pytest.raises(InputError) as error:
        read_mask_file(tmp_path / "folder", scan_of("ct"))
    assert str(error.value) == (
        f"mask {tmp_path / 'folder'}: must hold 0001.png to 0006.png, one a slice of x.dcm, got 1 such files"
    )


def test_the_record_has_the_case_and_nothing_of_the_header(tmp_path, scan_of, three, dicom_files):
    scan = replace(scan_of("ct"), name="series-1", modality="CT")
    masks = random_masks(6, 3)
    details = {"area_mm2": {"lesion": 12.5}, "quality": 0.93, "engine_ms": 1.2}
    written = write_masks(
        tmp_path, "s", scan, masks, three, ["json", "nifti"], details=details, bundle_sha256="cd" * 32
    )
    assert written.files == {"nifti": ["s.nii.gz"], "json": ["s.json"]}
    text = (tmp_path / "s.json").read_text()
    record = json.loads(text)
    assert record["schema_version"] == 1
    assert record["notice"] == "Research use only, not a medical device."
    assert record["scan"] == {
        "name": "series-1", "format": "dicom", "modality": "CT", "slices": 6, "height_px": 20, "width_px": 30,
        "row_spacing_mm": 0.5, "column_spacing_mm": 0.7, "slice_spacing_mm": 2.0,
    }  # fmt: skip
    assert record["model"] == {
        "name": "Small, INT8", "kind": "student", "precision": "int8", "bundle_sha256": "cd" * 32,
        "classes": ["left lung", "lesion", "Zähne"], "threshold": None,
    }  # fmt: skip
    assert record["pixels"]["lesion"] == int((masks == 2).sum())
    assert record["details"] == details
    assert record["files"] == {"nifti": ["s.nii.gz"]}
    header = scan.header[0]
    for secret in (*dicom_files.PATIENT.values(), header.StudyInstanceUID, header.SOPInstanceUID):
        assert secret not in text
        assert secret.encode() not in nibabel.load(tmp_path / "s.nii.gz").to_bytes()


def test_a_series_read_from_disk_comes_back_and_so_does_its_deidentified_self(tmp_path, dicom_files, three):
    dicom_files.make_series(tmp_path / "series", np.zeros((6, *SIZE), np.int16), spacing_mm=(0.5, 0.7))
    masks = random_masks(6, 3)
    scans = {name: read_scan(tmp_path / "series", deidentify=name == "clean") for name in ("own", "clean")}
    for name, scan in scans.items():
        write_masks(tmp_path, name, scan, masks, three, ["dicom-seg", "nifti"])
        assert (read_mask_file(tmp_path / f"{name}.dcm", scan) == masks).all()
        assert (read_mask_file(tmp_path / f"{name}.nii.gz", scan) == masks).all()
    with pytest.raises(InputError, match="refers to another picture or series"):
        read_mask_file(tmp_path / "clean.dcm", scans["own"])
    header = scans["own"].header[0]
    written = (tmp_path / "clean.dcm").read_bytes()
    uids = (
        header.StudyInstanceUID,
        header.SeriesInstanceUID,
        header.SOPInstanceUID,
        header.FrameOfReferenceUID,
    )
    for secret in (*dicom_files.PATIENT.values(), *uids):
        assert secret.encode() not in written
        assert secret.encode() not in nibabel.load(tmp_path / "own.nii.gz").to_bytes()
    if shutil.which("dciodvfy"):
        # It warns that a pseudonym has no family and given name, and that a DICOMDIR would need dates.
        assert [line for line in dciodvfy(tmp_path / "clean.dcm") if line.startswith("Error")] == []


@pytest.mark.parametrize("step_mm", [2.0, -2.0])
def test_a_frame_of_the_mask_refers_to_the_frame_it_was_drawn_on(tmp_path, dicom_files, manifest, step_mm):
    volume = np.stack([np.full(SIZE, 10 * (n + 1), np.int16) for n in range(4)])
    places = [(0, 0, step_mm * n) for n in range(4)]
    scan = read_scan(dicom_files.make_enhanced(tmp_path / "ct.dcm", volume, positions_mm=places))
    masks = np.zeros((4, *SIZE), np.uint8)
    masks[1, 3:7, 3:9] = 1
    write_masks(tmp_path, "mask", scan, masks, manifest, ["dicom-seg"])
    (frame,) = dcmread(tmp_path / "mask.dcm").PerFrameFunctionalGroupsSequence
    number = frame.DerivationImageSequence[0].SourceImageSequence[0].ReferencedFrameNumber
    assert (scan.values(1) == volume[number - 1]).all()
    z = frame.PlanePositionSequence[0].ImagePositionPatient[2]
    assert z == places[number - 1][2]
    assert (read_mask_file(tmp_path / "mask.dcm", scan) == masks).all()


@pytest.mark.parametrize("axes", ["RAS", "LPS", "PIR", "SLA"])
@pytest.mark.parametrize("shape", [(7, 8, 9), (7, 8)])
def test_a_niftis_mask_has_the_niftis_own_axes(tmp_path, three, axes, shape):
    turn = nibabel.orientations.inv_ornt_aff(nibabel.orientations.axcodes2ornt(axes), (7, 8, 9))
    affine = np.diag([0.6, 0.7, 2.5, 1.0]) @ turn
    values = np.arange(np.prod(shape), dtype=np.int16).reshape(shape)
    nibabel.save(nibabel.Nifti1Image(values, affine), tmp_path / "scan.nii.gz")
    scan = read_scan(tmp_path / "scan.nii.gz")
    masks = np.random.default_rng(0).integers(0, 4, (scan.slices, *scan.size_px)).astype(np.uint8)
    write_masks(tmp_path, "mask", scan, masks, three, ["nifti"])
    image = nibabel.load(tmp_path / "mask.nii.gz")
    assert image.shape == shape
    assert np.allclose(image.affine, affine, atol=1e-5)
    assert (read_mask_file(tmp_path / "mask.nii.gz", scan) == masks).all()
    # The voxel that is k in the mask is the voxel of the source: compared in the files' own axes.
    shown = np.stack([scan.values(n) for n in range(scan.slices)])
    stored = np.asarray(image.dataobj)
    assert sorted(values[stored == 2]) == sorted(shown[masks == 2])


def test_a_pictures_nifti_opens_as_the_same_picture(tmp_path, manifest):
    masks = random_masks(1, 1)
    write_masks(tmp_path, "mask", hand_made(name="a.png"), masks, manifest, ["nifti"])
    back = read_scan(tmp_path / "mask.nii.gz")
    assert (back.values(0) == masks[0]).all()
    assert back.spacing_mm == pytest.approx((0.5, 0.7))
    assert (read_mask_file(tmp_path / "mask.nii.gz", hand_made(name="a.png")) == masks).all()


def test_codes_are_those_of_the_dictionary():
    """A code that means something else would be worse than none."""
    meanings: dict[str, set[str]] = {}
    for by_code in concepts["SCT"].values():
        for code, (meaning, _) in by_code.items():
            meanings.setdefault(code, set()).add(meaning)
    for name, codes in _BY_NAME.items():
        for code, meaning in filter(None, (codes.category, codes.kind, codes.side)):
            assert meaning in meanings[code], name
    assert segment_codes("Left_Lung") == segment_codes("left lung")
    assert segment_codes("something new").kind == ("85756007", "Tissue")


# --- readers that are not ours ---


def voxels_mm(marked: np.ndarray, affine: np.ndarray) -> set[tuple[float, ...]]:
    """Where the marked voxels of an array lie, by its affine, rounded to a thousandth of a millimetre."""
    index = np.argwhere(marked)
    places = index @ affine[:3, :3].T + affine[:3, 3]
    return {tuple(float(n) + 0.0 for n in place) for place in np.round(places, 3)}


def seg_by_pydicom(path: Path, scan: Scan) -> np.ndarray:
    """Class indices N×H×W, each frame on the slice that it says it is of."""
    seg = dcmread(path)
    found = np.zeros((scan.slices, *scan.size_px), np.uint8)
    frames = seg.pixel_array.reshape(-1, *scan.size_px)
    slices = {str(header.SOPInstanceUID): i for i, header in enumerate(scan.header)}
    for group, pixels in zip(seg.PerFrameFunctionalGroupsSequence, frames, strict=True):
        source = group.DerivationImageSequence[0].SourceImageSequence[0]
        place = slices[str(source.ReferencedSOPInstanceUID)]
        if len(scan.header) == 1 and "ReferencedFrameNumber" in source:
            place = int(source.ReferencedFrameNumber) - 1
        shared = seg.SharedFunctionalGroupsSequence[0]
        of = group if "SegmentIdentificationSequence" in group else shared
        found[place][pixels > 0] = of.SegmentIdentificationSequence[0].ReferencedSegmentNumber
    return found


@pytest.mark.parametrize("layout", LAYOUTS)
def test_other_readers_find_every_pixel_in_its_place(tmp_path, layout, scan_of, three):
    scan = scan_of(layout)
    masks = random_masks(scan.slices, 3)
    written = write_masks(tmp_path, "mask", scan, masks, three, ["png", "nifti", "dicom-seg"]).files
    pngs = np.stack([np.asarray(Image.open(tmp_path / name)) for name in written["png"]])
    assert (pngs == masks).all()
    image = nibabel.load(tmp_path / "mask.nii.gz")
    stored = np.asarray(image.dataobj).reshape(masks.shape[2], masks.shape[1], masks.shape[0])
    assert (stored.transpose(2, 1, 0) == masks).all()
    if scan.affine is not None:
        np.testing.assert_allclose(image.affine, np.diag([-1.0, -1, 1, 1]) @ scan.affine, atol=1e-5)
    assert (seg_by_pydicom(tmp_path / "mask.dcm", scan) == masks).all()
    command = Path(sys.executable).with_name("segimage2itkimage")
    # dcmqi reads segmentations with planes alone, which a source without a frame of reference has not.
    if scan.affine is None or not scan.header[0].get("FrameOfReferenceUID") or not command.exists():
        return
    words = [
        command,
        "--inputDICOM",
        tmp_path / "mask.dcm",
        "--outputDirectory",
        tmp_path / "itk",
        "--outputType",
        "nii",
    ]
    (tmp_path / "itk").mkdir()
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    to_ras = np.diag([-1.0, -1, 1, 1]) @ scan.affine
    for k, path in enumerate(
        sorted((tmp_path / "itk").glob("*.nii*"), key=lambda p: int(p.name.split(".")[0])), 1
    ):
        theirs = nibabel.load(path)
        marked = np.asarray(theirs.dataobj) > 0
        assert voxels_mm(marked, theirs.affine) == voxels_mm(masks.transpose(2, 1, 0) == k, to_ras), (
            layout,
            k,
        )
