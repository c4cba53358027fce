"""Procedural medical-looking images with masks, so that the whole toolkit runs with no download.

Not a simulation: shapes, distractors and artefacts are drawn so that plain thresholding fails and a network
has something to learn. A case is a function of its arguments alone, so a data set needs no storage.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from segcore.errors import InputError
from segcore.phantom.ct import draw_ct
from segcore.phantom.cxr import draw_cxr
from segcore.phantom.dental import draw_dental
from segcore.phantom.volume import SLICES, draw_volume

__all__ = [
    "PHANTOM_CASES",
    "PHANTOM_CLASSES",
    "PHANTOM_KINDS",
    "PHANTOM_VOLUMES",
    "VOLUME",
    "VOLUME_SLICES",
    "phantom_case",
    "phantom_classes",
    "phantom_patient",
]

PHANTOM_CLASSES: dict[str, tuple[str, ...]] = {
    "cxr": ("lung",),
    "ct": ("lesion",),
    "dental": ("tooth", "filling", "caries", "implant"),
}
"""Class names of each kind of single pictures, background left out: class index k is name k-1.

Every exported bundle's golden cases are drawn from these kinds: another one here would change them all.
"""

VOLUME = "volume"
"""The kind whose cases are slices: case i is slice i mod `VOLUME_SLICES` of volume i // `VOLUME_SLICES`."""

PHANTOM_KINDS = (*PHANTOM_CLASSES, VOLUME)

PHANTOM_CASES: int = 240
"""Number of cases of each built-in data set of single pictures."""

PHANTOM_VOLUMES: int = 40
"""Number of volumes of phantom:volume."""

VOLUME_SLICES: int = SLICES

_CASES_PER_PATIENT = 2
# One CT patient in this many has no lesion.
_HEALTHY_EVERY = 6
_MOST_KEPT, _MOST_KEPT_PX = 256, 256
"""Cases that a process keeps, and the largest side: 32 MiB, and all that the usual data set has."""
# Part of every random seed: changing a code changes every image of the kind.
_KIND_CODE = {"cxr": 1, "ct": 2, "dental": 3, VOLUME: 4}


def phantom_case(
    kind: str, index: int, *, seed: int = 0, size_px: int = 256
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Draws one case; the same arguments give the same bytes in any process and order.

    Args:
        kind: One of `PHANTOM_KINDS`.
        index: Case number, 0 or more; there is no last one, `PHANTOM_CASES` is the usual number.
        seed: Another seed is another data set.
        size_px: Side of the square image, 32 or more.

    Returns:
        image: H×W grey levels, 0..255.
        mask: H×W class indices, 0 for background and k for `phantom_classes(kind)[k - 1]`.

    Raises:
        InputError: unknown kind, negative index or seed, or an image too small to show anything.
    """
    _check_case(kind, index)
    if seed < 0:
        raise InputError(f"phantom:{kind}: seed must be 0 or more, got {seed}")
    if size_px < 32:
        raise InputError(f"phantom:{kind}: size_px must be 32 or more, got {size_px}")
    if size_px > _MOST_KEPT_PX:
        return _draw_case(kind, index, seed, size_px)
    image, mask = _kept_case(kind, index, seed, size_px)
    return image.copy(), mask.copy()  # the caller's own: who draws on one does not change the next one


def _draw_case(
    kind: str, index: int, seed: int, size_px: int
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    # Patients and cases have streams of their own: patient 3 must not share its numbers with case 3.
    patient = np.random.default_rng([seed, 10 * _KIND_CODE[kind], _patient_number(kind, index)])
    case = np.random.default_rng([seed, 10 * _KIND_CODE[kind] + 1, index])
    if kind == "cxr":
        return draw_cxr(patient, case, size_px)
    if kind == "dental":
        return draw_dental(patient, case, size_px)
    if kind == VOLUME:
        return draw_volume(patient, case, size_px, level=index % VOLUME_SLICES / (VOLUME_SLICES - 1))
    return draw_ct(patient, case, size_px, healthy=_is_healthy(index // _CASES_PER_PATIENT, seed))


# Drawing takes 35 to 70 ms of a core, and a stage asks for the image and the mask of a case, mostly more than once.
_kept_case = lru_cache(maxsize=_MOST_KEPT)(_draw_case)


def phantom_classes(kind: str) -> tuple[str, ...]:
    """Class names of one of `PHANTOM_KINDS`, background left out."""
    return ("organ",) if kind == VOLUME else PHANTOM_CLASSES[kind]


def phantom_patient(kind: str, index: int) -> str:
    """Returns the patient of a case, "p000" onwards; all cases of a patient show the same anatomy.

    A patient has two single pictures, or one volume.

    A split must keep them together, as with the near-duplicates of real data.

    Raises:
        InputError: unknown kind or negative index.
    """
    _check_case(kind, index)
    return f"p{_patient_number(kind, index):03d}"


def _patient_number(kind: str, index: int) -> int:
    return index // (VOLUME_SLICES if kind == VOLUME else _CASES_PER_PATIENT)


def _is_healthy(patient: int, seed: int) -> bool:
    """One patient in every block of six, so that a small data set has its share of empty masks too."""
    block, place = divmod(patient, _HEALTHY_EVERY)
    rng = np.random.default_rng([seed, 10 * _KIND_CODE["ct"] + 2, block])
    return int(rng.integers(_HEALTHY_EVERY)) == place


def _check_case(kind: str, index: int) -> None:
    if kind not in PHANTOM_KINDS:
        known = ", ".join(f"phantom:{name}" for name in PHANTOM_KINDS)
        raise InputError(f"phantom:{kind}: must be one of {known}; got phantom:{kind}")
    if index < 0:
        raise InputError(f"phantom:{kind}: index must be 0 or more, got {index}")
