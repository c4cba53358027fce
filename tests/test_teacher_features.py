"""Features of a frozen encoder that are computed once: the same network, trained without its encoder."""

import copy
import csv
import json
import re

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from PIL import Image  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from torch import nn  # noqa: E402

from segcore.bundle.folder import open_bundle  # noqa: E402
from segcore.cache import disk_bytes  # noqa: E402
from segcore.dataset.dataset import open_dataset  # noqa: E402
from segcore.errors import InputError  # noqa: E402
from segcore.learn.augment import Augmentation  # noqa: E402
from segcore.learn.evaluate import Validator  # noqa: E402
from segcore.learn.loader import TrainingSet, training_input  # noqa: E402
from segcore.learn.loop import fit, open_accelerator  # noqa: E402
from segcore.learn.network import normaliser  # noqa: E402
from segcore.learn.transforms import transforms_of  # noqa: E402
from teacher.encoder import build_encoder, encoder_module  # noqa: E402
from teacher.features import (  # noqa: E402
    FeatureSet,
    FrozenEncoder,
    ViewSet,
    chosen_views,
    data_rows,
    frozen_encoder,
    open_features,
)
from teacher.settings import TeacherSettings, check_settings  # noqa: E402
from teacher.system import Task, load_teacher, system_module  # noqa: E402
from teacher.train import main as train  # noqa: E402

PX = 64
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Twenty small pictures of bright discs on noise, 12 of them to train with and 4 to validate."""
    folder, random = tmp_path_factory.mktemp("data") / "discs", np.random.default_rng(0)
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True)
    rows = ["case,image,mask,patient,split"]
    y, x = np.mgrid[:PX, :PX]
    for i in range(20):
        disc = (x - random.integers(20, 44)) ** 2 + (y - random.integers(20, 44)) ** 2 < random.integers(
            60, 300
        )
        Image.fromarray(np.uint8(90 * disc + random.integers(0, 90, (PX, PX)))).save(
            folder / f"images/{i}.png"
        )
        Image.fromarray(np.uint8(255 * disc)).save(folder / f"masks/{i}.png")
        rows.append(
            f"{i},images/{i}.png,masks/{i}.png,p{i},{'train' if i < 12 else 'val' if i < 16 else 'test'}"
        )
    (folder / "index.csv").write_text("\n".join(rows))
    return str(folder)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Random ones of EfficientNet-Lite0, with the statistics of its batch norms."""
    torch.manual_seed(3)
    encoder = build_encoder("efficientnet-lite0").train()
    for _ in range(5):
        encoder(torch.randn(4, 3, PX, PX))
    path = tmp_path_factory.mktemp("weights") / "lite0.pth"
    torch.save(encoder.state_dict(), path)
    return path


def settings(weights, data="-", **more):
    given = {
        "system": "unet", "encoder": "efficientnet-lite0", "weights": str(weights), "tune": "decoder", "data": data,
        "out": "-", "size": PX, "device": "cpu", "batch_size": 4, "epochs": 4, "calibrate": "none",
    }  # fmt: skip
    return TeacherSettings(**{**given, **more})


def losses(out):
    with (out / "steps.csv").open() as file:
        return np.array([float(row["loss"]) for row in csv.DictReader(file)])


