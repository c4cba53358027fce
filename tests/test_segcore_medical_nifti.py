"""NIfTI: shown the radiological way, back to the file's own axes exactly, and what is refused."""

import gzip
import itertools

import numpy as np
import pytest

from segcore.errors import InputError
from segcore.medical.read import read_scan

nibabel = pytest.importorskip("nibabel")

RAS = np.diag([1.0, 1.0, 1.0, 1.0])
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def save(path, array, affine=LPS, **header):
    image = nibabel.Nifti1Image(array, affine)
    for key, value in header.items():
        image.header[key] = value
    nibabel.save(image, path)
    return path


def message(path, read=False):
    with pytest.raises(InputError) as error:
        read_scan(path).values(0) if read else read_scan(path)
    return str(error.value)


def orientations():
    """All 48 ways to lay axes along the patient's."""
    for order in itertools.permutations(range(3)):
        for signs in itertools.product((1.0, -1.0), repeat=3):
            yield order, signs


@pytest.mark.parametrize(("order", "signs"), orientations())
def test_every_orientation_is_shown_the_same_way(tmp_path, order, signs):
    """A volume that stores each voxel's own place: rows run to posterior, columns to the left, slices up."""
    affine = np.eye(4)
    affine[:3, :3] = 0
    for axis, (patient, sign) in enumerate(zip(order, signs, strict=True)):
        affine[patient, axis] = sign * (0.5, 1.0, 2.0)[patient]  # mm along right, anterior, superior
    affine[:3, 3] = (-3, 4, 5)
    shape = (3, 4, 5)
    i, j, k = np.mgrid[0:3, 0:4, 0:5]
    place = np.stack([i, j, k, np.ones_like(i)], -1) @ affine.T
    stored = (place[..., 0] * 10000 + place[..., 1] * 100 + place[..., 2]).astype(np.float32)
    scan = read_scan(save(tmp_path / "a.nii", stored, affine))
    assert (scan.spacing_mm, scan.slice_spacing_mm) == ((1.0, 0.5), 2.0)
    height, width = scan.size_px
    for index in range(scan.slices):
        values = scan.values(index)
        for row, column in ((0, 0), (height - 1, width - 1), (0, width - 1)):
            x, y, z, _ = scan.affine @ [column, row, index, 1]  # left, posterior, superior
            assert values[row, column] == pytest.approx(-x * 10000 - y * 100 + z)
    steps = scan.affine[:3, :3]
    assert (np.diag(steps) > 0).all()
    assert np.count_nonzero(steps) == 3
    # and exactly back
    masks = np.stack([scan.values(n) for n in range(scan.slices)])
    back = scan.header.to_stored(masks)
    assert back.shape == shape
    np.testing.assert_array_equal(back, stored)
    np.testing.assert_array_equal(scan.header.from_stored(back), masks)
    np.testing.assert_allclose(scan.header.affine, affine)


def test_a_picture_written_by_itk_keeps_rows_and_columns(tmp_path):
    picture = np.arange(12, dtype=np.uint8).reshape(3, 4)
    scan = read_scan(save(tmp_path / "a.nii.gz", picture.T, np.diag([-0.3, -0.2, 1, 1])))
    assert (scan.kind, scan.slices, scan.size_px) == ("nifti", 1, (3, 4))
    assert scan.spacing_mm == pytest.approx((0.2, 0.3))
    assert scan.slice_spacing_mm is None
    np.testing.assert_array_equal(scan.values(0), picture)
    assert scan.values(0).dtype == np.uint8
    np.testing.assert_array_equal(scan.header.to_stored(picture[None]), picture.T)
    four = read_scan(save(tmp_path / "b.nii", picture.T[:, :, None, None]))
    np.testing.assert_array_equal(four.values(0), picture)
    assert four.header.to_stored(picture[None]).shape == (4, 3, 1, 1)


@pytest.mark.parametrize(
    ("affine", "top_left"),
    [
        # axes: right, superior; coronal is shown head up, the patient's right on the left
        ([[1, 0, 0, 0], [0, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 1]], (3, 2)),
        # axes: anterior, superior; sagittal is shown head up, anterior on the left
        ([[0, 0, 1, 0], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]], (3, 2)),
    ],
)
def test_a_single_slice_keeps_its_plane(tmp_path, affine, top_left):
    stored = np.arange(12, dtype=np.uint8).reshape(4, 3)
    scan = read_scan(save(tmp_path / "a.nii", stored, np.array(affine, float)))
    assert scan.size_px == (3, 4)
    assert scan.values(0)[0, 0] == stored[top_left]
    np.testing.assert_array_equal(scan.header.to_stored(scan.values(0)[None]), stored)


def test_without_any_orientation_it_is_shown_as_stored(tmp_path):
    stored = np.arange(24, dtype=np.uint16).reshape(4, 3, 2)
    path = save(tmp_path / "a.nii", stored, None, pixdim=[1, 0.5, 0.25, 3, 1, 1, 1, 1])
    scan = read_scan(path)
    np.testing.assert_array_equal(scan.values(1), stored[:, :, 1].T)
    assert scan.values(1).dtype == np.uint16
    assert scan.affine is None
    assert (scan.spacing_mm, scan.slice_spacing_mm) == ((0.25, 0.5), 3.0)


