"""The one path in and out: what a picture becomes, and that perfect logits give back the truth."""

import numpy as np
import pytest
from PIL import Image

from segcore.errors import InputError
from segcore.measure.metrics import dice_per_class
from segcore.phantom import phantom_case
from segcore.picture.preprocess import (
    InputSpec,
    OutputSpec,
    decide,
    mask_of_logits,
    output_spec,
    prepare,
    probabilities,
    resize_logits,
    resize_mask,
    through_window,
    training_window,
    window_named,
)


def spec(size: tuple[int, int] = (8, 8), channels: int = 1, **fields) -> InputSpec:
    mean = (0.5,) * channels
    return InputSpec(height_px=size[0], width_px=size[1], channels=channels, mean=mean, std=mean, **fields)


@pytest.fixture
def grey():
    return np.random.default_rng(0).integers(0, 255, (8, 8), np.uint8, endpoint=True)


def test_8_bit_of_the_right_size_is_untouched(grey):
    np.testing.assert_array_equal(prepare(grey, spec())[..., 0], grey)


def test_grey_is_repeated_and_colour_is_mixed(grey):
    np.testing.assert_array_equal(prepare(grey, spec(channels=3)), np.repeat(grey[..., None], 3, 2))
    np.testing.assert_array_equal(prepare(np.repeat(grey[..., None], 3, 2), spec()), prepare(grey, spec()))
    red = np.zeros((8, 8, 3), np.uint8)
    red[..., 0] = 200
    assert (prepare(red, spec()) == round(0.299 * 200)).all()


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_window_maps_its_ends_to_0_and_255_and_clips(dtype):
    levels = np.array([0, 100, 150, 200, 900], dtype)
    image = np.repeat(levels[None], 5, 0)
    out = prepare(image, spec((5, 5), depth=np.dtype(dtype).name, window=(100, 200)))
    assert out.dtype == np.uint8
    np.testing.assert_array_equal(out[0, :, 0], [0, 0, 128, 255, 255])


def test_windowing_comes_before_resizing():
    """A level over the window must not shine into its neighbours when the picture shrinks."""
    image = np.zeros((2, 2), np.uint16)
    image[0, 0] = 60_000
    assert prepare(image, spec((1, 1), depth="uint16", window=(0, 100))).item() == pytest.approx(
        255 / 4, abs=1
    )


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("shape", [(20, 30), (20, 30, 3), (5, 3), (20, 30, 1)])
def test_every_depth_and_shape_gives_the_spec(dtype, channels, shape):
    image = np.random.default_rng(0).integers(0, 200, shape).astype(dtype)
    out = prepare(image, spec((16, 24), channels, depth=dtype))
    assert (out.shape, out.dtype) == ((16, 24, channels), np.uint8)


def test_8_and_16_bit_paths_agree(grey):
    big = np.kron(grey, np.ones((3, 3), np.uint8))
    as_16_bit = prepare(big.astype(np.uint16), spec(depth="uint16", window=(0, 255)))
    assert np.abs(prepare(big, spec()).astype(int) - as_16_bit).max() <= 1


def test_constant_stays_constant():
    for resize_filter in ("bilinear", "area"):
        out = prepare(np.full((33, 17), 77, np.uint8), spec((16, 16), resize_filter=resize_filter))
        assert (out == 77).all()


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (
            np.zeros((4, 4), np.uint16),
            "scan: must be uint8 as the model was trained on (window 0 to 255), got uint16; "
            "convert it the way the training images were",
        ),
        (np.zeros((4, 4, 4), np.uint8), "scan: must be H×W or H×W×3, got shape 4×4×4"),
        (np.zeros((0, 4), np.uint8), "scan: must be H×W or H×W×3, got shape 0×4"),
    ],
)
def test_wrong_pictures(image, expected):
    with pytest.raises(InputError) as caught:
        prepare(image, spec(), name="scan")
    assert str(caught.value) == expected


def test_one_class_is_a_sigmoid_and_several_a_softmax_with_background():
    assert output_spec(("lung",), 4) == OutputSpec(activation="sigmoid", channels=1, stride=4)
    assert output_spec(("a", "b"), 4) == OutputSpec(activation="softmax", channels=3, stride=4)


def perfect_logits(mask: np.ndarray, classes: int) -> np.ndarray:
    if classes == 1:
        return np.where(mask[None] == 1, 8.0, -8.0).astype(np.float32)
    return np.where(np.arange(classes + 1)[:, None, None] == mask, 8.0, -8.0).astype(np.float32)


@pytest.mark.parametrize(("kind", "classes"), [("cxr", 1), ("dental", 4)])
def test_perfect_logits_give_back_the_truth(kind, classes):
    _, truth = phantom_case(kind, 0)
    out = output_spec(tuple("abcd"[:classes]), 1)
    np.testing.assert_array_equal(mask_of_logits(perfect_logits(truth, classes), out, truth.shape), truth)


