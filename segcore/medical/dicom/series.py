"""DICOM files as one scan: a file of one or many frames, a folder that is one series, or those files of it that are.

Slices are put in order by where they lie in the patient. A series that is mixed or has several slices at one place is
refused; one that is not evenly spaced is slices and no volume.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from segcore.errors import InputError
from segcore.medical.dicom.deidentify import deidentified, patient_of
from segcore.medical.dicom.file import (
    DicomFile,
    frame_group,
    is_dicom,
    numbers_of,
    object_that_is_no_picture,
    open_dicom,
    read_header,
    text_of,
    whole_number,
)
from segcore.medical.dicom.pixels import (
    check_pixels,
    frame_display,
    frame_padding,
    frame_values,
    gives_float,
    pixels_of,
    windows_of,
)
from segcore.picture.scan import Scan
from segcore.words import plural, shortened

if TYPE_CHECKING:
    from pydicom import Dataset

# Of the usual distance of slices: positions are rounded, but a slice that is missing is a whole distance.
_TOLERANCE = 0.1
_SAME_PLACE_MM = 1e-3
# What several slices at one place differ in: an attribute, and the word for its values.
_KINDS_AT_A_PLACE = {
    "TemporalPositionIdentifier": "several times",
    "TriggerTime": "several times",
    "EchoNumbers": "several echoes",
    "EchoTime": "several echoes",
    "DiffusionBValue": "several diffusion weightings",
    "DiffusionGradientOrientation": "several directions",
    "InversionTime": "several inversion times",
    "AcquisitionNumber": "several acquisitions",
    "ImageType": "several kinds of picture",
    "AcquisitionTime": "several times",
    "ContentTime": "several times",
}
_IGNORED = ("dicomdir", "thumbs.db", "desktop.ini")
_TWO_DIMENSIONAL, _CENTIMETRES = 1, 3  # codes of an ultrasound's region


@dataclass(frozen=True)
class SeriesFiles:
    """The files of one series in a folder that holds more than it.

    Attributes:
        folder: where they lie.
        files: sorted by name.
        number: of the series in its folder, from 1.
        damaged: files of the folder that cannot be opened, and were or may have been slices of it.
    """

    folder: Path
    files: tuple[Path, ...]
    number: int
    damaged: tuple[Path, ...] = ()

    @property
    def name(self) -> str:
        return f"series-{self.number}"

    def __str__(self) -> str:
        more = f" and {len(self.files) - 1} more" if len(self.files) > 1 else ""
        return f"{self.folder}, series {self.number} ({self.files[0].name}{more})"


def read_dicom(path: Path, *, deidentify: bool = False) -> Scan:
    """One file as a scan of its frames: by position along their normal where each has a place of its own.

    Raises:
        InputError: see `segcore.medical.read.read_scan`.
    """
    file = open_dicom(path)
    check_pixels(file)
    order = _order_of_frames(file)
    scan = _build_scan(path.name, [(file, frame) for frame in order], deidentify)
    return replace(scan, frames=tuple(order) if order != sorted(order) else ())


def read_series(source: Path | SeriesFiles, *, deidentify: bool = False) -> Scan:
    """A folder that holds one series, or those of its files that are one, sorted by position along their normal.

    What lies beside them in the folder and is no picture (a licence, a report) is left out, and remarked.

    Raises:
        InputError: see `segcore.medical.read.read_scan`.
    """
    left_out: list[Path] = []
    if isinstance(source, SeriesFiles):
        paths, name = list(source.files), source.name
    else:
        paths, left_out = _series_files(source)
        name = source.resolve().name
    if len(paths) == 1:
        scan = replace(read_dicom(paths[0], deidentify=deidentify), name=name)
    else:
        files = [open_dicom(path) for path in paths]
        _check_one_series(source, files)
        for file in files:
            check_pixels(file)
        ordered, uneven = _sort_by_place(source, files)
        scan = _build_scan(name, [(file, 0) for file in ordered], deidentify)
        if uneven:
            scan = replace(scan, uneven=uneven, affine=None, slice_spacing_mm=None)
    damaged = source.damaged if isinstance(source, SeriesFiles) else ()
    told = [
        f"{plural(len(files), 'file')} beside the series {what}: {shortened([path.name for path in files])}"
        for what, files in (("left out, no picture", left_out), ("damaged, a slice may be missing", damaged))
        if files
    ]
    return replace(scan, remarks=lambda: (*told, *scan.remarks())) if told else scan


def is_clutter(path: Path) -> bool:
    """Whether a file beside images is none of them by its name: hidden, a DICOMDIR, a file manager's."""
    return path.name.startswith(".") or path.name.lower().startswith(_IGNORED)


