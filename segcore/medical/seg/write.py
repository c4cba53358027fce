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
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np

from segcore import __version__
from segcore.bundle.manifest import Manifest
from segcore.errors import InputError, is_damage
from segcore.medical.seg.source import (
    Reference,
    has_planes,
    load_highdicom,
    missing,
    references,
    replace_element,
    sources,
)
from segcore.picture.scan import Scan

_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
_SERIES_NUMBER = 900
_LONGEST = 64
"""Characters of a DICOM long string."""
_NOMINAL_MM = 1.0
"""Slice thickness of a source that has none, as a radiograph: highdicom reads no pixel spacing without one."""
_STACK = "1"
"""The one stack that every frame is of."""
_MISSING_ATTRIBUTE = re.compile(r"no attribute '(\w+)'")


def encode_seg(
    scan: Scan,
    masks: np.ndarray,
    manifest: Manifest,
    bundle_sha256: str | None,
    prompted: Collection[str] = (),
) -> tuple[bytes, tuple[str, ...]]:
    """The file's bytes, and what of the source's header could not be taken over as it is.

    Args:
        scan: read from DICOM.
        masks: N×H×W uint8, 0 background, k the k-th class.
        manifest: of the model.
        bundle_sha256: of the model's bundle; without it the hash of the model file names the version.
        prompted: classes that a reader's click or box had a part in.

    Raises:
        InputError: no DICOM source, its header lacks what a SEG must refer to, or a library cannot write it.
    """
    if scan.kind != "dicom":
        got = "a NIfTI" if scan.kind == "nifti" else "a picture file"
        raise InputError(f"--to dicom-seg: {scan.name} must be DICOM, is {got}; choose nifti or png")
    load_highdicom()
    headers, mended = sources(scan)
    try:
        seg = _build(scan, headers, masks, manifest, bundle_sha256)
        for segment, name in zip(seg.SegmentSequence, manifest.classes, strict=True):
            if name in prompted:
                # "Calculated segment with user assistance": PS3.3, Segment Description Macro.
                segment.SegmentAlgorithmType = "SEMIAUTOMATIC"
        file = BytesIO()
        seg.save_as(file, enforce_file_format=True)
    except Exception as error:  # highdicom and pydicom raise what they like; their words may quote a header
        if not is_damage(error):
            raise
        raise _unwritable(scan.name, error) from None
    return file.getvalue(), tuple(mended)


def _build(
    scan: Scan, headers: list[Any], masks: np.ndarray, manifest: Manifest, bundle_sha256: str | None
) -> Any:
    thickness = headers[0].get("SliceThickness")
    if has_planes(headers):
        try:
            return _in_planes(scan, headers, masks, manifest, bundle_sha256)
        except KeyError:
            # highdicom knows no such kind of picture, as of a vendor's own: refer to it by its frames.
            headers, _ = sources(scan)
    seg = _place_frames(_as_single_capture(headers[0], masks, manifest, bundle_sha256, scan), scan, masks)
    if not thickness:
        # highdicom wants one; the file says none, and may, where it is in no frame of reference.
        for measures in seg.SharedFunctionalGroupsSequence[0].get("PixelMeasuresSequence", []):
            del measures.SliceThickness
        for keyword in ("FrameOfReferenceUID", "PositionReferenceIndicator"):
            seg.pop(keyword, None)
    return seg


def _unwritable(name: str, error: Exception) -> InputError:
    """One line for what a library could not write, with the attribute where its own words name one."""
    from pydicom.datadict import keyword_dict

    found = _MISSING_ATTRIBUTE.search(str(error)) if isinstance(error, AttributeError) else None
    if found and found[1][:1].isupper():  # highdicom takes what it needs of the source without looking first
        return missing(name, found[1])
    words = re.findall(r"[A-Za-z_]{3,}", str(error))
    known = [word for word in words if word in keyword_dict]
    known += [
        joined for word in words if (joined := word.title().replace("_", "")) in keyword_dict and "_" in word
    ]
    what = known[0] if known else "header"
    return InputError(
        f"--to dicom-seg: {name} must have a {what} that can be written, has not ({type(error).__name__}); choose "
        "nifti or png"
    )


def _in_planes(
    scan: Scan, headers: list[Any], masks: np.ndarray, manifest: Manifest, bundle_sha256: str | None
) -> Any:
    """The whole SEG by highdicom; slices whose mask is empty are left out, unless all are."""
    first = headers[0]
    if scan.frames:  # highdicom takes the masks in the order of the file's frames
        masks = masks[np.argsort(scan.frames)]
    if "PerFrameFunctionalGroupsSequence" in first:
        shared = deepcopy(first.SharedFunctionalGroupsSequence)
        replace_element(first, "SharedFunctionalGroupsSequence", shared)
        _fill_thickness(shared[0].PixelMeasuresSequence[0], scan)
    else:
        for header in headers:
            _fill_thickness(header, scan)
    return _build_segmentation(headers, masks, manifest, bundle_sha256)


