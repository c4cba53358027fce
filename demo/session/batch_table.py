"""A batch's records as rows: of words for the page, of plain numbers for a spreadsheet."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from demo.session.traffic_light import light_of
from segcore.measure.masks import ClassMeasurements, VolumeMeasurements, describe

_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")


def page_head(classes: Sequence[str]) -> list[str]:
    """Headings of `page_row`."""
    return ["File", "Slices", "Size", "Light", *classes, "Problem"]


def page_row(name: str, record: Mapping[str, Any], classes: Sequence[str]) -> list[str]:
    """One file in words: name, slices, size, quality light, area (volume of a series) of each class, what went wrong.

    Args:
        name: the file's own.
        record: of `runtime.predict.files`.
        classes: the model's.
    """
    if "error" in record:
        return [name, *["–"] * (3 + len(classes)), record["error"]]
    size = f"{record['width_px']} × {record['height_px']}"
    extents = [describe(one)[0][1] for one in _read_measurements(record)]
    return [name, str(record["slices"]), size, _light_words(record), *extents, ""]


def _light_words(record: Mapping[str, Any]) -> str:
    quality = record["quality_min"]
    if quality is None:
        return "–"
    light = light_of(quality)
    worst = " in the worst slice" if record["slices"] > 1 else ""
    return f"{light.colour.capitalize()}: {light.word} (expected Dice {quality:.2f}{worst})"


def csv_table(names: Sequence[str], records: Sequence[Mapping[str, Any]], classes: Sequence[str]) -> str:
    """The batch as CSV: numbers without units, which stand in columns of their own; equal columns for every file.

    Args:
        names: the files' own, in the order of the records.
        records: of `runtime.predict.files`.
        classes: the model's.
    """
    head = [
        "file",
        "slices",
        "height_px",
        "width_px",
        "row_spacing_mm",
        "column_spacing_mm",
        "slice_spacing_mm",
    ]
    head += ["expected_dice", "expected_dice_of_worst_slice", "light"]
    for name in classes:
        head += [
            f"{name} extent",
            f"{name} unit",
            f"{name} longest diameter",
            f"{name} length unit",
            f"{name} parts",
        ]
    stream = io.StringIO()
    writer = csv.writer(stream)
    writer.writerow([safe_cell(cell) for cell in [*head, "model", "engine", "total_ms", "mask", "error"]])
    for name, record in zip(names, records, strict=True):
        writer.writerow([safe_cell(cell) for cell in _csv_row(name, record, classes)])
    return stream.getvalue()


def _csv_row(name: str, record: Mapping[str, Any], classes: Sequence[str]) -> list[Any]:
    if "error" in record:
        return [name, *[""] * (9 + 5 * len(classes) + 4), record["error"]]
    quality = record["quality_min"]
    cells: list[Any] = [name, record["slices"], record["height_px"], record["width_px"]]
    cells += [*(record["spacing_mm"] or ("", "")), record["slice_spacing_mm"], record["quality"], quality]
    cells.append("" if quality is None else light_of(quality).colour)
    for one in _read_measurements(record):
        if isinstance(one, VolumeMeasurements):
            cells += [one.volume, one.unit, one.longest_diameter, one.length_unit, one.parts]
        else:
            cells += [
                one.area,
                "mm2" if one.unit == "mm" else "px",
                one.longest_diameter,
                one.unit,
                one.parts,
            ]
    return [*cells, record["model"], record["engine"], record["total_ms"], record["mask"], ""]


def _read_measurements(record: Mapping[str, Any]) -> list[ClassMeasurements | VolumeMeasurements]:
    found: list[ClassMeasurements | VolumeMeasurements] = []
    for one in record["measurements"]:
        model = VolumeMeasurements if "voxels" in one else ClassMeasurements
        found.append(model.model_validate(one))
    return found


def safe_cell(value: Any) -> Any:
    """A cell that a spreadsheet takes for text: what looks like a formula gets an apostrophe; None is empty.

    Source: OWASP, "CSV Injection".
    """
    if isinstance(value, str) and value.startswith(_FORMULA):
        return f"'{value}"
    return "" if value is None else value
