"""Reads a DICOM segmentation back as class indices on the grid of the scan that it was made of."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np

from segcore.errors import InputError, reading
from segcore.medical.dicom.file import MAX_VOXELS, numbers_of, read_header, whole_number
from segcore.medical.seg.source import Reference, load_highdicom, references
from segcore.picture.scan import Scan, check_mask_size

# Segmentation Storage, Label Map Segmentation Storage.
_SEGMENTATIONS = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")
MOST_SEGMENTS = 254


def read_seg(path: Path, scan: Scan) -> np.ndarray:
    """Frames on the scan's slices by the instance, or instance and frame, that each refers to.

    Returns:
        N×H×W uint8; 0 background, k the k-th segment in order of segment number.

    Raises:
        InputError: no segmentation, fractional, overlapping, of another size, or of another series.
    """
    if scan.kind != "dicom":
        raise InputError(
            f"mask {path}: must be PNG or NIfTI for a picture that is no DICOM, got a DICOM segmentation"
        )
    seg = _open_seg(path)
    check_mask_size((int(seg.Rows), int(seg.Columns)), scan, path)
    refs = references(scan)
    with _reading_seg(path):
        _check_sources(seg, refs, path, scan)
        numbers = list(seg.segment_numbers)
    if len(numbers) > MOST_SEGMENTS:
        raise InputError(f"mask {path}: must have at most {MOST_SEGMENTS} segments, got {len(numbers)}")
    instances = [ref.instance for ref in refs]
    how = {
        "segment_numbers": numbers,
        "combine_segments": True,
        "relabel": True,
        "assert_missing_frames_are_empty": True,
        "ignore_spatial_locations": True,  # looked at in `_check_sources`, where saying nothing counts as kept
        "dtype": np.uint8,
    }
    with _reading_seg(path):
        try:
            if refs[0].frame is None:
                found = seg.get_pixels_by_source_instance(instances, **how)
            else:
                frames = [ref.frame for ref in refs]
                found = seg.get_pixels_by_source_frame(instances[0], frames, **how)
        except RuntimeError as error:
            if "overlap" not in str(error):
                raise
            raise InputError(
                f"mask {path}: must have segments that do not overlap, two share pixels; keep one of them"
            ) from None
    return np.asarray(found, np.uint8)


def _reading_seg(path: Path) -> AbstractContextManager[None]:
    """Around highdicom, which takes what it needs of a damaged file and raises what it likes; its words stay out."""
    return reading(f"mask {path}", "a whole DICOM segmentation", quoted=False)


def _open_seg(path: Path) -> Any:
    load_highdicom()
    from highdicom.seg import Segmentation, SegmentationTypeValues
    from pydicom import dcmread

    # Bounded even where the file is deflated, as reading the whole is then not.
    header = read_header(path, ["SOPClassUID", "Rows", "Columns", "NumberOfFrames"])
    if str(header.get("SOPClassUID")) not in _SEGMENTATIONS:
        raise InputError(
            f"mask {path}: must be a DICOM segmentation, got another kind of DICOM; export the mask as DICOM-SEG"
        )
    sides = [whole_number(header, keyword) or 0 for keyword in ("Rows", "Columns", "NumberOfFrames")]
    if min(sides) < 1:
        raise InputError(f"mask {path}: must be a whole DICOM segmentation, is damaged; copy it again")
    if math.prod(sides) > MAX_VOXELS:
        raise InputError(
            f"mask {path}: must be at most {MAX_VOXELS} pixels in all frames, "
            f"got {sides[2]} of {sides[0]}×{sides[1]}; crop it"
        )
    with _reading_seg(path):
        dataset = dcmread(path)
        _fill_thickness(dataset)
        seg = Segmentation.from_dataset(dataset, copy=False)
        _ = seg.pixel_array  # decoded now, so that a truncated file is told here
    if seg.segmentation_type == SegmentationTypeValues.FRACTIONAL:
        raise InputError(
            f"mask {path}: must be a binary segmentation, got a fractional one; export it as binary"
        )
    return seg


def _fill_thickness(dataset: Any) -> None:
    """A pixel spacing may stand without a slice thickness, and highdicom itself writes it so, but does not read it."""
    shared = dataset.get("SharedFunctionalGroupsSequence", [])
    for group in (*shared, *dataset.get("PerFrameFunctionalGroupsSequence", [])):
        for measures in group.get("PixelMeasuresSequence", []):
            if "SliceThickness" not in measures:
                measures.SliceThickness = None


def _check_sources(seg: Any, refs: Sequence[Reference], path: Path, scan: Scan) -> None:
    known = {(ref.instance, ref.frame) for ref in refs}
    instances = {ref.instance for ref in refs}
    of_frames = [_sources_of(group) for group in seg.get("PerFrameFunctionalGroupsSequence", [])]
    if not of_frames or not all(of_frames):
        raise InputError(f"mask {path}: must say which slice each of its frames is of, does not")
    for source in (source for sources in of_frames for source in sources):
        frames = source.get("ReferencedFrameNumber")
        numbers = [None] if frames is None else [int(n) for n in numbers_of(source, "ReferencedFrameNumber")]
        instance = str(source.get("ReferencedSOPInstanceUID"))
        if instance not in instances:
            raise InputError(
                f"mask {path}: must refer to {scan.name}, refers to another picture or series; "
                "give the mask that was made of it"
            )
        if refs[0].frame is not None and not all((instance, number) in known for number in numbers):
            raise InputError(f"mask {path}: must refer to frames of {scan.name}, refers to others")
        if source.get("SpatialLocationsPreserved") == "NO":
            raise InputError(f"mask {path}: must have the pixels of {scan.name}, says that they were moved")


def _sources_of(group: Any) -> list[Any]:
    return [
        s
        for derived in group.get("DerivationImageSequence", [])
        for s in derived.get("SourceImageSequence", [])
    ]
