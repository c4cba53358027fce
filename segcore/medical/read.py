"""Opens any file that a hospital gives, by its content: a picture, DICOM, a DICOM series' folder, NIfTI."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from segcore.errors import InputError
from segcore.image import image_size, open_image
from segcore.medical.dicom.file import (
    is_dicom,
    numbers_of,
    object_that_is_no_picture,
    open_dicom,
    read_header,
    text_of,
    whole_number,
)
from segcore.medical.dicom.series import SeriesFiles, is_clutter, read_dicom, read_series
from segcore.medical.nifti import full_range, nifti_version, read_nifti
from segcore.picture.scan import SCAN_SUFFIXES, Scan
from segcore.text import readable_name
from segcore.words import plural, shortened

if TYPE_CHECKING:
    from pydicom import Dataset

_IMAGE_MAGIC = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"GIF8")
# Too short to be told by alone: only where the suffix agrees.
_WEAK_MAGIC = {
    b"BM": (".bmp",),
    b"RIFF": (".webp",),
    **{f"P{n}".encode(): (".pgm", ".ppm", ".pbm", ".pnm") for n in range(1, 7)},
}
_ARCHIVES = (".zip", ".7z", ".rar", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".zst", ".iso")
# Pictures and volumes that nothing here reads: they are told apart from files that are none.
_UNREAD = (
    ".jp2", ".j2k", ".heic", ".heif", ".avif", ".jxl", ".psd", ".svg", ".pcx", ".tga", ".sgi", ".exr", ".hdr", ".img",
    ".nrrd", ".nhdr", ".mha", ".mhd", ".mgh", ".mgz", ".mnc", ".vtk", ".vti", ".svs", ".ndpi", ".czi", ".lif",
    ".npy", ".npz", ".mat", ".h5", ".hdf5", ".raw", ".mp4", ".avi", ".mov", ".mpg", ".mkv", ".wmv", ".pdf",
)  # fmt: skip
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


@dataclass(frozen=True)
class FolderScans:
    """What a folder holds.

    Attributes:
        scans: each to be given to `read_scan`, in a fixed order.
        left_out: why → the files of that kind that are no input.
    """

    scans: tuple[Path | SeriesFiles, ...]
    left_out: dict[str, tuple[Path, ...]]

    def told(self) -> list[str]:
        """A line for each kind that was left out, with the first names."""
        return [
            f"left out: {plural(len(files), 'file')}, {why}: {shortened([file.name for file in files])}"
            for why, files in self.left_out.items()
        ]


def read_scan(source: Path | SeriesFiles, *, deidentify: bool = False) -> Scan:
    """Opens one input; pixels are read when they are asked for, slice by slice.

    What the file is follows from its content, not from its name. A folder is one DICOM series.

    Args:
        source: file or folder, or one series of a folder's several.
        deidentify: drop from a DICOM header what could say who, when and where; see
        `segcore.medical.dicom.deidentify`.

    Raises:
        InputError: no such file, not an image, damaged, cut off, too large, ambiguous, or in a form that no decoder
            reads; for a folder also several series, and slices that are double or unlike. What concerns one slice's
            pixels is raised when they are asked for.
    """
    scan = _open_scan(source, deidentify=deidentify)
    return replace(scan, name=readable_name(scan.name))


def _open_scan(source: Path | SeriesFiles, *, deidentify: bool) -> Scan:
    if isinstance(source, SeriesFiles) or source.is_dir():
        return read_series(source, deidentify=deidentify)
    match _file_kind(source):
        case "dicom":
            return read_dicom(source, deidentify=deidentify)
        case "nifti":
            return read_nifti(source)
        case "image":
            return _read_picture(source)
    if not source.is_file() or source.stat().st_size == 0:
        image_size(source)  # its words for no file and an empty one
    raise InputError(
        f"image {source}: must be PNG, JPEG, TIFF, BMP, GIF, WebP, PPM, DICOM or NIfTI, got something else or a "
        "damaged header; save it again"
    )


def find_scans(folder: Path) -> FolderScans:
    """The inputs in a folder and all folders in it, those that are links, too; and what is none.

    DICOM files are put together by series: a folder that holds one is that input, of several each is one. A file that
    is an image by content is itself; so is one that has an image's suffix and is none, or is damaged: reading it tells.
    Other files are left out and counted, by kind. Nothing that a file holds is an error here.

    Raises:
        InputError: no such folder, or nothing in it is an input.
    """
    if not folder.is_dir():
        raise InputError(f"folder {folder}: must be a folder, no such folder")
    left_out: dict[str, list[Path]] = defaultdict(list)
    scans: list[Path | SeriesFiles] = []
    for place, files in _files_by_folder(folder, left_out):
        scans += _folder_scans(place, files, left_out)
    found = FolderScans(
        tuple(sorted(scans, key=_sort_key)), {why: tuple(paths) for why, paths in left_out.items()}
    )
    if not scans:
        there = "; ".join(line.removeprefix("left out: ") for line in found.told())
        raise InputError(
            f"folder {folder}: must hold images (PNG, JPEG, TIFF, BMP, GIF, WebP, PPM, DICOM or NIfTI), got "
            f"{there or 'none'}"
        )
    return found


def _sort_key(source: Path | SeriesFiles) -> Path:
    return source.files[0] if isinstance(source, SeriesFiles) else source


def _file_kind(path: Path) -> Literal["image", "dicom", "nifti"] | None:
    if not path.is_file():
        return None  # a pipe would never end
    try:
        with path.open("rb") as stream:
            head = stream.read(132)
    except OSError:
        return None
    if head[128:] != b"DICM":
        weak = (suffixes for magic, suffixes in _WEAK_MAGIC.items() if head.startswith(magic))
        if head.startswith(_IMAGE_MAGIC) or any(path.name.lower().endswith(suffixes) for suffixes in weak):
            return "image"
    if is_dicom(head):
        return "dicom"
    return "nifti" if nifti_version(path) else None


def _read_picture(path: Path) -> Scan:
    size_px, pixels = open_image(path)
    return Scan(
        name=path.name,
        kind="image",
        slices=1,
        size_px=size_px,
        values=lambda index: pixels(),
        display=lambda index: full_range(pixels()),
    )


def _files_by_folder(folder: Path, left_out: dict[str, list[Path]]) -> Iterator[tuple[Path, list[Path]]]:
    """Each folder and its files. Links are followed, but not back to a folder that they lie in."""
    for place, folders, names in os.walk(folder, followlinks=True):
        here = Path(place)
        above = {os.path.realpath(one) for one in (here, *here.parents) if one.is_relative_to(folder)}
        followed = []
        for name in sorted(folders):
            if name.startswith("."):
                continue
            if os.path.realpath(Path(place, name)) in above:
                left_out["which link back to a folder above"].append(Path(place, name))
            else:
                followed.append(name)
        folders[:] = followed
        yield Path(place), [path for name in sorted(names) if not is_clutter(path := Path(place, name))]


def _folder_scans(
    folder: Path, files: list[Path], left_out: dict[str, list[Path]]
) -> Iterator[Path | SeriesFiles]:
    dicom = []
    for path in files:
        kind, name = _file_kind(path), path.name.lower()
        if kind == "dicom":
            dicom.append(path)
        elif kind or name.endswith(SCAN_SUFFIXES):
            yield path
        elif name.endswith(_ARCHIVES):
            left_out["packed; unpack them first"].append(path)
        elif name.endswith(_UNREAD):
            left_out["in a format that is not read; convert them to PNG, DICOM or NIfTI"].append(path)
        else:
            left_out["no picture"].append(path)
    yield from _dicom_scans(folder, dicom, left_out)


def _dicom_scans(
    folder: Path, files: list[Path], left_out: dict[str, list[Path]]
) -> Iterator[Path | SeriesFiles]:
    """A folder's DICOM files: series of slices that belong together, and single pictures."""
    groups: dict[Hashable, list[tuple[Path, Dataset]]] = defaultdict(list)
    alone, damaged, others = list[Path](), list[tuple[Path, Hashable]](), 0
    for path in files:
        try:
            header = open_dicom(path).header
        except InputError:
            # No picture by its kind, or damaged: then it is an input by itself, so that it costs nobody else.
            if kind := _other_object(path):
                left_out[f"DICOM objects that are no picture ({kind})"].append(path)
                others += 1
            else:
                damaged.append((path, _key_of_damaged(path)))
            continue
        if (whole_number(header, "NumberOfFrames") or 1) > 1:
            alone.append(path)
        else:
            groups[_series_key(header, path)].append((path, header))
    stacks = list[SeriesFiles]()
    for key, group in groups.items():
        paths = tuple(path for path, _ in group)
        if _is_stack([header for _, header in group]):
            lost = tuple(path for path, own in damaged if own in (None, key))
            stacks.append(SeriesFiles(folder, paths, len(stacks) + 1, lost))
        else:
            alone += paths
    if len(stacks) == 1 and len(stacks[0].files) + others == len(files):
        yield folder  # which `read_scan` takes as that series
    else:
        yield from stacks
    yield from (*alone, *(path for path, _ in damaged))


