"""NIfTI as a scan of axial slices shown the radiological way, and the exact way back to the file's own axes.

Masks go the same way: read onto the grid of their scan, whatever axes the file keeps them in, and written on it.
"""

from __future__ import annotations

import gzip
import threading
import zlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from segcore.errors import InputError, need, reading
from segcore.image import MAX_PIXELS, MAX_SIDE_PX, class_indices
from segcore.medical.dicom.file import MAX_VOXELS
from segcore.picture.scan import Scan, check_mask_size

_MAX_UNPACKED_BYTES = 2**31
_GZIP = b"\x1f\x8b"
# Length of a header, and where its magic stands. Source: NIfTI-1.1 (nifti1.h) and NIfTI-2 (nifti2.h).
_HEADERS = {1: (348, 344, b"n+1\0"), 2: (540, 4, b"n+2\0")}
_MM_PER_UNIT = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}  # unknown, metre, millimetre, micrometre
# NIfTI's axes go right, anterior, superior; DICOM's left, posterior, superior. Its own inverse.
_LPS_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
# Where columns, rows and slices run to, by the patient axis nearest a single slice's normal; volumes are axial.
_SHOWN = {"S": ("L", "P", "S"), "A": ("L", "I", "A"), "R": ("P", "I", "R")}
_CLOSE_VOXELS = 0.05
_PLACE_FIELDS = (
    "pixdim", "xyzt_units", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d",
    "qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z",
)  # fmt: skip
_NO_PLACE, _SCANNER = 0, 1
"""Codes of NIfTI's forms: no place in the patient is known, and scanner coordinates."""


@dataclass(frozen=True)
class NiftiHeader:
    """What a NIfTI file needs to lie over its source: nothing in it names a patient.

    Attributes:
        affine: 4×4, from the file's own voxel indices to millimetres (right, anterior, superior).
        shape: of the file's own array, 2 to 4 axes, the fourth of length 1.
        oriented: False where the file says nothing of the patient's axes; it is shown as stored then.
        axes: which of the file's axes run along the scan's columns, rows and slices.
        flips: whether each of those three runs backwards in the file.
        place: the file's own fields that say where it lies, which a mask repeats: qform, sform, their codes and unit.
    """

    affine: np.ndarray
    shape: tuple[int, ...]
    oriented: bool
    axes: tuple[int, int, int]
    flips: tuple[bool, bool, bool]
    place: dict[str, Any]

    def to_stored(self, masks: np.ndarray) -> np.ndarray:
        """Masks N×H×W on the scan's grid as an array of `shape`, to be saved with `affine`."""
        columns_rows_slices = masks.transpose(2, 1, 0)[self._backwards()]
        return np.ascontiguousarray(columns_rows_slices.transpose(np.argsort(self.axes)).reshape(self.shape))

    def from_stored(self, array: np.ndarray) -> np.ndarray:
        """The way of `to_stored` backwards, without a copy: an array of `shape` as N×H×W."""
        volume: np.ndarray = array.reshape((*self.shape, 1)[:3])
        return np.asarray(volume.transpose(self.axes)[self._backwards()].transpose(2, 1, 0))

    def _backwards(self) -> tuple[slice, ...]:
        return tuple(slice(None, None, -1 if flip else None) for flip in self.flips)


def nifti_version(path: Path) -> int | None:
    """1 or 2 where the file's content is NIfTI in one file, packed by gzip or not; None otherwise."""
    try:
        with _open_file(path) as stream:
            head = stream.read(348)
    except (OSError, EOFError, zlib.error):
        return None
    for version, (_, at, magic) in _HEADERS.items():
        if head[at : at + 4] == magic:
            return version
    return None


