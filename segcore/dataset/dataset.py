"""Opens a dataset: a folder of images and masks, an index.csv, or a built-in phantom.

    folder/images/*.png + folder/masks/*.png      same stems; optional folder/unlabelled/, folder/classes.txt
    folder/images/a.dcm, a.nii.gz or a/ (a series) + folder/masks/a.png, a.nii.gz or a.dcm (DICOM-SEG)
    index.csv       case, patient, image[, mask, split, spacing_row_mm, spacing_col_mm], any metadata
                    image and mask may be any of the above; each slice of a scan is a case of its own, a-s001 …
    phantom:cxr | phantom:ct | phantom:dental | phantom:volume     procedural; phantom:cxr:60 takes the first 60 cases

`python -m segcore.dataset --data D` checks one and draws a contact sheet. What training takes of an opened dataset, and
whether a model may be used on it, is told here as well.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from segcore.bundle.manifest import MAX_CLASSES, DataRecord, Manifest
from segcore.command import log
from segcore.dataset.case import Case, FileSource, PhantomSource, Source
from segcore.dataset.checked import check_cases
from segcore.dataset.listing import list_data
from segcore.dataset.scan_cases import ScanSource
from segcore.dataset.split import SPLITS, check_given_splits, fold_patients, split_hash, split_patients
from segcore.errors import InputError
from segcore.phantom import (
    PHANTOM_CASES,
    PHANTOM_KINDS,
    PHANTOM_VOLUMES,
    VOLUME,
    VOLUME_SLICES,
    phantom_classes,
    phantom_patient,
)

_PHANTOM_SPLITS = ("train", "val", "test", "train", "train")  # 60/20/20
_PHANTOM_LEAST, _VOLUME_LEAST = 6, 3  # cases, volumes


@dataclass(frozen=True)
class Dataset:
    """Cases with their splits.

    Attributes:
        name: what the user called it.
        cases: in a fixed order; every labelled case has a split.
        classes: names of the foreground classes 1…K.
        sha256: of every image, mask, patient and name.
    """

    name: str
    cases: tuple[Case, ...]
    classes: tuple[str, ...]
    sha256: str

    @property
    def split_sha256(self) -> str:
        return split_hash({case.id: case.split for case in self.cases if case.labelled})

    def split(self, name: str, *, limit: int | None = None) -> tuple[Case, ...]:
        """The labelled cases of a split, at most `limit`, spread evenly over its patients' order."""
        cases = tuple(case for case in self.cases if case.split == name and case.labelled)
        if limit is None or limit >= len(cases):
            return cases
        return tuple(cases[i * len(cases) // limit] for i in range(limit))

    @property
    def unlabelled(self) -> tuple[Case, ...]:
        """Images without a mask that may take part in training (their patients are in no other split)."""
        return tuple(case for case in self.cases if not case.labelled and case.split == "train")


def open_dataset(data: str, *, seed: int = 0, need_masks: bool = True, fold: str = "") -> Dataset:
    """Opens and checks a dataset.

    Args:
        data: a folder, an index.csv, phantom:KIND[:CASES] or phantom:volume[:VOLUMES].
        seed: of the split and of the phantoms.
        need_masks: refuse a dataset without a single mask.
        fold: "2/5" for the second split of a five-fold cross-validation, in the place of 60/20/20.

    Raises:
        InputError: anything that makes the data ambiguous or unusable, naming the file.
    """
    if data.startswith("phantom:"):
        return _open_phantom(data, seed, fold)
    listing = list_data(data)
    for _, problem in listing.problems:  # the first ends it; `python -m segcore.dataset` tells them all
        raise InputError(problem)
    labelled = [case for case in listing.cases if case.labelled]
    if not labelled and need_masks:
        images = len(listing.cases)
        raise InputError(f"--data {data}: must have masks, got {images} images alone; add a masks/ folder")
    checked = check_cases(data, listing.cases)
    values = {c.id: s.values for c, s in zip(listing.cases, checked, strict=True)}
    for _, problem in odd_masks(values, labelled, listing.class_names):
        raise InputError(problem)
    all_values = frozenset().union(*values.values())
    classes = read_classes(all_values, listing.class_names)
    for line in (*listing.left_out, *absent_classes(all_values, classes)):
        log(f"--data {data}: {line}")
    cases = tuple(
        replace(case, mask_scale=mask_scale(values[case.id], classes))
        for case in assign_splits(listing.cases, data, seed, fold)
    )
    digest = hashlib.sha256(
        "|".join(f"{c.id},{c.patient},{s.fingerprint}" for c, s in zip(cases, checked, strict=True)).encode()
    )
    return Dataset(data, cases, classes, digest.hexdigest())


def split_counts(dataset: Dataset) -> dict[str, int]:
    """Labelled cases of each split, and the unlabelled ones."""
    counts = {name: len(dataset.split(name)) for name in SPLITS}
    return {**counts, "unlabelled": len(dataset.unlabelled)} if dataset.unlabelled else counts


# Checks of what was listed, which `python -m segcore.dataset` makes one by one.


def assign_splits(cases: Sequence[Case], data: str, seed: int, fold: str = "") -> list[Case]:
    """Gives every case its split: the index's, or one drawn by patient; unlabelled ones follow their patient.

    Raises:
        InputError: the index's splits are wrong, or there are too few patients.
    """
    labelled = [c for c in cases if c.labelled]
    if not labelled:
        return [replace(c, split="train") for c in cases]
    if fold:
        if any(c.split for c in labelled):
            raise InputError(
                f"--fold {fold}: must be left away, {data} gives the splits; or remove its split column"
            )
        home = fold_patients((c.patient for c in labelled), name=data, fold=fold, seed=seed)
    elif any(c.split for c in labelled):
        check_given_splits([(c.id, c.patient, c.split) for c in labelled], name=data)
        home = {c.patient: c.split for c in labelled}
    else:
        home = split_patients((c.patient for c in labelled), name=data, seed=seed)
    # An unlabelled case that the user keeps out of training stays out.
    return [replace(c, split=home.get(c.patient) or c.split or "train") for c in cases]


def odd_masks(
    values: Mapping[str, frozenset[int]], labelled: Sequence[Case], names: tuple[str, ...] | None
) -> Iterator[tuple[str, str]]:
    """(case, message) of each mask whose stored values cannot be what the others' are.

    Of one class a mask is 0/255 or 0/1, each file by its own kind: PNG is mostly the one, NIfTI and DICOM-SEG the
    other. Of several it holds class indices.
    """
    files: dict[Path | None, frozenset[int]] = {}  # all slices of a file are of its kind
    for case in labelled:
        path = _mask_path(case)
        files[path] = files.get(path, frozenset()) | values[case.id]
    seen = [found for found in files.values() if found - {0}]
    # Where most masks are of one class, the others are the odd ones, not those.
    if len(names) == 1 if names else 2 * sum(map(_is_one_class, seen)) >= len(seen):
        odd = [c for c in labelled if not _is_one_class(files[_mask_path(c)])]
        expected = "0/255 or 0/1, as masks of one class do"
        if names is None and not any(255 in values[c.id] for c in labelled):
            odd = [c for c in labelled if max(values[c.id], default=0) > MAX_CLASSES]
            expected = f"0/255, 0/1 or class indices up to {MAX_CLASSES}"
    else:
        top = len(names) if names else MAX_CLASSES
        odd = [c for c in labelled if max(values[c.id], default=0) > top]
        expected = f"class indices 0 to {top}" + (
            f" (classes.txt names {top})" if names else ", or 0/255 in every mask"
        )
    for case in odd:  # of all slices of a file, so that its cases get one message
        path = _mask_path(case)
        shown = ", ".join(map(str, sorted(files[path])[:8])) + (", …" if len(files[path]) > 8 else "")
        save = "save class indices as PNG" if case.volume is None else "save class indices"
        yield case.id, f"mask {path}: must hold {expected}, got values {shown}; {save}"


def read_classes(seen: frozenset[int], names: tuple[str, ...] | None) -> tuple[str, ...]:
    """Foreground class names: the user's, else one for 0/255 and 0/1, else one for each index up to the largest."""
    if names:
        return names
    count = max(seen - {255} if seen <= {0, 1, 255} else seen, default=0)
    return ("foreground",) if count <= 1 else tuple(f"class{k}" for k in range(1, count + 1))


def mask_scale(values: frozenset[int], classes: tuple[str, ...]) -> int:
    """What a mask's stored values are divided by to be class indices."""
    return 255 if len(classes) == 1 and 255 in values else 1


def absent_classes(seen: frozenset[int], classes: tuple[str, ...]) -> list[str]:
    """A line where masks skip a class: 0, 1 and 3, as after somebody took class 2 out."""
    absent = [k for k in range(1, len(classes) + 1) if k not in seen]
    if len(classes) == 1 or not absent or not seen - {0}:
        return []
    shown = ", ".join(f"{k} ({classes[k - 1]})" for k in absent)
    return [
        f"classes that never occur in any mask: {shown} of {len(classes)}; a model learns to never draw them"
    ]


def _is_one_class(values: frozenset[int]) -> bool:
    return values <= {0, 255} or values <= {0, 1}


def _mask_path(case: Case) -> Path | None:
    assert isinstance(case.source, FileSource | ScanSource)
    return case.source.mask_path


# Procedural data sets.


def _open_phantom(data: str, seed: int, fold: str) -> Dataset:
    _, kind, *count = data.split(":")
    if kind not in PHANTOM_KINDS or len(count) > 1 or (count and not count[0].isdigit()):
        kinds = ", ".join("phantom:" + k for k in PHANTOM_KINDS)
        raise InputError(f"{data}: must be one of {kinds}; got {data}")
    usual, least, what = PHANTOM_CASES, _PHANTOM_LEAST, "cases"
    if kind == VOLUME:
        usual, least, what = PHANTOM_VOLUMES, _VOLUME_LEAST, "volumes"
    total = int(count[0]) if count else usual
    if total < least:
        raise InputError(f"{data}: must have at least {least} {what}, a patient for each split; got {total}")
    patients: dict[str, int] = {}
    rows = []
    for i in range(total * VOLUME_SLICES if kind == VOLUME else total):
        patient = phantom_patient(kind, i)
        # by the patient's number, so that phantom:cxr:60 and phantom:cxr never disagree on what is a test image
        split = _PHANTOM_SPLITS[patients.setdefault(patient, len(patients)) % len(_PHANTOM_SPLITS)]
        case = Case(f"{kind}-{i:04d}", patient, PhantomSource(kind, i, seed), "" if fold else split)
        rows.append(_as_slice(case, i) if kind == VOLUME else case)
    cases = assign_splits(rows, data, seed, fold)
    digest = hashlib.sha256(f"{data}:{seed}".encode()).hexdigest()
    return Dataset(data, tuple(cases), phantom_classes(kind), digest)


def _as_slice(case: Case, index: int) -> Case:
    """With its volume, and named as the slices of a file are."""
    number, place = divmod(index, VOLUME_SLICES)
    volume = f"{VOLUME}-{number:03d}"
    return replace(case, id=f"{volume}-s{place + 1:03d}", volume=volume, slice_index=place)


# Few labels: the masks of all but a share of the training patients are hidden.
#
# The data set, its hashes and its split stay as they are, so bundles of any share agree on what a test image is.


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


@dataclass(frozen=True)
class HiddenMask:
    """A source whose mask training does not see."""

    source: Source
    labelled: bool = False

    def image(self) -> np.ndarray:
        """H×W or H×W×3; uint8, uint16 or float32."""
        return self.source.image()

    def padding(self) -> np.ndarray | None:
        """Of the image, which is not hidden."""
        return self.source.padding()

    def mask(self) -> np.ndarray:
        """Hidden: to ask for it is a bug of the caller."""
        raise ValueError("the mask of this case is hidden")

    def fingerprint(self) -> str:
        """As if the mask were seen: hiding it does not change the data."""
        return self.source.fingerprint()

    def image_fingerprint(self) -> str:
        """Of the image, which is not hidden."""
        return self.source.image_fingerprint()


# A model and a dataset must agree before either is used on the other: the same classes, and the same split.


def check_agreement(
    name: str, *, classes: tuple[str, ...], data_sha256: str, split_sha256: str, dataset: Dataset
) -> None:
    """Checks that what a model (or its soft labels) learnt fits `dataset`.

    Args:
        name: what the user calls the model: "--soft S", "bundle B".
        classes: the classes the model knows.
        data_sha256: of the data it was trained on.
        split_sha256: of the split it was trained with.
        dataset: the data it is to be used on; one without any mask has no classes to compare.

    Raises:
        InputError: other classes; or the same data under another split, whose test images the model has seen.
    """
    if any(case.labelled for case in dataset.cases) and classes != dataset.classes:
        raise InputError(
            f"{name}: must have the data's classes {', '.join(dataset.classes)}, got {', '.join(classes)}; "
            "use a model trained on these classes"
        )
    if is_resplit(dataset, data_sha256, split_sha256):
        raise InputError(
            f"{name}: must have the same split of {dataset.name}, got another; use the --split-seed it was trained "
            "with, else it has seen images that are now in the test split"
        )


def check_bundle_agreement(name: str, manifest: Manifest, dataset: Dataset) -> None:
    """`check_agreement` of a bundle, by what its manifest says."""
    check_agreement(
        name,
        classes=manifest.classes,
        data_sha256=manifest.data.sha256,
        split_sha256=manifest.data.split_sha256,
        dataset=dataset,
    )


def is_resplit(dataset: Dataset, data_sha256: str, split_sha256: str) -> bool:
    """Whether `dataset` is the data a model learnt from, under another split: its test images may have been seen."""
    return data_sha256 == dataset.sha256 and split_sha256 != dataset.split_sha256


def tested_among(cases: Iterable[Case], data: DataRecord) -> list[str]:
    """Cases whose pictures are in the test split that a model is judged on, whatever they are called here.

    Args:
        cases: of any dataset.
        data: what the model's manifest says of its own; older manifests do not know their test images.
    """
    tested = set(data.test_images)
    return [case.id for case in cases if tested and case.source.image_fingerprint() in tested]
