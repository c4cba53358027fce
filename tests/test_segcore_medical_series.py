"""A folder that is one DICOM series, and all that can be wrong with one; which inputs a folder tree holds."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segcore.errors import InputError
from segcore.medical.dicom.series import SeriesFiles
from segcore.medical.read import find_scans, read_scan

pydicom = pytest.importorskip("pydicom")

VOLUME = np.arange(5 * 4 * 6, dtype=np.int16).reshape(5, 4, 6) - 50
CORONAL = (1, 0, 0, 0, 0, -1)


def message(path):
    with pytest.raises(InputError) as error:
        read_scan(path)
    return str(error.value)


def edit(path, **tags):
    item = pydicom.dcmread(path)
    for keyword, value in tags.items():
        if value is None:
            delattr(item, keyword)
        else:
            setattr(item, keyword, value)
    item.save_as(path)


@pytest.mark.parametrize("orientation", [(1, 0, 0, 0, 1, 0), CORONAL, (0.8, 0.6, 0, 0, 0, -1)])
def test_slices_follow_their_positions(dicom_files, tmp_path, orientation):
    paths = dicom_files.make_series(
        tmp_path / "ct",
        VOLUME,
        spacing_mm=(0.5, 0.25),
        slice_spacing_mm=1.5,
        orientation=orientation,
        origin_mm=(1, 2, 3),
    )
    scan = read_scan(tmp_path / "ct")
    assert [path.name for path in sorted(paths)] != [path.name for path in paths]  # names tell nothing
    assert (scan.name, scan.kind, scan.slices, scan.size_px, scan.modality) == (
        "ct",
        "dicom",
        5,
        (4, 6),
        "CT",
    )
    assert scan.spacing_mm == (0.5, 0.25)
    assert scan.slice_spacing_mm == pytest.approx(1.5)
    for i in range(5):
        np.testing.assert_array_equal(scan.values(i), VOLUME[i])
        assert scan.header[i].SOPInstanceUID == pydicom.dcmread(paths[i]).SOPInstanceUID
        np.testing.assert_allclose(
            scan.affine @ [0, 0, i, 1], [*scan.header[i].ImagePositionPatient, 1], atol=1e-5
        )
    x, y = np.array(orientation[:3]), np.array(orientation[3:])
    np.testing.assert_allclose((scan.affine @ [1, 0, 0, 0])[:3], x * 0.25)
    np.testing.assert_allclose((scan.affine @ [0, 1, 0, 0])[:3], y * 0.5)


def test_without_positions_the_instance_number_orders(dicom_files, tmp_path):
    tags = {"ImagePositionPatient": None, "ImageOrientationPatient": None}
    paths = dicom_files.make_series(tmp_path / "mr", VOLUME, **tags)
    scan = read_scan(tmp_path / "mr")
    np.testing.assert_array_equal([scan.values(i) for i in range(5)], VOLUME)
    assert (scan.affine, scan.slice_spacing_mm) == (None, None)
    edit(paths[1], InstanceNumber=1)
    assert message(tmp_path / "mr") == (
        f"folder {tmp_path / 'mr'}: must hold every slice once, got InstanceNumber 1 in {paths[0].name} "
        f"and {paths[1].name}; remove one"
    )
    edit(paths[1], InstanceNumber=None)
    assert message(tmp_path / "mr") == (
        f"folder {tmp_path / 'mr'}: must hold slices with a position or an InstanceNumber, "
        f"got {paths[1].name} with neither; give each file by itself"
    )


def test_one_depth_for_all_slices(dicom_files, tmp_path):
    """PET rescales every slice by its own factor, which may be 1 in one of them."""
    paths = dicom_files.make_series(tmp_path / "pt", VOLUME.astype(np.uint16) & 0xFFF, bits=12)
    edit(paths[3], RescaleSlope=2, RescaleIntercept=0)
    scan = read_scan(tmp_path / "pt")
    assert {scan.values(i).dtype.name for i in range(5)} == {"float32"}
    np.testing.assert_array_equal(scan.values(3), (VOLUME[3].astype(np.uint16) & 0xFFF) * 2)


def test_a_missing_slice(dicom_files, tmp_path):
    paths = dicom_files.make_series(tmp_path / "ct", VOLUME, slice_spacing_mm=2.0)
    paths[2].unlink()
    scan = read_scan(tmp_path / "ct")
    assert scan.uneven == f"4 mm and not 2 mm between {paths[1].name} and {paths[3].name}"
    assert (scan.slices, scan.affine, scan.slice_spacing_mm) == (4, None, None)
    assert scan.spacing_mm == (0.5, 0.5)


def test_uneven_slices(dicom_files, tmp_path):
    paths = dicom_files.make_series(tmp_path / "ct", VOLUME, slice_spacing_mm=2.0)
    edit(paths[4], ImagePositionPatient=[-10, -20, -22.5])
    assert (
        read_scan(tmp_path / "ct").uneven
        == f"1.5 mm and not 2 mm between {paths[3].name} and {paths[4].name}"
    )


@pytest.mark.parametrize(
    ("tags", "what"),
    [
        ({"TriggerTime": ("10", "35")}, "several times"),
        ({"EchoTime": ("4.6", "9.2")}, "several echoes"),
        ({"AcquisitionNumber": ("1", "2")}, "several acquisitions"),
        ({"ContentTime": ("120000", "120005")}, "several times"),
    ],
)
def test_several_pictures_at_a_place_are_told_by_what_they_differ_in(dicom_files, tmp_path, tags, what):
    first = dicom_files.make_series(tmp_path / "mr", VOLUME)
    second = dicom_files.make_series(tmp_path / "later", VOLUME)
    uid = pydicom.dcmread(first[0]).SeriesInstanceUID
    for which, paths in enumerate((first, second)):
        for path in paths:
            edit(path, SeriesInstanceUID=uid, **{key: values[which] for key, values in tags.items()})
            if which:
                path.rename(tmp_path / "mr" / f"z{path.name}")
    (tmp_path / "later").rmdir()
    text = message(tmp_path / "mr")
    assert text.startswith(f"folder {tmp_path / 'mr'}: must hold every place once, got {what} at each, as ")
    assert text.endswith("; give each its own folder")


def test_a_slice_twice(dicom_files, tmp_path):
    paths = dicom_files.make_series(tmp_path / "ct", VOLUME)
    shutil.copy(paths[1], tmp_path / "ct" / "zz.dcm")
    assert message(tmp_path / "ct") == (
        f"folder {tmp_path / 'ct'}: must hold every slice once, got {paths[1].name} and zz.dcm "
        "at the same position; remove one"
    )


def test_several_series(dicom_files, tmp_path):
    folder = tmp_path / "mixed"
    dicom_files.make_series(folder, VOLUME)
    uid = dicom_files.make_dicom(folder / "x.dcm", VOLUME[0], Modality="CT").name
    assert (
        message(folder)
        == f"folder {folder}: must hold one series, got 2, of 5 and 1 files; give each its own folder"
    )
    assert "." in uid
    shutil.copytree(folder, tmp_path / "copy")
    dicom_files.make_series(tmp_path / "copy" / "y", VOLUME)
    for path in (tmp_path / "copy" / "y").iterdir():
        path.rename(tmp_path / "copy" / f"y{path.name}")
    (tmp_path / "copy" / "y").rmdir()
    assert "got 3, of 5, 1 and 5 files;" in message(tmp_path / "copy")


@pytest.mark.parametrize(
    ("tags", "text"),
    [
        ({"PixelSpacing": [0.5, 0.6]}, "one pixel spacing, got 0.5, 0.5 in {0} and 0.5, 0.6 in {1}"),
        (
            {"ImageOrientationPatient": list(CORONAL)},
            "one orientation, got 1, 0, 0, 0, 1, 0 in {0} and 1, 0, 0, 0, 0, -1 in {1}",
        ),
        (
            {"PhotometricInterpretation": "MONOCHROME1"},
            "one kind of colours, got MONOCHROME2 in {0} and MONOCHROME1 in {1}",
        ),
        ({"Rows": 2, "Columns": 12}, "one size, got 4×6 in {0} and 2×12 in {1}"),
    ],
)
def test_unlike_slices(dicom_files, tmp_path, tags, text):
    paths = dicom_files.make_series(tmp_path / "ct", VOLUME)
    first, odd = sorted(paths)[0], sorted(paths)[3]
    edit(odd, **tags)
    assert message(tmp_path / "ct") == (
        f"folder {tmp_path / 'ct'}: must hold slices of {text.format(first.name, odd.name)}; give each kind its own folder"
    )


def test_a_slice_without_a_position(dicom_files, tmp_path):
    paths = dicom_files.make_series(tmp_path / "ct", VOLUME)
    edit(paths[2], ImagePositionPatient=None)
    assert message(tmp_path / "ct") == (
        f"folder {tmp_path / 'ct'}: must hold slices that all tell their position, got {paths[2].name} without; "
        "export the series again"
    )


def test_a_truncated_slice(dicom_files, tmp_path):
    paths = dicom_files.make_series(tmp_path / "ct", VOLUME)
    paths[2].write_bytes(paths[2].read_bytes()[:-20])
    assert message(tmp_path / "ct") == (
        f"DICOM {paths[2]}: must hold the 48 bytes of pixels its header promises, got 28; copy it again"
    )


def test_strange_files_and_harmless_ones(dicom_files, tmp_path):
    folder = tmp_path / "ct"
    dicom_files.make_series(folder, VOLUME)
    for name in ("DICOMDIR", ".DS_Store", "Thumbs.db", "desktop.ini"):
        (folder / name).write_bytes(b"whatever")
    assert read_scan(folder).slices == 5
    assert read_scan(folder).remarks() == ()
    (folder / "notes.txt").write_text("hello")
    scan = read_scan(folder)
    assert scan.slices == 5
    assert scan.remarks() == ("1 file beside the series left out, no picture: notes.txt",)


def test_folder_without_files(tmp_path):
    (tmp_path / "below").mkdir()
    assert message(tmp_path) == (
        f"folder {tmp_path}: must hold the files of a DICOM series, got none; give the folder they are in"
    )


def test_folder_of_one_file_is_that_file(dicom_files, tmp_path):
    frames = np.stack([VOLUME[0], VOLUME[1]])
    dicom_files.make_dicom(tmp_path / "us" / "a.dcm", frames, frames=True)
    scan = read_scan(tmp_path / "us")
    assert (scan.name, scan.slices) == ("us", 2)
    dicom_files.make_dicom(
        tmp_path / "us" / "b.dcm", frames, frames=True, SeriesInstanceUID=scan.header[0].SeriesInstanceUID
    )
    assert message(tmp_path / "us") == (
        f"folder {tmp_path / 'us'}: must hold files of one slice to be a series, got a.dcm with 2 frames; "
        "give that file by itself"
    )


def test_deidentified_series_refers_to_the_new_uids(dicom_files, tmp_path):
    dicom_files.make_series(tmp_path / "ct", VOLUME)
    scan = read_scan(tmp_path / "ct", deidentify=True)
    assert len({item.SOPInstanceUID for item in scan.header}) == 5
    assert len({item.SeriesInstanceUID for item in scan.header}) == 1
    assert all(value not in str(scan.header) for value in dicom_files.PATIENT.values())


# --- folder trees ---


def test_scan_paths(dicom_files, tmp_path):
    nibabel = pytest.importorskip("nibabel")
    make, grey = dicom_files.make_dicom, np.zeros((4, 4), np.uint8)
    dicom_files.make_series(tmp_path / "ct", VOLUME)
    shared = {"Modality": "DX", "SeriesInstanceUID": "1.2.3"}
    for name in ("front", "side"):  # one series, two pictures
        make(tmp_path / "chest" / f"{name}.dcm", grey, **shared)
    for name in ("1", "2"):  # each a series of its own
        make(tmp_path / "mr" / name, grey, Modality="MR")
    make(tmp_path / "us" / "clip", np.zeros((3, 4, 4), np.uint8), frames=True, Modality="US")
    (tmp_path / "mixed").mkdir()
    Image.fromarray(grey).save(tmp_path / "mixed" / "b.png")
    Image.fromarray(grey).save(tmp_path / "mixed" / "a.txt", format="JPEG")
    nibabel.save(
        nibabel.Nifti1Image(np.zeros((3, 3, 3), np.uint8), np.eye(4)), tmp_path / "mixed" / "v.nii.gz"
    )
    for name in ("no.png", "no.dcm", "no.nii.gz"):  # reading them tells
        (tmp_path / "mixed" / name).write_bytes(b"MZ\x90\0 an executable")
    for name in ("README.txt", "table.csv", "x.json", "DICOMDIR", ".hidden.png"):
        (tmp_path / "mixed" / name).write_text("text")
    (tmp_path / ".git").mkdir()
    Image.fromarray(grey).save(tmp_path / ".git" / "b.png")
    assert [path.relative_to(tmp_path).as_posix() for path in list(find_scans(tmp_path).scans)] == [
        "chest/front.dcm",
        "chest/side.dcm",
        "ct",
        "mixed/a.txt",
        "mixed/b.png",
        "mixed/no.dcm",
        "mixed/no.nii.gz",
        "mixed/no.png",
        "mixed/v.nii.gz",
        "mr/1",
        "mr/2",
        "us/clip",
    ]
    assert list(find_scans(tmp_path / "ct").scans) == [tmp_path / "ct"]


@pytest.mark.parametrize("kept", [400, -20])
def test_a_damaged_slice_costs_itself_and_its_series_says_so(dicom_files, tmp_path, kept):
    """Unsaid, a series cut short would be read as if it were whole."""
    paths = dicom_files.make_series(tmp_path / "ct", VOLUME)
    paths[4].write_bytes(paths[4].read_bytes()[:kept])
    series, damaged = sorted(find_scans(tmp_path).scans, key=lambda one: isinstance(one, Path))
    assert damaged == paths[4]
    scan = read_scan(series)
    assert scan.slices == 4
    assert scan.remarks() == (f"1 file beside the series damaged, a slice may be missing: {paths[4].name}",)
    assert message(paths[4]).startswith(f"DICOM {paths[4]}: must ")
    assert message(tmp_path / "ct").startswith(f"DICOM {paths[4]}: must ")  # given by itself it must be whole


def test_a_flat_study_is_its_series_and_what_is_no_picture_is_counted(dicom_files, tmp_path):
    """As a PACS exports it: every file of a study in one folder."""
    for name in ("a", "b"):
        for path in dicom_files.make_series(tmp_path / name, VOLUME):
            path.rename(tmp_path / f"{name}-{path.name}")
        (tmp_path / name).rmdir()
    scout = dicom_files.make_series(tmp_path / "c", VOLUME[:2], orientation=CORONAL)
    for path in scout:  # in another plane, though of the first series
        edit(path, SeriesInstanceUID=pydicom.dcmread(next(tmp_path.glob("a-*"))).SeriesInstanceUID)
        path.rename(tmp_path / f"c-{path.name}")
    (tmp_path / "c").rmdir()
    dicom_files.make_dicom(tmp_path / "film.dcm", VOLUME[0], Modality="DX")
    for name, kind in (("sr", "88.33"), ("ps", "11.1"), ("seg", "66.4")):
        dicom_files.make_dicom(tmp_path / name, VOLUME[0])
        edit(tmp_path / name, SOPClassUID=f"1.2.840.10008.5.1.4.1.1.{kind}")
    bare = dicom_files.dicom(VOLUME[0], SOPClassUID="1.2.840.10008.5.1.4.1.1.99.9")
    for keyword in ("Rows", "Columns", "PixelData"):
        del bare[keyword]
    bare.save_as(tmp_path / "vendor", enforce_file_format=True)
    for name in ("LICENSE", "a.zip", "old.nrrd"):
        (tmp_path / name).write_text("text")
    found = find_scans(tmp_path)
    series = [one for one in found.scans if isinstance(one, SeriesFiles)]
    assert sorted(len(one.files) for one in series) == [2, 5, 5]
    assert {one.name for one in series} == {"series-1", "series-2", "series-3"}
    assert [one.name for one in found.scans if isinstance(one, Path)] == ["film.dcm"]
    assert sorted(read_scan(one).slices for one in series) == [2, 5, 5]
    assert found.told() == [
        "left out: 1 file, no picture: LICENSE",
        "left out: 1 file, packed; unpack them first: a.zip",
        "left out: 1 file, in a format that is not read; convert them to PNG, DICOM or NIfTI: old.nrrd",
        "left out: 1 file, DICOM objects that are no picture (a presentation state): ps",
        "left out: 1 file, DICOM objects that are no picture (a segmentation): seg",
        "left out: 1 file, DICOM objects that are no picture (a structured report): sr",
        "left out: 1 file, DICOM objects that are no picture (without pixels): vendor",
    ]


def test_links_are_followed_but_not_in_a_circle(tmp_path):
    grey = np.zeros((4, 4), np.uint8)
    for name in ("in/a.png", "elsewhere/b.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(grey).save(tmp_path / name)
    (tmp_path / "in" / "more").symlink_to("../elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to("../in")
    found = find_scans(tmp_path / "in")
    assert [one.relative_to(tmp_path).as_posix() for one in found.scans] == ["in/a.png", "in/more/b.png"]
    assert found.told() == ["left out: 1 file, which link back to a folder above: back"]


def test_nothing_to_read(tmp_path):
    (tmp_path / "README.txt").write_text("hello")
    with pytest.raises(InputError) as error:
        list(find_scans(tmp_path).scans)
    assert (
        str(error.value)
        == f"folder {tmp_path}: must hold images (PNG, JPEG, TIFF, BMP, GIF, WebP, PPM, DICOM or "
        "NIfTI), got 1 file, no picture: README.txt"
    )
    with pytest.raises(InputError) as error:
        list(find_scans(tmp_path / "none").scans)
    assert str(error.value) == f"folder {tmp_path / 'none'}: must be a folder, no such folder"