@pytest.fixture(scope="module")
def trained(weights, data, tmp_path_factory):
    """Bundles and a cache: with features, with the encoder in every step, and with a cache that cannot be written."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "file").write_text("")
    for name, more in {
        "kept": {"cached_views": 1, "cache": folder / "cache"},
        "live": {"cached_views": 0},
        "unwritable": {"cached_views": 1, "cache": folder / "file"},
    }.items():
        train(settings(weights, data, augment="none", lr=1e-4, out=folder / name, **more))
    return folder


def test_the_network_is_the_one_that_is_trained_with_its_encoder(trained, weights):
    live, kept = (load_teacher(open_bundle(trained / name)) for name in ("live", "kept"))
    first, *_ = differences = abs(losses(trained / "kept") / losses(trained / "live") - 1)
    # 16 bits round the features by up to 2⁻¹¹, and Adam's first steps go by the signs of small gradients.
    assert first < 1e-4
    assert len(differences) == 12
    assert max(differences) < 0.02
    x = torch.rand(4, 3, PX, PX, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        answers = [network(x).flatten() for network in (kept, live)]
    assert torch.corrcoef(torch.stack(answers))[0, 1] > 0.99
    # and the bundle holds the encoder as it came
    state = load_file(trained / "kept" / "model.safetensors")
    file = torch.load(weights, weights_only=True)
    assert all(torch.equal(state[f"encoder.{name}"], tensor) for name, tensor in file.items())
    assert state.keys() == load_file(trained / "live" / "model.safetensors").keys()


def test_a_cache_that_cannot_be_written_is_no_error_and_changes_nothing(trained):
    assert losses(trained / "unwritable") == pytest.approx(losses(trained / "kept"), rel=1e-5)
    manifest = [json.loads((trained / name / "manifest.json").read_text()) for name in ("unwritable", "kept")]
    assert [m["settings"]["cached_views"] for m in manifest] == [1, 1]
    assert [m["settings"]["cache"] for m in manifest] == [None, None]


def opened(weights, data, cache, **more):
    """Features of a training that is about to begin, and its settings."""
    chosen = settings(weights, data, **{"augment": "film", "cached_views": 3, "cache": cache, **more})
    dataset = open_dataset(data)
    cases, held = dataset.split("train", limit=chosen.limit), dataset.split("val")
    spec = training_input(cases, (chosen.size, chosen.size), encoder_module("efficientnet-lite0").MEAN_STD)
    torch.manual_seed(chosen.seed)
    built = system_module(chosen.system).build_system(chosen, Task(dataset.classes, spec, cases))
    frozen, views = frozen_encoder(
        built, spec, chosen, CPU, training=len(cases), validation=len(held), processes=1
    )
    assert views == chosen.cached_views
    pictures = TrainingSet(cases, spec, classes=1, seed=chosen.seed, augment=None)
    augment = Augmentation(chosen.transforms(spec.channels), with_soft=False)
    validator = Validator(held, spec, built.output, 1, batch=4)
    return open_features(
        built, frozen, dataset, ViewSet(pictures, data_rows(dataset, cases), augment), validator, chosen
    ), chosen


def test_features_are_of_the_data_and_not_of_the_training(weights, data, tmp_path, capsys):
    def count(**more):
        opened(weights, data, tmp_path / "cache", **more)
        return int(re.search(r"(\d+) are computed now", capsys.readouterr().err)[1])

    pictures, held = 12, 4
    assert count() == 3 * pictures + held
    assert count(system="sam2-unet", seed=5, lr=1e-4) == 0
    assert count(cached_views=2, limit=3) == 0
    assert count(cached_views=4) == pictures
    assert count(augment="scan") == 2 * pictures  # and the plain view is the same
    assert count(size=96) == 3 * pictures + held

    # one bit of one row is wrong
    rows = max((tmp_path / "cache" / "features").glob("*/rows.npy"), key=lambda path: path.stat().st_size)
    content = bytearray(rows.read_bytes())
    content[np.flatnonzero(np.frombuffer(content, np.uint8))[-1]] ^= 1
    rows.write_bytes(content)
    assert count(size=96) == 1
    assert count(size=96) == 0


def test_what_the_cache_may_hold(weights, data, tmp_path, capsys):
    """12 training pictures, 4 of validation: 40 rows of 3 views; the bound is kept by older entries and by its own."""
    cache = tmp_path / "cache"
    features, _ = opened(weights, data, cache, size=96)
    bound = (40 * 2 * features.frozen.width + 60_000) / 2**30  # with the hashes and keys of three entries
    opened(weights, data, cache, size=96, seed=1, cache_gib=bound)
    old = set((cache / "features").iterdir())
    opened(weights, data, cache, size=64, cache_gib=bound)
    assert sum(map(disk_bytes, (cache / "features").iterdir())) <= bound * 2**30
    assert len(old & set((cache / "features").iterdir())) < 3
    assert "40 are computed now" in capsys.readouterr().err


def test_a_training_goes_on_with_its_features(weights, data, tmp_path):
    def run(folder, stop_after):
        features, chosen = opened(weights, data, tmp_path / "cache", ema=0.5, epochs=3)
        folder.mkdir(exist_ok=True)
        epochs = []

        def validate(network):
            if len(epochs) == stop_after:
                raise KeyboardInterrupt
            epochs.append(features.validate(network))
            return epochs[-1]

        with features.without_encoder():
            fit(features.system.network, features.data, loss_of=features.loss, validate=validate,
                settings=chosen, folder=folder, accelerator=open_accelerator(chosen))  # fmt: skip
        return features.system.network.state_dict()

    whole = run(tmp_path / "whole", 3)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", 1)
    again = run(tmp_path / "killed", 2)
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    assert any(name.startswith("encoder.") for name in whole)
    assert not any(name.startswith("encoder.") for name in load_file(tmp_path / "whole" / "best.safetensors"))


@pytest.fixture(scope="module")
def views(data):
    dataset = open_dataset(data)
    cases = dataset.split("train")[2:8]
    spec = training_input(cases, (PX, PX), encoder_module("efficientnet-lite0").MEAN_STD)
    pictures = TrainingSet(cases, spec, classes=1, seed=0, augment=None)
    augment = Augmentation(transforms_of("film", channels=spec.channels, flip=True), with_soft=False)
    return ViewSet(pictures, data_rows(dataset, cases), augment)


def test_views_are_of_the_picture_whatever_part_of_the_data_it_is_in(views, data):
    dataset = open_dataset(data)
    fewer = dataset.split("train")[5:6]
    pictures = TrainingSet(fewer, views.pictures.spec, classes=1, seed=9, augment=None)
    alone = ViewSet(pictures, data_rows(dataset, fewer), views.augment)
    for view in range(3):
        assert torch.equal(alone.view(0, view)["image"], views.view(3, view)["image"])
    assert torch.equal(views.view(3, 0)["image"], views.pictures[(7, 3)]["image"])
    different = {
        views.view(index, view)["image"].numpy().tobytes() for index in range(6) for view in range(4)
    }
    assert len(different) >= 20  # film leaves a picture as it is now and then


def test_masks_are_those_of_the_views(views):
    for index in range(6):
        for view in range(4):
            assert torch.equal(views.mask_view(index, view)["mask"], views.view(index, view)["mask"])


def test_each_pass_draws_a_view_by_seed_and_pass(views):
    data = FeatureSet(views, 4, seed=0, stored=None)
    images = {view: views.view(2, view)["image"] for view in range(4)}

    def drawn(data, number):
        return next(view for view, image in images.items() if torch.equal(image, data[(number, 2)]["image"]))

    order = [drawn(data, number) for number in range(24)]
    assert set(order) == {0, 1, 2, 3}
    assert order == [drawn(FeatureSet(views, 4, seed=0, stored=None), number) for number in range(24)]
    assert order != [drawn(FeatureSet(views, 4, seed=1, stored=None), number) for number in range(24)]


class OneMap(nn.Module):
    """A map, and its mean over the picture as the coarser one."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 4, 4)

    def embed(self, x):
        return self.conv(x)

    @staticmethod
    def pyramid(finest):
        return [finest, finest.mean((2, 3), keepdim=True)]

    def forward(self, x):
        return self.pyramid(self.embed(x))


