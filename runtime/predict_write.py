"""Writes what was predicted of one input, and makes its record: a line of predictions.jsonl."""

from __future__ import annotations

import errno
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from runtime.predict_inputs import Input
from runtime.prediction import Prediction
from runtime.predictor import Predictor
from runtime.promptable import PromptPredictor
from segcore.errors import InputError
from segcore.medical.mask_files import MaskFormat, write_masks
from segcore.overlay import overlay
from segcore.scan import Scan
from segcore.scan_measurements import measure_scan

# The place to write is at fault and not the input: the run stops, and goes on when that is mended.
_FATAL = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.EIO,
    errno.ESTALE,
}
_OVERLAY_PACKING = 1
"""zlib's level: an overlay of 512 px takes a third of the time of Pillow's 6, and is a tenth larger."""


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
class Answer:
    """What was predicted of an input.

    Attributes:
        item: the input.
        scan: what was read of it.
        predictions: of its slices; their probabilities are let go.
        maker: the model that drew the masks, or some of them.
        shown: a single picture's pixels as they are looked at, if they are at hand; else the file is read again.
        prompted: class that a user's prompt was for; "" for an automatic answer.
        details: more for the record, JSON values.
    """

    item: Input
    scan: Scan
    predictions: tuple[Prediction, ...]
    maker: Predictor | PromptPredictor
    shown: np.ndarray | None = None
    prompted: str = ""
    details: dict[str, Any] = field(default_factory=dict)


def write_answer(answer: Answer, folder: Path, outputs: Outputs) -> dict[str, Any]:
    """Writes masks and overlays; gives the input's record, which is `failure`'s where it cannot be written.

    Raises:
        OSError: the disk is full, or the folder cannot be written to.
    """
    try:
        return _write(answer, folder, outputs)
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _FATAL:
            raise
        return failure(answer.item, error, outputs)


def failure(item: Input, error: Exception, outputs: Outputs) -> dict[str, Any]:
    """The record of an input that could not be used."""
    if isinstance(error, InputError):
        text = str(error)
    elif isinstance(error, MemoryError):
        text = f"image {item.shown}: must fit into memory, does not; shrink it, or use a machine with more"
    elif isinstance(error, OSError):
        text = f"image {item.shown}: must be readable, is not ({error.strerror or type(error).__name__})"
    else:  # no message: a library's may quote what a header holds
        last = traceback.extract_tb(error.__traceback__)[-1]
        text = (
            f"image {item.shown}: must be read and segmented, our code failed "
            f"({type(error).__name__} at {Path(last.filename).name}:{last.lineno}); please report it"
        )
    if item.shown != str(item.path):
        text = text.replace(str(item.path), item.shown)
    if outputs.deidentify:
        inside = [path.name for path in item.path.rglob("*")] if item.path.is_dir() else []
        for name in sorted([item.path.name, *inside], key=len, reverse=True):
            text = text.replace(name, item.shown if name == item.path.name else "a file")
    return {"case": item.case, "error": text}


def _write(answer: Answer, folder: Path, outputs: Outputs) -> dict[str, Any]:
    item, scan, maker = answer.item, answer.scan, answer.maker
    if "dicom-seg" in outputs.formats and scan.kind != "dicom":
        raise InputError(
            f"image {item.shown}: must be DICOM for --to dicom-seg, which refers to its source, is not; use --to nifti"
        )
    if outputs.deidentify:
        scan = replace(scan, name=item.case)
    masks = np.stack([one.mask for one in answer.predictions])
    measured = _measured(scan, masks, maker.manifest.classes, outputs)
    record = _record(answer, masks, measured)
    place = PurePosixPath("masks", item.case)
    (folder / place.parent).mkdir(parents=True, exist_ok=True)
    written = write_masks(
        folder / place.parent,
        place.name,
        scan,
        masks,
        maker.manifest,
        outputs.formats,
        details={name: record[name] for name in ("measurements", "quality", "quality_min", "total_ms")}
        | answer.details,
        bundle_sha256=maker.bundle.sha256,
        prompted=(answer.prompted,) if answer.prompted else (),
    )
    files: dict[str, str] = {}
    for form, paths in written.items():
        numbered = form == "png" and scan.slices > 1  # a folder of a file a slice
        files[form] = str(place if numbered else place.parent / paths[0])
    record |= {"mask": next(iter(files.values())), "files": files}
    if outputs.overlays:
        record["overlay"] = f"overlays/{item.case}" + (".png" if scan.slices == 1 else "")
        _draw(answer, masks, folder / record["overlay"])
    return record


def _draw(answer: Answer, masks: np.ndarray, path: Path) -> None:
    """One picture, or a folder of a picture a slice."""
    files = [path] if len(masks) == 1 else [path / f"{n:04d}.png" for n in range(1, len(masks) + 1)]
    files[0].parent.mkdir(parents=True, exist_ok=True)
    for index, (mask, file) in enumerate(zip(masks, files, strict=True)):
        picture = answer.scan.display(index) if answer.shown is None else answer.shown
        Image.fromarray(overlay(picture, mask)).save(file, compress_level=_OVERLAY_PACKING)


def _measured(
    scan: Scan, masks: np.ndarray, classes: Sequence[str], outputs: Outputs
) -> list[dict[str, Any]]:
    if not outputs.measurements:
        return []
    found = measure_scan(scan, masks, classes, reference=outputs.reference_class)
    return [one.model_dump(mode="json") for one in found]


def _record(answer: Answer, masks: np.ndarray, measured: list[dict[str, Any]]) -> dict[str, Any]:
    predictions, maker, classes = answer.predictions, answer.maker, answer.maker.manifest.classes
    counts = np.bincount(masks.ravel(), minlength=len(classes) + 1)
    qualities = [one.quality for one in predictions if one.quality is not None]
    first = [one.first_quality for one in predictions if one.first_quality is not None]
    spacing = answer.scan.spacing_mm
    milliseconds = {
        name: round(sum(getattr(one.timings, name) for one in predictions), 3)
        for name in ("pre_ms", "engine_ms", "post_ms", "total_ms")
    }
    return {
        "case": answer.item.case,
        "mask": "",
        "overlay": None,
        "files": {},
        "height_px": masks.shape[1],
        "width_px": masks.shape[2],
        "slices": len(masks),
        "spacing_mm": None if spacing is None else list(spacing),
        "slice_spacing_mm": answer.scan.slice_spacing_mm,
        "area_px": {name: int(counts[k]) for k, name in enumerate(classes, start=1)},
        "measurements": measured,
        "quality": round(sum(qualities) / len(qualities), 4) if qualities else None,
        "quality_min": round(min(qualities), 4) if qualities else None,
        "deferred": bool(first),
        "first_quality": round(min(first), 4) if first else None,
        "model": maker.manifest.name,
        **milliseconds,
        "engine": f"{maker.engine_name} {maker.engine_version}",
        **answer.details,
    }
