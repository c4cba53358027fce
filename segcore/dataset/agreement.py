"""A model and a dataset must agree before either is used on the other: the same classes, and the same split."""

from __future__ import annotations

from collections.abc import Iterable

from segcore.bundle.manifest import DataRecord
from segcore.dataset.case import Case
from segcore.dataset.dataset import Dataset
from segcore.errors import InputError


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
