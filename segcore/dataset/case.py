"""One image with its mask, wherever they come from."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from segcore.errors import InputError
from segcore.image import image_size, read_image, read_mask
from segcore.phantom import phantom_case


class Source(Protocol):
    """Where a case's pixels come from."""

    @property
    def labelled(self) -> bool: ...

    def image(self) -> np.ndarray:
        """H×W or H×W×3; uint8, uint16 or float32."""
        ...

    def padding(self) -> np.ndarray | None:
        """H×W bool: pixels that are no part of the picture and of no grey range; None where there are none."""
        ...

    def mask(self) -> np.ndarray:
        """H×W uint8, values as stored."""
        ...

    def fingerprint(self) -> str:
        """Changes when the image or the mask changes."""
        ...

    def image_fingerprint(self) -> str:
        """Of the image alone, 16 hex digits: the same picture in another dataset has the same one."""
        ...


@dataclass(frozen=True)
class FileSource:
    """An image file and, where there is one, its mask file."""

    image_path: Path
    mask_path: Path | None

    @property
    def labelled(self) -> bool:
        return self.mask_path is not None

    def image(self) -> np.ndarray:
        return read_image(self.image_path)

    def padding(self) -> None:
        return None

    def mask(self) -> np.ndarray:
        assert self.mask_path is not None
        return read_mask(self.mask_path)

    def size_px(self) -> tuple[int, int]:
        """Height and width, from the header."""
        return image_size(self.image_path)

    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        for path in filter(None, (self.image_path, self.mask_path)):
            if not path.is_file():
                raise InputError(f"{path}: must be a file, no such file")
            digest.update(hashlib.sha256(path.read_bytes()).digest())
        return digest.hexdigest()

    def image_fingerprint(self) -> str:
        return hashlib.sha256(self.image_path.read_bytes()).hexdigest()[:16]


@dataclass(frozen=True)
class PhantomSource:
    """A procedural case, drawn when asked for."""

    kind: str
    index: int
    seed: int
    labelled: bool = True

    def image(self) -> np.ndarray:
        return phantom_case(self.kind, self.index, seed=self.seed)[0]

    def padding(self) -> None:
        return None

    def mask(self) -> np.ndarray:
        return phantom_case(self.kind, self.index, seed=self.seed)[1]

    def fingerprint(self) -> str:
        return f"phantom:{self.kind}:{self.index}:{self.seed}"

    def image_fingerprint(self) -> str:
        return hashlib.sha256(self.fingerprint().encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Case:
    """One image, its patient, and how its stored mask values become class indices.

    Attributes:
        id: unique in its dataset.
        patient: cases of one patient are never in two splits.
        source: the pixels.
        split: train, val or test; unlabelled cases are in train.
        mask_scale: what a stored mask value is divided by to give a class index (255 for 0/255 masks).
        spacing_mm: distance of neighbouring rows and columns, where known.
        metadata: the other columns of the index.
        volume: what the slices of one scan share; None for a case that is alone.
        slice_index: place in its volume, from 0.
        slice_spacing_mm: distance of neighbouring slices of the volume, where known.
    """

    id: str
    patient: str
    source: Source
    split: str
    mask_scale: int = 1
    spacing_mm: tuple[float, float] | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    volume: str | None = None
    slice_index: int = 0
    slice_spacing_mm: float | None = None

    @property
    def labelled(self) -> bool:
        return self.source.labelled

    def image(self) -> np.ndarray:
        """H×W or H×W×3; uint8, uint16 or float32."""
        return self.source.image()

    def mask(self) -> np.ndarray:
        """Class indices, H×W uint8: 0 background, 1…K the classes."""
        return np.asarray(self.source.mask() // np.uint8(self.mask_scale))


def volumes_of(cases: Sequence[Case]) -> list[list[int]]:
    """Which cases are the slices of one volume, in their order; a case that is alone is a volume of one slice."""
    found: dict[tuple[str, str], list[int]] = {}
    for i, case in enumerate(cases):
        found.setdefault(("case", case.id) if case.volume is None else ("volume", case.volume), []).append(i)
    return [sorted(places, key=lambda i: cases[i].slice_index) for places in found.values()]
