"""Who keeps the masks at a labelled share: by patient, nested, and without changing the data set."""

from itertools import pairwise

import numpy as np
import pytest

from segcore.dataset.dataset import labelled_patients, open_dataset, training_cases
from segcore.errors import InputError

PATIENTS = [f"p{i}" for i in range(200)]


def test_smaller_shares_are_within_larger_ones():
    shares = [labelled_patients(PATIENTS, share=s, seed=0) for s in (0.001, 0.05, 0.1, 0.5, 1.0)]
    assert [len(s) for s in shares] == [1, 10, 20, 100, 200]
    for small, large in pairwise(shares):
        assert small < large


def test_the_choice_follows_from_names_and_seed_alone():
    once = labelled_patients(PATIENTS, share=0.1, seed=0)
    assert once == labelled_patients([*reversed(PATIENTS), *PATIENTS], share=0.1, seed=0)
    assert once != labelled_patients(PATIENTS, share=0.1, seed=1)


def test_masks_are_hidden_by_patient_and_the_data_set_stays():
    dataset = open_dataset("phantom:cxr:60")  # 18 training patients of 2 cases
    cases = training_cases(dataset, labelled_share=0.5, seed=0)
    assert [c.id for c in cases] == [c.id for c in dataset.split("train")]
    kept, hidden = ({c.patient for c in cases if c.labelled is x} for x in (True, False))
    assert (len(kept), len(hidden), kept & hidden) == (9, 9, set())
    for case, original in zip(cases, dataset.split("train"), strict=True):
        assert case.source.fingerprint() == original.source.fingerprint()
        if case.labelled:
            assert case is original
        else:
            with pytest.raises(ValueError, match="hidden"):
                case.mask()
    hidden_case = next(c for c in cases if not c.labelled)
    original = next(c for c in dataset.cases if c.id == hidden_case.id)
    assert np.array_equal(hidden_case.image(), original.image())


def test_everything_is_the_split_itself():
    dataset = open_dataset("phantom:cxr:20")
    assert training_cases(dataset, labelled_share=1.0, seed=0) == dataset.split("train")
    limited = training_cases(dataset, labelled_share=1.0, seed=0, limit=3)
    assert limited == dataset.split("train", limit=3)


def test_a_limit_does_not_change_who_keeps_the_masks():
    dataset = open_dataset("phantom:cxr:60")
    kept = {c.id for c in training_cases(dataset, labelled_share=0.5, seed=0) if c.labelled}
    limited = training_cases(dataset, labelled_share=0.5, seed=0, limit=12)
    assert len(limited) == 12
    assert {c.id for c in limited if c.labelled} == kept & {c.id for c in limited}


def test_a_limit_that_leaves_no_mask():
    dataset = open_dataset("phantom:cxr:60")
    seed = next(
        s for s in range(20)
        if dataset.split("train")[0].patient
        not in labelled_patients((c.patient for c in dataset.split("train")), share=0.1, seed=s)
    )  # fmt: skip
    with pytest.raises(InputError) as caught:
        training_cases(dataset, labelled_share=0.1, seed=seed, limit=1)
    assert str(caught.value) == (
        "--limit 1: must leave an image with a mask at --labelled-share 0.1, leaves none; raise one of the two"
    )
