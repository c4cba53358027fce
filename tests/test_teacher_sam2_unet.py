"""SAM2-UNet: its receptive field blocks, what is trained of it, its loss and its bundle."""

import csv

import pytest
import torch
import torch.nn.functional as F

from segcore.bundle.folder import open_bundle
from segcore.dataset.dataset import open_dataset
from segcore.learn.evaluate import Validator
from segcore.learn.loader import TrainingSet, training_input
from segcore.learn.losses import boundary_loss
from segcore.learn.network import normaliser
from segcore.picture.preprocess import InputSpec
from teacher.sam2_model import build_encoder
from teacher.settings import TeacherSettings
from teacher.system import Task, load_teacher, open_plain
from teacher.systems.sam2_unet import MEAN_STD, ReceptiveField, UpBlock, build_sam2_unet, build_system
from teacher.train import main as train

DATA = "phantom:cxr:12"
SPEC = InputSpec(height_px=64, width_px=64, channels=1, mean=MEAN_STD[1][0], std=MEAN_STD[1][1])


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file laid out as Meta's, with random numbers."""
    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("weights") / "tiny.pt"
    state = build_encoder("tiny").state_dict()
    torch.save({"model": {f"image_encoder.trunk.{k}": v for k, v in state.items()}}, path)
    return path


def system(weights, classes=("lung",), **more):
    torch.manual_seed(0)
    settings = TeacherSettings(
        data=DATA, out="unused", system="sam2-unet", weights=str(weights), size=64, **more
    )
    return build_system(settings, Task(classes, SPEC, ()))


def batch(classes=1):
    mask = torch.randint(0, classes + 1, (2, 64, 64), dtype=torch.uint8)
    return torch.randn(2, 3, 64, 64), {"mask": mask, "labelled": torch.tensor([True, True])}


@pytest.mark.parametrize("size", [(2, 2), (7, 5)])
def test_a_receptive_field_block_keeps_the_size_and_uses_every_parameter(size):
    block = ReceptiveField(24, 16)
    out = block(torch.randn(2, 24, *size))
    assert out.shape == (2, 16, *size)
    assert out.min() == 0
    out.square().mean().backward()
    assert all(p.grad is not None for p in block.parameters())


def test_a_receptive_field_block_sees_twelve_pixels_far():
    """A row and a column of 7, nine pixels 7 apart, and the merging 3×3: 3 + 7 + 1 pixels each way."""
    block = ReceptiveField(4, 4).double().eval()  # float32 rounds a far pixel's share away
    x = torch.randn(1, 4, 41, 41, dtype=torch.double, requires_grad=True)
    block.merge(torch.cat([branch(x) for branch in block.branches], 1))[0, :, 20, 20].sum().backward()
    seen = x.grad[0].abs().sum(0).nonzero()
    assert seen.min(0).values.tolist() == [9, 9]
    assert seen.max(0).values.tolist() == [31, 31]


def test_an_up_block_doubles_the_resolution():
    up = UpBlock(8)
    assert up(torch.zeros(1, 8, 3, 4), torch.zeros(1, 8, 6, 8)).shape == (1, 8, 6, 8)


def test_three_supervised_heads_the_finest_last():
    network = build_sam2_unet(encoder="tiny", outputs=2)
    shapes = [tuple(o.shape) for o in network(torch.zeros(1, 3, 64, 96))]
    assert shapes == [(1, 2, 4, 6), (1, 2, 8, 12), (1, 2, 16, 24)]


def test_other_encoders_end_in_64_channels_too():
    network = build_sam2_unet(encoder="base+", outputs=1)
    assert network.reduce[0].shortcut[0].in_channels == 112
    assert {block.shortcut[0].out_channels for block in network.reduce} == {64}


def test_adapters_of_width_32_are_the_default(weights):
    found = system(weights)
    assert (found.title, found.pretrained, found.output.stride) == ("SAM2-UNet tiny", "tiny.pt", 4)
    assert found.settings == {"encoder": "tiny", "adapter_kind": "adapter", "adapter_width": 32}
    in_encoder = [p.numel() for p in found.network.encoder.parameters() if p.requires_grad]
    assert sum(in_encoder) == 262_464
    assert sum(p.numel() for p in found.network.parameters() if p.requires_grad) == 2_587_779


