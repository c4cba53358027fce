"""Prompts that are made of masks: at random from the truth, and without a human from mean masks; and their losses."""

import numpy as np
import pytest
import torch

from segcore.dataset.case import Case
from segcore.picture.prompts import BACKGROUND, BOX_BOTTOM_RIGHT, BOX_TOP_LEFT, FOREGROUND, PADDING
from teacher.prompts.mean_mask import automatic_prompts, core_box, mean_masks, peaks
from teacher.prompts.training import (
    boxes_of,
    dice,
    dice_focal,
    drawn_prompts,
    error_points,
    first_prompts,
    focal,
    jittered,
    overlap,
    pick_objects,
    points_inside,
)


def rectangle(left, top, right, bottom, size=32):
    mask = torch.zeros(size, size, dtype=torch.bool)
    mask[top : bottom + 1, left : right + 1] = True
    return mask


def at(mask, points):
    """The mask's values at points P×2."""
    x, y = points.long().unbind(-1)
    return mask[y, x]


class Drawn:
    """A source whose mask is given, and whose reading is noticed."""

    labelled = True

    def __init__(self, mask):
        self.stored, self.read = mask, 0

    def image(self):
        return np.zeros_like(self.stored)

    def mask(self):
        self.read += 1
        return self.stored


def case(mask, name="c"):
    return Case(id=name, patient=name, source=Drawn(np.asarray(mask, np.uint8)), split="train")


def test_points_lie_inside_and_are_different():
    torch.manual_seed(0)
    masks = torch.stack([rectangle(3, 4, 5, 6), rectangle(20, 1, 30, 9)])
    points = points_inside(masks, 9)
    assert points.shape == (2, 9, 2)
    for mask, some in zip(masks, points, strict=True):
        assert at(mask, some).all()
        assert len({tuple(p) for p in some.tolist()}) == 9  # every pixel of the first, which has nine


def test_every_pixel_of_a_mask_is_as_likely():
    torch.manual_seed(0)
    points = points_inside(rectangle(1, 2, 2, 3).expand(4000, -1, -1), 1)[:, 0]
    counts = torch.unique(points, dim=0, return_counts=True)[1]
    assert len(counts) == 4
    assert (counts - 1000).abs().max() < 120  # four standard deviations


def test_error_points_lie_where_the_answer_is_wrong_and_say_on_which_side():
    torch.manual_seed(0)
    truth, missed, extra = rectangle(8, 8, 23, 23), rectangle(8, 8, 15, 23), rectangle(24, 8, 27, 23)
    answers = torch.stack([truth & ~missed, truth | extra, truth])
    points, labels = error_points(answers, truth.expand(3, -1, -1))
    assert at(missed, points[0]).all()
    assert at(extra, points[1]).all()
    assert at(truth, points[2]).all()  # nothing is wrong
    assert labels.tolist() == [[FOREGROUND], [BACKGROUND], [FOREGROUND]]


def test_a_box_covers_its_mask_and_no_more():
    masks = torch.stack([rectangle(3, 5, 10, 7), rectangle(31, 0, 31, 31)])
    assert boxes_of(masks).tolist() == [[3, 5, 10, 7], [31, 0, 31, 31]]
    assert boxes_of(torch.zeros(1, 8, 8, dtype=torch.bool)).tolist() == [[0, 0, 0, 0]]
    assert core_box(masks[0].float()).tolist() == [3, 5, 10, 7]


def test_jitter_is_a_tenth_of_the_side_bounded_and_within_the_image():
    torch.manual_seed(0)
    boxes = torch.tensor([[100.0, 200, 150, 220]]).expand(5000, -1)
    moves = jittered(boxes, (1024, 1024)) - boxes
    assert moves.std(0) == pytest.approx([5, 2, 5, 2], rel=0.05)
    large = torch.tensor([[100.0, 100, 900, 900]]).expand(5000, -1)  # a tenth would be 80 pixels
    assert (jittered(large, (1024, 1024)) - large).abs().max() == 20
    assert (jittered(large[:, :] / 4, (256, 256)) - large / 4).abs().max() == 5
    whole = jittered(torch.tensor([[0.0, 0, 31, 31]]).expand(500, -1), (32, 32))
    assert whole.min() >= 0
    assert whole.max() <= 31
    assert (whole[:, :2] <= whole[:, 2:]).all()


