"""Masks as NIfTI on the grid of their scan, and back, whatever axes the file keeps them in."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np

from segcore.errors import InputError, need
from segcore.medical.nifti import read_nifti
from segcore.picture.scan import Scan

# NIfTI's axes go right, anterior, superior; DICOM's left, posterior, superior. Its own inverse.
_LPS_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_CLOSE_VOXELS = 0.05
_NO_PLACE, _SCANNER = 0, 1
"""Codes of NIfTI's forms: no place in the patient is known, and scanner coordinates."""


def encode_nifti(scan: Scan, masks: np.ndarray, *, description: str) -> bytes:
    """The bytes of a .nii.gz: uint8 class indices, and the scan's place in the patient where it is known.

    Args:
        scan: its grid. A NIfTI's mask has the axes, shape and affine of the NIfTI. Others have columns, rows, slices;
            without a place in the patient the file says none, so that readers keep rows and columns as they are.
        masks: N×H×W uint8.
        description: at most 79 characters of ASCII, for the header.
    """
    nibabel = _nibabel()
    placed = scan.affine is not None
    if scan.kind == "nifti":
        stored, affine = scan.header.to_stored(masks), scan.header.affine
    else:
        stored, affine = masks.transpose(2, 1, 0), _LPS_RAS @ (scan.affine if placed else _own_affine(scan))
        if scan.slices == 1 and not placed:
            stored = stored[..., 0]
    image = nibabel.Nifti1Image(np.ascontiguousarray(stored, np.uint8), affine)
    image.header["descrip"] = description.encode("ascii", "replace")[:79]
    image.header.set_xyzt_units("mm" if placed or scan.spacing_mm else "unknown")
    code = _SCANNER if placed else _NO_PLACE  # the spacing stays in either case
    image.set_sform(affine, code=code)
    image.set_qform(affine, code=code if _right_angled(affine) else _NO_PLACE)
    # No time in the gzip header: equal masks are equal files.
    return gzip.compress(image.to_bytes(), compresslevel=6, mtime=0)


def _right_angled(affine: np.ndarray) -> bool:
    """Whether a qform can hold the axes: it has no shear, as slices of a leaning gantry have, and drops it silently."""
    directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return bool(np.allclose(directions.T @ directions, np.eye(3), atol=1e-4))


def _own_affine(scan: Scan) -> np.ndarray:
    rows, columns = scan.spacing_mm or (1.0, 1.0)
    return np.diag([columns, rows, scan.slice_spacing_mm or 1.0, 1.0])


def read_nifti_mask(path: Path, scan: Scan) -> np.ndarray:
    """Stored values on the scan's grid, N×H×W uint8.

    Raises:
        InputError: no whole NIfTI, values that are no class indices, or another grid.
    """
    mask = read_nifti(path)
    values = np.stack([mask.values(index) for index in range(mask.slices)])
    if values.ndim != 3:
        raise InputError(f"mask {path}: must be one grey channel, got RGB; save class indices as grey")
    if (values != np.round(values)).any():
        raise InputError(f"mask {path}: must hold class indices 0 to 255, got fractions")
    if values.min() < 0 or values.max() > 255:
        raise InputError(
            f"mask {path}: must hold class indices 0 to 255, got values {values.min():g} to {values.max():g}"
        )
    return np.ascontiguousarray(_on_grid(values.astype(np.uint8), mask, scan, path))


def _on_grid(values: np.ndarray, mask: Scan, scan: Scan, path: Path) -> np.ndarray:
    """N×H×W of the mask's own scan to the scan's grid: by their places, else by the order of the stored axes."""
    moved: np.ndarray
    if scan.affine is None or mask.affine is None:
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
    if moved.shape[1:] != scan.size_px:
        raise InputError(
            f"mask {path}: must have the size of its image, {scan.size_px[0]}×{scan.size_px[1]}, "
            f"got {moved.shape[1]}×{moved.shape[2]}"
        )
    if moved.shape[0] != scan.slices:
        raise InputError(
            f"mask {path}: must have the slices of its image, {scan.slices}, got {moved.shape[0]}"
        )


def _another_grid(path: Path, scan: Scan) -> InputError:
    return InputError(
        f"mask {path}: must lie where {scan.name} lies, its affine says another place; save it on the image's grid"
    )


def _nibabel() -> Any:
    try:
        import nibabel
    except ImportError:
        raise need("nibabel", "medical") from None
    return nibabel
