"""Where a mask's voxels lie in the patient, read by nibabel and pydicom alone, in millimetres: never by array index."""

import numpy as np
import pytest

from segcore.dataset.dataset import open_dataset
from segcore.medical.mask_files import write_masks
from segcore.medical.read import read_scan

pytest.importorskip("pydicom")
nibabel = pytest.importorskip("nibabel")
pytest.importorskip("highdicom")

CENTRE = np.array([12.0, -31.0, 250.0])
"""Of every scan here, in DICOM's axes: left, posterior, superior."""
# Class 1 to 3: centre from CENTRE and radius, so that no turn, mirror or shift maps them onto themselves.
BALLS = (((9.0, 0.0, 1.5), 5.0), ((-2.0, 6.0, -1.0), 3.5), ((-3.0, -4.0, 4.5), 2.5))
LPS_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
SHAPE, SPACING_MM, STEP_MM = (9, 44, 30), (0.7, 1.1), 1.7  # N×H×W; rows, columns; slices


def truth(places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The class at each place, …×3 in millimetres, and whether it is too near a ball's surface to say."""
    classes, unsure = np.zeros(places.shape[:-1], int), np.zeros(places.shape[:-1], bool)
    for k, (offset, radius) in enumerate(BALLS, start=1):
        away = np.linalg.norm(places - (CENTRE + offset), axis=-1)
        classes[away < radius] = k
        unsure |= abs(away - radius) < 1e-3
    return classes, unsure


def centred(columns: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """4×4 of these three columns, in millimetres a step, whose array of `shape` has its middle at CENTRE."""
    affine = np.eye(4)
    affine[:3, :3] = columns
    affine[:3, 3] = CENTRE - columns @ ((np.array(shape) - 1) / 2)
    return affine


def places_of(affine: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    index = np.moveaxis(np.indices(shape), 0, -1)
    return index @ affine[:3, :3].T + affine[:3, 3]


def check_nifti(path) -> None:
    image = nibabel.load(path)
    stored = np.asarray(image.dataobj)
    said = [
        form for form in (image.get_sform(coded=True)[0], image.get_qform(coded=True)[0]) if form is not None
    ]
    assert said
    for affine in said:  # readers differ in which of the two they take
        expected, unsure = truth(places_of(LPS_RAS @ affine, stored.shape))
        assert set(np.unique(stored)) == {0, 1, 2, 3}
        assert ((stored == expected) | unsure).all()


def check_seg(path) -> None:
    from pydicom import dcmread

    seg = dcmread(path)
    frames = seg.pixel_array.reshape(-1, seg.Rows, seg.Columns)
    shared = seg.SharedFunctionalGroupsSequence[0]
    turn = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float).reshape(2, 3)
    rows_mm, columns_mm = map(float, shared.PixelMeasuresSequence[0].PixelSpacing)
    found = {1: 0, 2: 0, 3: 0}
    for frame, group in zip(frames, seg.PerFrameFunctionalGroupsSequence, strict=True):
        segment = int(group.SegmentIdentificationSequence[0].ReferencedSegmentNumber)
        affine = np.eye(4)
        affine[:3, 0], affine[:3, 1] = turn[1] * rows_mm, turn[0] * columns_mm  # of (row, column)
        affine[:3, 3] = np.array(group.PlanePositionSequence[0].ImagePositionPatient, float)
        index = np.moveaxis(np.indices(frame.shape), 0, -1)
        expected, unsure = truth(index @ affine[:3, :2].T + affine[:3, 3])
        assert (((frame == 1) == (expected == segment)) | unsure).all()
        found[segment] += int(frame.sum())
    assert min(found.values()) > 10


def turned(*degrees: float) -> np.ndarray:
    """3×3 rotation about x, then y, then z."""
    turn = np.eye(3)
    for axis, angle in enumerate(np.radians(degrees)):
        a, b = (axis + 1) % 3, (axis + 2) % 3
        one = np.eye(3)
        one[a, a] = one[b, b] = np.cos(angle)
        one[b, a], one[a, b] = np.sin(angle), -np.sin(angle)
        turn = one @ turn
    return turn


# Directions of a row and a column in patient axes.
PLANES = {
    "axial": np.eye(3)[:2],
    "sagittal": np.array([[0.0, 1, 0], [0, 0, -1]]),
    "coronal": np.array([[1.0, 0, 0], [0, 0, -1]]),
    "oblique": turned(20, -35, 50).T[:2],
    "prone": np.array([[-1.0, 0, 0], [0, -1, 0]]),
    "feet first": np.array([[-1.0, 0, 0], [0, 1, 0]]),  # the normal points to the feet
}


def make_scan(dicom_files, folder, plane: np.ndarray, *, reverse: bool, lean_mm: float = 0.0) -> None:
    """A CT series whose value at a place is 1000 times its class; numbers and names run either way."""
    normal = np.cross(*plane)
    step = normal * STEP_MM + plane[1] * lean_mm
    affine = centred(
        np.stack([plane[0] * SPACING_MM[1], plane[1] * SPACING_MM[0], step], axis=1), SHAPE[::-1]
    )
    values = truth(places_of(affine, SHAPE[::-1]))[0].transpose(2, 1, 0) * 1000
    for index, pixels in enumerate(values.astype(np.int16)):
        number = SHAPE[0] - index if reverse else index + 1
        dicom_files.make_dicom(
            folder / f"{number:03d}.dcm",
            pixels,
            Modality="CT",
            StudyInstanceUID="1.2.1", SeriesInstanceUID="1.2.2", FrameOfReferenceUID="1.2.3",
            PixelSpacing=list(SPACING_MM), SliceThickness=STEP_MM, InstanceNumber=number,
            ImageOrientationPatient=[round(float(v), 12) for v in plane.ravel()],
            ImagePositionPatient=[round(float(v), 8) for v in affine[:3, :] @ [0, 0, index, 1]],
        )  # fmt: skip


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("plane", PLANES)
def test_a_series_masks_lie_where_its_values_lie(tmp_path, dicom_files, three, plane, reverse):
    make_scan(dicom_files, tmp_path / "ct", PLANES[plane], reverse=reverse)
    scan = read_scan(tmp_path / "ct")
    assert (scan.spacing_mm, scan.slice_spacing_mm) == (SPACING_MM, pytest.approx(STEP_MM, abs=1e-6))
    masks = np.stack([scan.values(i) // 1000 for i in range(scan.slices)]).astype(np.uint8)
    expected, unsure = truth(places_of(scan.affine, SHAPE[::-1]))
    assert ((masks.transpose(2, 1, 0) == expected) | unsure).all()
    write_masks(tmp_path, "m", scan, masks, three, ["nifti", "dicom-seg"])
    check_nifti(tmp_path / "m.nii.gz")
    check_seg(tmp_path / "m.dcm")


def test_slices_of_a_leaning_gantry_lie_where_they_are(tmp_path, dicom_files, three):
    make_scan(dicom_files, tmp_path / "ct", PLANES["axial"], reverse=False, lean_mm=0.6)
    scan = read_scan(tmp_path / "ct")
    masks = np.stack([scan.values(i) // 1000 for i in range(scan.slices)]).astype(np.uint8)
    write_masks(tmp_path, "m", scan, masks, three, ["nifti", "dicom-seg"])
    check_nifti(tmp_path / "m.nii.gz")
    check_seg(tmp_path / "m.dcm")


# Where the axes of a stored array run to; each letter a patient direction.
ORDERS = ("RAS", "LAS", "LPS", "PSR", "ILA", "oblique")


def make_nifti(path, order: str, dtype: type, scale: int) -> None:
    """An array of other length and spacing along each axis, whose value at a place is `scale` times its class."""
    shape, spacing = (44, 36, 40), np.array([0.7, 1.1, 0.8])
    if order == "oblique":
        directions = turned(10, 25, -140)
    else:
        directions = np.zeros((3, 3))
        for axis, letter in enumerate(order):
            row = next(i for i, pair in enumerate(("RL", "AP", "SI")) if letter in pair)
            directions[row, axis] = 1 if letter in "RAS" else -1
    ras = LPS_RAS @ centred((LPS_RAS[:3, :3] @ directions) * spacing, shape)
    values = truth(places_of(LPS_RAS @ ras, shape))[0] * scale
    image = nibabel.Nifti1Image(values.astype(dtype), ras)
    image.header.set_xyzt_units("mm")
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(image, path)


@pytest.mark.parametrize("order", ORDERS)
def test_a_niftis_masks_lie_where_its_values_lie(tmp_path, three, order):
    make_nifti(tmp_path / "v.nii.gz", order, np.int16, 1000)
    scan = read_scan(tmp_path / "v.nii.gz")
    masks = np.stack([scan.values(i) // 1000 for i in range(scan.slices)]).astype(np.uint8)
    expected, unsure = truth(places_of(scan.affine, masks.shape[::-1]))
    assert ((masks.transpose(2, 1, 0) == expected) | unsure).all()
    write_masks(tmp_path, "m", scan, masks, three, ["nifti"])
    check_nifti(tmp_path / "m.nii.gz")
    source, mask = nibabel.load(tmp_path / "v.nii.gz"), nibabel.load(tmp_path / "m.nii.gz")
    np.testing.assert_allclose(mask.affine, source.affine, atol=1e-5)
    np.testing.assert_array_equal(np.asarray(mask.dataobj), np.asarray(source.dataobj) // 1000)


def test_a_dataset_lays_masks_on_images_whatever_the_orders_they_are_stored_in(tmp_path, dicom_files, three):
    """Series under masks as NIfTI and DICOM-SEG, NIfTI volumes under masks stored along other axes."""
    (tmp_path / "masks").mkdir()
    for plane, form in (("oblique", "nifti"), ("prone", "dicom-seg"), ("feet first", "dicom-seg")):
        name = plane.replace(" ", "")
        make_scan(dicom_files, tmp_path / "images" / name, PLANES[plane], reverse=plane == "prone")
        scan = read_scan(tmp_path / "images" / name)
        masks = np.stack([scan.values(i) // 1000 for i in range(scan.slices)]).astype(np.uint8)
        write_masks(tmp_path / "masks", name, scan, masks, three, [form])
    for name, order in (("ras", "RAS"), ("psr", "PSR")):
        make_nifti(tmp_path / "images" / f"{name}.nii.gz", order, np.int16, 1000)
        make_nifti(tmp_path / "masks" / f"{name}.nii.gz", order, np.uint8, 1)
    # Its own array, along other axes: the voxels must be the same ones.
    turned_round = nibabel.load(tmp_path / "masks" / "ras.nii.gz").as_reoriented(
        nibabel.orientations.ornt_transform(
            nibabel.orientations.axcodes2ornt("RAS"), nibabel.orientations.axcodes2ornt("PIL")
        )
    )
    nibabel.save(turned_round, tmp_path / "masks" / "ras.nii.gz")
    cases = open_dataset(str(tmp_path)).cases
    assert len({case.volume for case in cases}) == 5
    for case in cases:
        np.testing.assert_array_equal(case.mask(), case.image() // 1000, err_msg=case.id)
