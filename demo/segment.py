"""One file to its masks and record, for programs: what the page does, without a page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from demo.compare import Answer
from demo.downloads import mask_files
from demo.models import Models
from demo.uploads import receive, without_paths
from segcore.errors import InputError
from segcore.medical.read import read_scan
from segcore.scan_measurements import measure_scan


def segment_file(
    models: Models,
    sent: str,
    folder: Path,
    made: Path,
    *,
    model: str,
    formats: Sequence[str] = (),
    threshold: float | None = None,
) -> tuple[dict[str, Any], list[Path]]:
    """Segments every slice of one upload.

    Args:
        models: the served ones.
        sent: path of the upload; it is moved to `folder`.
        folder: empty, for the upload of this call alone.
        made: empty, for the files.
        model: one of the models' names.
        formats: keys of `demo.downloads`.
        threshold: 0–1; None for the model's own.

    Returns:
        A record for JSON, and the files.

    Raises:
        InputError: the file or the model cannot be used; no path in the message.
    """
    if threshold is not None and not 0 < threshold < 1:
        raise InputError(f"threshold: must lie between 0 and 1, got {threshold:g}")
    if not sent:
        raise InputError("file: must be given, none was")
    manifest = models.manifest(model)
    paths = receive([sent], folder / "upload")
    if len(paths) > 1:
        raise InputError(f"{Path(sent).name}: must hold one scan, got {len(paths)}; send them one by one")
    with without_paths(*paths):
        scan = read_scan(paths[0])
        answers = list[Answer]()
        for index in range(scan.slices):
            picture = scan.picture(index, manifest.input.depth)
            answer = models.ask(model, picture, called=scan.slice_name(index), runs=1)
            answers.append(answer.at(threshold))
        masks = np.stack([answer.mask for answer in answers])
        sha256, reference = models.sha256(model), models.reference_for(manifest.classes)
        files = list[Path]()
        if formats:
            files = mask_files(
                scan,
                masks,
                manifest,
                made,
                formats,
                threshold=threshold,
                bundle_sha256=sha256,
                reference=reference,
            )
    measured = measure_scan(scan, masks, manifest.classes, reference=reference)
    judged = [answer.quality for answer in answers if answer.quality is not None]
    record = {
        "file": scan.name,
        "slices": scan.slices,
        "size_px": list(scan.size_px),
        "spacing_mm": scan.spacing_mm,
        "slice_spacing_mm": scan.slice_spacing_mm,
        "model": model,
        "engine": answers[0].engine,
        "threshold": threshold if threshold is not None else manifest.output.threshold,
        "measurements": [one.model_dump(mode="json") for one in measured],
        "expected_dice": {"least": min(judged), "mean": sum(judged) / len(judged)} if judged else None,
        "engine_ms": sum(answer.times.engine_ms for answer in answers),
        "note": "research use only, not a medical device",
    }
    return record, files
