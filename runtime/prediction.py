"""The answer for one picture, and where its time went."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Timings:
    """Where the time of one prediction went, in milliseconds.

    From `Predictor.map` they overlap with those of other pictures: `engine_ms` runs from when the picture's batch was
    handed to the engine until its logits were taken, and so holds the wait for others, the caller too.
    """

    pre_ms: float
    engine_ms: float
    post_ms: float

    @property
    def total_ms(self) -> float:
        return self.pre_ms + self.engine_ms + self.post_ms


@dataclass(frozen=True)
class Prediction:
    """The answer for one picture, at the picture's own size.

    Attributes:
        mask: H×W uint8; 0 background, k the manifest's k-th class.
        probabilities: K×H×W float32; one sigmoid channel for one class, background first for several.
        timings: of this call.
        quality: the Dice, 0–1, that the model expects of this mask; None where it was not fitted to estimate it.
        first_quality: what the quicker model expected of its own mask, where it passed the picture on and this is
            the second model's answer (`runtime.deferral`); else None.
    """

    mask: np.ndarray
    probabilities: np.ndarray
    timings: Timings
    quality: float | None = None
    first_quality: float | None = None
