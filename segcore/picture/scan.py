"""What a hospital's file holds: one picture or many slices, with their geometry and how they are meant to be shown."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from segcore.errors import InputError
from segcore.image import IMAGE_SUFFIXES
from segcore.picture.preprocess import Depth, Window

NIFTI_SUFFIXES, DICOM_SUFFIXES = (".nii.gz", ".nii"), (".dcm", ".dicom", ".ima")
SCAN_SUFFIXES = (*IMAGE_SUFFIXES, *DICOM_SUFFIXES, *NIFTI_SUFFIXES)


@dataclass(frozen=True)
class Scan:
    """Slices of one acquisition, read when asked for; a single picture is a scan of one slice.

    Attributes:
        name: the user's own word for it, a file's or folder's name; never from a header.
        kind: the file format.
        slices: how many; in order of position where the file knows it.
        size_px: height and width of every slice.
        values: slice index → H×W, or H×W×3 (RGB); uint8 or uint16 as stored, float32 where a rescale applies
            (Hounsfield units in CT) or values are negative. Higher is always brighter.
        display: slice index → the same slice as H×W or H×W×3 uint8, through the file's own window.
        spacing_mm: distance of neighbouring rows and columns; None where the file does not say.
        slice_spacing_mm: distance of neighbouring slices; None for one slice, or where the file does not say.
        uneven: how its slices lie where that is in no even distance, "5 mm and not 2.5 mm between a.dcm and b.dcm": no
            volume then; empty where they do, or have no place.
        windows: the file's own display windows, the default first; empty where it has none.
        modality: DICOM's "CT", "DX", "US"; "" where unknown.
        patient: a pseudonym that is the same for one patient's files, never a name or a hospital's number; None where
            unknown.
        affine: 4×4, from (column, row, slice, 1) to millimetres in DICOM's patient axes (left, posterior, superior);
            None where unknown.
        frames: of one file with several pictures the number of each slice in the file, from 0, where the slices are in
            another order; empty where they are in the file's.
        padding: slice index → H×W bool, what the file says is no part of the picture; None where there is nothing. Such
            values take no part in a grey range.
        remarks: what the record should say of how the file was read, as far as it has been read.
        header: what an output file needs of the source (see segcore.medical). It may hold a patient's name: no log,
            report, record or picture takes anything from it.
    """

    name: str
    kind: Literal["image", "dicom", "nifti"]
    slices: int
    size_px: tuple[int, int]
    values: Callable[[int], np.ndarray]
    display: Callable[[int], np.ndarray]
    spacing_mm: tuple[float, float] | None = None
    slice_spacing_mm: float | None = None
    uneven: str = ""
    windows: tuple[Window, ...] = ()
    modality: str = ""
    patient: str | None = None
    affine: np.ndarray | None = None
    frames: tuple[int, ...] = ()
    padding: Callable[[int], np.ndarray | None] = lambda index: None
    remarks: Callable[[], tuple[str, ...]] = tuple
    header: Any = field(default=None, repr=False, compare=False)

    def slice_name(self, index: int) -> str:
        """What an error or a table calls one slice: "ct.dcm", or "ct, slice 12" of several, counted from 1."""
        return self.name if self.slices == 1 else f"{self.name}, slice {index + 1}"

    def picture(self, index: int, depth: Depth) -> np.ndarray:
        """One slice of the depth that a model was trained on.

        A model of 8-bit pictures sees a deeper file as a screen would show it, through the file's own window; a model
        of Hounsfield units gets them. A PNG or JPEG keeps its own depth, whose window `prepare` checks.

        Raises:
            InputError: the file's values cannot be had at that depth.
        """
        values = self.values(index)
        if values.dtype.name == depth or self.kind == "image":
            return values
        if depth == "uint8":
            return self.display(index)
        if depth == "float32" and values.ndim == 2:
            return values.astype(np.float32)
        raise InputError(
            f"{self.slice_name(index)}: must hold {depth} values as the model was trained on, got {values.dtype.name}"
        )


def check_mask_size(size_px: tuple[int, int], scan: Scan, path: Path) -> None:
    """Refuses a mask that has another size than its scan.

    Args:
        size_px: height and width of the mask.
        scan: what it is a mask of.
        path: the mask's file or folder.

    Raises:
        InputError: naming both sizes.
    """
    if size_px != scan.size_px:
        raise InputError(
            f"mask {path}: must have the size of its image, {scan.size_px[0]}×{scan.size_px[1]}, "
            f"got {size_px[0]}×{size_px[1]}"
        )
