"""Measurements against closed forms: digitised ellipses at random places and angles, boxes, and parts by hand."""

import math

import numpy as np
import pytest
from PIL import Image

from segcore.errors import InputError
from segcore.measure.masks import (
    ClassMeasurements,
    VolumeMeasurements,
    area_text,
    describe,
    length_text,
    measure_mask,
    measure_volume,
    volume_text,
)
from segcore.measure.shapes import (
    _crossing_steps,
    circumference,
    connected_parts,
    find_parts,
    fit_ellipse,
    longest_of_parts,
    perimeter,
)
from segcore.words import figures

SPACINGS = ((1.0, 1.0), (0.67, 1.0), (0.3, 0.12))


def ellipse(a, b, angle, spacing, rng) -> np.ndarray:
    """Pixels whose centres lie in an ellipse with half axes a and b in mm, at a random place between pixels."""
    size = [int(2 * a / s) + 8 for s in spacing]
    middle = [n / 2 + rng.uniform(-0.5, 0.5) for n in size]
    down, right = (
        (i - m) * s for i, m, s in zip(np.ogrid[: size[0], : size[1]], middle, spacing, strict=True)
    )
    u, v = right * math.cos(angle) + down * math.sin(angle), down * math.cos(angle) - right * math.sin(angle)
    return (u / a) ** 2 + (v / b) ** 2 <= 1


def length_by_steps(a, b) -> float:
    t = (np.arange(20000) + 0.5) / 20000 * 2 * np.pi
    return float(np.hypot(a * np.sin(t), b * np.cos(t)).mean() * 2 * np.pi)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize(
    ("radius_px", "flat", "border", "round_", "calipers_px"),
    [(5, 1.0, 0.02, 0.015, 0.4), (10, 1.0, 0.006, 0.004, 0.5), (40, 1.0, 0.002, 0.001, 0.6), (30, 0.7, 0.004, 0.002, 0.4), (30, 0.2, 0.01, 0.01, 0.6)],
)  # fmt: skip
def test_bias_on_digitised_ellipses_is_small(spacing, radius_px, flat, border, round_, calipers_px):
    rng = np.random.default_rng(0)
    a = radius_px * max(spacing)
    b, errors = flat * a, []
    for angle in rng.uniform(0, np.pi, 15):
        mask = ellipse(a, b, angle, spacing, rng)
        fitted = fit_ellipse(mask, spacing)
        longest, short = longest_of_parts(find_parts([mask]), spacing)
        true = length_by_steps(a, b)
        errors.append(
            [
                perimeter(mask, spacing) / true - 1,
                fitted.circumference / true - 1,
                longest - 2 * a,
                short - 2 * b,
            ]
        )
    along, around, long_mm, short_mm = np.abs(np.mean(errors, axis=0))
    assert along < border
    assert around < round_
    assert max(long_mm, short_mm) < calipers_px * max(spacing)


@pytest.mark.parametrize("spacing", [(1.0, 1.0), (0.5, 1.0), (1.0, 0.3)])
@pytest.mark.parametrize("degrees", [0, 22.5, 45, 63, 90, 120, 170])
def test_a_straight_edge_has_its_length_in_any_direction(spacing, degrees):
    t = math.radians(degrees)

    def bar(length):
        size = [int(300 / s) for s in spacing]
        down, right = (
            (i - n / 2) * s for i, n, s in zip(np.ogrid[: size[0], : size[1]], size, spacing, strict=True)
        )
        u, v = right * math.cos(t) + down * math.sin(t), down * math.cos(t) - right * math.sin(t)
        return (abs(u) <= length / 2) & (abs(v) <= 8)

    grown = perimeter(bar(240), spacing) - perimeter(bar(120), spacing)  # the ends are the same
    assert grown == pytest.approx(2 * 120, rel=0.03)


