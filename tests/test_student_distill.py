"""What a student is taught by, and how a training with few masks goes; tiny networks, 32 px."""

import json
import re

import pytest
import torch

from segcore.bundle.folder import open_bundle
from segcore.errors import InputError
from segcore.learn.losses import cross_entropy, dice_loss, distillation_loss, taught_loss
from segcore.learn.network import normaliser
from segcore.learn.transforms import PRESETS, as_entries
from segcore.picture.preprocess import InputSpec
from student.design import Design, unet
from student.distill import CHECK, DistillSettings, loss_function, main, with_steps
from student.live_teacher import open_live_teacher
from student.network import build_student

DATA = "phantom:cxr:20"
TINY = Design(stem="strided", stem_stride=4, widths=(4, 6), depths=(0, 1), up_depths=(1,), activation="relu")
SMALL = {"data": DATA, "size": 32, "batch_size": 4, "warmup_epochs": 0, "device": "cpu", "epochs": 1}
SMALL |= {"design": TINY.model_dump(mode="json")}
SPEC = InputSpec(height_px=32, width_px=32, channels=1, mean=(0.5,), std=(0.25,))
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def big(tmp_path_factory):
    """A student that teaches: U-Net 4."""
    out = tmp_path_factory.mktemp("big") / "b"
    main(DistillSettings(**{**SMALL, "design": unet(4).model_dump(mode="json")}, out=out))
    return out


@pytest.fixture
def batch():
    torch.manual_seed(0)
    return {
        "image": torch.rand(4, 1, 32, 32),
        "mask": torch.randint(0, 2, (4, 32, 32)),
        "labelled": torch.tensor([True, True, False, True]),
        "soft": 3 * torch.randn(4, 1, 32, 32),
    }


def settings(**more):
    return DistillSettings(**SMALL, out="unused", **more)


def test_each_image_has_one_target_mixed_of_its_mask_and_the_teachers_answer(batch):
    network = build_student(unet(4), channels=1, outputs=1)
    logits = network(normaliser(SPEC, CPU)(batch["image"]))
    loss = loss_function(settings(alpha=0.3, temperature=3.0), SPEC, None, CPU)(network, batch)
    expected = 0.0
    for n, share in enumerate((0.3, 0.3, 0.0, 0.3)):  # the third has no mask: the teacher alone
        one, soft, mask = logits[n : n + 1], batch["soft"][n : n + 1], batch["mask"][n : n + 1]
        entropy = cross_entropy(one, mask, torch.tensor([True])).item()
        kl = distillation_loss(one, soft, 3.0).mean().item()
        target, p = share * mask + (1 - share) * soft[:, 0].sigmoid(), one[:, 0].sigmoid()
        dice = 1 - (2 * (p * target).sum() + 1) / (p.sum() + target.sum() + 1)
        expected += (share * entropy + (1 - share) * kl + dice.item()) / 4
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_without_a_teacher_the_loss_is_cross_entropy_plus_dice(batch):
    network = build_student(unet(4), channels=1, outputs=1)
    logits = network(normaliser(SPEC, CPU)(batch["image"]))
    truth = dice_loss(logits, batch["mask"], batch["labelled"])
    entropy = cross_entropy(logits, batch["mask"], batch["labelled"])
    del batch["soft"]
    alone = loss_function(settings(alpha=0.3), SPEC, None, CPU)(network, batch)
    assert alone.item() == pytest.approx((truth + entropy).item(), rel=1e-5)


def test_a_live_teacher_is_asked_about_the_batch_and_quarter_size_logits_are_resized(batch, big):
    ask = open_live_teacher(open_bundle(big), CPU)
    network = build_student(TINY, channels=1, outputs=1)
    logits = network(normaliser(SPEC, CPU)(batch["image"]))
    assert logits.shape == (4, 1, 8, 8)
    logits = torch.nn.functional.interpolate(logits, (32, 32), mode="bilinear")
    weights = {"alpha": 0.5, "temperature": 1.0, "dice_weight": 1.0}
    expected = taught_loss(logits, batch["mask"], batch["labelled"], ask(batch["image"]), **weights)
    loss = loss_function(settings(), SPEC, ask, CPU)(network, batch)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


