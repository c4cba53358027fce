"""What a DICOM segmentation needs of its source: which picture each slice is, and the planes where they are regular."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from segcore.errors import InputError, need
from segcore.medical.dicom.file import load_pydicom, numbers_of, whole_number
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
_LONGEST = {"LO": 64, "SH": 16, "PN": 64, "ST": 1024, "LT": 10240, "AE": 16}
"""Characters; of a name, in each of its groups."""
# What highdicom or the standard takes over from the patient and the study.
_TAKEN_OVER = (
    *_MAY_BE_EMPTY, "IssuerOfPatientID", "PatientAge", "PatientComments", "EthnicGroup", "Occupation",
    "AdditionalPatientHistory", "StudyDescription", "PatientOrientation", "PositionReferenceIndicator",
)  # fmt: skip


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
        return [_reference_of(headers[0], frame + 1) for frame in scan.frames or range(scan.slices)]
    return [_reference_of(header, None) for header in headers]


def _reference_of(header: Any, frame: int | None) -> Reference:
    return Reference(
        str(header.SeriesInstanceUID), str(header.SOPInstanceUID), str(header.SOPClassUID), frame
    )


def sources(scan: Scan) -> tuple[list[Any], list[str]]:
    """The headers, checked, with what may be empty filled in and what is malformed mended.

    They share their elements with the scan's own headers: change one with `replace_element`.

    Returns:
        The headers, and what was mended, "PatientSex left out", each once.

    Raises:
        InputError: a header lacks what identifies a picture; the attribute is named.
    """
    from pydicom.dataset import Dataset

    filled, mended = [], dict[str, None]()
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
        mended |= dict.fromkeys(_mend_texts(copy))
        filled.append(copy)
    return filled, list(mended)


def _mend_texts(header: Any) -> Iterator[str]:
    """Sets anew, in place, each text that its value representation does not allow; says of each what became of it.

    A text that is too long is cut, of a name's parts each; what cannot be mended so (a date, a sex) is left out, which
    the patient and study attributes of a segmentation may be. UIDs stay: the picture is found by them.

    Source: DICOM PS3.5, 6.2; PS3.3, C.7.1.1 and C.7.2.1.
    """
    for keyword in (keyword for keyword in _TAKEN_OVER if keyword in header):
        element = header[keyword]
        texts = element.value if element.VM > 1 else [element.value]
        texts = ["" if text is None else str(text) for text in texts]
        kept = [
            next(
                (t for t in (text, text.strip()) if _is_allowed(element.VR, keyword, t)),
                _cut(element.VR, text),
            )
            for text in texts
        ]
        if kept == texts:
            continue
        good = all(_is_allowed(element.VR, keyword, text) for text in kept)
        replace_element(header, keyword, (kept if len(kept) > 1 else kept[0]) if good else "")
        yield f"{keyword} {'shortened' if good and any(kept) else 'left out'}"


def _is_allowed(vr: str, keyword: str, text: str) -> bool:
    from pydicom import config
    from pydicom.valuerep import validate_value

    if keyword == "PatientSex":
        return text in ("", "M", "F", "O")
    try:
        validate_value(vr, text, config.RAISE)
    except ValueError:
        return False
    # Its regular expressions take a 13th month and a 25th hour, which highdicom does not.
    return vr not in ("DA", "TM") or _is_a_time(vr, text)


def _is_a_time(vr: str, text: str) -> bool:
    from pydicom.valuerep import DA, TM

    try:
        (DA if vr == "DA" else TM)(text)
    except ValueError:
        return False
    return True


def _cut(vr: str, text: str) -> str:
    """As much of a text as its value representation takes; "" for one that is not just too long."""
    if vr not in _LONGEST:
        return ""
    plain = "".join(c for c in text if c.isprintable() and c != "\\")
    if vr != "PN":
        return plain[: _LONGEST[vr]].strip()
    groups = [("^".join(group.split("^")[:5]))[: _LONGEST[vr]] for group in plain.split("=")[:3]]
    return "=".join(groups)


def replace_element(dataset: Any, keyword: str, value: Any) -> None:
    """Sets an element anew: `dataset.KEYWORD = value` would change the one it shares with another data set."""
    dataset.pop(keyword, None)
    setattr(dataset, keyword, value)


def missing(name: str, keyword: str) -> InputError:
    """The error for a source whose header cannot be referred to."""
    return InputError(
        f"--to dicom-seg: {name} must have {keyword} in its header, has none; choose nifti or png"
    )


def has_planes(headers: Sequence[Any]) -> bool:
    """True where every slice has a place of its own in one frame of reference, and all share one orientation."""
    first = headers[0]
    if not first.get("FrameOfReferenceUID"):
        return False
    if "PerFrameFunctionalGroupsSequence" in first:
        return len(headers) == 1 and _regular_frames(first)
    if (whole_number(first, "NumberOfFrames") or 1) > 1:
        return False
    lengths = {"ImagePositionPatient": 3, "ImageOrientationPatient": 6, "PixelSpacing": 2}
    if any(len(numbers_of(h, keyword)) != length for h in headers for keyword, length in lengths.items()):
        return False
    orientations = {numbers_of(header, "ImageOrientationPatient") for header in headers}
    return len(orientations) == 1 and _are_distinct([numbers_of(h, "ImagePositionPatient") for h in headers])


def _regular_frames(header: Any) -> bool:
    shared = (header.get("SharedFunctionalGroupsSequence") or [None])[0]
    if shared is None or not all(k in shared for k in ("PlaneOrientationSequence", "PixelMeasuresSequence")):
        return False
    places = [
        numbers_of(frame.PlanePositionSequence[0], "ImagePositionPatient")
        for frame in header.PerFrameFunctionalGroupsSequence
        if frame.get("PlanePositionSequence")
    ]
    frames = whole_number(header, "NumberOfFrames") or 1
    if len(places) != frames or any(len(place) != 3 for place in places):
        return False
    return _are_distinct(places)


def _are_distinct(places: Sequence[Sequence[float]]) -> bool:
    points = np.round(np.array(places, np.float64) / _SAME_MM)
    return len(np.unique(points, axis=0)) == len(points)
