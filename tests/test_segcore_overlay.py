import numpy as np
import pytest

from segcore.picture.overlay import COLOURS, EXTRA, MISSED, as_rgb, error_map, overlay, sheet


def test_as_rgb_keeps_8_bit_and_stretches_the_rest():
    grey = np.array([[0, 255]], np.uint8)
    np.testing.assert_array_equal(as_rgb(grey)[..., 1], grey)
    assert as_rgb(np.array([[0, 60_000]], np.uint16)).tolist() == [[[0] * 3, [255] * 3]]
    assert as_rgb(np.full((2, 2), 7.0, np.float32)).tolist() == [[[0] * 3] * 2] * 2


def test_outline_is_full_colour_and_outside_is_untouched():
    image, mask = np.full((9, 9), 100, np.uint8), np.zeros((9, 9), np.uint8)
    mask[2:7, 2:7] = 1
    drawn = overlay(image, mask, opacity=0.5)
    assert tuple(drawn[2, 2]) == COLOURS[0]
    assert (drawn[mask == 0] == 100).all()
    np.testing.assert_array_equal(drawn[4, 4], np.round((100 + np.array(COLOURS[0])) / 2))


def test_empty_mask_changes_nothing():
    image = np.random.default_rng(0).integers(0, 255, (5, 5, 3), np.uint8)
    np.testing.assert_array_equal(overlay(image, np.zeros((5, 5), np.uint8)), image)


def test_error_map():
    truth, found = np.array([[1, 0, 1, 0, 1]], np.uint8), np.array([[0, 1, 1, 0, 2]], np.uint8)
    drawn = error_map(np.full((1, 5), 200, np.uint8), found, truth)
    assert [tuple(p) for p in drawn[0]] == [MISSED, EXTRA, (100,) * 3, (100,) * 3, EXTRA]


@pytest.mark.parametrize("shape", [(4, 4), (300, 100), (10, 400, 3)])
def test_sheet_takes_every_shape(shape):
    pictures = [[np.zeros(shape, np.uint8)] * 3] * 2
    assert sheet(pictures, ["a", "b", "c"], tile_px=50).size == (3 * 54 - 4, 18 + 2 * 54 - 4)


def test_classes_are_filled_and_outlined_pixel_by_pixel():
    """Against the definition: filled = grey + opacity·(colour − grey), outlined where a neighbour is another class."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (40, 50, 3), np.uint8)
    mask = np.kron(rng.integers(0, 4, (8, 10)), np.ones((5, 5), int)).astype(np.uint8)
    expected = image.astype(np.float32)
    for row in range(40):
        for column in range(50):
            if k := mask[row, column]:
                colour = np.array(COLOURS[k - 1], np.float32)
                beside = [mask[row - 1, column], mask[(row + 1) % 40, column]]
                beside += [mask[row, column - 1], mask[row, (column + 1) % 50]]
                inside = all(one == k for one in beside)
                value = expected[row, column]
                expected[row, column] = (value + 0.35 * (colour - value)).round() if inside else colour
    np.testing.assert_array_equal(overlay(image, mask), expected)
    np.testing.assert_array_equal(overlay(image[..., 0], mask), overlay(as_rgb(image[..., 0]), mask))
