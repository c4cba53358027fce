"""Measurements as a reader wants them: a label and a text each, three figures, a unit."""

from __future__ import annotations

from segcore.measure.ellipse import Ellipse
from segcore.measure.masks import ClassMeasurements, VolumeMeasurements
from segcore.words import figures

UNKNOWN = "(spacing unknown)"
CUT_OFF = "touches the picture's edge; what lies beyond it is not measured"
CUT_OFF_ENDS = "goes through the first or last slice; what lies beyond them is not measured"


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
    return f"{figures(area)} mm²" if _rounded(area) < 1000 else f"{figures(area / 100)} cm²"


def length_text(length: float, unit: str) -> str:
    """12.3 mm, or 12.3 px (spacing unknown)."""
    return f"{figures(length)} {unit}" + (f" {UNKNOWN}" if unit == "px" else "")


def volume_text(volume: float, unit: str) -> str:
    """12.3 mm³, 12.3 ml, 1.23 l, or 1234 voxels (spacing unknown)."""
    if unit == "voxel":
        return f"{volume:.0f} voxels {UNKNOWN}"
    if _rounded(volume) >= 1000:
        return f"{figures(volume / 1000)} l"
    return f"{figures(volume)} ml" if _rounded(volume) >= 0.1 else f"{figures(1000 * volume)} mm³"


def _rounded(value: float) -> float:
    return float(f"{value:.2e}")
