"""Thresholds and temperatures: closed forms, and what a trained bundle says of them."""

import numpy as np
import pytest

from segcore.measure.metrics import dice_per_class
from segcore.picture.preprocess import OutputSpec, decide, probabilities
from segcore.picture.quality import (
    THRESHOLDS,
    choose_threshold,
    dice_at,
    expected_calibration_error,
    fit_temperature,
    reliability_rows,
)

ONE = OutputSpec(activation="sigmoid", channels=1, stride=1)


def test_dice_at_every_threshold_is_that_of_the_mask_drawn_there():
    random = np.random.default_rng(3)
    probability = random.random((9, 7)).astype(np.float32)
    probability[0, 0] = 0.5  # on a threshold: marked
    truth = (random.random((9, 7)) < 0.4).astype(np.uint8)
    expected = []
    for threshold in THRESHOLDS:
        mask = decide(probability[None], ONE.model_copy(update={"threshold": threshold}))
        expected.append(dice_per_class(mask, truth, 1)[0])
    np.testing.assert_allclose(dice_at(probability, truth, THRESHOLDS), expected)


def test_dice_where_nothing_is_marked_or_true():
    nothing, low = np.zeros((2, 2), np.uint8), np.full((2, 2), 0.3, np.float32)
    np.testing.assert_array_equal(dice_at(low, nothing, (0.2, 0.4)), [0.0, 1.0])
    np.testing.assert_array_equal(dice_at(low, 1 - nothing, (0.2, 0.4)), [1.0, 0.0])


def test_the_threshold_leaves_the_middle_only_for_a_gain():
    assert choose_threshold((0.3, 0.5, 0.7), (0.9002, 0.9, 0.8)) == 0.5  # 0.02 points are no reason
    assert choose_threshold((0.3, 0.5, 0.7), (0.91, 0.9, 0.8)) == 0.3
    assert choose_threshold((0.5, 0.6, 0.7), (0.1, 0.9, 0.9)) == 0.6
    assert choose_threshold((0.25, 0.75), (0.9, 0.9)) == 0.25


def test_a_temperature_undoes_a_scaling():
    random = np.random.default_rng(0)
    logits = random.normal(0, 2, (20_000, 1))
    truth = (random.random(20_000) < 1 / (1 + np.exp(-logits[:, 0]))).astype(np.uint8)
    assert fit_temperature(logits, truth) == pytest.approx(1, abs=0.05)
    assert fit_temperature(3 * logits, truth) == pytest.approx(3, abs=0.15)


def test_a_temperature_of_several_classes():
    random = np.random.default_rng(1)
    logits = random.normal(0, 2, (20_000, 3))
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    truth = (random.random((20_000, 1)) > p.cumsum(1)).sum(1)
    assert fit_temperature(0.5 * logits, truth) == pytest.approx(0.5, abs=0.03)


def test_ece_by_hand():
    # 4 pixels at 0.9, 3 of them right; 2 at 0.1, none right: (4·0.15 + 2·0.1) / 6
    rows = reliability_rows(np.array([0.9] * 4 + [0.1] * 2), np.array([1, 1, 1, 0, 0, 0], bool))
    assert expected_calibration_error(rows) == pytest.approx((4 * 0.15 + 2 * 0.1) / 6)
    assert expected_calibration_error(np.zeros((3, 15))) == 0


def test_a_temperature_changes_probabilities_and_is_left_out_of_the_manifest_where_it_is_1():
    logits = np.full((1, 2, 2), 2.0, np.float32)
    warm = ONE.model_copy(update={"temperature": 2.0})
    np.testing.assert_allclose(probabilities(logits, warm, (2, 2)), 1 / (1 + np.exp(-1)), rtol=1e-6)
    assert "temperature" not in ONE.model_dump()
    assert OutputSpec.model_validate(warm.model_dump()) == warm


def test_a_trained_bundle_says_how_its_threshold_was_chosen(tmp_path):
    pytest.importorskip("torch")
    from segcore.bundle.folder import open_bundle
    from student.distill import DistillSettings, main

    common = {
        "data": "phantom:cxr:12",
        "size": 32,
        "epochs": 15,
        "lr": 1e-2,
        "design": "nano",
        "device": "cpu",
    }
    main(DistillSettings(**common, out=tmp_path / "warm", calibrate="temperature"))
    main(DistillSettings(**common, out=tmp_path / "plain", calibrate="none"))
    warm, plain = (open_bundle(tmp_path / name).manifest for name in ("warm", "plain"))
    found = warm.calibration
    assert plain.calibration is None
    assert plain.output.threshold == 0.5
    assert found.thresholds == THRESHOLDS
    assert warm.output.threshold == choose_threshold(found.thresholds, found.dice)
    assert warm.output.temperature == found.temperature != 1
    assert found.ece <= found.ece_before
    at = found.dice[found.thresholds.index(warm.output.threshold)]
    assert warm.metric("dice_mean", "val") == pytest.approx(at, abs=1e-5)
    assert "chosen on 2 validation cases" in (tmp_path / "warm" / "MODEL_CARD.md").read_text()