def test_logits_at_half_resolution_come_close():
    _, truth = phantom_case("cxr", 0)
    small = resize_mask(truth, (128, 128))
    mask = mask_of_logits(perfect_logits(small, 1), output_spec(("lung",), 2), truth.shape)
    assert dice_per_class(mask, truth, 1)[0] > 0.98


def test_resize_is_aligned_by_pixel_areas():
    """Halves of a picture stay halves: a shift by half a pixel would move the border."""
    logits = np.full((1, 4, 4), -8.0, np.float32)
    logits[:, :, 2:] = 8.0
    mask = mask_of_logits(logits, output_spec(("x",), 4), (16, 16))
    np.testing.assert_array_equal(mask, np.repeat([[0] * 8 + [1] * 8], 16, 0))


def test_logits_of_the_same_size_are_untouched():
    logits = np.random.default_rng(0).normal(size=(2, 5, 6)).astype(np.float32)
    np.testing.assert_array_equal(resize_logits(logits, (5, 6)), logits)
    assert resize_logits(logits, (10, 12)).shape == (2, 10, 12)


def test_probabilities():
    logits = np.array([0.0, 1000.0, -1000.0], np.float32).reshape(1, 1, 3)
    np.testing.assert_allclose(
        probabilities(logits, output_spec(("x",), 1), (1, 3))[0, 0], [0.5, 1, 0], atol=1e-9
    )
    three = np.random.default_rng(0).normal(0, 300, (3, 4, 4)).astype(np.float32)
    p = probabilities(three, output_spec(("a", "b"), 1), (4, 4))
    np.testing.assert_allclose(p.sum(0), 1, rtol=1e-6)


def test_threshold_is_the_manifests():
    probability = np.array([[[0.2, 0.5, 0.7]]], np.float32)
    for threshold, expected in ((0.5, [0, 1, 1]), (0.6, [0, 0, 1]), (0.1, [1, 1, 1])):
        out = OutputSpec(activation="sigmoid", channels=1, stride=1, threshold=threshold)
        np.testing.assert_array_equal(decide(probability, out)[0], expected)


def test_mask_resize_invents_no_class():
    mask = np.array([[0, 3], [3, 0]], np.uint8)
    assert set(resize_mask(mask, (7, 9)).ravel()) == {0, 3}
    np.testing.assert_array_equal(resize_mask(resize_mask(mask, (8, 8)), (2, 2)), mask)


RAMP = np.arange(1001, dtype=np.uint16)[None]
HOUNSFIELD = np.linspace(-1000, 400, 99, dtype=np.float32)[None]
GREY = np.zeros((2, 2), np.uint8)


def test_training_window():
    assert training_window([("a", GREY)]) == ("uint8", (0.0, 255.0), "")
    assert training_window([("a", RAMP), ("b", RAMP + 100)]) == ("uint16", (5.0, 1095.0), "")
    assert training_window([("a", np.full((2, 2), 3, np.float32))]) == ("float32", (3.0, 4.0), "")


def test_images_of_two_depths_are_an_error_with_an_example_of_each():
    with pytest.raises(InputError) as caught:
        training_window([("c0", GREY), ("c1", GREY), ("ct-s001", HOUNSFIELD), ("c2", RAMP)])
    assert str(caught.value) == (
        "--data: images must share one depth, got float32 (ct-s001), uint16 (c2), uint8 (c0); convert them to one"
    )


def test_a_window_that_the_user_names_is_taken_with_its_name():
    lung = training_window([("a", HOUNSFIELD)], window_named("lung"))
    assert lung == ("float32", (-1350.0, 150.0), "lung")
    own = training_window([("a", HOUNSFIELD)], window_named("-1000,0"))
    assert own == ("float32", (-1000.0, 0.0), "")
    assert training_window([("a", GREY)], window_named("10,90")) == ("uint8", (10.0, 90.0), "")


@pytest.mark.parametrize(("image", "depth"), [(GREY, "uint8"), (RAMP, "uint16")])
def test_a_window_in_hounsfield_units_means_nothing_on_stored_grey_values(image, depth):
    with pytest.raises(InputError) as caught:
        training_window([("c0", image)], window_named("lung"))
    assert str(caught.value) == (
        f"--window lung: must be used on Hounsfield units, got {depth} images (c0), whose grey values have no unit; "
        "leave --window away, or give LOW,HIGH in their own values"
    )


def test_a_window_without_a_name_leaves_no_trace_in_a_manifest():
    """Versions before the name refuse fields they do not know, and must still read what needs none."""
    assert "window_name" not in spec().model_dump_json()
    named = spec(depth="float32", window=(-1350, 150), window_name="lung")
    assert InputSpec.model_validate_json(named.model_dump_json()) == named
    assert named.model_dump()["window_name"] == "lung"


