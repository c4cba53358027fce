"""What a mask measures: areas, diameters, border, ellipse and parts of a picture, volumes of a series; in words, too.

Lengths are in millimetres where the spacing of rows and columns is known, else in pixels, and every measurement says
which. Nothing here corrects what the model drew: the mask is measured as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from segcore.errors import InputError
from segcore.measure.shapes import Ellipse, Runs, filled, find_parts, fit_ellipse, longest_of_parts, perimeter
from segcore.picture.scan import Scan
from segcore.words import figures

LEAST_PART = 10
"""Pixels (in a series: voxels) below which a part is a speck and is not counted, unless told otherwise."""
UNKNOWN = "(spacing unknown)"
CUT_OFF = "touches the picture's edge; what lies beyond it is not measured"
CUT_OFF_ENDS = "goes through the first or last slice; what lies beyond them is not measured"


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ClassMeasurements(_Record):
    """One class in one picture. What cannot be measured is None; of an empty class that is all but area, parts, share.

    Attributes:
        name: of the class.
        unit: of lengths; areas are in its square, where "px" counts pixels as squares of side 1.
        area: of all its pixels, specks too.
        pixels: how many.
        longest_diameter: the largest caliper diameter of any of its parts (not from one part to another).
        short_diameter: of the same part, its extent at a right angle to that.
        perimeter: length of all its borders, those of holes too.
        ellipse: of its largest part, holes filled.
        parts: sets of touching pixels (diagonally, too) of at least `least_part_px` pixels.
        specks: smaller ones.
        least_part_px: what was counted as a part.
        centroid_px: row and column of the mean of its pixels, 0 at the centre of the first.
        touches_border: a pixel lies at the picture's edge: what continues beyond it is not measured.
        reference: the class that `share_of_reference` is of.
        share_of_reference: area of this class / (area of this class + area of the reference), 0–1; see `measure_mask`.
    """

    name: str
    unit: Literal["mm", "px"]
    area: float
    pixels: int
    longest_diameter: float | None = None
    short_diameter: float | None = None
    perimeter: float | None = None
    ellipse: Ellipse | None = None
    parts: int = 0
    specks: int = 0
    least_part_px: int
    centroid_px: tuple[float, float] | None = None
    touches_border: bool = False
    reference: str | None = None
    share_of_reference: float | None = None


class VolumeMeasurements(_Record):
    """One class in a series of slices.

    Attributes:
        name: of the class.
        unit: of `volume`: millilitres, or voxels where a spacing is unknown.
        length_unit: of `longest_diameter`, which lies within a slice.
        volume: of all its voxels, specks too.
        voxels: how many.
        slices: how many show it.
        slices_in_all: of the series.
        longest_diameter: the largest of a part in any slice.
        longest_slice: where that is, from 0.
        parts: sets of touching voxels (at edges and corners, too) of at least `least_part_voxels`.
        specks: smaller ones.
        least_part_voxels: what was counted as a part.
        touches_border: a pixel lies at a slice's edge: what continues beyond it is not measured.
        touches_ends: the first or last slice shows it: it may go on beyond the series.
        reference: the class that `share_of_reference` is of.
        share_of_reference: as in a picture, by volume.
    """

    name: str
    unit: Literal["ml", "voxel"]
    length_unit: Literal["mm", "px"]
    volume: float
    voxels: int
    slices: int
    slices_in_all: int
    longest_diameter: float | None = None
    longest_slice: int | None = None
    parts: int = 0
    specks: int = 0
    least_part_voxels: int
    touches_border: bool = False
    touches_ends: bool = False
    reference: str | None = None
    share_of_reference: float | None = None


def measure_scan(
    scan: Scan, masks: np.ndarray, classes: Sequence[str], *, reference: str | None = None
) -> tuple[ClassMeasurements, ...] | tuple[VolumeMeasurements, ...]:
    """Measures every class, of one slice as areas, of several as volumes; in millimetres where the spacing is known.

    Args:
        scan: whose masks they are.
        masks: class indices, N×H×W.
        classes: names of the K classes.
        reference: the class that shares are of.

    Raises:
        InputError: the reference is none of the classes.
    """
    if scan.slices == 1:
        return measure_mask(masks[0], classes, spacing_mm=scan.spacing_mm, reference=reference)
    return measure_volume(
        masks,
        classes,
        spacing_mm=scan.spacing_mm,
        slice_spacing_mm=scan.slice_spacing_mm,
        reference=reference,
    )


def measure_mask(
    mask: np.ndarray,
    classes: Sequence[str],
    *,
    spacing_mm: tuple[float, float] | None,
    reference: str | None = None,
    least_part_px: int = LEAST_PART,
) -> tuple[ClassMeasurements, ...]:
    """Measures every class of a mask.

    The share of a reference takes the class to lie within it, as a lesion lies in the lung: a pixel has one class, so
    the pixels drawn as lesion are missing in the lung's own, and the whole organ is both together. A lesion outside
    the organ counts as if it were inside; of several classes within one organ each is taken without the others.

    Args:
        mask: class indices, H×W: 0 background, 1…K the classes.
        classes: names of the K classes.
        spacing_mm: distance of neighbouring rows and columns, None where unknown.
        reference: the class that shares are of.
        least_part_px: pixels below which a part is a speck.

    Returns:
        One for each class, in their order.

    Raises:
        InputError: the reference is none of the classes.
    """
    if mask.ndim != 2:
        raise ValueError(f"mask must be H×W, got {mask.shape}")
    shares = _reference_shares(count_pixels(mask, classes), classes, reference)
    return tuple(
        _measure_class(mask == k, name, spacing_mm, least_part_px, *shares[k - 1])
        for k, name in enumerate(classes, start=1)
    )


def measure_volume(
    masks: np.ndarray,
    classes: Sequence[str],
    *,
    spacing_mm: tuple[float, float] | None,
    slice_spacing_mm: float | None,
    reference: str | None = None,
    least_part_voxels: int = LEAST_PART,
) -> tuple[VolumeMeasurements, ...]:
    """Measures every class of a series, each voxel as a box of the three spacings.

    Args:
        masks: class indices, N×H×W, in order of position.
        classes: names of the K classes.
        spacing_mm: distance of neighbouring rows and columns, None where unknown.
        slice_spacing_mm: distance of neighbouring slices, None where unknown.
        reference: the class that shares are of, as in `measure_mask`.
        least_part_voxels: voxels below which a part is a speck.

    Returns:
        One for each class, in their order.

    Raises:
        InputError: the reference is none of the classes.
    """
    if masks.ndim != 3:
        raise ValueError(f"masks must be N×H×W, got {masks.shape}")
    counts = np.stack([count_pixels(mask, classes) for mask in masks])
    voxels = counts.sum(axis=0)
    shares = _reference_shares(voxels, classes, reference)
    voxel_ml = np.prod([*spacing_mm, slice_spacing_mm]) / 1000 if spacing_mm and slice_spacing_mm else None
    found = []
    for k, name in enumerate(classes, start=1):
        shown = np.flatnonzero(counts[:, k - 1])
        sizes = find_parts(mask == k for mask in masks).sizes
        length, where = _longest_slice(masks, shown, k, spacing_mm or (1.0, 1.0))
        found.append(
            VolumeMeasurements(
                name=name,
                unit="ml" if voxel_ml else "voxel",
                length_unit="mm" if spacing_mm else "px",
                volume=float(voxels[k - 1] * (voxel_ml or 1.0)),
                voxels=int(voxels[k - 1]),
                slices=len(shown),
                slices_in_all=len(masks),
                longest_diameter=length,
                longest_slice=where,
                parts=int((sizes >= least_part_voxels).sum()),
                specks=int((sizes < least_part_voxels).sum()),
                least_part_voxels=least_part_voxels,
                touches_border=any(_touches_edge(masks[i] == k) for i in shown),
                touches_ends=bool({0, len(masks) - 1} & set(shown.tolist())),
                reference=shares[k - 1][0],
                share_of_reference=shares[k - 1][1],
            )
        )
    return tuple(found)


def describe(measured: ClassMeasurements | VolumeMeasurements) -> list[tuple[str, str]]:
    """The measurements of one class as (label, text), in the order to show them; what is not known is left out.

    Three significant figures; pixels and voxels are counted exactly; cm² from 1000 mm², litres from 1000 ml, mm³
    below 0.1 ml.
    """
    lines = _volume_lines(measured) if isinstance(measured, VolumeMeasurements) else _area_lines(measured)
    if measured.share_of_reference is not None:
        share = f"{figures(100 * measured.share_of_reference)} %"
        whole = f"(of {measured.reference} and {measured.name} together)"
        lines.append((f"Share of {measured.reference}", f"{share} {whole}"))
    if measured.touches_border:
        lines.append(("Cut off", CUT_OFF))
    if isinstance(measured, VolumeMeasurements) and measured.touches_ends:
        lines.append(("Cut off", CUT_OFF_ENDS))
    return lines


# Measuring.


def count_pixels(mask: np.ndarray, classes: Sequence[str]) -> np.ndarray:
    """How many pixels each of the K classes has.

    Args:
        mask: class indices of any shape, uint8.
        classes: names of the K classes.

    Returns:
        K whole numbers.
    """
    if (largest := int(mask.max(initial=0))) > len(classes):
        raise ValueError(f"mask must hold class indices up to {len(classes)}, got {largest}")
    # Faster than `bincount`, which makes an 8-byte number of each pixel, for all but very many classes.
    return np.array([np.count_nonzero(mask == k) for k in range(1, len(classes) + 1)])


def _measure_class(
    mask: np.ndarray,
    name: str,
    spacing_mm: tuple[float, float] | None,
    least_part_px: int,
    reference: str | None,
    share: float | None,
) -> ClassMeasurements:
    spacing = spacing_mm or (1.0, 1.0)
    found = find_parts([mask])
    if not found.count:
        return ClassMeasurements(
            name=name,
            unit="mm" if spacing_mm else "px",
            area=0.0,
            pixels=0,
            least_part_px=least_part_px,
            reference=reference,
            share_of_reference=share,
        )
    sizes, length = found.sizes, found.length
    pixels = int(length.sum())
    longest, short = longest_of_parts(found, spacing)
    return ClassMeasurements(
        name=name,
        unit="mm" if spacing_mm else "px",
        area=float(pixels * spacing[0] * spacing[1]),
        pixels=pixels,
        longest_diameter=longest,
        short_diameter=short,
        perimeter=perimeter(mask, spacing),
        ellipse=_fit_part(found, int(sizes.argmax()), spacing),
        parts=int((sizes >= least_part_px).sum()),
        specks=int((sizes < least_part_px).sum()),
        least_part_px=least_part_px,
        centroid_px=(
            float(found.row @ length) / pixels,
            float((found.start + found.end - 1) @ length) / (2 * pixels),
        ),
        touches_border=_touches_edge(mask),
        reference=reference,
        share_of_reference=share,
    )


def _fit_part(found: Runs, part: int, spacing: tuple[float, float]) -> Ellipse | None:
    picture, (top, left) = found.picture(part)
    fitted = fit_ellipse(filled(picture), spacing)
    if fitted is None:
        return None
    row, column = fitted.centre_px
    return fitted.model_copy(update={"centre_px": (row + top, column + left)})


def _touches_edge(mask: np.ndarray) -> bool:
    return bool(mask[0].any() or mask[-1].any() or mask[:, 0].any() or mask[:, -1].any())


def _reference_shares(
    pixels: np.ndarray, classes: Sequence[str], reference: str | None
) -> list[tuple[str | None, float | None]]:
    """For each class, what its share is of and the share; none for the reference itself."""
    if reference is None:
        return [(None, None)] * len(classes)
    if reference not in classes:
        raise InputError(f"reference: must be one of {', '.join(classes)}, got {reference}")
    whole = pixels + pixels[classes.index(reference)]
    return [
        (None, None) if name == reference else (reference, float(own / both) if both else None)
        for name, own, both in zip(classes, pixels, whole, strict=True)
    ]


def _longest_slice(
    masks: np.ndarray, shown: np.ndarray, k: int, spacing: tuple[float, float]
) -> tuple[float | None, int | None]:
    best: tuple[float, int | None] = 0.0, None
    for index in shown:
        # Most slices are passed over by their boxes alone, which cannot hold a longer diameter.
        length, _ = longest_of_parts(find_parts([masks[index] == k]), spacing, above=best[0])
        if length > best[0]:
            best = length, int(index)
    return (None, None) if best[1] is None else best


# In words: a label and a text each, three figures, a unit.


def _area_lines(measured: ClassMeasurements) -> list[tuple[str, str]]:
    if not measured.pixels:
        return [("Area", "none found")]
    unit = measured.unit
    lines = [("Area", area_text(measured.area, unit))]
    for label, length in (
        ("Longest diameter", measured.longest_diameter),
        ("Across it", measured.short_diameter),
        ("Perimeter", measured.perimeter),
    ):
        if length is not None:
            lines.append((label, length_text(length, unit)))
    if measured.ellipse:
        lines += _ellipse_lines(measured.ellipse, unit)
    return [*lines, ("Parts", _parts_text(measured.parts, measured.specks, measured.least_part_px, "px"))]


def _ellipse_lines(ellipse: Ellipse, unit: str) -> list[tuple[str, str]]:
    axes = f"{figures(ellipse.long_axis)} × {length_text(ellipse.short_axis, unit)}"
    return [("Ellipse, axes", axes), ("Ellipse, circumference", length_text(ellipse.circumference, unit))]


def _volume_lines(measured: VolumeMeasurements) -> list[tuple[str, str]]:
    if not measured.voxels:
        return [("Volume", "none found")]
    lines = [("Volume", volume_text(measured.volume, measured.unit))]
    lines.append(("Slices", f"{measured.slices} of {measured.slices_in_all}"))
    if measured.longest_diameter is not None and measured.longest_slice is not None:
        length = length_text(measured.longest_diameter, measured.length_unit)
        lines.append(("Longest diameter in a slice", f"{length}, slice {measured.longest_slice + 1}"))
    parts = _parts_text(measured.parts, measured.specks, measured.least_part_voxels, "voxels")
    return [*lines, ("Parts", parts)]


def _parts_text(parts: int, specks: int, least: int, unit: str) -> str:
    return f"{parts}" if not specks else f"{parts}, and {specks} smaller than {least} {unit}"


def area_text(area: float, unit: str) -> str:
    """123 mm², 12.3 cm², or 1234 px (spacing unknown)."""
    if unit == "px":
        return f"{area:.0f} px {UNKNOWN}"
    return f"{figures(area)} mm²" if _three_figures(area) < 1000 else f"{figures(area / 100)} cm²"


def length_text(length: float, unit: str) -> str:
    """12.3 mm, or 12.3 px (spacing unknown)."""
    return f"{figures(length)} {unit}" + (f" {UNKNOWN}" if unit == "px" else "")


def volume_text(volume: float, unit: str) -> str:
    """12.3 mm³, 12.3 ml, 1.23 l, or 1234 voxels (spacing unknown)."""
    if unit == "voxel":
        return f"{volume:.0f} voxels {UNKNOWN}"
    if _three_figures(volume) >= 1000:
        return f"{figures(volume / 1000)} l"
    return f"{figures(volume)} ml" if _three_figures(volume) >= 0.1 else f"{figures(1000 * volume)} mm³"


def _three_figures(value: float) -> float:
    """As it will be shown, so that 999.9 mm² does not become 1000 mm² beside 10.0 cm²."""
    return float(f"{value:.2e}")