def test_directions_leave_no_wide_gap_whatever_the_spacing():
    for spacing in ((1, 1), (0.2, 1), (1, 0.15)):
        angles = [
            math.degrees(math.atan2(d * spacing[0], r * spacing[1])) for d, r in _crossing_steps(spacing)
        ]
        assert np.diff([*angles, 180]).max() <= 30
        assert angles == sorted(angles)
    assert len(_crossing_steps((1, 1))) == 8
    assert np.abs(_crossing_steps((1e-9, 1.0))).max() <= 16  # a file can claim anything


def test_holes_have_borders_and_no_part_in_the_ellipse():
    rng = np.random.default_rng(0)
    disc = ellipse(30, 30, 0, (1, 1), rng)
    ring = disc.copy()
    ring[25:45, 25:45] = False
    assert perimeter(ring) == pytest.approx(perimeter(disc) + perimeter(~ring & disc))
    (whole,), (holed,) = (measure_mask(m.astype(int), ["head"], spacing_mm=(1, 1)) for m in (disc, ring))
    assert holed.ellipse == whole.ellipse
    assert holed.area == whole.area - 400


def test_a_box_by_hand():
    mask = np.zeros((40, 50), np.uint8)
    mask[10:20, 5:35] = 1  # 10 × 30 px of 2 × 0.5 mm = 20 × 15 mm
    (box,) = measure_mask(mask, ["plate"], spacing_mm=(2.0, 0.5))
    assert (box.unit, box.area, box.pixels, box.parts, box.touches_border) == ("mm", 300.0, 300, 1, False)
    assert box.centroid_px == (14.5, 19.5)
    assert box.ellipse.centre_px == (14.5, 19.5)
    # a quarter of a pixel beyond the centres: from (-0.25, 0) to (9.25, 29), or from (0, -0.25) to (9, 29.25)
    assert box.longest_diameter == pytest.approx(math.hypot(9.5 * 2.0, 29 * 0.5))
    assert box.perimeter == pytest.approx(70, rel=0.06)
    assert box.ellipse.angle_deg == 90.0  # longer from top to bottom, though wider in pixels
    assert box.ellipse.long_axis == pytest.approx(4 * math.sqrt((10**2 - 1) / 12) * 2.0)


def test_one_row_of_pixels():
    mask = np.zeros((9, 20), int)
    mask[4, 5:15] = 1
    (line,) = measure_mask(mask, ["wire"], spacing_mm=(1.0, 2.0))
    assert (line.longest_diameter, line.short_diameter, line.ellipse) == (19.0, 0.5, None)


@pytest.mark.parametrize(("turned", "degrees"), [(30, 30), (-50, -50), (90, 90), (179, -1)])
def test_angle_is_clockwise_from_the_horizontal(turned, degrees):
    mask = ellipse(30, 10, math.radians(turned), (1, 1), np.random.default_rng(0))
    found = fit_ellipse(mask).angle_deg
    assert min(abs(found - degrees), 180 - abs(found - degrees)) < 1.0
    assert -90 < found <= 90


@pytest.mark.parametrize("flat", [1.0, 0.5, 0.1])
def test_circumference_of_an_ellipse(flat):
    assert circumference(2.0, 2.0 * flat) == pytest.approx(length_by_steps(1.0, flat), rel=2e-5)
    assert circumference(3.0, 3.0) == pytest.approx(3 * math.pi)


def test_unknown_spacing_is_measured_in_pixels_and_says_so():
    mask = np.zeros((20, 20), int)
    mask[5:10, 5:10] = 1
    (found,) = measure_mask(mask, ["spot"], spacing_mm=None)
    assert (found.unit, found.area) == ("px", 25.0)
    assert dict(describe(found))["Area"] == "25 px (spacing unknown)"
    assert dict(describe(found))["Longest diameter"].endswith(" px (spacing unknown)")


