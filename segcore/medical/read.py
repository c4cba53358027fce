"""Opens any file that a hospital gives, by its content: PNG, JPEG, TIFF, DICOM, a DICOM series' folder, NIfTI."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from segcore.errors import InputError
from segcore.image import image_size, read_image
from segcore.medical.dicom.file import is_dicom, numbers_of, read_header, text_of, whole_number
from segcore.medical.dicom.series import is_clutter, read_dicom, read_series
from segcore.medical.nifti import full_range, nifti_version, read_nifti
from segcore.picture.scan import SCAN_SUFFIXES, Scan

_IMAGE_MAGIC = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
# One file a picture, even where a study's pictures share a series. Source: DICOM PS3.3, C.7.3.1.1.1.
_PROJECTIONS = {
    "CR",
    "DX",
    "MG",
    "US",
    "XC",
    "OT",
    "IO",
    "PX",
    "RG",
    "RF",
    "XA",
    "ES",
    "GM",
    "OP",
    "SM",
    "DG",
}
_LISTING_TAGS = ["SeriesInstanceUID", "Modality", "Rows", "Columns", "NumberOfFrames", "ImagePositionPatient"]


def read_scan(path: Path, *, deidentify: bool = False) -> Scan:
    """Opens one input; pixels are read when they are asked for, slice by slice.

    What the file is follows from its content, not from its name. A folder is one DICOM series.

    Args:
        path: file or folder.
        deidentify: drop from a DICOM header what could say who, when and where; see
        `segcore.medical.dicom.deidentify`.

    Raises:
        InputError: no such file, not an image, damaged, cut off, too large, ambiguous, or in a form that no decoder
            reads; for a folder also several series, and slices that are missing, double or unlike. What concerns one
            slice's pixels is raised when they are asked for.
    """
    if path.is_dir():
        return read_series(path, deidentify=deidentify)
    match _file_kind(path):
        case "dicom":
            return read_dicom(path, deidentify=deidentify)
        case "nifti":
            return read_nifti(path)
        case "image":
            return _read_picture(path)
    if not path.is_file() or path.stat().st_size == 0:
        image_size(path)  # its words for no file and an empty one
    raise InputError(
        f"image {path}: must be PNG, JPEG, TIFF, DICOM or NIfTI, got something else or a damaged header; save it again"
    )


def scan_paths(folder: Path) -> list[Path]:
    """The inputs in a folder and all folders in it, each to be given to `read_scan`, in a fixed order.

    A DICOM series of several slices is its folder; any other file that is an image by content is itself. So is one
    that has an image's suffix and is none, or is damaged: reading it tells. Other files are left out (README.txt,
    tables, DICOMDIR). Nothing that a file holds is an error here: a folder of two series is one input, and
    `read_scan` says what is wrong with it.

    Raises:
        InputError: no such folder, or nothing in it is an input.
    """
    if not folder.is_dir():
        raise InputError(f"folder {folder}: must be a folder, no such folder")
    found = sorted(path for place, files in _files_by_folder(folder) for path in _folder_inputs(place, files))
    if not found:
        raise InputError(f"folder {folder}: must hold images (PNG, JPEG, TIFF, DICOM or NIfTI), got none")
    return found


def _file_kind(path: Path) -> Literal["image", "dicom", "nifti"] | None:
    if not path.is_file():
        return None  # a pipe would never end
    try:
        with path.open("rb") as stream:
            head = stream.read(132)
    except OSError:
        return None
    if head.startswith(_IMAGE_MAGIC) and head[128:] != b"DICM":
        return "image"
    if is_dicom(head):
        return "dicom"
    return "nifti" if nifti_version(path) else None


def _read_picture(path: Path) -> Scan:
    return Scan(
        name=path.name,
        kind="image",
        slices=1,
        size_px=image_size(path),
        values=lambda index: read_image(path),
        display=lambda index: full_range(read_image(path)),
    )


def _files_by_folder(folder: Path) -> Iterator[tuple[Path, list[Path]]]:
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield Path(place), [path for name in sorted(names) if not is_clutter(path := Path(place, name))]


def _folder_inputs(folder: Path, files: list[Path]) -> Iterator[Path]:
    contents = {path: _file_kind(path) for path in files}
    dicom = [path for path in files if contents[path] == "dicom"]
    if _hold_stack(dicom):
        yield folder
        dicom = []
    for path in files:
        if contents[path] in ("image", "nifti") or (
            contents[path] is None and path.name.lower().endswith(SCAN_SUFFIXES)
        ):
            yield path
    yield from dicom


def _hold_stack(files: list[Path]) -> bool:
    """Whether some of one folder's DICOM files are slices that belong together."""
    series = defaultdict(list)
    for path in files:
        try:
            header = read_header(path, _LISTING_TAGS)
        except InputError:
            continue  # damaged: of the stack if there is one, else an input by itself
        if (whole_number(header, "NumberOfFrames") or 1) == 1:
            series[text_of(header, "SeriesInstanceUID")].append(header)
    for headers in series.values():
        sizes = {(whole_number(h, "Rows"), whole_number(h, "Columns")) for h in headers}
        placed = all(numbers_of(h, "ImagePositionPatient") for h in headers)
        projections = any(text_of(h, "Modality") in _PROJECTIONS for h in headers)
        if len(headers) > 1 and (placed or (len(sizes) == 1 and not projections)):
            return True
    return False
