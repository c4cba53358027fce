"""Writes what was predicted of one input, and its record: a line of predictions.jsonl.

A line is appended as soon as the input's files are complete, and read again to go on after an interruption.
"""

from __future__ import annotations

import errno
import json
import os
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import IO, Any

import numpy as np

from runtime.predict.inputs import PredictionInput
from runtime.predictor import Prediction, Predictor
from runtime.promptable import PromptPredictor
from segcore.errors import InputError, reading
from segcore.measure.masks import count_pixels, measure_scan
from segcore.medical.dicom.series import SeriesFiles
from segcore.medical.mask_files import MaskFormat, write_masks
from segcore.outfolder import sole_user
from segcore.picture.overlay import overlay
from segcore.picture.png import encode_png
from segcore.picture.scan import Scan

PREDICTIONS_FILE = "predictions.jsonl"

# The place to write is at fault and not the input: the run stops, and goes on when that is mended.
_FATAL_ERRNOS = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.EIO,
    errno.ESTALE,
}


@dataclass(frozen=True)
class Outputs:
    """What is written of each input.

    Attributes:
        formats: of the masks: png, nifti, dicom-seg, json.
        overlays: draw the masks over the pictures, too.
        measurements: measure the masks; areas in pixels are counted in any case.
        reference_class: class that the others' areas are given as a share of.
        deidentify: read DICOM headers without what identifies the patient.
    """

    formats: tuple[MaskFormat, ...] = ("png",)
    overlays: bool = True
    measurements: bool = True
    reference_class: str | None = None
    deidentify: bool = False


@dataclass(frozen=True)
class ScanPrediction:
    """What was predicted of an input.

    Attributes:
        input: what was given.
        scan: what was read of it.
        predictions: of its slices; their probabilities are let go.
        maker: the model that drew the masks, or some of them.
        shown: a single picture's pixels as they are looked at, if they are at hand; else the file is read again.
        prompted: class that a user's prompt was for; "" for an automatic answer.
        details: more for the record, JSON values.
    """

    input: PredictionInput
    scan: Scan
    predictions: tuple[Prediction, ...]
    maker: Predictor | PromptPredictor
    shown: np.ndarray | None = None
    prompted: str = ""
    details: dict[str, Any] = field(default_factory=dict)


def write_prediction(prediction: ScanPrediction, folder: Path, outputs: Outputs) -> dict[str, Any]:
    """Writes masks and overlays; gives the input's record, which is `failure_record`'s where it cannot be written.

    Raises:
        OSError: the disk is full, or the folder cannot be written to, or is gone.
    """
    try:
        return _write_files(prediction, folder, outputs)
    except Exception as error:
        if isinstance(error, OSError) and (error.errno in _FATAL_ERRNOS or not folder.is_dir()):
            raise
        return failure_record(prediction.input, error, outputs)


def failure_record(input_: PredictionInput, error: Exception, outputs: Outputs) -> dict[str, Any]:
    """The record of an input that could not be used."""
    if isinstance(error, InputError):
        text = str(error)
    elif isinstance(error, MemoryError):
        text = f"image {input_.shown}: must fit into memory, does not; shrink it, or use a machine with more"
    elif isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        text = (
            f"image {input_.shown}: must have a shorter name, those of its outputs are too long for this disk"
        )
    elif isinstance(error, OSError):
        text = f"image {input_.shown}: must be readable, is not ({error.strerror or type(error).__name__})"
    else:  # no message: a library's may quote what a header holds
        last = traceback.extract_tb(error.__traceback__)[-1]
        text = (
            f"image {input_.shown}: must be read and segmented, our code failed "
            f"({type(error).__name__} at {Path(last.filename).name}:{last.lineno}); please report it"
        )
    return {"case": input_.case, "error": _shown_text(text, input_, outputs)}


def _shown_text(text: str, input_: PredictionInput, outputs: Outputs) -> str:
    """An error or a remark with the input as it is called here, and with `deidentify` without any file's name."""
    if input_.shown != str(input_.path):
        text = text.replace(str(input_.path), input_.shown)
    if outputs.deidentify:
        place = input_.path.folder if isinstance(input_.path, SeriesFiles) else input_.path
        inside = [path.name for path in place.rglob("*")] if place.is_dir() else []
        for name in sorted([place.name, *inside], key=len, reverse=True):
            text = text.replace(name, input_.shown if name == place.name else "a file")
    return text


def _write_files(prediction: ScanPrediction, folder: Path, outputs: Outputs) -> dict[str, Any]:
    input_, scan, maker = prediction.input, prediction.scan, prediction.maker
    if outputs.deidentify:
        scan = replace(scan, name=input_.case)
    masks = np.stack([each.mask for each in prediction.predictions])
    measured = _measure_masks(scan, masks, maker.manifest.classes, outputs)
    record = _build_record(prediction, masks, measured)
    place = PurePosixPath("masks", input_.case)
    (folder / place.parent).mkdir(parents=True, exist_ok=True)
    written = write_masks(
        folder / place.parent,
        place.name,
        scan,
        masks,
        maker.manifest,
        outputs.formats,
        details={name: record[name] for name in ("measurements", "quality", "quality_min", "total_ms")}
        | prediction.details,
        bundle_sha256=maker.bundle.sha256,
        prompted=(prediction.prompted,) if prediction.prompted else (),
    )
    files: dict[str, str] = {}
    for form, paths in written.files.items():
        numbered = form == "png" and scan.slices > 1  # a folder of a file a slice
        files[form] = str(place if numbered else place.parent / paths[0])
    record |= {"mask": next(iter(files.values())), "files": files}
    if written.remarks:
        record["remarks"] = [_shown_text(remark, input_, outputs) for remark in written.remarks]
    if written.failed:
        record["not_written"] = {
            form: _shown_text(text, input_, outputs) for form, text in written.failed.items()
        }
    if outputs.overlays:
        overlay_path = f"overlays/{input_.case}" + (".png" if scan.slices == 1 else "")
        try:
            _draw_overlays(prediction, masks, folder / overlay_path)
            record["overlay"] = overlay_path
        except Exception as error:
            if isinstance(error, OSError) and error.errno in _FATAL_ERRNOS:
                raise
            told = failure_record(input_, error, outputs)["error"]
            record["not_written"] = {**record.get("not_written", {}), "overlay": told}
    return record


