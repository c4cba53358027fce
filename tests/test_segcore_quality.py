"""What is read from logits has closed forms; the fit finds what was put in and says when it cannot be trusted."""

import numpy as np
import pytest

from segcore.picture.preprocess import OutputSpec
from segcore.picture.quality import (
    SHAPE,
    SIGNS,
    QualityModel,
    estimate,
    odd_shape,
    quality_of,
    regressors,
    signs_of,
)

ONE = OutputSpec(activation="sigmoid", channels=1, stride=1)
TWO = OutputSpec(activation="softmax", channels=3, stride=4)


def model(classes: int = 1, **changes) -> QualityModel:
    fields = {
        "weights": (0.0,) * 13,
        "centre": (0.0,) * 6,
        "spread": (1.0,) * 6,
        "high": (1.0,) * 6,
        "shape_centre": ((0.0,) * 7,) * classes,
        "shape_spread": ((1.0,) * 7,) * classes,
        "empty_right": (0.25,) * classes,
        "cases": 30,
        "error": 0.02,
        "error_degraded": 0.05,
    }
    return QualityModel(**(fields | changes))


def square(height: float = 20.0, side: int = 16, top: int = 8, left: int = 24) -> np.ndarray:
    """Logits 1×64×64: +height in a square, −height elsewhere."""
    logits = np.full((1, 64, 64), -height, np.float32)
    logits[0, top : top + side, left : left + side] = height
    return logits


def test_signs_of_a_sure_square():
    confidence, shape, marked = signs_of(square(), ONE)
    signs, form = dict(zip(SIGNS, confidence[0], strict=False)), dict(zip(SHAPE, shape[0], strict=True))
    assert marked.tolist() == [True]
    assert signs["doubt"] == pytest.approx(np.log(1e-3), abs=0.01)
    assert signs["unsure_inside"] == pytest.approx(0.0, abs=1e-6)
    assert signs["leak"] == pytest.approx(np.log(1e-3), abs=0.01)
    assert signs["ragged"] == pytest.approx(np.log((4 * 16 + 1) / 16))
    assert np.exp(form["log_area"]) == pytest.approx(1 / 16)
    assert (form["x"], form["y"]) == pytest.approx((31.5 / 64, 15.5 / 64))
    assert form["width"] == form["height"] == pytest.approx(np.sqrt((16**2 - 1) / 12) / 64, rel=1e-4)
    assert form["tilt"] == pytest.approx(0.0, abs=1e-6)


def test_doubt_is_the_expected_dice():
    p = 1 / (1 + np.exp(-1.0))
    confidence, _, _ = signs_of(square(1.0), ONE)
    inside, outside = 256 * p, (4096 - 256) * (1 - p)
    assert confidence[0, 0] == pytest.approx(
        np.log(1 - 2 * inside / (inside + outside + 256) + 1e-3), rel=1e-4
    )
    doubts = [signs_of(square(height), ONE)[0][0, 0] for height in (0.5, 1, 2, 4, 8)]
    assert doubts == sorted(doubts, reverse=True)


