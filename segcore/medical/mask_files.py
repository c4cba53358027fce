"""Masks in the files that others read: PNG, NIfTI, DICOM-SEG, and a JSON record; and back onto the scan's grid.

png        STEM.png, or STEM/0001.png … for several slices; 0/255 for one class, class indices for several
nifti      STEM.nii.gz on the source's own grid
dicom-seg  STEM.dcm, a DICOM segmentation that refers to its source series; for a DICOM source
json       STEM.json: the scan, the model, what was measured, the files above

The JSON record:

    {
      "schema_version": 1, "made_by": "sam2edge 0.1.0",
      "notice": "Research use only, not a medical device.",
      "scan": {"name", "format", "modality", "slices", "height_px", "width_px",
               "row_spacing_mm", "column_spacing_mm", "slice_spacing_mm"},          spacings null where unknown
      "model": {"name", "kind", "precision", "bundle_sha256", "classes", "threshold"}, threshold null for several
      "pixels": {class: count over all slices},
      "details": what the caller measured: measurements, quality, timings,
      "files": {format: [path beside this file, …]}
    }

Nothing of it comes from a DICOM header but the modality, the size and the spacing. A reader refuses a higher
`schema_version`; fields may be added without one.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from pydantic import BaseModel, ConfigDict

from segcore import __version__
from segcore.bundle.manifest import Manifest
from segcore.errors import InputError
from segcore.image import read_mask
from segcore.measure.masks import count_pixels
from segcore.medical.dicom.file import is_dicom
from segcore.medical.nifti import encode_nifti, nifti_version, read_nifti_mask
from segcore.medical.seg.read import read_seg
from segcore.medical.seg.write import encode_seg
from segcore.outfolder import write_bytes
from segcore.picture.png import encode_png
from segcore.picture.scan import Scan, check_mask_size

MaskFormat = Literal["png", "nifti", "dicom-seg", "json"]
MASK_FORMATS: tuple[MaskFormat, ...] = get_args(MaskFormat)
CASE_SCHEMA_VERSION = 1
_SUFFIXES = {"nifti": ".nii.gz", "dicom-seg": ".dcm", "json": ".json"}
_NUMBERED = re.compile(r"\d{4,}\.png")


@dataclass(frozen=True)
class WrittenMasks:
    """What became of one scan's masks.

    Attributes:
        files: of each format that was written, as paths relative to the folder.
        failed: why a format could not be.
        remarks: what the record should say of the scan and its files.
    """

    files: dict[MaskFormat, list[str]]
    failed: dict[MaskFormat, str]
    remarks: tuple[str, ...]


def write_masks(
    folder: Path,
    stem: str,
    scan: Scan,
    masks: np.ndarray,
    manifest: Manifest,
    formats: Collection[MaskFormat],
    *,
    details: Mapping[str, Any] | None = None,
    bundle_sha256: str | None = None,
    prompted: Collection[str] = (),
) -> WrittenMasks:
    """Writes the masks of one scan in the formats asked for; each file appears whole or not at all.

    A format that cannot hold this scan costs the others nothing.

    Args:
        folder: there already; files of the same names are replaced.
        stem: what the files are called, without a suffix.
        scan: what was segmented.
        masks: N×H×W uint8, one mask a slice; 0 background, k the manifest's k-th class.
        manifest: of the model.
        formats: of `MASK_FORMATS`; json lists the others, whatever the order.
        details: for json: measurements, quality, timings; JSON values.
        bundle_sha256: of the model's bundle, for json and the segmentation's algorithm version.
        prompted: classes that a reader's click or box had a part in, which a segmentation calls semi-automatic.

    Raises:
        InputError: no mask could be written in any format: dicom-seg of a scan that is no DICOM or whose header cannot
            be referred to, nifti of slices that are no volume.
    """
    if masks.dtype != np.uint8 or masks.shape != (scan.slices, *scan.size_px):
        raise ValueError(
            f"masks must be uint8 {(scan.slices, *scan.size_px)}, got {masks.dtype} {masks.shape}"
        )
    if unknown := sorted(set(formats) - set(MASK_FORMATS)):
        raise InputError(f"--to: must be of {', '.join(MASK_FORMATS)}, got {unknown[0]}")
    encoded: dict[MaskFormat, bytes] = {}
    failed: dict[MaskFormat, str] = {}
    remarks = list(scan.remarks())
    if scan.uneven:
        remarks.append(f"slices are no volume: {scan.uneven}")
    # Before anything is written, because a source may not do for one.
    for form in ("nifti", "dicom-seg"):
        if form not in formats:
            continue
        try:
            if form == "nifti":
                words = f"sam2edge {manifest.name}, research use only"
                encoded[form] = encode_nifti(scan, masks, description=words)
            else:
                encoded[form], mended = encode_seg(scan, masks, manifest, bundle_sha256, prompted)
                remarks += [f"DICOM-SEG: {each}, which is malformed in the source" for each in mended]
        except InputError as error:
            failed[form] = str(error)
        except (OSError, MemoryError):
            raise
        except Exception as error:
            # What a library raises costs its own file alone; its words may quote a header.
            failed[form] = (
                f"--to {form}: {scan.name} could not be written ({type(error).__name__}); please report it"
            )
    if failed and not encoded and "png" not in formats:
        raise InputError(next(iter(failed.values())))
    written: dict[MaskFormat, list[str]] = {}
    if "png" in formats:
        written["png"] = _write_png(folder, stem, masks * np.uint8(255 if len(manifest.classes) == 1 else 1))

    def write(form: MaskFormat, content: bytes) -> None:
        name = f"{stem}{_SUFFIXES[form]}"
        try:
            write_bytes(folder / name, content)
            written[form] = [name]
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:
                raise
            failed[form] = (
                f"--to {form}: {scan.name} must have a shorter name, {name} is too long for this disk"
            )

    for form, content in encoded.items():
        write(form, content)
    if "json" in formats:
        text = case_json(
            scan,
            masks,
            manifest,
            details={**(details or {}), **({"remarks": remarks} if remarks else {})},
            files=written,
            bundle_sha256=bundle_sha256,
        )
        write("json", text.encode())
    return WrittenMasks(written, failed, tuple(remarks))


def read_mask_file(path: Path, scan: Scan) -> np.ndarray:
    """Reads a mask onto the grid of its scan; the format is decided by the content.

    Args:
        path: a PNG of one slice, a folder of numbered PNGs, a NIfTI, or a DICOM segmentation.
        scan: what the mask is of.

    Returns:
        N×H×W uint8: values as stored in a PNG or NIfTI (0/255, 0/1 or class indices), class indices in segment order
        of a DICOM segmentation.

    Raises:
        InputError: no mask, of another size, another number of slices, another place, or another series.
    """
    if path.is_dir():
        masks = [read_mask(file) for file in _numbered_files(path, scan)]
        for mask in masks:
            check_mask_size((mask.shape[0], mask.shape[1]), scan, path)
        return np.stack(masks)
    if not path.is_file():
        raise InputError(f"mask {path}: must be a file or a folder of PNG masks, no such file")
    with path.open("rb") as file:
        head = file.read(132)
    if is_dicom(head):
        return read_seg(path, scan)
    if nifti_version(path):
        return read_nifti_mask(path, scan)
    mask = read_mask(path)
    check_mask_size((mask.shape[0], mask.shape[1]), scan, path)
    if scan.slices > 1:
        raise InputError(
            f"mask {path}: must have the slices of its image, {scan.slices}, got 1; give a folder of PNG masks, "
            "a NIfTI or a DICOM segmentation"
        )
    return mask[None]


def case_json(
    scan: Scan,
    masks: np.ndarray,
    manifest: Manifest,
    *,
    details: Mapping[str, Any],
    files: Mapping[Any, list[str]],
    bundle_sha256: str | None = None,
) -> str:
    """The record as text.

    Args:
        scan: what was segmented.
        masks: N×H×W uint8 class indices.
        manifest: of the model.
        details: JSON values, kept as they are; the caller answers for what is in them.
        files: the other files written, by format.
        bundle_sha256: of the model's bundle.
    """
    rows_mm, columns_mm = scan.spacing_mm or (None, None)
    counts = count_pixels(masks, manifest.classes)
    record = SegmentationRecord(
        scan=ScanFacts(
            name=scan.name,
            format=scan.kind,
            modality=scan.modality,
            slices=scan.slices,
            height_px=scan.size_px[0],
            width_px=scan.size_px[1],
            row_spacing_mm=rows_mm,
            column_spacing_mm=columns_mm,
            slice_spacing_mm=scan.slice_spacing_mm,
        ),
        model=ModelFacts(
            name=manifest.name,
            kind=manifest.kind,
            precision=manifest.precision,
            bundle_sha256=bundle_sha256,
            classes=manifest.classes,
            threshold=manifest.output.threshold if len(manifest.classes) == 1 else None,
        ),
        pixels={name: int(count) for name, count in zip(manifest.classes, counts, strict=True)},
        details=dict(details),
        files=dict(files),
    )
    return record.model_dump_json(indent=2) + "\n"


# The structured record.


class _Facts(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="null")


class ScanFacts(_Facts):
    """The scan, without anything that tells whose it is."""

    name: str
    format: str
    modality: str
    slices: int
    height_px: int
    width_px: int
    row_spacing_mm: float | None
    column_spacing_mm: float | None
    slice_spacing_mm: float | None


class ModelFacts(_Facts):
    """The model, enough to find its bundle again."""

    name: str
    kind: str
    precision: str
    bundle_sha256: str | None
    classes: tuple[str, ...]
    threshold: float | None


class SegmentationRecord(_Facts):
    """One case: what was segmented, by what, and what was found."""

    schema_version: int = CASE_SCHEMA_VERSION
    made_by: str = f"sam2edge {__version__}"
    notice: str = "Research use only, not a medical device."
    scan: ScanFacts
    model: ModelFacts
    pixels: dict[str, int]
    details: dict[str, Any]
    files: dict[str, list[str]]


# PNG.


def _write_png(folder: Path, stem: str, masks: np.ndarray) -> list[str]:
    if len(masks) == 1:
        write_bytes(folder / f"{stem}.png", encode_png(masks[0], filter="none"))
        return [f"{stem}.png"]
    digits = max(4, len(str(len(masks))))
    names = [f"{n:0{digits}d}.png" for n in range(1, len(masks) + 1)]
    # Its own name with a suffix would be too long where it is as long as it may be.
    target = folder / stem
    partial = folder / f"{hashlib.sha256(os.fsencode(stem)).hexdigest()[:16]}.partial"
    if target.exists() and not _is_ours(target):
        raise InputError(
            f"{target}: must be free for the masks, is there and holds other files; move it away"
        )
    # Under another name first: a folder with half of the slices must not pass for the mask.
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    for name, mask in zip(names, masks, strict=True):
        (partial / name).write_bytes(encode_png(mask, filter="none"))
    shutil.rmtree(target, ignore_errors=True)
    partial.replace(target)
    return [f"{stem}/{name}" for name in names]


def _is_ours(folder: Path) -> bool:
    return folder.is_dir() and all(_NUMBERED.fullmatch(path.name) for path in folder.iterdir())


def _numbered_files(folder: Path, scan: Scan) -> list[Path]:
    files = sorted((p for p in folder.iterdir() if _NUMBERED.fullmatch(p.name)), key=lambda p: int(p.stem))
    if [int(p.stem) for p in files] != list(range(1, scan.slices + 1)):
        raise InputError(
            f"mask {folder}: must hold 0001.png to {scan.slices:04d}.png, one a slice of {scan.name}, "
            f"got {len(files)} such files"
        )
    return files
