"""Many uploaded files at once: progress, a table for the page, and one ZIP of masks, records and a spreadsheet."""

from __future__ import annotations

import csv
import io
import json
import shutil
import time
import zipfile
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

from demo.session.trust import light_of
from runtime.predict.files import predict_files
from runtime.predict.inputs import PredictionInput, name_inputs
from runtime.predict.write import Outputs
from runtime.predictor import Predictor
from segcore.errors import InputError
from segcore.measure.masks import ClassMeasurements, VolumeMeasurements, describe
from segcore.medical.dicom.file import is_dicom
from segcore.medical.dicom.series import SeriesFiles
from segcore.medical.mask_files import MaskFormat

ZIP_NAME = "sam2edge-masks.zip"
SHOWN_ROWS = 30
"""Rows of the table while the batch runs: the newest; the last progress has all."""
_EVERY_S = 0.25
_HEAD_BYTES = 132
_PACKED = (".png", ".gz")
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")


@dataclass(frozen=True)
class BatchProgress:
    """How far a batch is.

    Attributes:
        done: files finished, failed ones too.
        total: files.
        failed: of those done, how many could not be used.
        name: the file finished last; "" before the first.
        table: heading row and a row a file; the newest `SHOWN_ROWS` of those done, all of them with the ZIP.
        zip_path: masks, table.csv and predictions.jsonl; None until the batch is done.
    """

    done: int
    total: int
    failed: int
    name: str
    table: list[list[str]]
    zip_path: Path | None = None


def run_batch(
    predictor: Predictor,
    paths: Sequence[Path],
    folder: Path,
    formats: Sequence[str] = ("png",),
    *,
    reference: str | None = None,
) -> Iterator[BatchProgress]:
    """Segments files and packs their masks; a file that cannot be used becomes a row with words and ends nothing.

    Args:
        predictor: the opened model; nobody else uses it meanwhile.
        paths: each a file, or a folder that is one DICOM series. Messages name their last part only.
        folder: made if it is not there; holds the ZIP at the end, and nothing else.
        formats: of the masks: png, nifti, dicom-seg, json. A file that is no DICOM is written in the others.
        reference: the class that predictions.jsonl gives the others' areas as a share of.

    Yields:
        Before the first file, a few times a second, and once with the ZIP.

    Raises:
        InputError: no file, no format or an unknown one, or a disk that is full.
    """
    wanted = _checked_formats(paths, formats)
    try:
        yield from _run_inputs(
            predictor, paths, folder, Outputs(wanted, overlays=False, reference_class=reference)
        )
    except OSError as error:  # a file that cannot be read is a row; this is where the masks go
        raise InputError(
            f"masks: must be written, the disk refuses ({error.strerror}); free some space and start again"
        ) from None


def _run_inputs(
    predictor: Predictor, paths: Sequence[Path], folder: Path, outputs: Outputs
) -> Iterator[BatchProgress]:
    classes = predictor.manifest.classes
    inputs = name_inputs(paths)
    order = {input_.case: n for n, input_ in enumerate(inputs)}
    folder.mkdir(parents=True, exist_ok=True)
    records: dict[str, dict[str, Any]] = {}

    def progress(name: str, cases: Sequence[str], zip_path: Path | None = None) -> BatchProgress:
        rows = [page_row(inputs[order[case]].shown, records[case], classes) for case in cases]
        failed = sum("error" in record for record in records.values())
        return BatchProgress(len(records), len(inputs), failed, name, [page_head(classes), *rows], zip_path)

    yield progress("", ())
    said = time.monotonic()
    with closing(_predict_inputs(predictor, inputs, folder, outputs)) as found:
        for record in found:
            case = record["case"]
            records[case] = record
            if time.monotonic() - said > _EVERY_S:
                said = time.monotonic()
                yield progress(inputs[order[case]].shown, list(records)[-SHOWN_ROWS:])
    in_order = sorted(records, key=order.__getitem__)
    names = [inputs[order[case]].shown for case in in_order]
    zip_path = _pack_zip(folder, names, [records[case] for case in in_order], classes)
    yield progress(names[-1], in_order, zip_path)


def _checked_formats(paths: Sequence[Path], formats: Sequence[str]) -> tuple[MaskFormat, ...]:
    if not paths:
        raise InputError("files: must be at least one, got none; choose files")
    if not formats:
        raise InputError("masks as: must be at least one format, got none; choose one")
    known = get_args(MaskFormat)
    if unknown := sorted(set(formats) - set(known)):
        raise InputError(f"masks as: must be of {', '.join(known)}, got {unknown[0]}")
    return tuple(key for key in known if key in formats)


def _predict_inputs(
    predictor: Predictor, inputs: Sequence[PredictionInput], folder: Path, outputs: Outputs
) -> Generator[dict[str, Any], None, None]:
    """Records of all inputs: DICOM files first where only they can be written as wanted.

    So a batch of both is asked for in two runs, each in the formats that it can give.
    """
    if "dicom-seg" not in outputs.formats:
        yield from predict_files(predictor, inputs, folder, outputs)
        return
    dicom, others = list[PredictionInput](), list[PredictionInput]()
    for input_ in inputs:
        is_dicom = isinstance(input_.path, SeriesFiles) or _looks_like_dicom(input_.path)
        (dicom if is_dicom else others).append(input_)
    if dicom:
        yield from predict_files(predictor, dicom, folder, outputs)
    left = tuple(key for key in outputs.formats if key != "dicom-seg")
    if others and left:
        yield from predict_files(predictor, others, folder, replace(outputs, formats=left))
    elif others:
        for input_ in others:
            words = "must be DICOM for a DICOM segmentation, is not; choose another format, too"
            yield {"case": input_.case, "error": f"image {input_.shown}: {words}"}


def _looks_like_dicom(path: Path) -> bool:
    """A folder is a DICOM series."""
    try:
        with path.open("rb") as file:
            return is_dicom(file.read(_HEAD_BYTES))
    except IsADirectoryError:
        return True
    except OSError:
        return False


def _pack_zip(
    folder: Path, names: Sequence[str], records: Sequence[dict[str, Any]], classes: Sequence[str]
) -> Path:
    """One ZIP of everything in the folder and the two tables; what it holds is removed."""
    target, masks = folder / ZIP_NAME, folder / "masks"
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("table.csv", csv_table(names, records, classes).encode("utf-8-sig"))  # for Excel
        archive.writestr("predictions.jsonl", "".join(f"{json.dumps(record)}\n" for record in records))
        for path in sorted(p for p in masks.rglob("*") if p.is_file()):
            packed = zipfile.ZIP_STORED if path.suffix in _PACKED else zipfile.ZIP_DEFLATED
            archive.write(path, path.relative_to(folder).as_posix(), compress_type=packed)
    shutil.rmtree(masks, ignore_errors=True)
    return target


# The records as rows: of words for the page, of plain numbers for a spreadsheet.


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
    return [name, str(record["slices"]), size, _light_words(record), *extents, _remarks(record)]


def _remarks(record: Mapping[str, Any]) -> str:
    """What could not be written of a file that was segmented, and what is to be known of it."""
    return "; ".join([*record.get("not_written", {}).values(), *record.get("remarks", ())])


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
    return [*cells, record["model"], record["engine"], record["total_ms"], record["mask"], _remarks(record)]


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