def test_an_empty_class_has_no_area_and_nothing_else():
    mask = np.zeros((20, 20), int)
    mask[5:10, 5:10] = 2
    lesion, lung = measure_mask(mask, ["lesion", "lung"], spacing_mm=(1, 1), reference="lung")
    assert (lesion.area, lesion.parts, lesion.share_of_reference) == (0.0, 0, 0.0)
    assert {lesion.longest_diameter, lesion.perimeter, lesion.ellipse, lesion.centroid_px} == {None}
    assert describe(lesion) == [
        ("Area", "none found"),
        ("Share of lung", "0 % (of lung and lesion together)"),
    ]
    assert lung.share_of_reference is lung.reference is None
    nothing = measure_mask(np.zeros((4, 4), int), ["lesion", "lung"], spacing_mm=None, reference="lung")
    assert nothing[0].share_of_reference is None


def test_share_is_of_the_whole_organ():
    mask = np.zeros((20, 20), int)
    mask[2:12, 2:12] = 1  # an organ of 100 pixels, of which
    mask[4:9, 4:8] = 2  # 20 are drawn as lesion
    organ, lesion = measure_mask(mask, ["lung", "lesion"], spacing_mm=(1, 1), reference="lung")
    assert (organ.area, lesion.area, lesion.share_of_reference) == (80.0, 20.0, 0.2)
    with pytest.raises(InputError) as error:
        measure_mask(mask, ["lung", "lesion"], spacing_mm=None, reference="liver")
    assert str(error.value) == "reference: must be one of lung, lesion, got liver"


def test_parts_specks_and_the_longest_of_one_part():
    mask = np.zeros((60, 60), np.uint8)
    mask[1:5, 1:5] = 1
    mask[5, 5] = 1  # joined at a corner
    mask[30:50, 30:40] = 1
    mask[55, 1:6] = 1  # 5 pixels
    (found,) = measure_mask(mask, ["spot"], spacing_mm=None)
    assert (found.parts, found.specks, found.least_part_px) == (2, 1, 10)
    one = find_parts([mask[30:50, 30:40] == 1])  # not across the picture
    assert found.longest_diameter == longest_of_parts(one)[0]
    assert found.ellipse.centre_px == (39.5, 34.5)
    assert dict(describe(found))["Parts"] == "2, and 1 smaller than 10 px"
    (all_parts,) = measure_mask(mask, ["spot"], spacing_mm=None, least_part_px=1)
    assert (all_parts.parts, all_parts.specks) == (3, 0)


def test_the_longest_part_need_not_have_the_largest_box():
    mask = np.zeros((60, 60), np.uint8)
    down, right = np.ogrid[:60, :60]
    mask[abs(down - 20) + abs(right - 20) <= 10] = 1  # a square on its tip: 21 px each way
    line = np.arange(17)
    mask[40 + line, 40 + line] = 1  # a smaller box, but from corner to corner
    (found,) = measure_mask(mask, ["spot"], spacing_mm=None)
    assert found.longest_diameter == pytest.approx(math.hypot(16.5, 16))
    assert found.ellipse.centre_px == (20.0, 20.0)


@pytest.mark.parametrize("place", [(0, 7), (19, 7), (7, 0), (7, 19)])
def test_touching_the_edge_is_told(place):
    mask = np.zeros((20, 20), np.uint8)
    mask[7:12, 7:12] = 1
    assert not measure_mask(mask, ["spot"], spacing_mm=None)[0].touches_border
    mask[place] = 1
    (found,) = measure_mask(mask, ["spot"], spacing_mm=None)
    assert found.touches_border
    assert describe(found)[-1] == (
        "Cut off",
        "touches the picture's edge; what lies beyond it is not measured",
    )


def test_measurements_survive_json():
    mask = np.zeros((20, 20), np.uint8)
    mask[7:12, 7:14] = 1
    (found,) = measure_mask(mask, ["spot", "gone"][:1], spacing_mm=(0.5, 0.25))
    assert ClassMeasurements.model_validate_json(found.model_dump_json()) == found
    (volume,) = measure_volume(mask[None], ["spot"], spacing_mm=None, slice_spacing_mm=None)
    assert VolumeMeasurements.model_validate_json(volume.model_dump_json()) == volume


