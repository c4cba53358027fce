"""What a scan's masks measure: a picture's as an area, those of several slices as a volume."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from segcore.measure.masks import ClassMeasurements, VolumeMeasurements, measure, measure_volume
from segcore.picture.scan import Scan


def measure_scan(
    scan: Scan, masks: np.ndarray, classes: Sequence[str], *, reference: str | None = None
) -> tuple[ClassMeasurements, ...] | tuple[VolumeMeasurements, ...]:
    """Measures every class, in millimetres where the scan knows its spacing.

    Args:
        scan: whose masks they are.
        masks: class indices, N×H×W.
        classes: names of the K classes.
        reference: the class that shares are of.

    Raises:
        InputError: the reference is none of the classes.
    """
    if scan.slices == 1:
        return measure(masks[0], classes, spacing_mm=scan.spacing_mm, reference=reference)
    return measure_volume(
        masks,
        classes,
        spacing_mm=scan.spacing_mm,
        slice_spacing_mm=scan.slice_spacing_mm,
        reference=reference,
    )