def test_a_picture_through_the_models_window_is_to_be_looked_at():
    lung = spec(depth="float32", window=(-1350, 150), window_name="lung")
    seen = through_window(np.array([[-2000, -1350, -600, 150, 900]], np.float32), lung)
    assert seen.dtype == np.uint8
    assert seen.tolist() == [[0, 0, 128, 255, 255]]
    assert through_window(GREY, spec()) is GREY


# From logits to a mask: only what lies between unlike neighbours is computed, and no pixel is another.


def smooth_logits(rng, channels: int, height: int, width: int) -> np.ndarray:
    """Logits K×h×w as a network gives them: a few soft blobs, float32."""
    coarse = rng.normal(0, 5, (channels, height // 6 + 2, width // 6 + 2)).astype(np.float32)
    planes = [Image.fromarray(one).resize((width, height), Image.Resampling.BICUBIC) for one in coarse]
    return np.stack([np.asarray(one) for one in planes])


@pytest.mark.parametrize("threshold", [0.5, 0.475, 0.05, 0.95])
@pytest.mark.parametrize("temperature", [1.0, 0.7, 3.0])
def test_masks_of_logits_are_those_of_probabilities_to_the_pixel(threshold, temperature):
    rng = np.random.default_rng(0)
    output = OutputSpec(
        activation="sigmoid", channels=1, stride=4, threshold=threshold, temperature=temperature
    )
    for n in range(200):
        height, width = rng.integers(1, 66, 2)
        size_px = int(height + rng.integers(0, 200)), int(width + rng.integers(0, 200))
        logits = smooth_logits(rng, 1, height, width)
        if n % 4 == 0:
            logits = np.round(4 * logits) / 4  # as INT8 gives them: many equal ones
        expected = decide(probabilities(logits, output, size_px), output)
        np.testing.assert_array_equal(mask_of_logits(logits, output, size_px), expected)


@pytest.mark.parametrize("size_px", [(64, 64), (200, 150), (513, 70), (40, 300), (300, 40), (9, 9)])
def test_several_classes_take_the_largest_logit(size_px):
    rng = np.random.default_rng(1)
    output = OutputSpec(activation="softmax", channels=4, stride=4)
    for _ in range(20):
        logits = smooth_logits(rng, 4, 64, 64)
        expected = resize_logits(logits, size_px).argmax(axis=0)
        np.testing.assert_array_equal(mask_of_logits(logits, output, size_px), expected)


def test_noise_is_decided_as_well():
    logits = np.random.default_rng(2).normal(size=(1, 32, 32)).astype(np.float32)
    output = OutputSpec(activation="sigmoid", channels=1, stride=4)
    expected = decide(probabilities(logits, output, (250, 190)), output)
    np.testing.assert_array_equal(mask_of_logits(logits, output, (250, 190)), expected)


@pytest.mark.parametrize("threshold", [0.5, 0.3, 1e-30, 0.99999999999])
def test_the_logit_of_a_threshold_is_found_to_the_last_bit(threshold):
    output = OutputSpec(activation="sigmoid", channels=1, stride=1, threshold=threshold)
    edge = np.float32(np.clip(np.log(threshold / (1 - threshold)), -80, 80))
    near = [edge]
    for _ in range(40):
        near = [np.nextafter(near[0], np.float32(-200)), *near, np.nextafter(near[-1], np.float32(200))]
    logits = np.array([[near, near]], np.float32)
    expected = decide(probabilities(logits, output, (2, 81)), output)
    np.testing.assert_array_equal(mask_of_logits(logits, output, (2, 81)), expected)


def test_area_is_the_mean_of_whole_pixels_and_bilinear_where_it_grows():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (24, 40), np.uint8)
    area = spec((8, 10), resize_filter="area")
    means = image.reshape(8, 3, 10, 4).mean(axis=(1, 3))
    np.testing.assert_allclose(prepare(image, area)[..., 0], means, atol=0.51)
    grown = spec((48, 50), resize_filter="area")
    np.testing.assert_array_equal(prepare(image, grown), prepare(image, spec((48, 50))))
    as_float = spec((8, 10), resize_filter="area", depth="float32", window=(0, 255))
    np.testing.assert_allclose(prepare(image.astype(np.float32), as_float)[..., 0], means, atol=0.51)
    # Sides that are no whole multiple: near the exact mean of what each pixel covers.
    gradient = np.repeat(np.arange(100, dtype=np.uint8)[None], 30, axis=0)
    shrunk = prepare(gradient, spec((16, 32), resize_filter="area"))[3, :, 0]
    np.testing.assert_allclose(shrunk, (np.arange(32) + 0.5) * 100 / 32 - 0.5, atol=1.01)