def test_what_is_no_mask_is_our_mistake():
    with pytest.raises(ValueError, match="up to 1, got 2"):
        measure_mask(np.full((4, 4), 2), ["lung"], spacing_mm=None)
    with pytest.raises(ValueError, match=r"mask must be H×W, got \(1, 4, 4\)"):
        measure_mask(np.zeros((1, 4, 4), int), ["lung"], spacing_mm=None)
    with pytest.raises(ValueError, match=r"masks must be N×H×W, got \(4, 4\)"):
        measure_volume(np.zeros((4, 4), int), ["lung"], spacing_mm=None, slice_spacing_mm=None)


def block() -> np.ndarray:
    masks = np.zeros((6, 20, 30), np.uint8)
    masks[1:4, 5:15, 5:25] = 1  # 3 × 10 × 20 voxels
    masks[2, 6:10, 6:16] = 2  # of which 40 are of class 2
    masks[4, 15, 25] = 1  # joined to the block at a corner
    return masks


def test_a_volume_by_hand():
    lung, lesion = measure_volume(block(), ["lung", "lesion"], spacing_mm=(2.0, 0.5), slice_spacing_mm=5.0, reference="lung")  # fmt: skip
    assert (lung.unit, lung.length_unit, lung.volume) == ("ml", "mm", pytest.approx(561 * 5 / 1000))
    assert (lung.slices, lung.slices_in_all, lung.parts, lung.specks) == (4, 6, 1, 0)
    assert lesion.share_of_reference == pytest.approx(40 / 601)
    assert (lesion.longest_slice, lesion.slices, lesion.voxels) == (2, 1, 40)
    assert (lung.touches_border, lung.touches_ends) == (False, False)
    assert lung.longest_diameter == pytest.approx(
        longest_of_parts(find_parts([block()[1] == 1]), (2.0, 0.5))[0]
    )
    assert lung.longest_slice == 1
    words = dict(describe(lesion))
    assert (words["Volume"], words["Slices"], words["Parts"]) == ("0.200 ml", "1 of 6", "1")
    assert words["Longest diameter in a slice"] == f"{figures(lesion.longest_diameter)} mm, slice 3"
    assert words["Share of lung"] == "6.66 % (of lung and lesion together)"


@pytest.mark.parametrize("known", [((1.0, 1.0), None), (None, 2.0), (None, None)])
def test_a_volume_without_all_spacings_is_in_voxels(known):
    lung, _ = measure_volume(block(), ["lung", "lesion"], spacing_mm=known[0], slice_spacing_mm=known[1])
    assert (lung.unit, lung.volume) == ("voxel", 561.0)
    assert lung.length_unit == ("mm" if known[0] else "px")
    assert dict(describe(lung))["Volume"] == "561 voxels (spacing unknown)"


def test_a_volume_that_reaches_the_ends_says_so():
    masks = block()
    masks[0, 8, 8] = masks[5, 0, 3] = 1
    lung, lesion = measure_volume(masks, ["lung", "lesion"], spacing_mm=None, slice_spacing_mm=None)
    assert (lung.touches_ends, lung.touches_border, lung.parts, lung.specks) == (True, True, 1, 1)
    assert (lesion.touches_ends, lesion.touches_border) == (False, False)
    assert [text for label, text in describe(lung) if label == "Cut off"] == [
        "touches the picture's edge; what lies beyond it is not measured",
        "goes through the first or last slice; what lies beyond them is not measured",
    ]


def test_an_empty_volume():
    (found,) = measure_volume(np.zeros((3, 8, 8), int), ["lung"], spacing_mm=(1, 1), slice_spacing_mm=1.0)
    assert (found.volume, found.slices, found.parts, found.longest_diameter) == (0.0, 0, 0, None)
    assert describe(found) == [("Volume", "none found")]


def sizes_by_flooding(mask: np.ndarray) -> list[int]:
    left, sizes = set(zip(*map(list, np.nonzero(mask)), strict=True)), []
    while left:
        front, size = [left.pop()], 0
        while front:
            z, y, x = front.pop()
            size += 1
            near = {(z + i, y + j, x + k) for i in (-1, 0, 1) for j in (-1, 0, 1) for k in (-1, 0, 1)} & left
            left -= near
            front += near
        sizes.append(size)
    return sorted(sizes)


