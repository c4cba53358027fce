"""The cases of one image: a picture is one; of DICOM and NIfTI every slice is one, and is read when asked for.

A source holds paths and a number, so it can be sent to another process. The last few scans and masks that a process
opened are kept for the neighbouring slices.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np

from segcore.bundle.folder import hash_file
from segcore.dataset.case import Case, FileSource
from segcore.errors import InputError
from segcore.image import IMAGE_SUFFIXES
from segcore.picture.scan import DICOM_SUFFIXES, NIFTI_SUFFIXES, SCAN_SUFFIXES, Scan
from segcore.text import readable_name

_MOST_KEPT = (
    4  # volumes: a pool of readers goes through the cases in order and is inside two or three at a time
)
V = TypeVar("V")


def is_scan(path: Path) -> bool:
    """Whether a file or folder is to be opened as DICOM or NIfTI: by its suffix, else by its first bytes."""
    if path.is_dir():
        return any(_claims_dicom(p) for p in sorted(path.iterdir()))
    return path.name.lower().endswith(NIFTI_SUFFIXES) or _claims_dicom(path)


def _claims_dicom(path: Path) -> bool:
    """Hospital archives often give DICOM files no suffix."""
    from segcore.medical.dicom.file import is_dicom

    name = path.name.lower()
    if name.endswith(DICOM_SUFFIXES):
        return True
    if name.startswith(".") or name == "dicomdir" or name.endswith(IMAGE_SUFFIXES) or not path.is_file():
        return False
    with path.open("rb") as file:
        return is_dicom(file.read(132))


def is_mask_folder(path: Path) -> bool:
    """Whether a folder holds a mask a slice, 0001.png onwards."""
    return (path / "0001.png").is_file()


def stem_of(path: Path) -> str:
    """A file's name without its suffix; a folder's whole name ("1.2.840" has no suffix)."""
    return readable_name(path.name if path.is_dir() else without_suffix(path.name))


def without_suffix(name: str) -> str:
    """A file's name without a suffix of `SCAN_SUFFIXES`, `.nii.gz` being one; a name that is all suffix stays."""
    suffix = next((s for s in SCAN_SUFFIXES if name.lower().endswith(s) and len(name) > len(s)), "")
    return name[: len(name) - len(suffix)]


