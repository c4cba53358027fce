"""Writes a mask as a DICOM segmentation (SEG) that refers to its source series.

BINARY, a segment a class, in the class order of the bundle. Where every slice has a place in the patient, highdicom
writes places and references; where it has none (a radiograph, ultrasound, several frames without geometry), the frames
refer to their source by instance and frame number alone.

Source: DICOM PS3.3, A.51 (Segmentation IOD) and C.8.20 (its modules).
"""

from __future__ import annotations

import re
from collections.abc import Collection
from copy import deepcopy
from io import BytesIO
from typing import Any

import numpy as np

from segcore import __version__
from segcore.bundle.manifest import Manifest
from segcore.errors import InputError
from segcore.medical.seg.codes import segment_codes
from segcore.medical.seg.frames import place_frames
from segcore.medical.seg.source import has_planes, load_highdicom, missing, replace_element, sources
from segcore.picture.scan import Scan

_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
_SERIES_NUMBER = 900
_LONGEST = 64
"""Characters of a DICOM long string."""
_NOMINAL_MM = 1.0
"""Slice thickness of a source that has none, as a radiograph: highdicom reads no pixel spacing without one."""
_NAMED = re.compile(r"no attribute '(\w+)'")


def encode_seg(
    scan: Scan,
    masks: np.ndarray,
    manifest: Manifest,
    bundle_sha256: str | None,
    prompted: Collection[str] = (),
) -> bytes:
    """The file's bytes.

    Args:
        scan: read from DICOM.
        masks: N×H×W uint8, 0 background, k the k-th class.
        manifest: of the model.
        bundle_sha256: of the model's bundle; without it the hash of the model file names the version.
        prompted: classes that a reader's click or box had a part in.

    Raises:
        InputError: no DICOM source, or its header lacks what a SEG must refer to.
    """
    if scan.kind != "dicom":
        got = "a NIfTI" if scan.kind == "nifti" else "a plain picture"
        raise InputError(f"--format dicom-seg: {scan.name} must be DICOM, is {got}; choose nifti or png")
    load_highdicom()
    headers = sources(scan)
    try:
        if has_planes(headers):
            seg = _in_planes(scan, headers, masks, manifest, bundle_sha256)
        else:
            seg = place_frames(_flat(headers[0], masks, manifest, bundle_sha256, scan), scan, masks)
    except AttributeError as error:  # highdicom takes what it needs of the source without looking first
        found = _NAMED.search(str(error))
        if found is None or not found[1][:1].isupper():
            raise
        raise missing(scan.name, found[1]) from None
    for segment, name in zip(seg.SegmentSequence, manifest.classes, strict=True):
        if name in prompted:  # "calculated segment with user assistance": PS3.3, Segment Description Macro
            segment.SegmentAlgorithmType = "SEMIAUTOMATIC"
    file = BytesIO()
    seg.save_as(file, enforce_file_format=True)
    return file.getvalue()


def _in_planes(
    scan: Scan, headers: list[Any], masks: np.ndarray, manifest: Manifest, bundle_sha256: str | None
) -> Any:
    """The whole SEG by highdicom; slices whose mask is empty are left out, unless all are."""
    first = headers[0]
    if "PerFrameFunctionalGroupsSequence" in first:
        shared = deepcopy(first.SharedFunctionalGroupsSequence)
        replace_element(first, "SharedFunctionalGroupsSequence", shared)
        _fill_thickness(shared[0].PixelMeasuresSequence[0], scan)
    else:
        for header in headers:
            _fill_thickness(header, scan)
    return _segmentation(headers, masks, manifest, bundle_sha256)


def _flat(header: Any, masks: np.ndarray, manifest: Manifest, bundle_sha256: str | None, scan: Scan) -> Any:
    """A SEG of the first slice, as if it were a single secondary capture; `place_frames` gives it its frames."""
    from highdicom import PixelMeasuresSequence

    for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PerFrameFunctionalGroupsSequence",
                    "SharedFunctionalGroupsSequence", "NumberOfFrames", "PixelSpacing"):  # fmt: skip
        header.pop(keyword, None)
    replace_element(header, "SOPClassUID", _SECONDARY_CAPTURE)
    if header.get("FrameOfReferenceUID") == "":
        del header.FrameOfReferenceUID
    _fill_thickness(header, scan)
    measures = PixelMeasuresSequence(scan.spacing_mm, header.SliceThickness) if scan.spacing_mm else None
    seg = _segmentation([header], masks[:1], manifest, bundle_sha256, pixel_measures=measures)
    seg.PatientOrientation = header.get("PatientOrientation", "")  # of the same pixels; may be empty
    return seg


def _fill_thickness(item: Any, scan: Scan) -> None:
    """A SEG's pixel measures must have a slice thickness, which a source may lack."""
    if not item.get("SliceThickness"):
        replace_element(item, "SliceThickness", scan.slice_spacing_mm or _NOMINAL_MM)


def _segmentation(
    headers: list[Any], masks: np.ndarray, manifest: Manifest, bundle_sha256: str | None, **more: Any
) -> Any:
    from highdicom import UID
    from highdicom.seg import Segmentation, SegmentationTypeValues

    return Segmentation(
        headers,
        masks,
        SegmentationTypeValues.BINARY,
        _segments(manifest, bundle_sha256),
        series_instance_uid=UID(),
        series_number=_SERIES_NUMBER,
        sop_instance_uid=UID(),
        instance_number=1,
        manufacturer="sam2edge",
        manufacturer_model_name="sam2edge",
        software_versions=__version__,
        device_serial_number="none",
        # Class names may be in any script, whatever the source has; its own strings are written anew.
        specific_character_set="ISO_IR 192",
        omit_empty_frames=bool(masks.any()),
        content_label="SEGMENTATION",
        content_description=f"{manifest.name}, research use only"[:_LONGEST],
        series_description=_series_description(manifest.name),
        **more,
    )


def _series_description(model: str) -> str:
    """The model's name is cut, never the words after it."""
    words = ", research use only"
    return f"sam2edge {model}"[: _LONGEST - len(words)] + words


def _segments(manifest: Manifest, bundle_sha256: str | None) -> list[Any]:
    from highdicom import AlgorithmIdentificationSequence
    from highdicom.seg import SegmentAlgorithmTypeValues, SegmentDescription
    from pydicom.dataset import Dataset
    from pydicom.sr.codedict import codes
    from pydicom.sr.coding import Code

    version = bundle_sha256 or manifest.files[manifest.model_file].sha256
    described = []
    for number, name in enumerate(manifest.classes, start=1):
        kind = segment_codes(name)
        segment = SegmentDescription(
            number,
            name[:_LONGEST],
            Code(kind.category[0], "SCT", kind.category[1]),
            Code(kind.kind[0], "SCT", kind.kind[1]),
            SegmentAlgorithmTypeValues.AUTOMATIC,
            AlgorithmIdentificationSequence(
                manifest.name[:_LONGEST], codes.DCM.ArtificialIntelligence, version, source="sam2edge"
            ),
        )
        if kind.side:
            side = Dataset()
            side.CodeValue, side.CodingSchemeDesignator, side.CodeMeaning = kind.side[0], "SCT", kind.side[1]
            segment.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence = [side]
        described.append(segment)
    return described