def _build_scan(name: str, frames: Sequence[tuple[DicomFile, int]], deidentify: bool) -> Scan:
    first = frames[0][0]
    files = list({id(file): file for file, _ in frames}.values())
    spacing_mm = _pixel_spacing_mm(first.header, frames[0][1])
    for file, frame in frames:
        if _rounded_text(_pixel_spacing_mm(file.header, frame)) != _rounded_text(spacing_mm):
            raise InputError(
                f"DICOM {file.path}: must have one pixel spacing in all frames, got several; split it"
            )
    planes = {_rounded_text(_plane_directions(file.header, frame)) for file, frame in frames}
    positions = [_position_mm(file.header, frame) for file, frame in frames]
    known = [p for p in positions if p is not None]
    affine, slice_spacing_mm = _affine_of(
        spacing_mm,
        _plane_directions(first.header, frames[0][1]) if len(planes) == 1 else None,
        known if len(known) == len(positions) else [],
        thickness_mm=_thickness_mm(first.header, frames[0][1]),
    )
    uneven = ""
    if len(known) == len(frames) > 1 and affine is None:
        uneven = _disorder(known, [_plane_directions(file.header, frame) for file, frame in frames])
    as_float = any(gives_float(file) for file in files)  # one depth for all slices
    return Scan(
        name=name,
        kind="dicom",
        slices=len(frames),
        size_px=first.size_px,
        values=lambda index: frame_values(*frames[index], as_float=as_float),
        display=lambda index: frame_display(*frames[index]),
        spacing_mm=spacing_mm,
        slice_spacing_mm=slice_spacing_mm,
        uneven=uneven,
        windows=windows_of(*frames[0]),
        modality=_modality_text(first.header),
        patient=patient_of(first.header),
        affine=affine,
        padding=lambda index: frame_padding(*frames[index]),
        remarks=lambda: tuple(sorted(set().union(*(file.remarks for file in files)))),
        header=tuple(
            deidentified(file.header, name=f"DICOM {file.path}") if deidentify else file.header
            for file in files
        ),
    )


def _modality_text(header: Dataset) -> str:
    """CT, DX, …: a picture's has two or three letters; what is longer might be a patient's name, and counts as none."""
    text = text_of(header, "Modality")
    return text if re.fullmatch("[A-Z]{2,3}", text) else ""


# Which files are one series, and their order.


def _series_files(folder: Path) -> tuple[list[Path], list[Path]]:
    """The pictures of a folder that should be one series, and what lies beside them and is none."""
    paths = sorted(path for path in folder.iterdir() if path.is_file() and not is_clutter(path))
    pictures = [path for path in paths if _is_dicom_picture(path)]
    if not pictures:
        raise InputError(
            f"folder {folder}: must hold the files of a DICOM series, got none; give the folder they are in"
        )
    return pictures, [path for path in paths if path not in pictures]


def _is_dicom_picture(path: Path) -> bool:
    with path.open("rb") as stream:
        if not is_dicom(stream.read(132)):
            return False
    try:
        return not object_that_is_no_picture(read_header(path, ["SOPClassUID"]))
    except InputError:
        return True  # damaged: opening it tells


def _check_one_series(folder: Path | SeriesFiles, files: Sequence[DicomFile]) -> None:
    series = Counter(text_of(file.header, "SeriesInstanceUID") for file in files)
    if len(series) > 1:
        counts = [str(count) for count in series.values()]
        raise InputError(
            f"folder {folder}: must hold one series, got {len(series)}, of {', '.join(counts[:-1])} and {counts[-1]} "
            "files; give each its own folder"
        )
    for file in files:
        if file.frames > 1:
            raise InputError(
                f"folder {folder}: must hold files of one slice to be a series, got {file.path.name} "
                f"with {file.frames} frames; give that file by itself"
            )
    properties: dict[str, Callable[[DicomFile], Hashable]] = {
        "size": lambda file: "×".join(map(str, file.size_px)),
        "pixel spacing": lambda file: _rounded_text(_pixel_spacing_mm(file.header)),
        "orientation": lambda file: _rounded_text(_plane_directions(file.header)),
        "kind of colours": lambda file: pixels_of(file).photometric or "unknown",
    }
    for what, get in properties.items():
        first = get(files[0])
        other = next((file for file in files if get(file) != first), None)
        if other is not None:
            raise InputError(
                f"folder {folder}: must hold slices of one {what}, got {first} in {files[0].path.name} "
                f"and {get(other)} in {other.path.name}; give each kind its own folder"
            )


