"""What pixels weigh: flags and their messages, closed forms, and that augmentation moves weights with the mask."""

from pathlib import Path

import numpy as np
import pytest
import torch

from segcore.command import parse_settings
from segcore.dataset.dataset import open_dataset
from segcore.errors import InputError
from segcore.learn.augment import Augmentation
from segcore.learn.loader import TrainingSet, build_loader, training_input
from segcore.learn.losses import boundary_loss, cross_entropy, segmentation_loss, taught_loss
from segcore.learn.pixel_weights import weigh_masks
from segcore.learn.settings import TrainSettings, Weighing, parse_class_weights
from segcore.learn.transforms import transforms_of

CLASSES = ("lung", "lesion")


def test_flags_name_classes():
    words = ["--data", "d", "--out", "o", "--class-weight", "lesion=4", "--class-weight", "background=0.5"]
    settings = parse_settings(TrainSettings, "train", [*words, "--small-lesion-weight", "3"])
    assert settings.weighing(CLASSES) == Weighing((0.5, 1.0, 4.0), 3.0)
    again = TrainSettings.model_validate(settings.model_dump(mode="json"))  # as a bundle holds them
    assert again == settings
    assert TrainSettings(data="d", out=Path("o")).weighing(CLASSES) is None
    assert parse_class_weights(["auto"], CLASSES) == "auto"
    assert parse_class_weights(["a=b=2"], ("a=b", "c")) == (1.0, 2.0, 1.0)


@pytest.mark.parametrize(
    ("words", "classes", "message"),
    [
        (
            ["liver=2"],
            CLASSES,
            "--class-weight liver=2: must name each class once, liver is no class of the data (background, lung, lesion)",
        ),
        (
            ["lung=2", "lung=3"],
            CLASSES,
            "--class-weight lung=3: must name each class once, lung is named twice",
        ),
        (
            ["lung=0"],
            CLASSES,
            "--class-weight lung=0: must be auto, or CLASS=WEIGHT with a weight above 0; write --class-weight lesion=2",
        ),
        (
            ["auto", "lung=2"],
            CLASSES,
            "--class-weight auto: must be auto, or CLASS=WEIGHT with a weight above 0; write --class-weight lesion=2",
        ),
        (
            ["auto"],
            ("lesion",),
            "--class-weight: must be for data of several classes, got one (lesion), for which --calibrate chooses how "
            "readily a pixel is marked; use --small-lesion-weight where small ones are missed",
        ),
    ],
)
def test_wrong_class_weights(words, classes, message):
    with pytest.raises(InputError) as error:
        parse_class_weights(words, classes)
    assert str(error.value) == message


def three_parts() -> np.ndarray:
    """Of class 1, parts of 1, 4 and 10 pixels (their mean is 5); of class 2, one of 6."""
    mask = np.zeros((1, 16, 16), np.uint8)
    mask[0, 0, 0] = 1
    mask[0, 3:5, 3:5] = 1
    mask[0, 8:10, 8:13] = 1
    mask[0, 12:14, 1:4] = 2
    return mask


