"""Hides the masks of all but a share of the training patients: what few labels and a teacher reach.

The data set, its hashes and its split stay as they are, so bundles of any share agree on what a test image is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from segcore.dataset.case import Case, Source
from segcore.dataset.dataset import Dataset
from segcore.errors import InputError


@dataclass(frozen=True)
class HiddenMask:
    """A source whose mask training does not see."""

    source: Source
    labelled: bool = False

    def image(self) -> np.ndarray:
        """H×W or H×W×3; uint8, uint16 or float32."""
        return self.source.image()

    def mask(self) -> np.ndarray:
        """Hidden: to ask for it is a bug of the caller."""
        raise ValueError("the mask of this case is hidden")

    def fingerprint(self) -> str:
        """As if the mask were seen: hiding it does not change the data."""
        return self.source.fingerprint()

    def image_fingerprint(self) -> str:
        """Of the image, which is not hidden."""
        return self.source.image_fingerprint()


def labelled_patients(patients: Iterable[str], *, share: float, seed: int) -> frozenset[str]:
    """The patients who keep their masks: `share` of them, at least one, those of a smaller share among them.

    The order comes from a hash of the patient's name, another one than that of the split.

    Args:
        patients: of the training split; repeats count once.
        share: above 0, up to 1.
        seed: of the choice.
    """
    order = sorted(set(patients), key=lambda p: hashlib.sha256(f"labelled:{seed}:{p}".encode()).digest())
    return frozenset(order[: max(1, round(share * len(order)))])


def training_cases(
    dataset: Dataset, *, labelled_share: float, seed: int, limit: int | None = None
) -> tuple[Case, ...]:
    """The training split with the masks of the other patients hidden; those cases are not `labelled`.

    Args:
        dataset: the opened data; its own images without masks are not part of the answer.
        labelled_share: of the training patients.
        seed: of the split.
        limit: as for `Dataset.split`; who keeps the masks does not depend on it.

    Raises:
        InputError: the limit leaves no image with a mask.
    """
    kept = labelled_patients((c.patient for c in dataset.split("train")), share=labelled_share, seed=seed)
    cases = dataset.split("train", limit=limit)
    if not any(case.patient in kept for case in cases):
        raise InputError(
            f"--limit {limit}: must leave an image with a mask at --labelled-share {labelled_share:g}, "
            "leaves none; raise one of the two"
        )
    return tuple(c if c.patient in kept else replace(c, source=HiddenMask(c.source)) for c in cases)