def read_nifti(path: Path) -> Scan:
    """A file's slices, inferior to superior, rows anterior to posterior, columns right to left of the patient.

    A single slice keeps its plane; a coronal or sagittal one has its rows from superior to inferior.

    Raises:
        InputError: damaged, cut off, too large, more than three axes, or of numbers that are no picture.
    """
    raw = _read_header(path)
    shape, dtype = tuple(int(n) for n in raw.get_data_shape()), raw.get_data_dtype()
    _check_kind(path, shape, dtype)
    header = _find_axes(path, raw, shape)
    slope, intercept = _value_scale(path, raw)
    volume = _stored_array(path, _voxel_offset(path, raw), shape, dtype)
    as_stored = dtype.name in ("uint8", "uint16") and (slope, intercept) == (1.0, 0.0)
    columns, rows, slices = (int((*shape, 1)[axis]) for axis in header.axes)
    affine = _LPS_RAS @ header.affine @ _from_scan(header) if header.oriented else None
    distances_mm: list[float | None] = list(np.linalg.norm(header.affine[:3, list(header.axes)], axis=0))
    if not header.oriented and not int(raw["xyzt_units"]) & 7:
        # No place, no unit: a 1 is what nobody filled in.
        distances_mm = [None if length == 1.0 else length for length in distances_mm]
    across, down, between = distances_mm

    def values(index: int) -> np.ndarray:
        stored: np.ndarray = header.from_stored(volume())[index]
        if stored.dtype.fields:
            return np.stack([stored[channel] for channel in "RGB"], axis=-1)
        if as_stored:
            return np.ascontiguousarray(stored.astype(dtype.newbyteorder("=")))
        with np.errstate(over="ignore", invalid="ignore"):  # what overflows is infinite, and refused
            scaled = (stored.astype(np.float64) * slope + intercept).astype(np.float32)
        if bad := int((~np.isfinite(scaled)).sum()):
            raise InputError(
                f"NIfTI {path}: must hold finite numbers, got {bad} NaN or infinite voxels in slice {index + 1}; "
                "replace them"
            )
        return np.asarray(scaled)

    return Scan(
        name=path.name,
        kind="nifti",
        slices=slices,
        size_px=(rows, columns),
        values=values,
        display=lambda index: full_range(values(index)),
        spacing_mm=None if across is None or down is None else (float(down), float(across)),
        slice_spacing_mm=None if between is None or slices == 1 else float(between),
        affine=affine,
        header=header,
    )


def read_nifti_mask(path: Path, scan: Scan) -> np.ndarray:
    """Stored values on the scan's grid, N×H×W uint8.

    Raises:
        InputError: no whole NIfTI, values that are no class indices, or another grid.
    """
    mask = read_nifti(path)
    values = np.stack([mask.values(index) for index in range(mask.slices)])
    if values.ndim != 3:
        raise InputError(f"mask {path}: must be one grey channel, got RGB; save class indices as grey")
    return np.ascontiguousarray(_on_grid(class_indices(values, f"mask {path}"), mask, scan, path))


def encode_nifti(scan: Scan, masks: np.ndarray, *, description: str) -> bytes:
    """The bytes of a .nii.gz: uint8 class indices, and the scan's place in the patient where it is known.

    Args:
        scan: its grid. A NIfTI's mask has the axes and shape of the NIfTI, and its qform, sform, codes and unit. Others
            have columns, rows, slices; without a place in the patient the file says none, so that readers keep rows
            and columns as they are.
        masks: N×H×W uint8.
        description: at most 79 characters of ASCII, for the header.

    Raises:
        InputError: the slices are not evenly spaced, which no NIfTI can say.
    """
    nibabel = _load_nibabel()
    if scan.uneven:
        raise InputError(
            f"--to nifti: {scan.name} must have evenly spaced slices to be a volume, has {scan.uneven}; use png or "
            "dicom-seg"
        )
    header = nibabel.Nifti1Header()
    if scan.kind == "nifti":
        stored = scan.header.to_stored(masks)
        for name, value in scan.header.place.items():
            header[name] = value
    else:
        stored = masks.transpose(2, 1, 0)
        if scan.slices == 1 and scan.affine is None:
            stored = stored[..., 0]
        _set_place(header, scan)
    header.set_data_shape(stored.shape)
    header.set_data_dtype(np.uint8)
    header["descrip"] = description.encode("ascii", "replace")[:79]
    header["magic"], header["vox_offset"] = b"n+1", _HEADERS[1][0] + 4
    # No time in the gzip header: equal masks are equal files.
    voxels = np.asarray(stored, np.uint8).tobytes(order="F")
    return gzip.compress(header.binaryblock + bytes(4) + voxels, compresslevel=6, mtime=0)


