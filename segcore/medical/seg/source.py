"""What a DICOM segmentation needs of its source: which picture each slice is, and the planes where they are regular."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from segcore.errors import InputError, need
from segcore.medical.dicom.file import load_pydicom
from segcore.picture.scan import Scan

_NEEDED = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID")
# Type 2 in their modules: must be there, may be empty. highdicom reads them without asking.
_MAY_BE_EMPTY = (
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "AccessionNumber",
    "StudyID",
    "StudyDate",
    "StudyTime",
    "ReferringPhysicianName",
)
_SAME_MM = 1e-3


@dataclass(frozen=True)
class Reference:
    """One slice in its file. The identifiers are for the segmentation alone: no error or log shows them.

    Attributes:
        frame: counted from 1; None for a file of one picture.
    """

    series: str
    instance: str
    sop_class: str
    frame: int | None


def load_highdicom() -> Any:
    """Imports highdicom and keeps it and pydicom silent: what they log and warn of quotes values and identifiers."""
    load_pydicom()
    try:
        import highdicom
    except ImportError:
        raise need("highdicom", "medical") from None
    logger = logging.getLogger("highdicom")
    logger.propagate = False
    if not logger.handlers:
        logger.addHandler(logging.NullHandler())
    warnings.filterwarnings("ignore", module=r"highdicom(\.|$)")
    return highdicom


def references(scan: Scan) -> list[Reference]:
    """Where each slice comes from, in the scan's order."""
    headers = scan.header
    if len(headers) == 1 and (scan.slices > 1 or "NumberOfFrames" in headers[0]):
        return [
            _reference_of(headers[0], frame) for frame in range(1, scan.slices + 1)
        ]  # in the file's order
    return [_reference_of(header, None) for header in headers]


def _reference_of(header: Any, frame: int | None) -> Reference:
    return Reference(
        str(header.SeriesInstanceUID), str(header.SOPInstanceUID), str(header.SOPClassUID), frame
    )


def sources(scan: Scan) -> list[Any]:
    """The headers, checked and with what may be empty filled in.

    They share their elements with the scan's own headers: change one with `replace_element`.

    Raises:
        InputError: a header lacks what identifies a picture; the attribute is named.
    """
    from pydicom.dataset import Dataset

    filled = []
    for index, header in enumerate(scan.header):
        name = scan.slice_name(index) if len(scan.header) > 1 else scan.name
        for keyword in _NEEDED:
            if not header.get(keyword):
                raise missing(name, keyword)
        copy = Dataset()
        copy.update(header)
        for keyword in _MAY_BE_EMPTY:
            if keyword not in copy:
                setattr(copy, keyword, "")
        filled.append(copy)
    return filled


def replace_element(dataset: Any, keyword: str, value: Any) -> None:
    """Sets an element anew: `dataset.KEYWORD = value` would change the one it shares with another data set."""
    dataset.pop(keyword, None)
    setattr(dataset, keyword, value)


def missing(name: str, keyword: str) -> InputError:
    """The error for a source whose header cannot be referred to."""
    return InputError(
        f"--format dicom-seg: {name} must have {keyword} in its header, has none; choose nifti or png"
    )


def has_planes(headers: Sequence[Any]) -> bool:
    """True where every slice has a place of its own in one frame of reference, and all share one orientation."""
    first = headers[0]
    if not first.get("FrameOfReferenceUID"):
        return False
    if "PerFrameFunctionalGroupsSequence" in first:
        return len(headers) == 1 and _regular_frames(first)
    if int(first.get("NumberOfFrames") or 1) > 1:
        return False
    keywords = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")
    if not all(header.get(keyword) for header in headers for keyword in keywords):
        return False
    return _are_distinct([h.ImagePositionPatient for h in headers]) and _are_equal(
        [h.ImageOrientationPatient for h in headers]
    )


def _regular_frames(header: Any) -> bool:
    shared = (header.get("SharedFunctionalGroupsSequence") or [None])[0]
    if shared is None or not all(k in shared for k in ("PlaneOrientationSequence", "PixelMeasuresSequence")):
        return False
    places = [
        frame.PlanePositionSequence[0].get("ImagePositionPatient")
        for frame in header.PerFrameFunctionalGroupsSequence
        if frame.get("PlanePositionSequence")
    ]
    if len(places) != int(header.get("NumberOfFrames") or 1) or not all(places):
        return False
    return _are_distinct(places)


def _are_distinct(places: Sequence[Any]) -> bool:
    points = np.round(np.array(places, np.float64) / _SAME_MM)
    return len(np.unique(points, axis=0)) == len(points)


def _are_equal(orientations: Sequence[Any]) -> bool:
    return all(list(one) == list(orientations[0]) for one in orientations)
