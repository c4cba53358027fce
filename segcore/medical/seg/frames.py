"""Frames of a segmentation whose source has no planes: each refers to its picture by instance and frame number.

highdicom 0.28 writes such a segmentation for a single picture only; ultrasound loops and radiographs in one series
have several. Remove this module when it writes them all.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from segcore.medical.seg.source import Reference, references
from segcore.picture.scan import Scan

_ALL = "1"
"""The one stack that every frame is of."""


def place_frames(seg: Any, scan: Scan, masks: np.ndarray) -> Any:
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
    seg.PerFrameFunctionalGroupsSequence = [_frame(k, i, refs[i]) for k, i in present]
    shared = seg.SharedFunctionalGroupsSequence[0]
    if "SegmentIdentificationSequence" in shared:  # now said by every frame
        del shared.SegmentIdentificationSequence
    seg.NumberOfFrames = len(present)
    bits = np.concatenate([(masks[i] == k).ravel() for k, i in present]).astype(np.uint8)
    seg.PixelData = pack_bits(bits, pad=True)
    instances = {ref.instance: ref for ref in refs}.values()
    seg.SourceImageSequence = [_instance(ref) for ref in instances]
    series = _item(SeriesInstanceUID=refs[0].series)
    series.ReferencedInstanceSequence = [_instance(ref) for ref in instances]
    seg.ReferencedSeriesSequence = [series]
    return seg


def _frame(segment: int, index: int, ref: Reference) -> Any:
    from pydicom.sr.codedict import codes

    source = _instance(ref)
    source.PurposeOfReferenceCodeSequence = [_code(codes.DCM.SourceImageForImageProcessingOperation)]
    source.SpatialLocationsPreserved = "YES"
    if ref.frame is not None:
        source.ReferencedFrameNumber = ref.frame
    derivation = _item(SourceImageSequence=[source])
    derivation.DerivationCodeSequence = [_code(codes.DCM.SegmentationImageDerivation)]
    content = _item(StackID=_ALL, InStackPositionNumber=index + 1, DimensionIndexValues=[segment, index + 1])
    return _item(
        FrameContentSequence=[content],
        DerivationImageSequence=[derivation],
        SegmentIdentificationSequence=[_item(ReferencedSegmentNumber=segment)],
    )


def _index_by_segment_and_slice(seg: Any, organisation: str) -> None:
    from pydicom.datadict import tag_for_keyword

    def pointer(attribute: str, group: str) -> Any:
        return _item(
            DimensionOrganizationUID=organisation,
            DimensionIndexPointer=tag_for_keyword(attribute),
            FunctionalGroupPointer=tag_for_keyword(group),
            DimensionDescriptionLabel=attribute,
        )

    seg.DimensionOrganizationSequence = [_item(DimensionOrganizationUID=organisation)]
    seg.DimensionIndexSequence = [
        pointer("ReferencedSegmentNumber", "SegmentIdentificationSequence"),
        pointer("InStackPositionNumber", "FrameContentSequence"),
    ]


def _instance(ref: Reference) -> Any:
    return _item(ReferencedSOPClassUID=ref.sop_class, ReferencedSOPInstanceUID=ref.instance)


def _code(code: Any) -> Any:
    return _item(
        CodeValue=code.value, CodingSchemeDesignator=code.scheme_designator, CodeMeaning=code.meaning
    )


def _item(**values: Any) -> Any:
    from pydicom.dataset import Dataset

    item = Dataset()
    for keyword, value in values.items():
        setattr(item, keyword, value)
    return item