def full_range(values: np.ndarray) -> np.ndarray:
    """Values as 8 bits, their smallest black and their largest white; 8-bit values as they are."""
    if values.dtype == np.uint8:
        return values
    low, high = float(values.min()), float(values.max())
    return np.round((values.astype(np.float64) - low) * (255.0 / max(high - low, 1e-12))).astype(np.uint8)


# Reading: the header, its checks, and the voxels.


def _open_file(path: Path) -> Any:
    return gzip.open(path, "rb") if _is_packed(path) else path.open("rb")


def _is_packed(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(2) == _GZIP


def _reading_whole(path: Path) -> AbstractContextManager[None]:
    """Around what reads a file; its words are not repeated, for a header has room for a patient's name."""
    return reading(f"NIfTI {path}", "a whole file", quoted=False)


def _damaged_error(path: Path) -> InputError:
    return InputError(f"NIfTI {path}: must be a whole file, is damaged; copy it again")


def _load_nibabel() -> Any:
    """The library; its functions have no types."""
    try:
        import nibabel
    except ImportError:
        raise need("nibabel", "medical") from None
    return nibabel


def _read_header(path: Path) -> Any:
    nibabel = _load_nibabel()
    version = nifti_version(path)
    if version is None:
        raise InputError(
            f"NIfTI {path}: must be NIfTI-1 or -2 in one file, got something else; save it as .nii.gz"
        )
    kind = nibabel.Nifti1Header if version == 1 else nibabel.Nifti2Header
    length = _HEADERS[version][0]
    with _reading_whole(path), _open_file(path) as stream:
        raw = kind(stream.read(length), check=False)
        raw.get_data_shape(), raw.get_data_dtype(), raw.get_data_offset(), raw.get_best_affine()
        return raw


def _check_kind(path: Path, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    size = "×".join(map(str, shape))
    if not 2 <= len(shape) <= 4 or (len(shape) == 4 and shape[3] != 1):
        raise InputError(
            f"NIfTI {path}: must be 2-D or 3-D, got {len(shape)}-D of {size}; save the volume you mean by itself"
        )
    if min(shape) < 1:
        raise InputError(f"NIfTI {path}: must have voxels, got {size}; copy it again")
    sides = sorted(shape)
    if (
        sides[-1] > MAX_SIDE_PX
        or sides[-1] * sides[-2] > MAX_PIXELS
        or np.prod(shape, dtype=float) > MAX_VOXELS
    ):
        raise InputError(
            f"NIfTI {path}: must be at most {MAX_SIDE_PX} voxels a side, {MAX_PIXELS} a slice and {MAX_VOXELS} in all, "
            f"got {size}; crop or shrink it"
        )
    rgb = dtype.fields is not None and set(dtype.fields) == set("RGB")
    if not rgb and dtype.kind not in "iuf":
        name = "RGBA" if dtype.fields else dtype.name
        raise InputError(
            f"NIfTI {path}: must hold numbers or RGB, got the data type {name}; convert it first"
        )


def _voxel_offset(path: Path, raw: Any) -> int:
    length = int(raw.sizeof_hdr)  # as the class says it; the file may lie
    offset = int(raw.get_data_offset()) or length + 4  # some writers leave 0
    if not length <= offset <= _MAX_UNPACKED_BYTES:
        raise _damaged_error(path)
    return offset


def _value_scale(path: Path, raw: Any) -> tuple[float, float]:
    with _reading_whole(path):  # a finite slope with an intercept that is not, for one
        slope, intercept = raw.get_slope_inter()
    return (1.0, 0.0) if slope is None else (float(slope), float(intercept or 0.0))


def _find_axes(path: Path, raw: Any, shape: tuple[int, ...]) -> NiftiHeader:
    import nibabel.orientations as library

    unit = _MM_PER_UNIT.get(int(raw["xyzt_units"]) & 7, 1.0)
    affine = np.array(raw.get_best_affine(), np.float64)
    affine[:3] *= unit
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if (
        not np.isfinite(affine).all()
        or lengths.min() <= 0
        or abs(np.linalg.det(affine[:3, :3] / lengths)) < 1e-3
    ):
        raise InputError(
            f"NIfTI {path}: must have an affine of three different directions, got another; save it with a right one"
        )
    oriented = bool(int(raw["qform_code"]) > 0 or int(raw["sform_code"]) > 0)
    place = {name: raw[name].copy() for name in _PLACE_FIELDS}
    place["pixdim"][4:] = 1.0  # of time and the like, which a mask has not
    if not oriented:  # as ITK reads it: columns along the first axis, rows along the second
        return NiftiHeader(affine, shape, False, (0, 1, 2), (False, False, False), place)
    orientations: Any = library  # its functions have no types
    own = orientations.io_orientation(affine)
    normal = "RAS"[int(own[2, 0])] if (*shape, 1)[2] == 1 else "S"
    change = orientations.ornt_transform(own, orientations.axcodes2ornt(_SHOWN[normal]))
    order = [int(i) for i in np.argsort(change[:, 0])]
    columns, rows, slices = order
    flips = [bool(change[axis, 1] < 0) for axis in order]
    return NiftiHeader(affine, shape, True, (columns, rows, slices), (flips[0], flips[1], flips[2]), place)


def _from_scan(header: NiftiHeader) -> np.ndarray:
    """4×4 from the scan's (column, row, slice, 1) to the file's own voxel indices."""
    back = np.zeros((4, 4))
    back[3, 3] = 1.0
    for along, (axis, flip) in enumerate(zip(header.axes, header.flips, strict=True)):
        back[axis, along] = -1.0 if flip else 1.0
        back[axis, 3] = (*header.shape, 1)[axis] - 1 if flip else 0.0
    return back


def _stored_array(
    path: Path, offset: int, shape: tuple[int, ...], dtype: np.dtype[Any]
) -> Callable[[], np.ndarray]:
    """Gives the file's own array: mapped from a plain file at every call, unpacked once from a packed one."""
    size_bytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    if not _is_packed(path):
        if path.stat().st_size < offset + size_bytes:
            raise _damaged_error(path)
        return lambda: np.memmap(path, dtype, "r", offset, shape, order="F")
    if size_bytes > _MAX_UNPACKED_BYTES:
        raise InputError(
            f"NIfTI {path}: must be at most {_MAX_UNPACKED_BYTES} bytes unpacked, got {size_bytes}; "
            "unpack it with gunzip first"
        )
    # gzip cannot be entered in the middle, so the neighbouring slices would each unpack all that lies before them.
    lock = threading.Lock()
    kept: list[bytes] = []

    def unpacked() -> np.ndarray:
        with lock:
            if not kept:
                kept.append(_unpack_voxels(path, offset, size_bytes))
        return np.frombuffer(kept[0], dtype).reshape(shape, order="F")

    return unpacked


def _unpack_voxels(path: Path, offset: int, size_bytes: int) -> bytes:
    with _reading_whole(path), gzip.open(path, "rb") as stream:
        stream.seek(offset)
        data = stream.read(size_bytes)
    if len(data) < size_bytes:
        raise _damaged_error(path)
    return data


# A mask onto its scan's grid.


def _on_grid(values: np.ndarray, mask: Scan, scan: Scan, path: Path) -> np.ndarray:
    """N×H×W of the mask's own scan to the scan's grid: by their places, else by the order of the stored axes."""
    moved: np.ndarray
    if (
        scan.affine is None or mask.affine is None
    ):  # as a radiograph, or a NIfTI that says nothing of its place
        stored = mask.header.to_stored(values)
        if scan.kind == "nifti" and stored.shape == scan.header.shape:
            moved = scan.header.from_stored(stored)
        else:
            moved = stored.reshape((*stored.shape, 1)[:3]).transpose(2, 1, 0)
        _check_shape(moved, scan, path)
        return moved
    # From the mask's (column, row, slice) to the scan's.
    step = np.linalg.inv(scan.affine) @ mask.affine
    if mask.slices == 1:  # how thick a single slice is said to be tells nothing of its place
        step[:3, 2] /= np.linalg.norm(step[:3, 2])
    axes = np.abs(np.round(step[:3, :3])).astype(int)
    if not ((axes.sum(0) == 1).all() and (axes.sum(1) == 1).all()):
        raise _another_grid(path, scan)
    order = [int(axes[row].argmax()) for row in range(3)]  # the mask's axis of column, row, slice
    flips = tuple(row for row in range(3) if step[row, order[row]] < 0)
    columns_rows_slices = values.transpose(2, 1, 0)
    moved = np.flip(columns_rows_slices.transpose(order), flips).transpose(2, 1, 0)
    _check_shape(moved, scan, path)
    _check_corners(step, columns_rows_slices.shape, scan, path)
    return moved


def _check_corners(step: np.ndarray, shape: tuple[int, ...], scan: Scan, path: Path) -> None:
    """Where the corner voxels of the mask lie must be corner voxels of the scan."""
    most = np.array(shape) - 1
    corners = np.array([[(n >> a & 1) * most[a] for a in range(3)] + [1] for n in range(8)], np.float64)
    found = (corners @ step.T)[:, :3]
    ends = np.array([scan.size_px[1], scan.size_px[0], scan.slices]) - 1.0
    nearest = np.where(found > ends / 2, ends, 0.0)
    if np.abs(found - nearest).max() > _CLOSE_VOXELS:
        raise _another_grid(path, scan)


def _check_shape(moved: np.ndarray, scan: Scan, path: Path) -> None:
    check_mask_size((moved.shape[1], moved.shape[2]), scan, path)
    if moved.shape[0] != scan.slices:
        raise InputError(
            f"mask {path}: must have the slices of its image, {scan.slices}, got {moved.shape[0]}"
        )


def _another_grid(path: Path, scan: Scan) -> InputError:
    return InputError(
        f"mask {path}: must lie where {scan.name} lies, its affine says another place; save it on the image's grid"
    )


# The place that a mask is written with.


def _set_place(header: Any, scan: Scan) -> None:
    """The scan's place where it has one; else its distances, and no unit where one of them is unknown (stored as 1)."""
    if scan.affine is not None:
        affine = _LPS_RAS @ scan.affine
        header.set_sform(affine, code=_SCANNER)
        header.set_qform(affine, code=_SCANNER if _right_angled(affine) else _NO_PLACE)
        header.set_xyzt_units("mm")
        return
    rows, columns = scan.spacing_mm or (1.0, 1.0)
    affine = _LPS_RAS @ np.diag([columns, rows, scan.slice_spacing_mm or 1.0, 1.0])
    header.set_sform(affine, code=_NO_PLACE)
    header.set_qform(affine, code=_NO_PLACE)
    known = scan.spacing_mm is not None and (scan.slices == 1 or scan.slice_spacing_mm is not None)
    header.set_xyzt_units("mm" if known else "unknown")


def _right_angled(affine: np.ndarray) -> bool:
    """Whether a qform can hold the axes: it has no shear, as slices of a leaning gantry have, and drops it silently."""
    directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return bool(np.allclose(directions.T @ directions, np.eye(3), atol=1e-4))
