"""Fake quantisation against its closed form, fine-tuning under it, and the levelling of channels; small networks."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

from export.int8.equalise import equalise
from export.int8.qat import FakeQuantiser, fake_quantise, finetune, observe_ranges, round_weight
from export.int8.traced import fold_norms
from export.job import Finetuning
from segcore.bundle.folder import open_bundle
from segcore.dataset.dataset import open_dataset
from segcore.errors import InputError
from student.design import Design, unet
from student.network import build_student, load_student

spec = importlib.util.spec_from_file_location(
    "fragile_student", Path(__file__).with_name("fragile_student.py")
)
fragile_student = importlib.util.module_from_spec(spec)
spec.loader.exec_module(fragile_student)

DATA = "phantom:cxr:24"
TINY = Design(stem="strided", stem_stride=4, widths=(4, 6), depths=(0, 1), up_depths=(1,))
BASE = {"widths": (4, 6, 8), "depths": (1, 1, 1), "up_depths": (1, 1)}
DESIGNS = {
    "tiny": TINY,
    "unet": unet(4),
    "residual": Design(**BASE, block="residual"),
    "inverted": Design(**BASE, block="inverted"),
    "separable": Design(**BASE, block="separable", up="bilinear"),
    "shuffle": Design(**BASE, stem="unshuffle", stem_stride=2, up="shuffle", skip="concat", head_upscale=2),
    "hardswish": Design(**BASE, activation="hardswish"),
    "reparam": Design(**BASE, block="reparam", down="pool"),
}


def student(design, seed=0):
    """With batch norms that are not what they are when a network is new."""
    torch.manual_seed(seed)
    network = build_student(design, channels=1, outputs=1).eval()
    for layer in network.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(layer.weight, 0.5, 2.0)
            torch.nn.init.normal_(layer.bias, std=0.3)
            torch.nn.init.normal_(layer.running_mean, std=0.3)
            torch.nn.init.uniform_(layer.running_var, 0.5, 2.0)
    return network


def pictures(seed=0, count=2, size=32):
    return torch.randn(count, 1, size, size, generator=torch.Generator().manual_seed(seed))


def rounded(x, step, low):
    """The closed form: a whole number of steps."""
    x = np.asarray(x)
    return torch.from_numpy((np.clip(np.rint(x / step), low, 127) * step).astype(np.float32))


def rounded_weight(layer):
    weight = layer.weight.detach().numpy()
    return rounded(weight, np.abs(weight).max((1, 2, 3), keepdims=True) / np.float32(127), -127)


def test_an_activation_is_rounded_to_steps_of_a_127th_of_its_largest():
    layer = FakeQuantiser()
    layer.follows = True
    layer.train()
    x = torch.linspace(-2.54, 1.0, 1000)
    torch.testing.assert_close(layer(x), rounded(x, np.float32(0.02), -128))
    layer.eval()  # then frozen: what is larger is cut off, at −128 and 127 steps
    torch.testing.assert_close(layer(torch.tensor([9.0, -9.0, 0.029])), torch.tensor([2.54, -2.56, 0.02]))


def test_the_range_is_a_moving_maximum_and_can_be_frozen():
    layer = FakeQuantiser().train()
    layer.follows = True
    for largest in (1.0, 4.0, 2.0):
        layer(torch.tensor([0.5, -largest]))
    assert layer.amax.item() == pytest.approx(4 * 0.99)
    layer.follows = False
    layer(torch.tensor([100.0]))
    assert layer.amax.item() == pytest.approx(4 * 0.99)


def test_weights_are_rounded_by_output_channel_and_those_of_a_transposed_convolution_alike():
    layer = torch.nn.Conv2d(3, 5, 3)
    torch.testing.assert_close(round_weight(layer), rounded_weight(layer))
    transposed = torch.nn.ConvTranspose2d(3, 5, 2)
    weight = transposed.weight.detach().numpy()
    torch.testing.assert_close(
        round_weight(transposed), rounded(weight, np.abs(weight).max() / np.float32(127), -127)
    )


def test_the_whole_network_is_rounded_where_the_quantisers_round_it():
    """Every convolution's input, the skip of the sum and not its other side, the logits not."""
    network = fold_norms(student(TINY))
    x, at = pictures(), {}
    graph = fake_quantise(network)
    observe_ranges(graph, [x])

    def q(tensor, name):
        at[name] = tensor.abs().max().item()
        return rounded(tensor.numpy(), np.float32(at[name]) / np.float32(127), -128)

    def conv(layer, tensor):
        return torch.nn.functional.conv2d(
            tensor, rounded_weight(layer), layer.bias, layer.stride, layer.padding
        )

    with torch.no_grad():
        skip = q(conv(network.stem[0], q(x, "picture")).relu(), "stem")
        coarse = conv(network.shrink[0][0], skip).relu()
        coarse = conv(network.down[1][0], q(coarse, "coarse")).relu()
        grown = network.up[0][1](conv(network.up[0][0], q(coarse, "coarsest")))
        fine = conv(network.merge[0][0], q(skip + grown, "sum")).relu()
        expected = conv(network.head, q(fine, "fine"))
        torch.testing.assert_close(graph(x), expected, rtol=1e-4, atol=1e-5)
    ranges = sorted(layer.amax.item() for layer in graph.modules() if isinstance(layer, FakeQuantiser))
    assert ranges == pytest.approx(sorted(at.values()), rel=1e-5)  # one a tensor: the skip is read twice