def test_the_teacher_alone_can_be_learnt_from(batch, big):
    """Thirty steps on one batch without a mask: only the teacher can be what is learnt."""
    ask = open_live_teacher(open_bundle(big), CPU)
    batch["labelled"][:] = False
    network = build_student(unet(4), channels=1, outputs=1)
    loss_of = loss_function(settings(alpha=0.0), SPEC, ask, CPU)
    optimizer, answers = torch.optim.Adam(network.parameters(), 1e-2), ask(batch["image"]).sigmoid()

    def apart():
        return (network(normaliser(SPEC, CPU)(batch["image"])).sigmoid() - answers).abs().mean().item()

    before = apart()
    for _ in range(30):
        optimizer.zero_grad()
        loss_of(network, batch).backward()
        optimizer.step()
    assert apart() < 0.5 * before


def test_a_live_teachers_logits_have_the_images_size(big):
    logits = open_live_teacher(open_bundle(big), CPU)(torch.rand(2, 1, 64, 64))  # it runs at its own 32 px
    assert logits.shape == (2, 1, 64, 64)
    assert not logits.requires_grad


def test_without_a_word_a_student_trains_for_the_default_number_of_steps():
    said = settings(soft="s")  # SMALL says --epochs
    assert with_steps(said).steps is None
    silent = DistillSettings(data=DATA, out="unused")
    assert (with_steps(silent).steps, with_steps(silent).epochs) == (5000, 50)
    assert with_steps(silent).batches_an_epoch == 100
    assert with_steps(DistillSettings(data=DATA, out="unused", steps=7, epochs=2)).batches_an_epoch == 4


def test_teacher_and_student_alone_are_compared_before_the_hours_are_spent(big, tmp_path, capsys):
    taught = DistillSettings(**SMALL, out=tmp_path / "with", teacher=big)
    main(taught)
    said = next(line for line in capsys.readouterr().err.splitlines() if line.startswith("teacher check"))
    theirs = open_bundle(big).manifest.metric("dice_mean", "val")
    found = json.loads((tmp_path / "with" / CHECK).read_text())
    assert found["teacher"] == theirs
    verdict = "points better" if theirs > found["student"] else "the teacher is NO better"
    assert f"validation Dice {theirs:.4f} of the teacher, {found['student']:.4f} of the student alone" in said
    assert f"({found['how']}): " in said
    assert re.fullmatch(r"1 steps on the masks alone, \d+ s", found["how"])
    assert verdict in said
    assert [path.name for path in tmp_path.iterdir()] == ["with"]  # the short training's folder is gone


def test_a_baseline_takes_the_place_of_the_short_training(big, tmp_path, capsys):
    main(DistillSettings(**SMALL, out=tmp_path / "with", teacher=big, baseline=big))
    dice = open_bundle(big).manifest.metric("dice_mean", "val")
    assert (
        f"teacher check: validation Dice {dice:.4f} of the teacher, {dice:.4f} of the student alone ({big}): the teacher "
        "is NO better: expect nothing from it; train it longer, take a better one, or omit it"
    ) in capsys.readouterr().err
    with pytest.raises(InputError) as error:
        main(DistillSettings(**SMALL, out=tmp_path / "alone", baseline=big))
    assert str(error.value) == (
        f"--baseline {big}: must be given with --soft or --teacher, to compare it with; omit it"
    )


def test_few_labels_train_on_fewer_masks_and_as_many_images(big, tmp_path, capsys):
    main(
        DistillSettings(**SMALL, out=tmp_path / "with", teacher=big, labelled_share=0.34, teacher_check=False)
    )
    assert "12 training and 4 validation images, 4 training masks" in capsys.readouterr().err
    main(DistillSettings(**SMALL, out=tmp_path / "without", labelled_share=0.34))
    assert "4 training and 4 validation images, 4 training masks" in capsys.readouterr().err
    taught, alone, teacher = (open_bundle(p).manifest for p in (tmp_path / "with", tmp_path / "without", big))
    assert alone.name.endswith(", 34 % labelled")
    assert taught.settings["labelled_share"] == 0.34
    assert taught.data == alone.data == teacher.data  # the same data and split, whatever the share
    few = {"labelled_share": 0.34, "teacher_check": False}
    main(DistillSettings(**SMALL, out=tmp_path / "pupil", teacher=tmp_path / "without", **few))
    assert open_bundle(tmp_path / "pupil").manifest.name.count("34 % labelled") == 1  # of both


def test_an_exported_bundle_cannot_be_a_live_teacher(exported, tmp_path):
    live = exported("onnx", "fp32")
    with pytest.raises(InputError) as caught:
        open_live_teacher(open_bundle(live), CPU)
    assert str(caught.value) == (
        f"bundle {live}: must be a student in torch format, got a student in onnx format; "
        "name the folder that its training wrote"
    )


def test_a_bundle_holds_its_augmentation_in_full(big):
    assert open_bundle(big).manifest.settings["augment"] == as_entries(PRESETS["film"])