@pytest.mark.parametrize("seed", range(30))
def test_parts_of_noise_are_those_that_flooding_finds(seed):
    rng = np.random.default_rng(seed)
    mask = rng.random(rng.integers(1, 10, 3)) < rng.choice([0.03, 0.08, 0.15, 0.5])
    assert sorted(find_parts(mask).sizes) == sizes_by_flooding(mask)


def test_parts_of_one_slice_are_those_of_a_picture():
    mask = np.random.default_rng(0).random((60, 70)) < 0.3
    assert sorted(find_parts([mask]).sizes) == sorted(np.bincount(connected_parts(mask).ravel())[1:])


@pytest.mark.parametrize(
    ("one", "other"),
    [((0, 0, 4), (0, 1, 0)), ((0, 4, 0), (1, 0, 0)), ((0, 2, 2), (2, 2, 2)), ((0, 0, 0), (1, 4, 4)), ((0, 4, 4), (1, 0, 0))],
)  # fmt: skip
def test_parts_do_not_join_across_the_end_of_a_row_or_slice(one, other):
    mask = np.zeros((3, 5, 5), bool)
    mask[one] = mask[other] = True
    assert find_parts(mask).sizes.tolist() == [1, 1]


def test_units_for_people():
    assert area_text(999.4, "mm") == "999 mm²"
    assert area_text(999.6, "mm") == "10.0 cm²"
    assert area_text(12345, "mm") == "123 cm²"
    assert area_text(12345, "px") == "12345 px (spacing unknown)"
    assert length_text(174.26, "mm") == "174 mm"
    assert volume_text(0.0123, "ml") == "12.3 mm³"
    assert volume_text(0.5, "ml") == "0.500 ml"
    assert volume_text(4321, "ml") == "4.32 l"


@pytest.mark.parametrize("spacing", [(1.0, 1.0), (0.3, 0.7)])
def test_moments_from_runs_are_those_of_pixels(spacing):
    rng = np.random.default_rng(0)
    for _ in range(50):
        coarse = Image.fromarray(rng.normal(size=(9, 9)).astype(np.float32))
        mask = np.asarray(coarse.resize((170, 140), Image.Resampling.BICUBIC)) > 0.3
        rows, columns = np.nonzero(mask)
        down, right = (rows - rows.mean()) * spacing[0], (columns - columns.mean()) * spacing[1]
        variances = np.linalg.eigvalsh(np.cov(np.stack([right, down]), bias=True))
        fitted = fit_ellipse(mask, spacing)
        assert fitted.centre_px == (rows.mean(), columns.mean())
        np.testing.assert_allclose([fitted.short_axis, fitted.long_axis], 4 * np.sqrt(variances), rtol=1e-12)


def test_diameters_are_those_of_every_pair_of_pixels():
    """Points that are passed over before the hull is walked must not be its corners."""
    rng = np.random.default_rng(0)
    for n in range(60):
        coarse = Image.fromarray(rng.normal(size=(4 + n % 9, 5)).astype(np.float32))
        mask = np.asarray(coarse.resize((20 + n % 25, 22), Image.Resampling.BICUBIC)) > 0.2
        if n % 3 == 0:  # staircases, straight edges and single pixels
            mask = np.kron(rng.random((6, 7)) < 0.3, np.ones((4, 5), bool))
        found = find_parts([mask])
        longest, _ = longest_of_parts(found, (0.4, 0.6))
        expected = 0.0
        for part in range(found.count):
            picture, _ = found.picture(part)
            points = np.argwhere(picture)
            reach = np.concatenate(
                [points + 0.25 * np.array(one) for one in ((1, 0), (-1, 0), (0, 1), (0, -1))]
            )
            far = (reach[:, None] - reach) * (0.4, 0.6)
            expected = max(expected, np.sqrt((far**2).sum(axis=2).max()))
        np.testing.assert_allclose(longest, expected, rtol=1e-12)
