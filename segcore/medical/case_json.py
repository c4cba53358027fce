"""The structured record of one case: what was segmented, by what, and what was found.

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

from collections.abc import Mapping
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from segcore import __version__
from segcore.bundle.manifest import Manifest
from segcore.picture.scan import Scan

CASE_SCHEMA_VERSION = 1


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="null")


class ScanFacts(_Part):
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


class ModelFacts(_Part):
    """The model, enough to find its bundle again."""

    name: str
    kind: str
    precision: str
    bundle_sha256: str | None
    classes: tuple[str, ...]
    threshold: float | None


class CaseRecord(_Part):
    """One case as JSON."""

    schema_version: int = CASE_SCHEMA_VERSION
    made_by: str = f"sam2edge {__version__}"
    notice: str = "Research use only, not a medical device."
    scan: ScanFacts
    model: ModelFacts
    pixels: dict[str, int]
    details: dict[str, Any]
    files: dict[str, list[str]]


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
    counts = np.bincount(masks.ravel(), minlength=len(manifest.classes) + 1)
    record = CaseRecord(
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
        pixels={name: int(counts[k]) for k, name in enumerate(manifest.classes, start=1)},
        details=dict(details),
        files=dict(files),
    )
    return record.model_dump_json(indent=2) + "\n"
