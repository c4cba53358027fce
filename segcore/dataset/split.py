"""Splits by patient: the same patients land in the same split on every machine."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping

from segcore.errors import InputError

SPLITS = ("train", "val", "test")
SHARES = (0.6, 0.2, 0.2)


def split_patients(patients: Iterable[str], *, name: str, seed: int = 0) -> dict[str, str]:
    """Assigns each patient to train, val or test, 60/20/20.

    The order comes from a hash of the patient's name, so it depends neither on the file system nor on Python.

    Raises:
        InputError: too few patients to give every split one.
    """
    order = _shuffle_patients(patients, seed)
    if len(order) < len(SPLITS):
        raise InputError(
            f"--data {name}: must have at least 3 patients to be split into train, val and test, "
            f"got {len(order)}; "
            "add patients, or give index.csv a patient or split column"
        )
    # Every split gets a patient, however few there are.
    train = min(max(1, round(SHARES[0] * len(order))), len(order) - 2)
    val = min(max(1, round(SHARES[1] * len(order))), len(order) - train - 1)
    return {p: "train" if i < train else "val" if i < train + val else "test" for i, p in enumerate(order)}


def _shuffle_patients(patients: Iterable[str], seed: int) -> list[str]:
    return sorted(set(patients), key=lambda p: hashlib.sha256(f"{seed}:{p}".encode()).digest())


def parse_fold(fold: str) -> tuple[int, int]:
    """ "2/5" → (2, 5): the second of five.

    Raises:
        InputError: not of that form, fewer than three folds, or no such one.
    """
    number, _, total = fold.partition("/")
    if not (
        number.isdecimal()
        and total.isdecimal()
        and int(total) >= len(SPLITS)
        and 1 <= int(number) <= int(total)
    ):
        raise InputError(f"--fold: must be NUMBER/FOLDS with at least 3 folds, such as 2/5, got {fold}")
    return int(number), int(total)


def fold_patients(patients: Iterable[str], *, name: str, fold: str, seed: int = 0) -> dict[str, str]:
    """One split of a cross-validation: a fold is test, the next one val, the others train.

    Every patient is in the test split of exactly one fold. The order is that of `split_patients`.

    Raises:
        InputError: not a fold, or fewer patients than folds.
    """
    number, folds = parse_fold(fold)
    order = _shuffle_patients(patients, seed)
    if len(order) < folds:
        raise InputError(
            f"--fold {fold}: must have a patient for each fold, {name} has {len(order)}; use fewer folds"
        )
    # Patient → fold; folds differ by at most one patient.
    ordered = {p: 1 + i * folds // len(order) for i, p in enumerate(order)}
    parts = {number: "test", number % folds + 1: "val"}
    return {p: parts.get(one, "train") for p, one in ordered.items()}


def check_given_splits(rows: Iterable[tuple[str, str, str]], *, name: str) -> None:
    """Checks splits that the user gave.

    Args:
        rows: (case, patient, split) of every labelled case.
        name: the data set's name, for the message.

    Raises:
        InputError: an unknown split, a patient in two splits, or an empty split.
    """
    given = list(rows)
    for _, problem in given_split_problems(given, name=name):
        raise InputError(problem)
    missing = [s for s in SPLITS if all(split != s for _, _, split in given)]
    if missing:
        raise InputError(
            f"--data {name}: split {missing[0]} must have a case, got none; fill it in the split column"
        )


def given_split_problems(rows: Iterable[tuple[str, str, str]], *, name: str) -> Iterator[tuple[str, str]]:
    """(case, message) of each (case, patient, split) with an unknown split or a patient in another one."""
    home: dict[str, str] = {}
    for case, patient, split in rows:
        if split not in SPLITS:
            yield case, f"--data {name}: split of case {case} must be train, val or test, got {split!r}"
        elif home.setdefault(patient, split) != split:
            places = f"{home[patient]} and {split}; move all cases of a patient to one split"
            yield case, f"--data {name}: patient {patient} must be in one split, is in {places}"


def split_hash(splits: Mapping[str, str]) -> str:
    """A sha256 that is equal for equal assignments of cases to splits."""
    return hashlib.sha256(json.dumps(sorted(splits.items())).encode()).hexdigest()