def test_small_parts_weigh_their_means_share_of_them(capsys):
    mask = three_parts()
    weighed = weigh_masks(mask, [True], CLASSES, Weighing((0.5, 1.0, 2.0), 3.0))
    back, weight = weighed.decode(torch.from_numpy(weighed.codes[0]))
    assert torch.equal(back, torch.from_numpy(mask[0]))
    steps = (3 - 1) / (255 // 2 - 1)
    for place, wanted in (((0, 0), 3.0), ((3, 4), 1.25), ((9, 12), 1.0), ((13, 2), 2.0), ((7, 7), 0.5)):
        assert weight[place].item() == pytest.approx(wanted, abs=steps / 2), place
    assert capsys.readouterr().err.splitlines() == [
        "lung: 2 of 3 parts are smaller than their mean of 5.00 pixels and weigh up to 3.00 times as much",
        "lesion: 0 of 1 parts are smaller than their mean of 6.00 pixels and weigh up to 1.00 times as much",
    ]


def test_the_mean_part_is_that_of_all_masks():
    masks = np.concatenate([three_parts(), np.zeros((1, 16, 16), np.uint8)])
    masks[1, :9, :5] = 1  # 45 pixels: the mean of the four parts is 15
    weighed = weigh_masks(masks, [True, True], CLASSES, Weighing(None, 100.0))
    weight = weighed.decode(torch.from_numpy(weighed.codes[0]))[1]
    assert weight[0, 0].item() == pytest.approx(15, abs=0.5)
    assert weight[3, 3].item() == pytest.approx(3.75, abs=0.5)


def test_rare_classes_weigh_more_by_the_root(capsys):
    masks = np.zeros((2, 10, 10), np.uint8)
    masks[0, :, :4] = 1
    masks[0, 0, :5] = 2  # of 100 labelled pixels 59, 36 and 5
    weighed = weigh_masks(masks, [True, False], CLASSES, Weighing("auto", 1.0))
    roots = np.sqrt(100 / np.array([59, 36, 5]))
    assert weighed.weights[:3].numpy() == pytest.approx(roots / roots.mean())
    assert weighed.weights[:3].mean().item() == pytest.approx(1)
    assert capsys.readouterr().err == "class weights: background 0.525, lung 0.672, lesion 1.80\n"
    assert weighed.codes is masks


def test_augmentation_moves_weights_with_the_mask():
    cases = open_dataset("phantom:ct:12").split("train")
    classes = open_dataset("phantom:ct:12").classes
    spec = training_input(cases, (64, 64), {1: ((0.5,), (0.25,)), 3: ((0.5,) * 3, (0.25,) * 3)})

    def batch(weighing):
        augment = Augmentation(transforms_of("scan", channels=1, flip=True), with_soft=False)
        data = TrainingSet(cases, spec, classes=len(classes), seed=3, augment=augment)
        if weighing:
            data.weigh(classes, weighing)
        return next(iter(build_loader(data, batch_size=4, workers=0, seed=0)[0]))

    plain = batch(None)
    of_classes = (0.5, *(1.0 + c for c in range(len(classes))))
    weighed, parted = batch(Weighing(of_classes, 1.0)), batch(Weighing(of_classes, 5.0))
    for key, value in plain.items():
        assert torch.equal(value, weighed[key]), key
        assert torch.equal(value, parted[key]), key
    assert torch.equal(weighed["weight"], torch.tensor(of_classes)[plain["mask"].long()])
    times = parted["weight"] / weighed["weight"]
    assert times.min() == 1
    assert 1 < times.max() <= 5
    assert (times[plain["mask"] == 0] == 1).all()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("loss", [cross_entropy, segmentation_loss, boundary_loss])
def test_losses_count_a_pixel_by_its_weight(loss, channels):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, channels, 16, 16, generator=generator)
    target = torch.randint(0, 2, (2, 16, 16), generator=generator)
    labelled, ones = torch.tensor([True, True]), torch.ones(2, 16, 16)
    plain = loss(logits, target, labelled)
    assert loss(logits, target, labelled, 7 * ones) == pytest.approx(plain.item(), rel=1e-5)
    # What weighs almost nothing does not count: the cross-entropy is that of the other half.
    half = ones.clone()
    half[:, 8:] = 1e-9
    change = loss(logits, target, labelled, half) - plain
    if loss is not boundary_loss:
        alone = cross_entropy(logits[:, :, :8], target[:, :8], labelled)
        assert change.item() == pytest.approx(
            (alone - cross_entropy(logits, target, labelled)).item(), abs=1e-5
        )
    assert change.abs() > 1e-4


def test_a_taught_students_masks_are_weighed_and_its_teacher_is_not():
    generator = torch.Generator().manual_seed(0)
    logits, teacher = torch.randn(2, 2, 3, 8, 8, generator=generator)
    target, labelled = torch.randint(0, 3, (2, 8, 8), generator=generator), torch.tensor([True, False])
    weights = torch.rand(2, 8, 8, generator=generator)

    def of(alpha, weights):
        given = {"alpha": alpha, "temperature": 2.0, "dice_weight": 1.0, "weights": weights}
        return taught_loss(logits, target, labelled, teacher, **given)

    assert of(0.0, weights) == of(0.0, None)
    # Of two images one is labelled, and α of its target is the mask.
    entropies = [cross_entropy(logits, target, labelled, w) for w in (weights, None)]
    difference = 0.4 * (entropies[0] - entropies[1]) / 2
    assert (of(0.4, weights) - of(0.4, None)).item() == pytest.approx(difference.item(), abs=1e-6)