def _key_of_damaged(path: Path) -> Hashable:
    """`_series_key` of a file whose header can still be read; None where it cannot."""
    try:
        return _series_key(read_header(path), path)
    except InputError:
        return None


def _other_object(path: Path) -> str:
    """ "a segmentation", "a structured report" …; empty for a picture, and for what cannot be told."""
    try:
        header = read_header(path)  # all of it: a header that is cut off must be told from one without pixels
    except InputError:
        return ""
    what = object_that_is_no_picture(header) or ("" if "Rows" in header else "without pixels")
    return re.split("[,;]", what)[0]


def _series_key(header: Dataset, path: Path) -> Hashable:
    """Equal for slices that belong together; a scout lies in another plane than its series."""
    series = text_of(header, "SeriesInstanceUID")
    return (
        series or path.name,
        whole_number(header, "Rows"),
        whole_number(header, "Columns"),
        tuple(round(n, 3) + 0.0 for n in numbers_of(header, "ImageOrientationPatient")),
    )


def _is_stack(headers: list[Dataset]) -> bool:
    """Whether files of one series are slices, and not pictures taken one by one."""
    placed = all(numbers_of(h, "ImagePositionPatient") for h in headers)
    projections = any(text_of(h, "Modality") in _PROJECTIONS for h in headers)
    return len(headers) > 1 and (placed or not projections)