def _as_single_capture(
    header: Any, masks: np.ndarray, manifest: Manifest, bundle_sha256: str | None, scan: Scan
) -> Any:
    """A SEG of the first slice, as if it were a single secondary capture; `_place_frames` gives it its frames."""
    from highdicom import PixelMeasuresSequence

    for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PerFrameFunctionalGroupsSequence",
                    "SharedFunctionalGroupsSequence", "NumberOfFrames", "PixelSpacing"):  # fmt: skip
        header.pop(keyword, None)
    replace_element(header, "SOPClassUID", _SECONDARY_CAPTURE)
    if header.get("FrameOfReferenceUID") == "":
        del header.FrameOfReferenceUID
    _fill_thickness(header, scan)
    measures = PixelMeasuresSequence(scan.spacing_mm, header.SliceThickness) if scan.spacing_mm else None
    seg = _build_segmentation([header], masks[:1], manifest, bundle_sha256, pixel_measures=measures)
    seg.PatientOrientation = header.get("PatientOrientation", "")  # of the same pixels; may be empty
    return seg


def _fill_thickness(item: Any, scan: Scan) -> None:
    """A SEG's pixel measures must have a slice thickness, which a source may lack."""
    if not item.get("SliceThickness"):
        replace_element(item, "SliceThickness", scan.slice_spacing_mm or _NOMINAL_MM)