def test_the_first_prompt_is_a_box_or_a_point():
    torch.manual_seed(0)
    truth = rectangle(4, 6, 20, 25)
    points, labels = first_prompts(truth.expand(200, -1, -1), 5)
    by_box = labels[:, 0] == BOX_TOP_LEFT
    assert 60 < by_box.sum() < 140
    assert labels[by_box, 1].eq(BOX_BOTTOM_RIGHT).all()
    assert at(truth, points[~by_box, 0]).all()
    assert labels[~by_box].unique(dim=0).tolist() == [[FOREGROUND, *[PADDING] * 4]]
    assert labels[:, 2:].eq(PADDING).all()


def test_small_masks_are_no_targets():
    """0.153 % of 100×100 pixels are 15.3: of 15 pixels nothing is asked, of 16 is."""
    torch.manual_seed(0)
    masks = torch.zeros(3, 100, 100, dtype=torch.uint8)
    masks[0, 0, :15] = 1
    masks[1, 0, :15], masks[1, 50, :16] = 1, 2
    masks[2, 0, :16], masks[2, 50, :16] = 1, 2
    seen = set()
    for _ in range(30):
        objects, has_object = pick_objects(masks, 2)
        assert has_object.tolist() == [False, True, True]
        assert objects[1].sum() == 16
        assert objects[1, 50, 0]
        seen.add(bool(objects[2, 0, 0]))
    assert seen == {True, False}  # one of both at random


def test_the_object_is_the_class_or_one_of_its_parts():
    """Two lungs: a reader may mean both or either, so a click must not always be answered with both."""
    torch.manual_seed(0)
    left, right, speck = (
        rectangle(2, 2, 20, 10),
        rectangle(2, 20, 20, 28),
        torch.zeros(32, 32, dtype=torch.bool),
    )
    speck[30, 30] = True  # less than 0.153 %: part of the class, and no object of its own
    both = (left | right | speck)[None].to(torch.uint8)
    counts = {"both": 0, "left": 0, "right": 0}
    for _ in range(200):
        found, _ = pick_objects(both, 1)
        name = next(
            n for n, m in (("both", both > 0), ("left", left[None]), ("right", right[None])) if found.equal(m)
        )
        counts[name] += 1
    assert 70 < counts["both"] < 130
    assert min(counts["left"], counts["right"]) > 25


def test_random_prompts_follow_torchs_seed_alone():
    masks = torch.stack([rectangle(3, 5, 20, 17), rectangle(1, 1, 8, 30)])

    def draw():
        torch.manual_seed(3)
        return (
            *first_prompts(masks, 4),
            *error_points(masks, ~masks),
            *drawn_prompts(masks.float(), "both", 3, 2, 6),
        )

    for one, other in zip(draw(), draw(), strict=True):
        assert torch.equal(one, other)


def test_the_mean_mask_is_the_mean_of_the_given_masks_at_the_inputs_size():
    first, second = np.zeros((64, 64), np.uint8), np.zeros((64, 64), np.uint8)
    first[:32], second[:32, :32], second[40:] = 1, 1, 2
    given = [case(first, "a"), case(second, "b")]
    means = mean_masks(given, 2, (32, 32))
    assert means.shape == (2, 32, 32)
    assert means[0, :16, :16].unique().tolist() == [1]
    assert means[0, :16, 16:].unique().tolist() == [0.5]
    assert means[1, 20:].unique().tolist() == [0.5]
    assert means[:, 16:20].max() == 0
    assert [c.source.read for c in given] == [1, 1]


