"""Where DICOM pixels lie in the patient: spacing, orientation, positions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from segcore.medical.dicom.header import frame_group, numbers_of, whole_number

if TYPE_CHECKING:
    from pydicom import Dataset

_TWO_DIMENSIONAL, _CENTIMETRES = 1, 3
_EVEN = 0.1  # of the slice spacing: scanners round positions, and a missing slice is a whole spacing


def pixel_spacing_mm(header: Dataset, frame: int = 0) -> tuple[float, float] | None:
    """Distance of neighbouring rows and columns; None where the file does not say.

    PixelSpacing; else ImagerPixelSpacing, at the detector, divided by the estimated magnification where that is
    given; else an ultrasound's calibrated regions, if all are two-dimensional and agree.

    Source: DICOM PS3.3, 10.7.1.3, C.8.7.1.1 and C.8.5.5.
    """
    spacing = _positive(numbers_of(frame_group(header, "PixelMeasuresSequence", frame), "PixelSpacing"))
    if spacing is None and (imager := _positive(numbers_of(header, "ImagerPixelSpacing"))):
        magnification = (numbers_of(header, "EstimatedRadiographicMagnificationFactor") or (1.0,))[0]
        if magnification > 0:
            spacing = imager[0] / magnification, imager[1] / magnification
    return spacing or _ultrasound_spacing_mm(header)


def _ultrasound_spacing_mm(header: Dataset) -> tuple[float, float] | None:
    found = set()
    for region in header.get("SequenceOfUltrasoundRegions") or []:
        units = {whole_number(region, f"PhysicalUnits{axis}Direction") for axis in "XY"}
        deltas = numbers_of(region, "PhysicalDeltaY") + numbers_of(region, "PhysicalDeltaX")
        flat = whole_number(region, "RegionSpatialFormat") == _TWO_DIMENSIONAL
        found.add(_positive(tuple(10 * abs(d) for d in deltas)) if flat and units == {_CENTIMETRES} else None)
    return found.pop() if len(found) == 1 else None


def _positive(numbers: tuple[float, ...]) -> tuple[float, float] | None:
    return (numbers[0], numbers[1]) if len(numbers) == 2 and min(numbers) > 0 else None


def directions(header: Dataset, frame: int = 0) -> np.ndarray | None:
    """2×3: unit vectors along a row (of increasing column) and down a column, in patient axes; None where unknown."""
    group = frame_group(header, "PlaneOrientationSequence", frame)
    vectors = np.array(numbers_of(group, "ImageOrientationPatient"))
    if vectors.size != 6:
        return None
    vectors = vectors.reshape(2, 3)
    if not np.allclose(vectors @ vectors.T, np.eye(2), atol=1e-3):
        return None
    return vectors


def position_mm(header: Dataset, frame: int = 0) -> np.ndarray | None:
    """Centre of the first pixel in patient axes (left, posterior, superior); None where unknown."""
    position = numbers_of(frame_group(header, "PlanePositionSequence", frame), "ImagePositionPatient")
    return np.array(position) if len(position) == 3 else None


def affine_of(
    spacing_mm: tuple[float, float] | None, plane: np.ndarray | None, positions: list[np.ndarray]
) -> tuple[np.ndarray | None, float | None]:
    """From (column, row, slice, 1) to millimetres, and the slice spacing; None for what is not known.

    Args:
        spacing_mm: of rows and columns.
        plane: as `directions` gives it, the same for all slices.
        positions: of the slices, in their order; evenly spaced, or there is no affine.
    """
    if spacing_mm is None or plane is None or not positions:
        return None, None
    normal = np.cross(plane[0], plane[1])
    step, slice_spacing = normal, None
    if len(positions) > 1:
        steps = np.diff(np.array(positions), axis=0)
        step = steps.mean(axis=0)
        slice_spacing = float(abs(step @ normal))
        if slice_spacing < 1e-3 or np.abs(steps - step).max() > _EVEN * slice_spacing:
            return None, None
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = plane[0] * spacing_mm[1], plane[1] * spacing_mm[0]
    affine[:3, 2], affine[:3, 3] = step, positions[0]
    return affine, slice_spacing