def test_classes_are_measured_apart():
    """Background 0 and a class's logit x give the sigmoid of x, where the other classes are far below."""
    logits = np.concatenate([np.zeros((1, 64, 64)), square(3.0), np.full((1, 64, 64), -60.0)]).astype(
        np.float32
    )
    confidence, shape, marked = signs_of(logits, TWO)
    alone = signs_of(square(3.0), ONE)
    np.testing.assert_allclose(confidence[0], alone[0][0], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(shape[0], alone[1][0])
    assert marked.tolist() == [True, False]
    assert np.isfinite(confidence).all()
    assert np.isfinite(shape).all()


def test_a_large_head_is_thinned_and_says_the_same():
    large = square(2.0).repeat(4, axis=1).repeat(4, axis=2)
    for thin, plain in zip(signs_of(large, ONE), signs_of(square(2.0), ONE), strict=True):
        np.testing.assert_allclose(thin, plain)


def test_an_empty_mask_has_the_share_of_empty_masks_that_were_right():
    empty = np.full((1, 64, 64), -20.0, np.float32)
    assert quality_of(empty, ONE, model(weights=(9.0,) + (0.0,) * 12)) == 0.25
    both = np.concatenate([np.zeros((1, 64, 64)), square(5.0), np.full((1, 64, 64), -9.0)]).astype(np.float32)
    assert quality_of(both, TWO, model(2)) == pytest.approx((0.5 + 0.25) / 2)


@pytest.mark.parametrize("fill", [-1e30, 0.0, 1e30])
def test_any_logits_give_a_share(fill):
    for logits, spec, classes in ((np.full((1, 7, 5), fill), ONE, 1), (np.full((3, 9, 9), fill), TWO, 2)):
        assert (
            0 <= quality_of(logits.astype(np.float32), spec, model(classes, weights=(1.0, *[-9.0] * 12))) <= 1
        )


def test_regression_has_two_slopes_a_sign():
    inputs = regressors(np.array([[0.0, 1, 2, 3, -3, 1e9]]), np.zeros(6), np.ones(6), np.ones(6))
    assert inputs[0, 0] == 1
    assert inputs[0, 1:7].tolist() == [0, 1, 2, 3, -3, 16]  # what is very far is not told apart
    np.testing.assert_allclose(inputs[0, 7:], [0, 0, np.log(2), np.log(3), 0, np.log(16)])
    assert odd_shape(np.array([3.0] * 7), np.zeros(7), np.ones(7)) == pytest.approx(np.log(10))


def test_estimates_of_several_pictures_are_those_of_each():
    some = model(weights=tuple(np.linspace(-0.3, 0.3, 13)))
    pictures = [square(h, side) for h, side in ((1, 16), (3, 9), (9, 30))]
    each = [quality_of(p, ONE, some) for p in pictures]
    together = estimate(
        *(np.array(part) for part in zip(*(signs_of(p, ONE) for p in pictures), strict=True)), some
    )
    np.testing.assert_allclose(together, each)
    assert len(set(each)) == 3


# The fit (torch).

torch = pytest.importorskip("torch")


class Darkness(torch.nn.Module):
    """Marks what is dark: poor, and poorer on a picture of little contrast."""

    def __init__(self, sharpness: float = 3.0, level: float = -0.7) -> None:
        super().__init__()
        self.sharpness = torch.nn.Parameter(torch.tensor(sharpness))
        self.level = level

    def forward(self, x):
        return self.sharpness * (self.level - torch.nn.functional.avg_pool2d(x, 5, 1, 2))


def validator(cases: int):
    from segcore.dataset.dataset import open_dataset
    from segcore.learn.evaluate import Validator
    from segcore.picture.preprocess import InputSpec

    spec = InputSpec(height_px=64, width_px=64, channels=1, mean=(0.5,), std=(0.25,))
    return Validator(open_dataset("phantom:cxr:160").split("val")[:cases], spec, ONE, 1, batch=8)


@pytest.fixture(scope="module")
def held():
    return validator(30)


def test_fit_beats_the_mean_on_cases_it_left_out(held):
    from segcore.learn.seal import _observe, fit_quality

    network = Darkness()
    fitted = fit_quality(network, held)
    assert fitted is not None
    assert fitted.cases == 30
    measured = _observe(network, held)
    dice = measured.dice.mean(axis=1)
    guess = np.abs(dice - dice.mean())
    assert fitted.error_degraded < 0.75 * guess[measured.degraded].mean()
    assert 0 < fitted.error < 0.2
    promised = estimate(measured.confidence, measured.shape, measured.marked, fitted)
    assert np.corrcoef(promised, dice)[0, 1] > 0.8
    assert fitted == fit_quality(network, held)  # no chance in it
    assert fitted == QualityModel.model_validate_json(fitted.model_dump_json())


def test_too_few_cases_are_said(capsys):
    from segcore.learn.seal import fit_quality

    assert fit_quality(Darkness(), validator(19)) is None
    assert fit_quality(Darkness(level=-99.0), validator(25)) is None  # nothing is ever marked
    few, none = capsys.readouterr().err.splitlines()
    words = "no quality estimate: it needs 20 validation cases in which something is marked, got {}; the bundle works without"
    assert (few, none) == (words.format(19), words.format(0))


def test_regression_finds_the_weights_that_made_the_data():
    from segcore.learn.seal import _logistic_ridge

    rng = np.random.default_rng(0)
    x = np.concatenate([np.ones((4000, 1)), rng.normal(size=(4000, 2))], axis=1)
    made = np.array([0.5, -1.0, 2.0])
    found = _logistic_ridge(x, 1 / (1 + np.exp(-x @ made)), np.ones(4000))
    np.testing.assert_allclose(found, made, atol=0.03)
    constant = _logistic_ridge(np.ones((10, 1)), np.full(10, 0.8), np.ones(10))
    assert 1 / (1 + np.exp(-constant[0])) == pytest.approx(0.8, abs=1e-6)


def test_empty_masks_are_wrong_unless_they_were_seen_to_be_right():
    from segcore.learn.seal import _empty_right, _Observations

    def share(marked, dice, degraded):
        n = len(marked)
        return _empty_right(
            _Observations(np.arange(n), np.array(degraded), np.zeros((n, 1, 5)), np.zeros((n, 1, 7)),
                      np.array(marked)[:, None], np.array(dice, float)[:, None])
        )[0]  # fmt: skip

    assert share([True, True], [0.9, 0.8], [False, False]) == 0
    assert share([False] * 3 + [True], [1, 1, 0, 0.9], [False] * 4) == 0.5
    assert (
        share([False] * 3, [1, 1, 1], [True] * 3) == 0
    )  # a black picture shows nothing: that proves nothing


def test_degradations_keep_the_picture_s_form_and_follow_the_seed():
    from segcore.learn.seal import _with_degraded

    for channels in (1, 3):
        picture = np.random.default_rng(1).integers(0, 256, (40, 50, channels), np.uint8)
        versions = _with_degraded(picture, seed=3)
        assert len(versions) == 4
        assert {(v.shape, v.dtype.name) for v in versions} == {((40, 50, channels), "uint8")}
        assert all((v != picture).any() for v in versions[1:])
        assert all((a == b).all() for a, b in zip(versions, _with_degraded(picture, seed=3), strict=True))
        assert versions[1].std() < 0.7 * picture.std()


def test_several_classes_are_fitted_together_and_an_absent_one_apart():
    from segcore.dataset.dataset import open_dataset
    from segcore.learn.evaluate import Validator
    from segcore.learn.seal import fit_quality
    from segcore.picture.preprocess import InputSpec, output_spec

    class Bands(Darkness):
        """Class 1 where it is dark, class 2 nowhere."""

        def forward(self, x):
            dark = super().forward(x)
            return torch.cat([torch.zeros_like(dark), dark, torch.full_like(dark, -9.0)], dim=1)

    spec = InputSpec(height_px=64, width_px=64, channels=1, mean=(0.5,), std=(0.25,))
    cases = open_dataset("phantom:cxr:160").split("val")[:24]
    fitted = fit_quality(Bands(), Validator(cases, spec, output_spec(("a", "b"), 1), 2, batch=8))
    assert fitted is not None
    assert len(fitted.shape_centre) == len(fitted.empty_right) == 2
    assert fitted.empty_right == (0.0, pytest.approx(24 / 25))  # class b is in no mask, and none was marked
    assert fitted.error < 0.1