def _build_segmentation(
    headers: list[Any], masks: np.ndarray, manifest: Manifest, bundle_sha256: str | None, **more: Any
) -> Any:
    from highdicom import UID
    from highdicom.seg import Segmentation, SegmentationTypeValues

    return Segmentation(
        headers,
        masks,
        SegmentationTypeValues.BINARY,
        _describe_segments(manifest, bundle_sha256),
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


def _describe_segments(manifest: Manifest, bundle_sha256: str | None) -> list[Any]:
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


# Frames of a segmentation whose source has no planes.
#
# highdicom 0.28 writes such a segmentation for a single picture only; ultrasound loops and radiographs in one series
# have several. Remove this part when it writes them all.


def _place_frames(seg: Any, scan: Scan, masks: np.ndarray) -> Any:
    """Gives a segmentation of one picture the frames and references of every slice, and returns it.

    Args:
        seg: highdicom's Segmentation of the first slice.
        scan: with its references.
        masks: N×H×W uint8 class indices. Slices without a class have no frame of it; an empty mask has one empty
            frame a class, as a file must have some.
    """
    from highdicom import UID
    from pydicom.pixels.utils import pack_bits

    refs = references(scan)
    numbers = [int(item.SegmentNumber) for item in seg.SegmentSequence]
    present = [(k, i) for k in numbers for i in range(scan.slices) if (masks[i] == k).any()]
    present = present or [(k, 0) for k in numbers]
    _index_by_segment_and_slice(seg, UID())
    seg.PerFrameFunctionalGroupsSequence = [_frame_item(k, i, refs[i]) for k, i in present]
    shared = seg.SharedFunctionalGroupsSequence[0]
    if "SegmentIdentificationSequence" in shared:  # now said by every frame
        del shared.SegmentIdentificationSequence
    seg.NumberOfFrames = len(present)
    bits = np.concatenate([(masks[i] == k).ravel() for k, i in present]).astype(np.uint8)
    seg.PixelData = pack_bits(bits, pad=True)
    instances = {ref.instance: ref for ref in refs}.values()
    seg.SourceImageSequence = [_instance_item(ref) for ref in instances]
    series = _new_item(SeriesInstanceUID=refs[0].series)
    series.ReferencedInstanceSequence = [_instance_item(ref) for ref in instances]
    seg.ReferencedSeriesSequence = [series]
    return seg


def _frame_item(segment: int, index: int, ref: Reference) -> Any:
    from pydicom.sr.codedict import codes

    source = _instance_item(ref)
    source.PurposeOfReferenceCodeSequence = [_code_item(codes.DCM.SourceImageForImageProcessingOperation)]
    source.SpatialLocationsPreserved = "YES"
    if ref.frame is not None:
        source.ReferencedFrameNumber = ref.frame
    derivation = _new_item(SourceImageSequence=[source])
    derivation.DerivationCodeSequence = [_code_item(codes.DCM.SegmentationImageDerivation)]
    content = _new_item(
        StackID=_STACK, InStackPositionNumber=index + 1, DimensionIndexValues=[segment, index + 1]
    )
    return _new_item(
        FrameContentSequence=[content],
        DerivationImageSequence=[derivation],
        SegmentIdentificationSequence=[_new_item(ReferencedSegmentNumber=segment)],
    )


def _index_by_segment_and_slice(seg: Any, organisation: str) -> None:
    from pydicom.datadict import tag_for_keyword

    def pointer(attribute: str, group: str) -> Any:
        return _new_item(
            DimensionOrganizationUID=organisation,
            DimensionIndexPointer=tag_for_keyword(attribute),
            FunctionalGroupPointer=tag_for_keyword(group),
            DimensionDescriptionLabel=attribute,
        )

    seg.DimensionOrganizationSequence = [_new_item(DimensionOrganizationUID=organisation)]
    seg.DimensionIndexSequence = [
        pointer("ReferencedSegmentNumber", "SegmentIdentificationSequence"),
        pointer("InStackPositionNumber", "FrameContentSequence"),
    ]


def _instance_item(ref: Reference) -> Any:
    return _new_item(ReferencedSOPClassUID=ref.sop_class, ReferencedSOPInstanceUID=ref.instance)


def _code_item(code: Any) -> Any:
    return _new_item(
        CodeValue=code.value, CodingSchemeDesignator=code.scheme_designator, CodeMeaning=code.meaning
    )


def _new_item(**values: Any) -> Any:
    from pydicom.dataset import Dataset

    item = Dataset()
    for keyword, value in values.items():
        setattr(item, keyword, value)
    return item


# What a segment is, in SNOMED CT, by the name of its class.
#
# Source: DICOM PS3.16, CID 7150 (categories), CID 7151 and 7191 (types); the codes are those of pydicom's dictionary.

SnomedCode = tuple[str, str]
"""A code of SNOMED CT and its meaning in words."""
_ANATOMY: SnomedCode = ("91723000", "Anatomical Structure")
_ABNORMAL: SnomedCode = ("49755003", "Morphologically Abnormal Structure")
_OBJECT: SnomedCode = ("260787004", "Physical object")
_TISSUE: SnomedCode = ("85756007", "Tissue")
_LUNG: SnomedCode = ("39607008", "Lung")
_HEAD: SnomedCode = ("69536005", "Head")
_TOOTH: SnomedCode = ("38199008", "Tooth")
_LESION: SnomedCode = ("52988006", "Lesion")
_NODULE: SnomedCode = ("27925004", "Nodule")
_MASS: SnomedCode = ("4147007", "Mass")
_NEOPLASM: SnomedCode = ("108369006", "Neoplasm")
_IMPLANT: SnomedCode = ("40388003", "Implant")
_LEFT: SnomedCode = ("7771000", "Left")
_RIGHT: SnomedCode = ("24028007", "Right")


@dataclass(frozen=True)
class SegmentCodes:
    """Category and type of a segmented property, and the side of the body where the name tells it."""

    category: SnomedCode
    kind: SnomedCode
    side: SnomedCode | None = None


# Keys as `segment_codes` looks them up: in lower case, words apart by one space.

_BY_NAME = {
    "lung": SegmentCodes(_ANATOMY, _LUNG),
    "lungs": SegmentCodes(_ANATOMY, _LUNG),
    "left lung": SegmentCodes(_ANATOMY, _LUNG, _LEFT),
    "lung left": SegmentCodes(_ANATOMY, _LUNG, _LEFT),
    "right lung": SegmentCodes(_ANATOMY, _LUNG, _RIGHT),
    "lung right": SegmentCodes(_ANATOMY, _LUNG, _RIGHT),
    "fetal head": SegmentCodes(_ANATOMY, _HEAD),
    "head": SegmentCodes(_ANATOMY, _HEAD),
    "heart": SegmentCodes(_ANATOMY, ("80891009", "Heart")),
    "liver": SegmentCodes(_ANATOMY, ("10200004", "Liver")),
    "kidney": SegmentCodes(_ANATOMY, ("64033007", "Kidney")),
    "prostate": SegmentCodes(_ANATOMY, ("41216001", "Prostate")),
    "brain": SegmentCodes(_ANATOMY, ("12738006", "Brain")),
    "bone": SegmentCodes(_ANATOMY, ("272673000", "Bone")),
    "tooth": SegmentCodes(_ANATOMY, _TOOTH),
    "teeth": SegmentCodes(_ANATOMY, _TOOTH),
    "lesion": SegmentCodes(_ABNORMAL, _LESION),
    "lung lesion": SegmentCodes(_ABNORMAL, _LESION),
    "nodule": SegmentCodes(_ABNORMAL, _NODULE),
    "lung nodule": SegmentCodes(_ABNORMAL, _NODULE),
    "mass": SegmentCodes(_ABNORMAL, _MASS),
    "tumor": SegmentCodes(_ABNORMAL, _NEOPLASM),
    "tumour": SegmentCodes(_ABNORMAL, _NEOPLASM),
    "caries": SegmentCodes(_ABNORMAL, _LESION),
    "filling": SegmentCodes(_OBJECT, _OBJECT),
    "implant": SegmentCodes(_OBJECT, _IMPLANT),
}
_OTHER = SegmentCodes(_TISSUE, _TISSUE)


def segment_codes(name: str) -> SegmentCodes:
    """The codes of a class by its name; the general "Tissue" for a name that is not known here.

    Args:
        name: as the bundle has it; "left_lung" and "Left lung" are the same.
    """
    return _BY_NAME.get(" ".join(re.split(r"[\s_\-]+", name.strip().lower())), _OTHER)
