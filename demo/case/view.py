"""One case as it is filed: the picture shown, and what the models say of it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import numpy as np

from demo.session.answers import ModelAnswer
from segcore.measure.masks import ClassMeasurements, VolumeMeasurements


@dataclass(frozen=True)
class CaseView:
    """What a reader looks at when they ask for the case page. Nothing in it comes from a DICOM header.

    Attributes:
        name: the file's own name, the reader's words; "" leaves it out of the page.
        time: when the page was made, in local time.
        image: the slice as shown, H×W or H×W×3 uint8 (through the window the reader chose).
        answers: one or more; every other is compared with the first. Their masks are those shown, H×W.
        hashes: `Bundle.sha256` of each answer's model, in the same order.
        slice_index: from 0.
        slices: how many the scan has.
        spacing_mm: of neighbouring rows and columns; None where the file does not say.
        truth: reference mask H×W of this slice, class indices; None where none was given.
        threshold: the probability from which a pixel is marked, where the reader moved it; None: each model's own.
        measurements: of this slice, one `segcore.measure.masks.measure(...)` an answer; () leaves the table out.
        volume: of the whole scan, one `segcore.measure.masks.measure_volume(...)` an answer; () leaves it out.
    """

    name: str
    time: datetime
    image: np.ndarray
    answers: tuple[ModelAnswer, ...]
    hashes: tuple[str, ...]
    slice_index: int = 0
    slices: int = 1
    spacing_mm: tuple[float, float] | None = None
    truth: np.ndarray | None = None
    threshold: float | None = None
    measurements: tuple[tuple[ClassMeasurements, ...], ...] = ()
    volume: tuple[tuple[VolumeMeasurements, ...], ...] = ()