@pytest.mark.parametrize(("tune", "classes"), [("adapter", 1), ("adapter", 3), ("lora", 1)])
def test_what_is_trained_gets_a_gradient_and_the_rest_stays_bit_equal(weights, tune, classes):
    found = system(weights, tuple("abc"[:classes]), tune=tune)
    network = found.network
    frozen = {name: p.clone() for name, p in network.named_parameters() if not p.requires_grad}
    assert frozen
    images, sample = batch(classes)
    optimiser = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], 1e-2)
    found.loss(network, images, sample).backward()
    for name, p in network.named_parameters():
        assert (p.grad is not None) == p.requires_grad, name
    optimiser.step()
    after = dict(network.named_parameters())
    assert all(torch.equal(after[name], before) for name, before in frozen.items())


def test_the_loss_is_the_sum_of_three_heads_at_the_masks_size(weights):
    found = system(weights)
    images, sample = batch()
    found.network.eval()
    with torch.no_grad():
        expected = sum(
            boundary_loss(F.interpolate(head, (64, 64), mode="bilinear"), sample["mask"], sample["labelled"])
            for head in found.network(images)
        )
        assert found.loss(found.network, images, sample).item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_deployed_form_is_the_finest_head(weights):
    found = system(weights)
    network, (images, _) = found.network.eval(), batch()
    with torch.no_grad():
        finest = network(images)[-1]
        assert torch.equal(found.view(network)(images), finest)
        assert torch.equal(found.plain(network)(images), finest)


def test_it_learns_one_case_by_heart(weights):
    dataset = open_dataset(DATA)
    case, found = dataset.split("train")[:1], system(weights)
    spec = training_input(case, (64, 64), MEAN_STD)
    data = TrainingSet(case, spec, classes=1, seed=0, augment=None)
    sample = {name: value[None] for name, value in data[0, 0].items()}
    images = normaliser(spec, torch.device("cpu"))(sample["image"])
    network = found.network.train()
    optimiser = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], 1e-3)
    for _ in range(25):
        optimiser.zero_grad()
        found.loss(network, images, sample).backward()
        optimiser.step()
    validator = Validator(case, spec, found.output, 1, batch=1)
    assert validator.dice(found.view(network)) > 0.9


@pytest.fixture(scope="module")
def bundle(weights, tmp_path_factory):
    more = {"data": DATA, "size": 64, "batch_size": 4, "device": "cpu", "epochs": 1, "warmup_epochs": 0}
    out = tmp_path_factory.mktemp("sam2-unet") / "t"
    train(TeacherSettings(**more, out=out, system="sam2-unet", weights=str(weights)))
    return open_bundle(out)


def test_a_bundle_holds_the_network_that_was_trained(bundle, weights):
    manifest, network = bundle.manifest, load_teacher(bundle)
    assert (manifest.kind, manifest.architecture) == ("teacher", "sam2-unet")
    assert manifest.trained_parameters == 2_587_779
    held, half = open_dataset(DATA).split("val"), manifest.output.model_copy(update={"threshold": 0.5})
    with (bundle.folder / "history.csv").open() as file:  # of the network while it was trained
        (epoch,) = csv.DictReader(file)
    for output, expected in (
        (half, float(epoch["dice_val"])),
        (manifest.output, manifest.metric("dice_mean", "val")),
    ):
        validator = Validator(held, manifest.input, output, 1, batch=4)
        assert validator.dice(network) == pytest.approx(expected, abs=1e-6)
    frozen = torch.load(weights, weights_only=True)["model"]["image_encoder.trunk.patch_embed.proj.weight"]
    assert torch.equal(network.state_dict()["network.encoder.patch_embed.proj.weight"], frozen)
    assert (bundle.folder / "adapter").is_dir()


@pytest.mark.parametrize("tune", ["adapter", "lora"])
def test_what_a_bundle_opens_computes_what_was_trained(bundle, weights, tune):
    found = system(weights, tune=tune)
    for p in found.network.parameters():
        if p.requires_grad and p.abs().sum() == 0:  # where updates start
            torch.nn.init.normal_(p, std=0.02)
    images, _ = batch()
    opened = open_plain(bundle.manifest.model_copy(update={"architecture_settings": found.settings})).eval()
    with torch.no_grad():
        trained = found.view(found.network.eval())(images)
        opened.load_state_dict(found.plain(found.network).state_dict())
        assert torch.allclose(opened(images), trained, atol=1e-4)