def cases_of(
    name: str,
    image: Path,
    mask: Path | None,
    *,
    patient: str | None = None,
    split: str = "",
    spacing_mm: tuple[float, float] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> list[Case]:
    """The case of a picture, NAME, or those of a scan's slices, "NAME-s001" onwards; one slice is one case, NAME.

    Args:
        name: the user's word for the image; ids are file names of later stages, so slices are told by letters.
        image: a picture, a DICOM or NIfTI file, or the folder of a series.
        mask: PNG (of one slice), a folder of 0001.png …, NIfTI or DICOM-SEG.
        patient: where the user says who it is; else the file's pseudonym, else the name.
        split: as in the index.
        spacing_mm: where the user says it; else the file's.
        metadata: of every slice.

    Raises:
        InputError: a scan that cannot be opened; a picture is not looked at.
    """
    # A picture whose mask is a scan's (a NIfTI, a DICOM-SEG, a folder) is opened as a scan of one slice, because only
    # `ScanSource` lays such a mask onto the picture's grid.
    if not is_scan(image) and (mask is None or not (mask.is_dir() or is_scan(mask))):
        source = FileSource(image, mask)
        return [Case(name, patient or name, source, split, spacing_mm=spacing_mm, metadata=metadata or {})]
    scan = open_scan(image)
    digits = max(3, len(str(scan.slices)))
    return [
        Case(
            id=name if scan.slices == 1 else f"{name}-s{index + 1:0{digits}d}",
            patient=patient or scan.patient or name,
            source=ScanSource(image, mask, index),
            split=split,
            spacing_mm=spacing_mm or scan.spacing_mm,
            metadata=metadata or {},
            volume=name if scan.slices > 1 else None,
            slice_index=index,
            slice_spacing_mm=scan.slice_spacing_mm,
        )
        for index in range(scan.slices)
    ]


@dataclass(frozen=True)
class ScanSource:
    """One slice of a scan and, where there is one, of its mask.

    Attributes:
        image_path: what `read_scan` opens.
        mask_path: what `read_mask_file` opens, on the scan's grid.
        index: of the slice, in the scan's order.
    """

    image_path: Path
    mask_path: Path | None
    index: int = 0

    @property
    def labelled(self) -> bool:
        return self.mask_path is not None

    def image(self) -> np.ndarray:
        """H×W or H×W×3; uint8, uint16 or float32 (Hounsfield units in CT)."""
        return open_scan(self.image_path).values(self.index)

    def padding(self) -> np.ndarray | None:
        """H×W bool, what the file calls padding."""
        return open_scan(self.image_path).padding(self.index)

    def display(self) -> np.ndarray:
        """The slice through the file's own window, H×W or H×W×3 uint8."""
        return open_scan(self.image_path).display(self.index)

    def mask(self) -> np.ndarray:
        """H×W uint8, values as stored."""
        assert self.mask_path is not None
        masks = _MASKS.get((self.image_path, self.mask_path, _changed_ns(self.mask_path, "mask")))
        return np.asarray(masks[self.index])

    def size_px(self) -> tuple[int, int]:
        """Height and width, from the header."""
        return open_scan(self.image_path).size_px

    def fingerprint(self) -> str:
        """Of the slice and its number, without decoding, and of the whole mask file (of a folder, the slice's)."""
        mask = self.mask_path
        if mask is not None and mask.is_dir():
            mask = mask / f"{self.index + 1:04d}.png"
        mask_hash = _file_hash(mask, "mask") if mask else ""
        return hashlib.sha256(f"{self._image_hash()},{self.index},{mask_hash}".encode()).hexdigest()

    def image_fingerprint(self) -> str:
        """A file of one slice has the same one wherever it lies, alone or in a series."""
        return self._image_hash()[:16]

    def _image_hash(self) -> str:
        scan = open_scan(self.image_path)
        file = slice_file(scan, self.image_path, self.index)
        if file is not None and (scan.slices == 1 or file != self.image_path):
            return _file_hash(file, "image")
        whole = _file_hash(self.image_path, "image") if file else _folder_hash(self.image_path)
        return hashlib.sha256(f"{whole},{self.index}".encode()).hexdigest()


def open_scan(path: Path) -> Scan:
    """The scan, its headers read once while it is among the last few that this process opened.

    Raises:
        InputError: not a readable scan, or the extra `medical` is not installed.
    """
    return _SCANS.get((path, _changed_ns(path, "image")))


def slice_file(scan: Scan, path: Path, index: int) -> Path | None:
    """The file that holds a slice: of a series its own, else the scan's one file.

    None where pydicom does not know it, as of a deflated file, whose header it reads from memory.
    """
    if not path.is_dir():
        return path
    # A series has a header a slice; a folder of one file has one header for all frames.
    name = getattr(scan.header[index if len(scan.header) > 1 else 0], "filename", None)
    return Path(name) if name else None


@dataclass
class _RecentValues(Generic[V]):
    """The last few values of a slow function; each is made once, however many threads ask for it at a time."""

    make: Callable[..., V]
    kept: OrderedDict[tuple[object, ...], Future[V]] = field(default_factory=OrderedDict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def get(self, key: tuple[object, ...]) -> V:
        with self.lock:
            # Who asks first makes the value; the others wait outside the lock, so that other keys are not held up.
            future = self.kept.get(key)
            mine = future is None
            if future is None:
                future = self.kept[key] = Future()
            self.kept.move_to_end(key)
            while len(self.kept) > _MOST_KEPT:
                self.kept.popitem(last=False)
        if mine:
            try:
                future.set_result(self.make(*key))
            except BaseException as error:
                # Not kept: the next one who asks tries again, while all who wait now get this error.
                with self.lock:
                    self.kept.pop(key, None)
                future.set_exception(error)
        return future.result()


def _read_scan(path: Path, _: int) -> Scan:
    from segcore.medical.read import read_scan

    scan: Scan = read_scan(path)
    return scan


def _read_masks(image: Path, mask: Path, _: int) -> np.ndarray:
    """N×H×W uint8, values as stored."""
    from segcore.medical.mask_files import read_mask_file

    masks: np.ndarray = read_mask_file(mask, open_scan(image))
    return masks


_SCANS, _MASKS = _RecentValues(_read_scan), _RecentValues(_read_masks)


def _changed_ns(path: Path, what: str) -> int:
    """When a file was written, or a folder's list of files: what was opened before that is read anew."""
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        raise InputError(f"{what} {path}: must be a file, no such file") from None


def _file_hash(path: Path, what: str) -> str:
    return _hash_at(path, _changed_ns(path, what))


def _folder_hash(folder: Path) -> str:
    hashes = [_file_hash(path, "image") for path in sorted(folder.iterdir()) if path.is_file()]
    return hashlib.sha256("".join(hashes).encode()).hexdigest()


@lru_cache(maxsize=4096)  # of text: a volume is hashed once, not once a slice
def _hash_at(path: Path, _: int) -> str:
    return hash_file(path).sha256