def test_scaling_and_signed_values(tmp_path):
    stored = np.arange(8, dtype=np.int16).reshape(2, 2, 2)
    plain = read_scan(save(tmp_path / "a.nii", stored)).values(0)
    assert plain.dtype == np.float32
    image = nibabel.Nifti1Image(stored, LPS)
    image.header.set_slope_inter(2.0, -1000.0)
    image.to_filename(tmp_path / "b.nii")
    raw = (tmp_path / "b.nii").read_bytes()  # nibabel rescales on writing; the header alone is to be tested
    header = nibabel.Nifti1Header(raw[:348])
    header["scl_slope"], header["scl_inter"] = 2.0, -1000.0
    (tmp_path / "b.nii").write_bytes(header.binaryblock + b"\0" * 4 + stored.tobytes(order="F"))
    scan = read_scan(tmp_path / "b.nii")
    np.testing.assert_array_equal(scan.values(1), stored[:, :, 1].T * 2.0 - 1000)
    assert scan.display(1).tolist() == [[0, 170], [85, 255]]


def test_rgb_units_versions_and_byte_order(tmp_path):
    pixels = np.zeros((4, 3, 1), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    pixels["R"], pixels["B"] = 200, 7
    rgb = read_scan(save(tmp_path / "rgb.nii", pixels)).values(0)
    assert rgb.shape == (3, 4, 3)
    assert rgb[2, 3].tolist() == [200, 0, 7]
    micro = read_scan(
        save(tmp_path / "um.nii", np.zeros((4, 3), np.uint8), np.diag([-500.0, -250.0, 1, 1]), xyzt_units=3)
    )
    assert micro.spacing_mm == pytest.approx((0.25, 0.5))
    stored = np.arange(24, dtype=np.int16).reshape(4, 3, 2)
    nibabel.save(nibabel.Nifti2Image(stored, LPS), tmp_path / "two.nii.gz")
    np.testing.assert_array_equal(read_scan(tmp_path / "two.nii.gz").values(1), stored[:, :, 1].T)
    big = nibabel.Nifti1Image(stored, LPS, nibabel.Nifti1Header(endianness=">"))
    nibabel.save(big, tmp_path / "big.nii")
    np.testing.assert_array_equal(read_scan(tmp_path / "big.nii").values(1), stored[:, :, 1].T)


def test_read_by_content_and_while_a_packed_file_is_gone(tmp_path):
    stored = np.arange(24, dtype=np.uint8).reshape(4, 3, 2)
    path = save(tmp_path / "a.nii.gz", stored).rename(tmp_path / "a.png")
    scan = read_scan(path)
    np.testing.assert_array_equal(scan.values(0), stored[:, :, 0].T)
    path.unlink()  # unpacked once, kept in the scan
    np.testing.assert_array_equal(scan.values(1), stored[:, :, 1].T)


# --- bad input ---


def test_nan(tmp_path):
    stored = np.zeros((4, 3, 2), np.float32)
    stored[1, 1, 1], stored[2, 1, 1] = np.nan, np.inf
    scan = read_scan(save(tmp_path / "a.nii", stored))
    assert scan.values(0).max() == 0
    for read in (scan.values, scan.display):
        with pytest.raises(InputError) as error:
            read(1)
        assert str(error.value) == (
            f"NIfTI {tmp_path / 'a.nii'}: must hold finite numbers, got 2 NaN or infinite voxels in slice 2; replace them"
        )


def test_dimensions(tmp_path):
    path = save(tmp_path / "a.nii", np.zeros((4, 3, 2, 5), np.uint8))
    assert message(path) == (
        f"NIfTI {path}: must be 2-D or 3-D, got 4-D of 4×3×2×5; save the volume you mean by itself"
    )


@pytest.mark.parametrize("shape", [(30000, 30000), (12000, 12000, 2), (2000, 2000, 2000)])
def test_huge_is_refused_from_the_header(tmp_path, shape):
    header = nibabel.Nifti1Header()
    header.set_data_shape(shape)
    header.set_data_dtype(np.uint8)
    header["magic"], header["vox_offset"] = b"n+1", 352
    path = tmp_path / "a.nii"
    path.write_bytes(header.binaryblock)
    assert message(path) == (
        f"NIfTI {path}: must be at most 20000 voxels a side, 100000000 a slice and 2000000000 in all, "
        f"got {'×'.join(map(str, shape))}; crop or shrink it"
    )


def test_a_bomb_is_not_unpacked(tmp_path):
    """A few MB that promise few voxels and hold many: only as many are unpacked as the header promises."""
    path = save(tmp_path / "a.nii.gz", np.ones((4, 3, 2), np.uint8))
    raw = gzip.decompress(path.read_bytes())
    path.write_bytes(gzip.compress(raw + b"\0" * 10_000_000))
    assert read_scan(path).values(0).max() == 1


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_truncated(tmp_path, name):
    path = save(tmp_path / name, np.random.default_rng(0).integers(0, 255, (20, 20, 20)).astype(np.uint8))
    path.write_bytes(path.read_bytes()[:3000])
    assert message(path, read=True) == (f"NIfTI {path}: must be a whole file, is damaged; copy it again")


def test_wrong_header(tmp_path):
    stored = np.zeros((4, 3, 2), np.uint8)
    path = save(tmp_path / "a.nii", stored)
    raw = bytearray(path.read_bytes())
    raw[70:72] = b"\xff\x7f"  # no such data type
    path.write_bytes(raw)
    assert message(path) == f"NIfTI {path}: must be a whole file, is damaged; copy it again"
    flat = save(tmp_path / "flat.nii", stored, np.eye(4), srow_x=[0, 0, 0, 0])
    raw = bytearray(flat.read_bytes())
    raw[280:296] = b"\0" * 16
    flat.write_bytes(raw)
    assert message(flat) == (
        f"NIfTI {flat}: must have an affine of three different directions, got another; save it with a right one"
    )
    for dtype, shown in ((np.complex64, "complex64"), ([(c, "u1") for c in "RGBA"], "RGBA")):
        path = save(tmp_path / f"{shown}.nii", np.zeros((4, 3, 2), dtype))
        assert message(path) == (
            f"NIfTI {path}: must hold numbers or RGB, got the data type {shown}; convert it first"
        )
