"""The mask files that a reader may take along, under names that say nothing about a patient."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np

from segcore.bundle.manifest import Manifest
from segcore.errors import InputError
from segcore.measure.masks import measure_scan
from segcore.medical.mask_files import MaskFormat, case_json, write_masks
from segcore.outfolder import write_text
from segcore.picture.scan import Scan

NEUTRAL = "case"
"""What the JSON calls the scan: a hospital's file name may hold a patient's."""
_STEM = "mask"


@dataclass(frozen=True)
class DownloadFormat:
    """One choice on the page: `key` for `write_mask_files`, or "page"; `words` for the reader."""

    key: str
    words: str


FORMATS = (
    DownloadFormat("png", "PNG mask"),
    DownloadFormat("nifti", "NIfTI mask"),
    DownloadFormat("dicom-seg", "DICOM segmentation"),
    DownloadFormat("json", "record (JSON)"),
)
PAGE = DownloadFormat("page", "page of the case (HTML, PDF)")


def formats_for(scan: Scan) -> list[DownloadFormat]:
    """What the page offers for a scan: a DICOM segmentation only of a DICOM, because it refers to its source."""
    return [one for one in FORMATS if one.key != "dicom-seg" or scan.kind == "dicom"] + [PAGE]


def write_mask_files(
    scan: Scan,
    masks: np.ndarray,
    manifest: Manifest,
    folder: Path,
    formats: Sequence[str],
    *,
    threshold: float | None = None,
    bundle_sha256: str | None = None,
    reference: str | None = None,
    prompt: Mapping[str, Any] | None = None,
) -> list[Path]:
    """Writes mask.png (mask-png.zip of several slices), mask.nii.gz, mask-seg.dcm and case.json, as asked for.

    Args:
        scan: what was segmented.
        masks: N×H×W uint8 class indices, one a slice.
        manifest: of the model.
        folder: there already.
        formats: keys of `FORMATS`.
        threshold: that the reader chose, for the JSON; None: the model's own.
        bundle_sha256: of the model's bundle, for the JSON and the segmentation.
        reference: the class that the JSON gives the others' areas as a share of.
        prompt: `demo.session.prompt_summary.prompt_record`, where a reader's prompt made a class of the masks: for the
            JSON, and so that a segmentation calls the class semi-automatic.

    Raises:
        InputError: an unknown format, or a segmentation that cannot refer to its source.
    """
    wanted: set[MaskFormat] = {key for key in get_args(MaskFormat) if key in formats}
    if unknown := sorted(set(formats) - wanted):
        known = ", ".join(get_args(MaskFormat))
        raise InputError(f"format: must be one of {known}, got {unknown[0]}")
    if threshold is not None and manifest.output.activation == "sigmoid":
        output = manifest.output.model_copy(update={"threshold": threshold})
        manifest = manifest.model_copy(update={"output": output})
    made = write_masks(
        folder,
        _STEM,
        scan,
        masks,
        manifest,
        wanted - {"json"},
        bundle_sha256=bundle_sha256,
        prompted=() if prompt is None else (prompt["class"],),
    )
    files: dict[str, list[str]] = {}
    for key, names in made.items():
        files[key] = [_own_name(folder, key, names)]
    if "json" in wanted:
        measured = measure_scan(scan, masks, manifest.classes, reference=reference)
        text = case_json(
            replace(scan, name=NEUTRAL),
            masks,
            manifest,
            details={
                "measurements": [one.model_dump(mode="json") for one in measured],
                **({} if prompt is None else {"prompt": dict(prompt)}),
            },
            files=files,
            bundle_sha256=bundle_sha256,
        )
        write_text(folder / "case.json", text)
        files["json"] = ["case.json"]
    return [folder / names[0] for names in files.values()]


def _own_name(folder: Path, key: str, names: Sequence[str]) -> str:
    """One file of each format: a series of PNG is packed; a segmentation's name says what it is."""
    if key == "dicom-seg":
        (folder / names[0]).replace(folder / f"{_STEM}-seg.dcm")
        return f"{_STEM}-seg.dcm"
    if key == "png" and len(names) > 1:
        with zipfile.ZipFile(folder / f"{_STEM}-png.zip", "w") as archive:  # PNG is packed already
            for name in names:
                archive.write(folder / name, name)
        return f"{_STEM}-png.zip"
    return names[0]