def test_a_concat_has_one_scale_and_its_skip_has_the_same():
    graph = fake_quantise(fold_norms(student(unet(4)))).graph
    by_name = {node.name: node for node in graph.nodes}
    for level in range(4):
        join = next(n for n in by_name.values() if n.target == f"merge.{level}.0").args[0]
        pooled = next(n for n in by_name.values() if n.target == f"down.{4 - level}.0").args[0]
        assert join.target == pooled.target
        assert join.args[0].target is torch.cat
        assert pooled.args[0].target == f"shrink.{3 - level}"


@pytest.mark.parametrize("name", DESIGNS)
def test_every_weight_and_bias_gets_a_gradient(name):
    network = fold_norms(student(DESIGNS[name]))
    graph = fake_quantise(network)
    observe_ranges(graph, [pictures()])
    graph.train()(pictures(1)).square().mean().backward()
    convolutions = [
        m for m in network.modules() if isinstance(m, (torch.nn.Conv2d, torch.nn.ConvTranspose2d))
    ]
    for parameter in (p for layer in convolutions for p in layer.parameters()):
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()
        assert parameter.grad.any()
    assert {id(p) for p in graph.parameters()} == {id(p) for c in convolutions for p in c.parameters()}


@pytest.mark.parametrize("name", DESIGNS)
def test_folding_and_levelling_keep_the_function_and_the_design(name):
    network, x = student(DESIGNS[name]), pictures()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    with torch.no_grad():
        expected = network(x)
        for changed in (fold_norms(network), equalise(network)):
            assert (changed(x) - expected).abs().max() <= 1e-5 * expected.abs().max().clamp(min=1)
            if name != "reparam":  # whose branches are one convolution then
                assert changed.design == network.design
                assert changed.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


@pytest.mark.parametrize("name", ["unet", "residual", "shuffle"])
def test_levelling_undoes_channels_that_are_a_thousand_times_too_large(name):
    network = student(DESIGNS[name])
    layers = fragile_student.fragile_layers(network)
    broken = fragile_student.make_fragile(network, layers=layers, factor=1000.0, channels=1)
    x = pictures()

    def error(one):
        graph = fake_quantise(one)
        observe_ranges(graph, [x])
        with torch.no_grad():
            expected = network(x)
            return ((graph(x) - expected).norm() / (expected - expected.mean()).norm()).item()

    assert error(fold_norms(broken)) > 0.3
    assert error(equalise(broken)) < 0.1
    head = equalise(broken).head.weight.abs()[0, :, 0, 0]
    assert head.max() < 100 * head.min()  # a thousand apart before


def test_a_hardswish_is_left_alone():
    """It does not pass a factor on: only the channels before it that it does not see could be scaled, and none are."""
    network = fold_norms(student(Design(**BASE, down="pool", up="nearest", activation="hardswish")))
    levelled = equalise(network)
    assert torch.equal(levelled.head.weight, network.head.weight)


def test_fragile_and_hopeless_students_compute_the_same_and_break_in_8_bits():
    network, x = student(Design(**BASE)), pictures()
    layers = fragile_student.fragile_layers(network)
    fragile = fragile_student.make_fragile(network, layers=layers, factor=1000.0, channels=1)
    hopeless = fragile_student.make_hopeless(network, cancelling=300.0)
    with torch.no_grad():
        expected = network(x)
        for one, allowed in ((fragile, 1e-5), (hopeless, 1e-3)):
            assert (one(x) - expected).abs().max() < allowed * expected.abs().max()
            graph = fake_quantise(fold_norms(one))
            observe_ranges(graph, [x])
            assert (graph(x) - expected).norm() > 0.3 * (expected - expected.mean()).norm()