@pytest.mark.parametrize("kind", ["pyramid", "one map", "litemedsam"])
def test_packed_maps_are_what_the_encoder_gives(views, kind):
    torch.manual_seed(0)
    if kind == "litemedsam":
        pytest.importorskip("sam2")
        from teacher.encoders.litemedsam import TinyViT

        encoder = TinyViT((8, 16, 16, 32), (1, 1, 1, 1), (1, 1, 1, 1), (4, 4, 4, 4), channels=5).eval()
    else:
        encoder = build_encoder("efficientnet-lite0").eval() if kind == "pyramid" else OneMap()
    spec = views.pictures.spec
    frozen = FrozenEncoder(encoder, spec, CPU)
    images = torch.rand(3, spec.channels, PX, PX)
    packed, stand_in = frozen.pack(images), copy.deepcopy(frozen.stand_in())
    assert packed.dtype == torch.float16
    assert packed.shape == (3, frozen.width, 1, 1)
    assert kind == "pyramid" or frozen.width == 5 * 16 * 16  # the coarser maps are not kept
    assert not list(stand_in.parameters())
    with torch.no_grad():
        expected = encoder(normaliser(spec, CPU)(images))
    found = stand_in(packed)
    assert [f.shape for f in found] == [e.shape for e in expected]
    for f, e in zip(found, expected, strict=True):
        assert f.dtype == torch.float32
        assert torch.allclose(f, e, rtol=2**-10, atol=1e-4)