def _rounded_text(numbers: Sequence[float] | np.ndarray | None) -> str:
    """Numbers that differ by a writer's rounding only become the same text."""
    if numbers is None:
        return "none"
    return ", ".join(f"{round(float(n), 3) + 0.0:g}" for n in np.ravel(numbers))


def _order_of_frames(file: DicomFile) -> list[int]:
    """By position along the normal where each frame has a place of its own in one orientation; else as in the file."""
    frames = list(range(file.frames))
    planes = {_rounded_text(_plane_directions(file.header, frame)) for frame in frames}
    plane = _plane_directions(file.header)
    positions = [_position_mm(file.header, frame) for frame in frames]
    known = [p for p in positions if p is not None]
    if plane is None or len(planes) > 1 or len(known) < len(frames):
        return frames
    order, steps_mm = _order_along_normal(plane, known)
    if (steps_mm < _SAME_PLACE_MM).any():
        return frames  # several times, echoes or directions at a place
    return order


def _order_along_normal(
    plane: np.ndarray, positions_mm: Sequence[np.ndarray]
) -> tuple[list[int], np.ndarray]:
    """The order of the positions along the plane's normal, and the steps between them in mm."""
    normal = np.cross(plane[0], plane[1])  # a gantry may lean, so no single patient axis tells the order
    depths_mm = np.array([float(p @ normal) for p in positions_mm])
    order = np.argsort(depths_mm, kind="stable")
    return [int(i) for i in order], np.diff(depths_mm[order])


def _sort_by_place(folder: Path | SeriesFiles, files: list[DicomFile]) -> tuple[list[DicomFile], str]:
    """The files in the order of their slices, and in words where those are not evenly spaced."""
    plane = _plane_directions(files[0].header)
    positions = [_position_mm(file.header) for file in files]
    known = [p for p in positions if p is not None]
    if plane is None or not known:
        return _sort_by_number(folder, files), ""
    if len(known) < len(files):
        missing = files[next(i for i, p in enumerate(positions) if p is None)]
        raise InputError(
            f"folder {folder}: must hold slices that all tell their position, got {missing.path.name} without; "
            "export the series again"
        )
    order, steps_mm = _order_along_normal(plane, known)
    ordered = [files[i] for i in order]
    _check_places(folder, ordered, steps_mm)
    return ordered, _unevenness(ordered, steps_mm)


def _check_places(folder: Path | SeriesFiles, files: Sequence[DicomFile], steps_mm: np.ndarray) -> None:
    """Refuses several slices at one place, saying what they differ in where the headers do."""
    # Sorted, so a slice that is there twice has its twin beside it.
    for i in map(int, np.flatnonzero(steps_mm < _SAME_PLACE_MM)):
        one, other = files[i], files[i + 1]
        differ = next(
            (
                what
                for keyword, what in _KINDS_AT_A_PLACE.items()
                if (text := text_of(one.header, keyword)) and text != text_of(other.header, keyword)
            ),
            "",
        )
        if differ:
            raise InputError(
                f"folder {folder}: must hold every place once, got {differ} at each, as {one.path.name} and "
                f"{other.path.name}; give each its own folder"
            )
        raise InputError(
            f"folder {folder}: must hold every slice once, got {one.path.name} and {other.path.name} "
            "at the same position; remove one"
        )


def _disorder(positions: Sequence[np.ndarray], planes: Sequence[np.ndarray | None]) -> str:
    """Why slices that all have a place are no volume, in words; "" where only their pixel spacing is not known."""
    number = len(set(map(_rounded_text, planes)))
    if number > 1:
        return f"slices in {number} orientations"
    places = len(np.unique(np.round(positions, 3), axis=0))
    if places < len(positions):
        return f"{len(positions)} frames at {plural(places, 'place')}"
    steps_mm = np.linalg.norm(np.diff(np.array(positions), axis=0), axis=1)
    least, most = float(steps_mm.min()), float(steps_mm.max())
    return f"{least:.4g} to {most:.4g} mm between neighbours" if most - least > _TOLERANCE * least else ""


def _unevenness(files: Sequence[DicomFile], steps_mm: np.ndarray) -> str:
    """The first step that is not the usual one, "5 mm and not 2.5 mm between a.dcm and b.dcm"; "" where all are."""
    usual = float(np.median(steps_mm))  # one gap does not move it, as it would the mean
    for i in map(int, np.flatnonzero(np.abs(steps_mm - usual) > _TOLERANCE * usual)):
        return f"{steps_mm[i]:.4g} mm and not {usual:.4g} mm between {files[i].path.name} and {files[i + 1].path.name}"
    return ""