def test_peaks_lie_deep_in_both_parts_of_a_mask():
    left, right = rectangle(4, 8, 11, 23), rectangle(20, 8, 27, 23)
    found = peaks((left | right).float(), 4)
    assert at(left, found).sum() == 2
    assert at(right, found).sum() == 2
    assert at(rectangle(5, 9, 10, 22) | rectangle(21, 9, 26, 22), found).all()  # none at the edge
    assert torch.equal(found, peaks((left | right).float(), 4))


def test_peaks_of_a_mask_of_one_pixel_are_that_pixel():
    assert peaks(rectangle(7, 9, 7, 9).float(), 5).tolist() == [[7, 9]] * 5


def test_a_mean_masks_outliers_get_no_prompt():
    mean = 0.1 * rectangle(0, 0, 31, 31).float() + 0.6 * rectangle(10, 12, 19, 17).float()
    points, labels = automatic_prompts(mean[None], "both", 3, 8)
    assert labels.tolist() == [[1, 1, 1, 2, 3, -1, -1, -1]]
    assert at(rectangle(10, 12, 19, 17), points[0, :3]).all()
    assert points[0, 3:5].tolist() == [[10, 12], [19, 17]]
    assert points[0, 5:].abs().max() == 0
    assert automatic_prompts(mean[None], "box", 3)[1].tolist() == [[2, 3]]


def test_drawn_points_come_from_the_mean_masks_core():
    torch.manual_seed(0)
    means = torch.stack([0.2 + 0.6 * rectangle(2, 2, 9, 9), 0.9 * rectangle(20, 4, 25, 30)])
    points, labels = drawn_prompts(means, "both", 4, pictures=50, slots=8)
    assert points.shape == (50, 2, 8, 2)
    assert labels.unique(dim=0).tolist() == [[[1, 1, 1, 1, 2, 3, -1, -1]] * 2]
    for k, region in enumerate((rectangle(2, 2, 9, 9), rectangle(20, 4, 25, 30))):
        drawn = points[:, k, :4].reshape(-1, 2)
        assert at(region, drawn).all()
        assert len(drawn.unique(dim=0)) > 40  # of 64 and 162 pixels
    assert (points[:, 0, 4] - torch.tensor([2.0, 2])).abs().max() <= 0.625  # 20 pixels of 1024, at 32
    assert drawn_prompts(rectangle(7, 9, 7, 9)[None].float(), "points", 3, 1, 3)[0].tolist() == [
        [[[7, 9]] * 3]
    ]


def test_focal_and_dice_in_numbers_one_can_check():
    truth = torch.tensor([[[True, False], [False, False]]])
    unsure = torch.zeros(1, 1, 2, 2)  # p = 1/2: cross-entropy log 2, times 1/4
    assert focal(unsure, truth, alpha=None).item() == pytest.approx(np.log(2) / 4)
    assert focal(unsure, truth).item() == pytest.approx(np.log(2) / 4 * (0.25 + 3 * 0.75) / 4)
    assert dice(unsure, truth).item() == pytest.approx(1 - (2 * 0.5 + 1) / (2 + 1 + 1))
    logits = torch.tensor([[[[5.0, 5], [-5, -5]], [[-5, -5], [-5, -5]]]])  # two candidates
    assert overlap(logits, truth).tolist() == [[0.5, 0]]


def test_dice_focal_is_monais():
    monai = pytest.importorskip("monai.losses")
    torch.manual_seed(0)
    logits, truth = torch.randn(3, 2, 9, 7) * 3, torch.rand(3, 2, 9, 7) < 0.3
    truth[0, 1] = False
    expected = monai.DiceFocalLoss(sigmoid=True)(logits, truth.float())
    assert dice_focal(logits, truth).mean().item() == pytest.approx(expected.item(), rel=1e-5)
