import pytest

from segcore.dataset.split import (
    SPLITS,
    check_given_splits,
    fold_patients,
    parse_fold,
    split_hash,
    split_patients,
)
from segcore.errors import InputError

PATIENTS = [f"p{i}" for i in range(50)]


def test_shares_are_60_20_20():
    home = split_patients(PATIENTS, name="d")
    assert [list(home.values()).count(s) for s in SPLITS] == [30, 10, 10]


def test_order_and_repetition_do_not_matter():
    assert split_patients(reversed(PATIENTS), name="d") == split_patients(PATIENTS * 2, name="d")


def test_frozen_assignment():
    """The same patients land in the same split on every machine and in every version."""
    assert split_patients(["a", "b", "c", "d", "e"], name="d") == FROZEN


FROZEN = {"c": "train", "d": "train", "a": "train", "b": "val", "e": "test"}


def test_another_seed_is_another_split():
    assert split_patients(PATIENTS, name="d", seed=1) != split_patients(PATIENTS, name="d")


@pytest.mark.parametrize("count", range(3, 12))
def test_every_split_has_a_patient(count):
    assert set(split_patients(PATIENTS[:count], name="d").values()) == set(SPLITS)


@pytest.mark.parametrize("count", [1, 2])
def test_too_few_patients(count):
    with pytest.raises(InputError) as caught:
        split_patients(PATIENTS[:count], name="d")
    assert str(caught.value) == (
        f"--data d: must have at least 3 patients to be split into train, val and test, got {count}; "
        "add patients, or give index.csv a patient or split column"
    )


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (
            [("c1", "p", "train"), ("c2", "p", "test"), ("c3", "q", "val")],
            "--data d: patient p must be in one split, is in train and test; "
            "move all cases of a patient to one split",
        ),
        (
            [("c1", "p", "train"), ("c2", "q", "test")],
            "--data d: split val must have a case, got none; fill it in the split column",
        ),
        ([("c1", "p", "Training")], "--data d: split of case c1 must be train, val or test, got 'Training'"),
    ],
)
def test_given_splits_that_are_wrong(rows, expected):
    with pytest.raises(InputError) as caught:
        check_given_splits(rows, name="d")
    assert str(caught.value) == expected


def test_given_splits_that_are_right():
    check_given_splits(
        [("c1", "p", "train"), ("c2", "p", "train"), ("c3", "q", "val"), ("c4", "r", "test")], name="d"
    )


def test_hash_depends_on_the_assignment_alone():
    assert split_hash({"a": "train", "b": "val"}) == split_hash({"b": "val", "a": "train"})
    assert split_hash({"a": "train", "b": "val"}) != split_hash({"a": "val", "b": "train"})


def test_each_patient_is_tested_in_exactly_one_fold_and_validates_another():
    patients = [f"p{i}" for i in range(11)]
    folds = [fold_patients(patients, name="D", fold=f"{k}/3", seed=1) for k in (1, 2, 3)]
    for patient in patients:
        assert sorted(home[patient] for home in folds) == ["test", "train", "val"]
    assert {p for p in patients if folds[0][p] == "val"} == {p for p in patients if folds[1][p] == "test"}
    sizes = [sum(part == "test" for part in home.values()) for home in folds]
    assert max(sizes) - min(sizes) <= 1
    assert folds[0] == fold_patients(reversed(patients), name="D", fold="1/3", seed=1)


@pytest.mark.parametrize("fold", ["0/5", "6/5", "1/2", "3", "a/5", "1/5/2", "²/5", "-1/5"])
def test_what_is_no_fold(fold):
    with pytest.raises(InputError) as caught:
        parse_fold(fold)
    assert str(caught.value) == f"--fold: must be NUMBER/FOLDS with at least 3 folds, such as 2/5, got {fold}"


def test_fewer_patients_than_folds():
    with pytest.raises(InputError) as caught:
        fold_patients(["a", "b", "b"], name="D", fold="1/3")
    assert str(caught.value) == "--fold 1/3: must have a patient for each fold, D has 2; use fewer folds"