def _sort_by_number(folder: Path | SeriesFiles, files: Sequence[DicomFile]) -> list[DicomFile]:
    numbers = [whole_number(file.header, "InstanceNumber") for file in files]
    by_number: dict[int, DicomFile] = {}
    for number, file in zip(numbers, files, strict=True):
        if number is None:
            raise InputError(
                f"folder {folder}: must hold slices with a position or an InstanceNumber, "
                f"got {file.path.name} with neither; give each file by itself"
            )
        if number in by_number:
            raise InputError(
                f"folder {folder}: must hold every slice once, got InstanceNumber {number} in "
                f"{by_number[number].path.name} and {file.path.name}; remove one"
            )
        by_number[number] = file
    return [by_number[number] for number in sorted(by_number)]


# Where pixels lie in the patient.


def _pixel_spacing_mm(header: Dataset, frame: int = 0) -> tuple[float, float] | None:
    """Distance of neighbouring rows and columns; None where the file does not say.

    PixelSpacing; else ImagerPixelSpacing, at the detector, divided by the estimated magnification where that is
    given; else an ultrasound's calibrated regions, if all are two-dimensional and agree.

    Source: DICOM PS3.3, 10.7.1.3, C.8.7.1.1 and C.8.5.5.
    """
    spacing = _positive_pair(numbers_of(frame_group(header, "PixelMeasuresSequence", frame), "PixelSpacing"))
    if spacing is None and (imager := _positive_pair(numbers_of(header, "ImagerPixelSpacing"))):
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
        # Centimetres; a delta is negative where its axis runs up or to the left.
        found.add(
            _positive_pair(tuple(10 * abs(d) for d in deltas)) if flat and units == {_CENTIMETRES} else None
        )
    return found.pop() if len(found) == 1 else None


def _positive_pair(numbers: tuple[float, ...]) -> tuple[float, float] | None:
    return (numbers[0], numbers[1]) if len(numbers) == 2 and min(numbers) > 0 else None


def _plane_directions(header: Dataset, frame: int = 0) -> np.ndarray | None:
    """2×3: unit vectors along a row (of increasing column) and down a column, in patient axes; None where unknown."""
    group = frame_group(header, "PlaneOrientationSequence", frame)
    vectors = np.array(numbers_of(group, "ImageOrientationPatient"))
    if vectors.size != 6:
        return None
    vectors = vectors.reshape(2, 3)
    if not np.allclose(vectors @ vectors.T, np.eye(2), atol=1e-3):
        return None
    return vectors


def _position_mm(header: Dataset, frame: int = 0) -> np.ndarray | None:
    """Centre of the first pixel in patient axes (left, posterior, superior); None where unknown."""
    position = numbers_of(frame_group(header, "PlanePositionSequence", frame), "ImagePositionPatient")
    return np.array(position) if len(position) == 3 else None


def _thickness_mm(header: Dataset, frame: int = 0) -> float | None:
    thickness = numbers_of(frame_group(header, "PixelMeasuresSequence", frame), "SliceThickness")
    return thickness[0] if thickness and thickness[0] > 0 else None


def _affine_of(
    spacing_mm: tuple[float, float] | None,
    plane: np.ndarray | None,
    positions: list[np.ndarray],
    *,
    thickness_mm: float | None,
) -> tuple[np.ndarray | None, float | None]:
    """From (column, row, slice, 1) to millimetres, and the slice spacing; None for what is not known.

    Args:
        spacing_mm: of rows and columns.
        plane: as `_plane_directions` gives it, the same for all slices.
        positions: of the slices, in their order; evenly spaced, or there is no affine.
        thickness_mm: of a single slice, which no neighbour tells a distance from; without it its axis has length 1.
    """
    if spacing_mm is None or plane is None or not positions:
        return None, None
    normal = np.cross(plane[0], plane[1])
    step, slice_spacing = normal * (thickness_mm or 1.0), None
    if len(positions) > 1:
        steps = np.diff(np.array(positions), axis=0)
        step = steps.mean(axis=0)
        slice_spacing = float(abs(step @ normal))
        # A file's own frames may lie anywhere (an angiography's all in one place): no error, but no affine either.
        if slice_spacing < _SAME_PLACE_MM or np.abs(steps - step).max() > _TOLERANCE * slice_spacing:
            return None, None
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = plane[0] * spacing_mm[1], plane[1] * spacing_mm[0]
    affine[:3, 2], affine[:3, 3] = step, positions[0]
    return affine, slice_spacing