@pytest.fixture(scope="module")
def fragile(torch_bundle, tmp_path_factory):
    """The conftest's student, with two of the head's eight input channels 300 times as large."""
    out = tmp_path_factory.mktemp("fragile") / "bundle"
    network = load_student(open_bundle(torch_bundle))
    broken = fragile_student.make_fragile(network, layers=["merge.3.3"], factor=300.0)
    fragile_student.write_bundle(torch_bundle, broken, out, "fragile", settings={"batch_size": 2})
    return open_bundle(out)


def test_fine_tuning_recovers_a_fragile_student(fragile, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    tuned = finetune(fragile, Finetuning(DATA, epochs=4, lr=1e-3, level=False))
    assert tuned.dice_before < tuned.dice_float - 0.2
    assert tuned.dice_after > tuned.dice_float - 0.05
    assert tuned.dice_after == max(epoch.dice_val for epoch in tuned.epochs)
    assert list(tmp_path.iterdir()) == []
    out = capsys.readouterr()
    assert out.out == ""
    assert "taught by its own FP32" in out.err

    plain = build_student(unet(8), channels=1, outputs=1)
    plain.load_state_dict(tuned.network.state_dict())
    assert not any(isinstance(m, FakeQuantiser) for m in tuned.network.modules())
    assert {type(m) for m in tuned.network.modules()} == {type(m) for m in plain.modules()}
    graph = fake_quantise(fold_norms(plain.eval()))  # calibrated anew, as an export does
    observe_ranges(graph, [pictures(size=64)])
    assert graph(pictures(1, size=64)).isfinite().all()


def test_a_training_that_makes_it_worse_is_not_kept(torch_bundle):
    source = open_bundle(torch_bundle)
    tuned = finetune(source, Finetuning(DATA, epochs=1, lr=1.0))
    assert tuned.best_epoch == 0
    assert tuned.dice_after == tuned.dice_before
    x = pictures(size=64)
    with torch.no_grad():
        torch.testing.assert_close(tuned.network(x), load_student(source)(x), rtol=1e-4, atol=1e-4)


def test_a_fragile_student_is_levelled_first(fragile):
    tuned = finetune(fragile, Finetuning(DATA, epochs=1, lr=1e-5))
    assert tuned.levelled
    assert tuned.dice_before > tuned.dice_float - 0.02  # before any step


def test_data_under_another_split_is_refused(torch_bundle, tmp_path):
    source = open_bundle(torch_bundle)
    data = source.manifest.data.model_copy(update={"split_sha256": "0" * 64})
    network = load_student(source)
    fragile_student.write_bundle(torch_bundle, network, tmp_path / "b", "another split", data=data)
    with pytest.raises(InputError) as caught:
        finetune(open_bundle(tmp_path / "b"), Finetuning(DATA))
    assert str(caught.value) == (
        f"bundle {tmp_path / 'b'}: must have the same split of {DATA}, got another; use the --split-seed it was "
        "trained with, else it has seen images that are now in the test split"
    )


def test_other_data_must_not_hold_the_images_that_the_student_is_tested_on(torch_bundle, tmp_path):
    """phantom:cxr:20 holds the first patients of phantom:cxr:24; here one of its train images was a test image."""
    source = open_bundle(torch_bundle)
    seen = open_dataset("phantom:cxr:20").split("train")[3]
    tested = (seen.source.image_fingerprint(),)
    data = source.manifest.data.model_copy(update={"test_images": tested})
    fragile_student.write_bundle(torch_bundle, load_student(source), tmp_path / "b", "tested", data=data)
    with pytest.raises(InputError) as caught:
        finetune(open_bundle(tmp_path / "b"), Finetuning("phantom:cxr:20"))
    assert str(caught.value) == (
        "--data phantom:cxr:20: must train on other images than the model is tested on, got 1 of them "
        f"({seen.id}); name data without the test images"
    )


def test_data_of_other_classes_is_refused(torch_bundle):
    with pytest.raises(InputError, match="must have the data's classes"):
        finetune(open_bundle(torch_bundle), Finetuning("phantom:ct:12"))