def _draw_overlays(prediction: ScanPrediction, masks: np.ndarray, path: Path) -> None:
    """One picture, or a folder of a picture a slice."""
    files = [path] if len(masks) == 1 else [path / f"{n:04d}.png" for n in range(1, len(masks) + 1)]
    files[0].parent.mkdir(parents=True, exist_ok=True)
    for index, (mask, file) in enumerate(zip(masks, files, strict=True)):
        picture = prediction.scan.display(index) if prediction.shown is None else prediction.shown
        file.write_bytes(encode_png(overlay(picture, mask), filter="up"))


def _measure_masks(
    scan: Scan, masks: np.ndarray, classes: Sequence[str], outputs: Outputs
) -> list[dict[str, Any]]:
    if not outputs.measurements:
        return []
    found = measure_scan(scan, masks, classes, reference=outputs.reference_class)
    return [measurement.model_dump(mode="json") for measurement in found]


def _build_record(
    prediction: ScanPrediction, masks: np.ndarray, measured: list[dict[str, Any]]
) -> dict[str, Any]:
    predictions, maker, classes = prediction.predictions, prediction.maker, prediction.maker.manifest.classes
    counts = count_pixels(masks, classes)
    qualities = [each.quality for each in predictions if each.quality is not None]
    first = [each.first_quality for each in predictions if each.first_quality is not None]
    spacing = prediction.scan.spacing_mm
    milliseconds = {
        name: round(sum(getattr(each.timings, name) for each in predictions), 3)
        for name in ("pre_ms", "engine_ms", "post_ms", "total_ms")
    }
    return {
        "case": prediction.input.case,
        "mask": "",
        "overlay": None,
        "files": {},
        "height_px": masks.shape[1],
        "width_px": masks.shape[2],
        "slices": len(masks),
        "spacing_mm": None if spacing is None else list(spacing),
        "slice_spacing_mm": prediction.scan.slice_spacing_mm,
        "area_px": {name: int(count) for name, count in zip(classes, counts, strict=True)},
        "measurements": measured,
        "quality": round(sum(qualities) / len(qualities), 4) if qualities else None,
        "quality_min": round(min(qualities), 4) if qualities else None,
        "deferred": bool(first),
        "first_quality": round(min(first), 4) if first else None,
        "model": maker.manifest.name,
        "bundle_sha256": maker.bundle.sha256,
        **milliseconds,
        "engine": f"{maker.engine_name} {maker.engine_version}",
        **prediction.details,
    }


# --- predictions.jsonl: a line an input ---


class RecordFile:
    """predictions.jsonl, opened to go on with. A line is either whole or, after a kill, the last and without its end.

    Attributes:
        done: cases that have a line.
        failed: how many of them could not be used.
        incomplete: how many of them lack a file that was asked for.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.done: set[str] = set()
        self.failed = self.incomplete = 0
        whole = 0
        for line in file:
            if not line.endswith(b"\n"):  # torn by a kill while it was written: its input is done again
                break
            record = json.loads(line)
            if not isinstance(record, dict) or not isinstance(record.get("case"), str):
                raise ValueError("a line without a case")
            self._count_record(record)
            whole += len(line)
        file.truncate(whole)
        file.seek(whole)

    def add(self, record: dict[str, Any]) -> None:
        """Appends a record; the file has it when this returns."""
        if record["case"] in self.done:
            raise ValueError(f"a case must have one record, got another of {record['case']}")
        if not os.fstat(self._file.fileno()).st_nlink:
            raise InputError(
                f"{self._file.name}: must stay there while it is written, was removed; run the same command again"
            )
        self._file.write(json.dumps(record).encode() + b"\n")
        self._file.flush()  # to the system: what kills this process does not take the line with it
        self._count_record(record)

    def _count_record(self, record: dict[str, Any]) -> None:
        self.done.add(record["case"])
        self.failed += "error" in record
        self.incomplete += "not_written" in record


@contextmanager
def open_records(folder: Path) -> Iterator[RecordFile]:
    """Opens `folder`/predictions.jsonl to go on with it; a torn last line is cut off.

    Raises:
        InputError: another run is writing it, or it is damaged.
    """
    path = folder / PREDICTIONS_FILE
    path.touch()
    with sole_user(path, str(path)), path.open("rb+") as file:
        with reading(str(path), "one with records of this command", remedy=f"remove {folder}", quoted=False):
            records = RecordFile(file)
        yield records


def read_records(folder: Path) -> Iterator[dict[str, Any]]:
    """The records of a finished folder, in the order in which they were completed."""
    with (folder / PREDICTIONS_FILE).open("rb") as file:
        for line in file:
            yield json.loads(line)