def test_features_beyond_16_bits_are_refused(views):
    encoder = OneMap()
    nn.init.constant_(encoder.conv.bias, 1e6)
    with pytest.raises(InputError) as caught:
        FrozenEncoder(encoder, views.pictures.spec, CPU).pack(
            torch.rand(1, views.pictures.spec.channels, PX, PX)
        )
    assert str(caught.value) == (
        "--cached-views: features must be within ±65504 to be kept in 16 bits, are not; use --cached-views 0"
    )


@pytest.mark.parametrize("system", ["s2agscunet", "sam2-adapter", "sam2-points"])
def test_every_kind_of_decoder_takes_packed_maps(system, data, tmp_path):
    pytest.importorskip("sam2")
    from teacher.features import FrozenTraining
    from teacher.sam2_model import Sam2ImageModel

    torch.manual_seed(1)
    path = tmp_path / "sam2.pt"
    torch.save({"model": Sam2ImageModel("tiny", PX).state_dict()}, path)
    cases = open_dataset(data).split("train")[:2]
    spec = training_input(cases, (PX, PX), encoder_module("tiny").MEAN_STD)
    chosen = settings(path, system=system, encoder="tiny")
    built = system_module(system).build_system(chosen, Task(("disc",), spec, cases))
    frozen = FrozenEncoder(built.encoder, spec, CPU)
    images = torch.rand(2, spec.channels, PX, PX)
    network = built.view(built.network).eval()
    with torch.no_grad():
        expected = network(normaliser(spec, CPU)(images))
    training = FrozenTraining(built, frozen, None, None, None)
    before = built.network.state_dict().keys()
    with training.without_encoder():
        assert sum(p.numel() for p in built.network.parameters()) < 15e6  # Hiera alone has 26.8 million
        mask = torch.zeros(2, PX, PX, dtype=torch.uint8)
        mask[:, 10:50, 10:50] = 1
        sample = {"mask": mask, "labelled": torch.ones(2, dtype=torch.bool)}
        built.loss(built.network.train(), frozen.pack(images), sample).backward()
        for name, p in built.network.named_parameters():
            assert (p.grad is not None) == p.requires_grad, name
        with torch.no_grad():
            found = built.view(built.network).eval()(frozen.pack(images))
    assert built.network.state_dict().keys() == before
    if system != "s2agscunet":  # whose batch norms have moved
        assert (found - expected).abs().max() <= 5e-3 * expected.abs().max()


MIB_PICTURE = {"training": 1000, "validation": 200, "picture_bytes": 2**20}


@pytest.mark.parametrize(
    ("flags", "passes", "augmented", "expected"),
    [
        ({}, 50, True, 8),
        ({}, 50, False, 1),
        ({}, 9, True, 4),
        ({}, 3, True, 0),  # one view would be the plain picture
        ({}, 3, False, 1),
        ({}, 1, False, 0),
        ({"cache_gib": 4}, 50, True, 3),  # 4096 pictures: 3 × 1000 + 200
        ({"cache_gib": 2}, 50, True, 0),  # 2048
        ({"cache_gib": 2}, 50, False, 1),
        ({"cached_views": 5}, 1, True, 5),
    ],
)
def test_how_many_views_are_kept(weights, flags, passes, augmented, expected):
    assert (
        chosen_views(settings(weights, **flags), augmented=augmented, passes=passes, **MIB_PICTURE)
        == expected
    )


def test_more_views_than_fit_are_refused(weights):
    with pytest.raises(InputError) as caught:
        chosen_views(settings(weights, cached_views=11), augmented=True, passes=50, **MIB_PICTURE)
    assert str(caught.value) == (
        "--cached-views 11: must fit in --cache-gib 10, takes 10.94; use at most 10, or raise --cache-gib"
    )


@pytest.mark.parametrize(
    ("flags", "got"),
    [
        ({"tune": "all"}, "--system unet --tune all"),
        ({"encoder": None, "tune": None}, "--system unet"),
    ],
)
def test_an_encoder_that_is_trained_keeps_no_features(weights, flags, got):
    with pytest.raises(InputError) as caught:
        check_settings(settings(weights, cached_views=4, **flags))
    assert str(caught.value) == (
        "--cached-views 4: must be for an encoder that is frozen while a decoder learns from single pictures "
        f"(--tune decoder), got {got}; omit --cached-views"
    )
