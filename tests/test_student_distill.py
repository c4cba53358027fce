"""What a student is taught by, and how a training with few masks goes; tiny networks, 32 px."""

import pytest
import torch
from safetensors.torch import load_file

from segcore.bundle import open_bundle
from segcore.errors import InputError
from segcore.learn.deploy import normaliser
from segcore.learn.losses import channel_loss, cross_entropy, dice_loss, distillation_loss, feature_loss
from segcore.preprocess import InputSpec
from student.design import Design, unet
from student.distill import DistillSettings, loss_function, main
from student.live_teacher import WithFeatures, feature_width, logits_and_features, open_live_teacher
from student.network import build_student
from teacher.network import FinestHead, build_s2agscunet

DATA = "phantom:cxr:20"
TINY = Design(stem="strided", stem_stride=4, widths=(4, 6), depths=(0, 1), up_depths=(1,), activation="relu")
SMALL = {"data": DATA, "size": 32, "batch_size": 4, "warmup_epochs": 0, "device": "cpu", "epochs": 1}
SMALL |= {"design": TINY.model_dump(mode="json")}
SPEC = InputSpec(height_px=32, width_px=32, channels=1, mean=(0.5,), std=(0.25,))
CPU = torch.device("cpu")
KDS = ["logits", "cwd", "boundary", "dice", "features"]


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


def test_the_loss_is_the_papers_plus_dice(batch):
    network = build_student(unet(4), channels=1, outputs=1)
    logits = network(normaliser(SPEC, CPU)(batch["image"]))
    truth = dice_loss(logits, batch["mask"], batch["labelled"])
    entropy = cross_entropy(logits, batch["mask"], batch["labelled"])
    loss = loss_function(settings(alpha=0.3, temperature=3.0, kd_weight=2.0), SPEC, None, CPU)(network, batch)
    kl = 2 * distillation_loss(logits, batch["soft"], 3.0)
    assert loss.item() == pytest.approx((truth + 0.3 * entropy + 0.7 * kl).item(), rel=1e-5)
    loss = loss_function(settings(kd="cwd", alpha=0.3), SPEC, None, CPU)(network, batch)
    cwd = channel_loss(logits, batch["soft"], 2.0)
    assert loss.item() == pytest.approx((truth + 0.3 * entropy + 0.7 * cwd).item(), rel=1e-5)
    del batch["soft"]
    alone = loss_function(settings(alpha=0.3), SPEC, None, CPU)(network, batch)
    assert alone.item() == pytest.approx((truth + entropy).item(), rel=1e-5)


def test_features_are_added_to_the_logits(batch, big):
    ask = open_live_teacher(open_bundle(big), CPU)
    network = WithFeatures(build_student(TINY, channels=1, outputs=1), feature_width(ask, 1, (32, 32), CPU))
    assert network.project.out_channels == 64  # the deepest level of U-Net 4
    soft, features = ask(batch["image"])
    logits, projected = network(normaliser(SPEC, CPU)(batch["image"]))
    logits = torch.nn.functional.interpolate(logits, (32, 32), mode="bilinear")
    truth = dice_loss(logits, batch["mask"], batch["labelled"])
    truth = truth + 0.5 * cross_entropy(logits, batch["mask"], batch["labelled"])
    learnt = distillation_loss(logits, soft, 2.0) + 4 * feature_loss(projected, features)
    loss = loss_function(settings(kd="features", kd_weight=4.0), SPEC, ask, CPU)(network, batch)
    assert loss.item() == pytest.approx((truth + 0.5 * learnt).item(), rel=1e-4)
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


@pytest.mark.parametrize("kd", KDS)
def test_every_term_is_learnt_from(kd, batch, big):
    """Thirty steps on one batch without a mask: only the teacher can be what is learnt."""
    ask = open_live_teacher(open_bundle(big), CPU)
    batch["labelled"][:] = False
    network = build_student(unet(4), channels=1, outputs=1)
    if kd == "features":
        network = WithFeatures(network, feature_width(ask, 1, (32, 32), CPU))
    loss_of = loss_function(settings(kd=kd, alpha=0.0), SPEC, ask, CPU)
    optimizer, losses = torch.optim.Adam(network.parameters(), 1e-2), []
    for _ in range(30):
        optimizer.zero_grad()
        losses.append(loss_of(network, batch))
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.6 * losses[0]


def test_a_live_teachers_logits_and_features(big):
    teacher = open_live_teacher(open_bundle(big), CPU)
    logits, features = teacher(torch.rand(2, 1, 64, 64))  # resized to the teacher's 32 px
    assert (logits.shape, features.shape) == ((2, 1, 64, 64), (2, 64, 2, 2))
    assert not logits.requires_grad


def test_a_sam_teachers_features_are_its_encoders_deepest():
    torch.manual_seed(0)
    network = FinestHead(build_s2agscunet(encoder="tiny", outputs=1)).eval()
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        logits, deepest = logits_and_features(network, x)
        assert torch.equal(deepest, network.network.encoder(x)[-1])
        assert torch.equal(logits, network(x))
    assert deepest.shape == (1, 768, 1, 1)
    assert not network.network.encoder._forward_hooks  # nothing is left behind


def test_the_projection_is_not_kept(big, tmp_path):
    main(DistillSettings(**SMALL, out=tmp_path / "s", teacher=big, kd="features", ema=0.5))
    found = open_bundle(tmp_path / "s")
    assert found.manifest.name.endswith(", features")
    expected = build_student(TINY, channels=1, outputs=1).state_dict()
    assert load_file(found.model_path).keys() == expected.keys()
    assert found.manifest.parameters == sum(
        p.numel() for p in build_student(TINY, channels=1, outputs=1).parameters()
    )


def test_few_labels_train_on_fewer_masks_and_as_many_images(big, tmp_path, capsys):
    main(DistillSettings(**SMALL, out=tmp_path / "with", teacher=big, labelled_share=0.34))
    assert "12 training and 4 validation images, 4 training masks" in capsys.readouterr().err
    main(DistillSettings(**SMALL, out=tmp_path / "without", labelled_share=0.34))
    assert "4 training and 4 validation images, 4 training masks" in capsys.readouterr().err
    taught, alone, teacher = (open_bundle(p).manifest for p in (tmp_path / "with", tmp_path / "without", big))
    assert alone.name.endswith(", 34 % labelled")
    assert taught.settings["labelled_share"] == 0.34
    assert taught.data == alone.data == teacher.data  # the same data and split, whatever the share


def fails(message, **more):
    with pytest.raises(InputError) as caught:
        main(settings(**more))
    assert str(caught.value) == message


def test_terms_that_need_a_teacher():
    fails("--kd cwd: must have a teacher, got none; give --soft or --teacher", kd="cwd")
    message = (
        "--kd features: must have a teacher that runs in every step, got none; give its bundle as --teacher"
    )
    fails(message, kd="features")
    fails(message, kd="features", soft="labels")


def test_an_exported_bundle_cannot_be_a_live_teacher(exported, tmp_path):
    live = exported("onnx", "fp32")
    with pytest.raises(InputError) as caught:
        open_live_teacher(open_bundle(live), CPU)
    assert str(caught.value) == (
        f"bundle {live}: must be a student in torch format, got a student in onnx format; "
        "name the folder that its training wrote"
    )
