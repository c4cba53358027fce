"""The built-in volumes: one body a volume, an organ that moves from slice to slice, and look-alikes beside it."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest

from segcore.bundle.golden import golden_inputs
from segcore.dataset.dataset import open_dataset
from segcore.errors import InputError
from segcore.phantom import PHANTOM_CLASSES, PHANTOM_KINDS, VOLUME_SLICES, phantom_case, phantom_patient
from segcore.picture.preprocess import InputSpec


@pytest.fixture(scope="module")
def volumes():
    """Images and masks of eight volumes, 8×12×96×96 each."""
    drawn = [phantom_case("volume", i, size_px=96) for i in range(8 * VOLUME_SLICES)]
    shape = (8, VOLUME_SLICES, 96, 96)
    return np.stack([i for i, _ in drawn]).reshape(shape), np.stack([m for _, m in drawn]).reshape(shape)


def dice(first, second):
    return 2 * np.count_nonzero(first & second) / max(1, np.count_nonzero(first) + np.count_nonzero(second))


def test_a_slice_has_the_promised_form_and_the_same_bytes_each_time():
    image, mask = phantom_case("volume", 5, size_px=100)
    for array in (image, mask):
        assert (array.dtype, array.shape) == (np.uint8, (100, 100))
    assert mask.max() == 1
    again = [phantom_case("volume", i, size_px=100) for i in (17, 5)][1]
    assert np.array_equal(again[0], image)
    assert np.array_equal(again[1], mask)
    assert np.any(phantom_case("volume", 5, seed=1, size_px=100)[1] != mask)


def test_sizes_show_the_same_anatomy():
    for index in (3, 6, 18):
        large, small = (phantom_case("volume", index, size_px=size)[1] > 0 for size in (256, 128))
        assert dice(large[::2, ::2], small) > 0.9


def test_every_volume_has_an_organ_that_begins_or_ends_within_it(volumes):
    _, masks = volumes
    there = masks.any(axis=(2, 3))
    assert (there.sum(axis=1) >= 5).all()
    assert not there.all(axis=1).all()
    for row in there:  # in one piece
        assert np.count_nonzero(np.diff(row.astype(int))) <= 2


def test_the_organ_drifts_from_slice_to_slice_but_overlaps_with_its_neighbour(volumes):
    _, masks = volumes
    near, far = [], []
    for volume in masks > 0:
        present = np.flatnonzero(volume.any(axis=(1, 2)))
        near += [dice(volume[i], volume[i + 1]) for i in present[:-1]]
        far.append(dice(volume[present[0]], volume[present[-1]]))
    assert 0.6 < np.mean(near) < 0.95
    assert np.mean(far) < 0.3


def test_slices_of_a_volume_are_of_one_body_with_grain_of_their_own(volumes):
    images, _ = volumes
    flat = images.reshape(8, VOLUME_SLICES, -1).astype(float)
    same = np.mean([np.corrcoef(v[4], v[5])[0, 1] for v in flat])
    other = np.mean([np.corrcoef(flat[i][4], flat[i - 1][4])[0, 1] for i in range(8)])
    assert same > other + 0.1
    still = images[:, :-1, :8, :8].astype(int) - images[:, 1:, :8, :8]  # a corner: air
    assert still.any()


def test_neither_a_threshold_nor_the_mean_mask_finds_the_organ(volumes):
    images, masks = volumes
    truth = masks > 0
    shown = truth.any(axis=(2, 3))
    for bright in range(20, 256, 5):
        assert (
            np.mean([dice(i >= bright, t) for i, t in zip(images[shown], truth[shown], strict=True)]) < 0.35
        )
    mean = truth.mean(axis=(0, 1))
    assert np.mean([dice(mean >= 0.5 * mean.max(), t) for t in truth[shown]]) < 0.65


def test_cases_are_slices_of_volumes_and_a_patient_is_a_volume():
    dataset = open_dataset("phantom:volume:5", seed=3)
    assert dataset.classes == ("organ",)
    assert len(dataset.cases) == 5 * VOLUME_SLICES
    case = dataset.cases[17]
    assert (case.id, case.volume, case.slice_index, case.patient) == (
        "volume-001-s006",
        "volume-001",
        5,
        "p001",
    )
    assert case.patient == phantom_patient("volume", 17)
    np.testing.assert_array_equal(case.image(), phantom_case("volume", 17, seed=3)[0])
    np.testing.assert_array_equal(case.mask(), phantom_case("volume", 17, seed=3)[1])
    assert [len(dataset.split(name)) // VOLUME_SLICES for name in ("train", "val", "test")] == [3, 1, 1]
    more = open_dataset("phantom:volume:10", seed=3)
    assert [replace(c, source=None) for c in more.cases[:60]] == [
        replace(c, source=None) for c in dataset.cases
    ]


def test_folds_keep_volumes_whole():
    for fold in ("1/3", "2/3"):
        homes: dict[str, set[str]] = {}
        for case in open_dataset("phantom:volume:6", fold=fold).cases:
            homes.setdefault(case.volume, set()).add(case.split)
        assert all(len(splits) == 1 for splits in homes.values())


def test_too_few_volumes():
    with pytest.raises(InputError) as caught:
        open_dataset("phantom:volume:2")
    assert (
        str(caught.value) == "phantom:volume:2: must have at least 3 volumes, a patient for each split; got 2"
    )


def test_golden_cases_of_bundles_are_what_they_were():
    """Another kind among them, or another byte, would change the reference of every bundle to come."""
    assert tuple(PHANTOM_CLASSES) == ("cxr", "ct", "dental")
    assert (*PHANTOM_CLASSES, "volume") == PHANTOM_KINDS
    pictures = golden_inputs(InputSpec(height_px=64, width_px=64, channels=1, mean=(0.5,), std=(0.5,)))
    assert pictures.shape == (12, 64, 64, 1)
    assert hashlib.sha256(pictures.tobytes()).hexdigest()[:16] == "e0675bac09284d10"
