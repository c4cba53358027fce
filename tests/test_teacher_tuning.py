"""What is trained of the encoder: exactly what was asked for, from exactly where the encoder was, and out again."""

import copy
import json
import re
import sys

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("sam2")
peft = pytest.importorskip("peft")

from segcore.command import parse_settings  # noqa: E402
from segcore.errors import InputError  # noqa: E402
from teacher.sam2_model import build_encoder  # noqa: E402
from teacher.settings import TeacherSettings  # noqa: E402
from teacher.tuning.adapter_folder import load_adapters, save_adapters  # noqa: E402
from teacher.tuning.adapters import (  # noqa: E402
    AdapterAfter,
    AdapterBeside,
    Bottleneck,
    ChannelSpaceAdapter,
    add_adapters,
)
from teacher.tuning.peft_kinds import PEFT_KINDS, add_peft, load_peft, merge_peft, save_peft  # noqa: E402
from teacher.tuning.qkv_split import fuse_queries_keys_values, split_queries_keys_values  # noqa: E402
from teacher.tuning.tune import Tuning, adapted_encoder, plain_encoder, tune_encoder, tuning_of  # noqa: E402

LOW_RANK = ("lora", "dora", "rslora")
ADAPTERS = ("adapter", "adapter-parallel", "adapter-channel-space")
TUNINGS = [
    *(Tuning(kind, rank=2, target=target) for kind in LOW_RANK for target in ("attention", "q-v")),
    *(Tuning(kind, width=4) for kind in ("ia3", *ADAPTERS, "bitfit", "all")),
]
SAVED = [tuning for tuning in TUNINGS if tuning.kind != "all"]
every_tuning = pytest.mark.parametrize("tuning", TUNINGS, ids=lambda t: f"{t.kind}-{t.target}")
every_saved = pytest.mark.parametrize("tuning", SAVED, ids=lambda t: f"{t.kind}-{t.target}")


@pytest.fixture(scope="module")
def tiny():
    return build_encoder("tiny")


@pytest.fixture(scope="module")
def hiera(tiny):
    """A Hiera with all that the real ones have (pooling, windows, one global attention), as small as it can be.

    Nothing in it is 0 or 1, as nothing is in trained weights.
    """
    torch.manual_seed(1)
    encoder = type(tiny)(embed_dim=16, stages=(1, 2, 2, 1), global_att_blocks=(4,), window_spec=(8, 4, 6, 3))
    with torch.no_grad():
        for p in encoder.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return encoder.eval()


@pytest.fixture(scope="module")
def pictures():
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="module")
def trained(hiera, pictures):
    """A copy of the encoder after a few steps of a tuning, made once for each."""
    made = {}

    def train(tuning):
        if tuning not in made:
            torch.manual_seed(3)
            encoder = tune_encoder(copy.deepcopy(hiera), tuning)
            optimiser = torch.optim.Adam([p for p in encoder.parameters() if p.requires_grad], 1e-2)
            for _ in range(3):
                optimiser.zero_grad()
                sum(features.square().mean() for features in encoder(pictures)).backward()
                optimiser.step()
            made[tuning] = encoder
        return copy.deepcopy(made[tuning])

    return train


@torch.no_grad()
def features(encoder, pictures):
    return torch.cat([f.flatten() for f in encoder(pictures)])


def error(found, expected):
    """The largest difference, as a share of the largest output."""
    return float((found - expected).abs().max() / expected.abs().max())


def trainable(encoder):
    return {name for name, p in encoder.named_parameters() if p.requires_grad}


# ---- what is trained ------------------------------------------------------------------------------------------------

PREFIX = r"base_model\.model\.blocks\.\d+\."
WHAT = {
    "lora-attention": PREFIX + r"attn\.(qkv|proj)\.lora_[AB]\.default\.weight",
    "dora-attention": PREFIX + r"attn\.(qkv|proj)\.lora_([AB]|magnitude_vector)\.default\.weight",
    "lora-q-v": PREFIX + r"attn\.qkv\.(query|value)\.lora_[AB]\.default\.weight",
    "dora-q-v": PREFIX + r"attn\.qkv\.(query|value)\.lora_([AB]|magnitude_vector)\.default\.weight",
    "ia3-attention": PREFIX + r"(attn\.qkv\.(key|value)|mlp\.layers\.1)\.ia3_l\.default",
    "adapter-attention": r"blocks\.\d+\.adapter\.[02]\.(weight|bias)",
    "adapter-parallel-attention": r"blocks\.\d+\.(attn|mlp)\.adapter\.(down|up)\.(weight|bias)",
    "adapter-channel-space-attention": r"blocks\.\d+\.mlp\.adapter\.(channel|space)\.[02]\.weight",
    "bitfit-attention": r".*\bbias",
    "all-attention": r".*",
}
WHAT |= {f"rslora-{target}": WHAT[f"lora-{target}"] for target in ("attention", "q-v")}
TENSORS_A_BLOCK = {
    "lora": 4,
    "dora": 6,
    "rslora": 4,
    "ia3": 3,
    "adapter": 4,
    "adapter-parallel": 8,
    "adapter-channel-space": 4,
}


@every_tuning
def test_exactly_what_was_asked_for_is_trainable(hiera, tuning):
    encoder = tune_encoder(copy.deepcopy(hiera), tuning)
    pattern = re.compile(WHAT[f"{tuning.kind}-{tuning.target}"])
    names = {name for name, _ in encoder.named_parameters()}
    assert trainable(encoder) == {name for name in names if pattern.fullmatch(name)}
    if tuning.kind in TENSORS_A_BLOCK:
        assert len(trainable(encoder)) == 6 * TENSORS_A_BLOCK[tuning.kind]


@every_tuning
def test_it_gets_gradients_and_moves_and_the_rest_stays_bit_for_bit(hiera, trained, tuning):
    torch.manual_seed(3)
    before = dict(tune_encoder(copy.deepcopy(hiera), tuning).named_parameters())
    for name, p in trained(tuning).named_parameters():
        assert p.requires_grad == before[name].requires_grad, name
        assert torch.equal(p, before[name]) != p.requires_grad, name


@every_tuning
def test_every_trainable_parameter_gets_a_gradient_at_the_first_step(hiera, pictures, tuning):
    """One without would stop distributed training."""
    encoder = tune_encoder(copy.deepcopy(hiera), tuning)
    sum(f.square().mean() for f in encoder(pictures)).backward()
    assert {name for name, p in encoder.named_parameters() if p.grad is not None} == trainable(encoder)


def test_decoder_leaves_the_encoder_as_it_is(hiera):
    assert trainable(tune_encoder(copy.deepcopy(hiera), Tuning("decoder"))) == set()


@pytest.mark.parametrize(
    ("tuning", "count"),
    [
        (Tuning("lora"), 110_208),
        (Tuning("lora", target="q-v"), 69_888),
        (Tuning("rslora"), 110_208),
        (Tuning("dora"), 129_024),  # one number more for each output of a layer
        (Tuning("ia3"), 28_224),
        (Tuning("adapter"), 262_464),
        (Tuning("adapter-parallel"), 612_288),
        (Tuning("adapter-channel-space"), 4_064_256),
        (Tuning("bitfit"), 52_512),
        (Tuning("decoder"), 0),
        (Tuning("all"), 26_849_472),
    ],
    ids=lambda v: f"{v.kind}-{v.target}" if isinstance(v, Tuning) else "",
)
def test_trainable_parameters_of_hiera_tiny(tiny, tuning, count):
    encoder = tune_encoder(copy.deepcopy(tiny), tuning)
    assert sum(p.numel() for p in encoder.parameters() if p.requires_grad) == count


# ---- where it starts, and how it is merged --------------------------------------------------------------------------


@every_tuning
def test_nothing_changes_before_the_first_step(hiera, pictures, tuning):
    expected = features(hiera, pictures)
    found = features(tune_encoder(copy.deepcopy(hiera), tuning), pictures)
    if tuning.splits:  # three products in the place of one: the same sums, perhaps in another order
        assert error(found, expected) < 1e-6
    else:
        assert torch.equal(found, expected)


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize("kind", ["adapter", "adapter-parallel"])
def test_adapters_of_no_width_are_nothing(hiera, pictures, kind):
    encoder = add_adapters(copy.deepcopy(hiera), kind, 0)
    assert torch.equal(features(encoder, pictures), features(hiera, pictures))


@every_tuning
def test_plain_computes_what_was_trained(hiera, trained, pictures, tuning):
    encoder = trained(tuning)
    expected = features(encoder, pictures)
    assert error(expected, features(hiera, pictures)) > 1e-3
    plain = plain_encoder(encoder, tuning)
    assert error(features(plain, pictures), expected) < 1e-5
    rebuilt = adapted_encoder(copy.deepcopy(hiera), tuning.adapter_settings)
    rebuilt.load_state_dict(plain.state_dict())  # every name and shape is the bundle's
    assert torch.equal(features(rebuilt, pictures), features(plain, pictures))
    if tuning.kind in PEFT_KINDS:
        assert plain.state_dict().keys() == hiera.state_dict().keys()


@pytest.mark.parametrize("kind", LOW_RANK)
def test_queries_and_values_alone_are_trained(hiera, trained, kind):
    merged = plain_encoder(trained(Tuning(kind, rank=2, target="q-v")), Tuning(kind, rank=2, target="q-v"))
    before = dict(hiera.named_parameters())
    for name, after in merged.named_parameters():
        if name.endswith("attn.qkv.weight"):
            q, k, v = (torch.equal(a, b) for a, b in zip(after.chunk(3), before[name].chunk(3), strict=True))
            assert (q, k, v) == (False, True, False), name
        else:
            assert torch.equal(after, before[name]), name


def test_all_of_attention_has_keys_in_it(hiera, trained):
    merged = plain_encoder(trained(Tuning("lora", rank=2)), Tuning("lora", rank=2))
    for old, new in zip(hiera.blocks, merged.blocks, strict=True):
        assert not torch.equal(old.attn.qkv.weight.chunk(3)[1], new.attn.qkv.weight.chunk(3)[1])
        assert not torch.equal(old.attn.proj.weight, new.attn.proj.weight)


def test_ia3_scales_keys_values_and_the_mlps_inner_activations(hiera, trained):
    merged = plain_encoder(trained(Tuning("ia3", width=4)), Tuning("ia3", width=4))
    for old, new in zip(hiera.blocks, merged.blocks, strict=True):
        old_q, *old_kv = old.attn.qkv.weight.chunk(3)
        new_q, *new_kv = new.attn.qkv.weight.chunk(3)
        assert torch.equal(new_q, old_q)
        for a, b in zip(old_kv, new_kv, strict=True):
            ratio = b / a  # one number for each output
            assert torch.allclose(ratio, ratio[:, :1].expand_as(ratio), rtol=1e-3)
        ratio = new.mlp.layers[1].weight / old.mlp.layers[1].weight  # one for each input
        assert torch.allclose(ratio, ratio[:1].expand_as(ratio), rtol=1e-3)
        assert torch.equal(new.attn.proj.weight, old.attn.proj.weight)


def test_taking_apart_and_fusing_changes_nothing(hiera, pictures):
    split = split_queries_keys_values(copy.deepcopy(hiera))
    assert not any(name.endswith("qkv.weight") for name in split.state_dict())
    assert error(features(split, pictures), features(hiera, pictures)) < 1e-6
    fused = fuse_queries_keys_values(split).state_dict()
    assert fused.keys() == hiera.state_dict().keys()
    assert all(torch.equal(fused[name], tensor) for name, tensor in hiera.state_dict().items())


@pytest.mark.parametrize(
    ("kind", "scales"), [("lora", (2, 2, 2)), ("dora", (2, 2, 2)), ("rslora", (4, 2, 1))]
)
def test_scale_of_the_updates(kind, scales):
    for rank, scale in zip((1, 4, 16), scales, strict=True):
        wrapped = add_peft(torch.nn.Sequential(torch.nn.Linear(3, 3)), kind, rank=rank, targets="0")
        assert wrapped.base_model.model[0].scaling == {"default": scale}


@pytest.mark.parametrize("kind", PEFT_KINDS)
def test_any_module_can_be_updated(tmp_path, kind):
    """A mask decoder's attention, for one: the rest of it is frozen, and what else is to be trained is unfrozen after."""
    torch.manual_seed(0)
    module = torch.nn.ModuleDict({"q_proj": torch.nn.Linear(3, 4), "out_proj": torch.nn.Linear(4, 3)})
    origin = copy.deepcopy(module)
    wrapped = add_peft(module, kind, rank=2, targets="q_proj")
    assert {name.split(".")[2] for name in trainable(wrapped)} == {"q_proj"}
    with torch.no_grad():
        for p in wrapped.parameters():
            if p.requires_grad:
                p.add_(0.5)
    save_peft(wrapped, tmp_path)
    merged, opened = merge_peft(wrapped), merge_peft(load_peft(origin, tmp_path))
    assert torch.equal(merged["q_proj"].weight, opened["q_proj"].weight)
    with pytest.raises(InputError, match="must be for an encoder of this size, got tensors of another"):
        load_peft(torch.nn.ModuleDict({"q_proj": torch.nn.Linear(5, 5)}), tmp_path)


# ---- adapters -------------------------------------------------------------------------------------------------------


def randomised(module):
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    return module


def test_a_bottleneck_after_and_beside_a_layer():
    x, layer, adapter = torch.randn(2, 5, 6, 8), torch.nn.Linear(8, 8), Bottleneck(8, 3)
    assert torch.equal(adapter(x), torch.zeros_like(x))
    randomised(adapter)
    y = layer(x)
    own = torch.relu(y @ adapter.down.weight.T + adapter.down.bias) @ adapter.up.weight.T + adapter.up.bias
    assert torch.allclose(AdapterAfter(layer, adapter)(x), y + own, atol=1e-5)
    assert torch.allclose(AdapterBeside(layer, adapter, 0.5)(x), y + 0.5 * adapter(x), atol=1e-5)


def test_the_bottleneck_beside_the_mlp_counts_half(hiera):
    block = add_adapters(copy.deepcopy(hiera), "adapter-parallel", 4).blocks[1]
    x = torch.randn(1, 8, 8, hiera.blocks[1].dim)
    before = block(x)
    with torch.no_grad():
        block.mlp.adapter.up.bias.fill_(3.0)
    assert torch.allclose(block(x), before + 1.5, atol=1e-5)


@pytest.mark.parametrize("size", [(1, 1), (2, 4), (3, 5), (7, 4)])
def test_the_channel_and_space_adapter_keeps_any_size(size):
    x, adapter = torch.randn(2, *size, 6), ChannelSpaceAdapter(6, 4)
    assert torch.equal(adapter(x), torch.zeros_like(x))
    y = randomised(adapter)(x)
    assert y.shape == x.shape
    y.square().sum().backward()
    assert all(p.grad is not None for p in adapter.parameters())


@torch.no_grad()
def test_the_channel_and_space_adapter_looks_around():
    adapter = randomised(ChannelSpaceAdapter(6, 16))
    x = torch.rand(1, 12, 12, 6)
    far, near = x.clone(), x.clone()
    far[0, 11, 11] += 5  # out of reach of the convolutions, within the mean
    near[0, 1, 1] += 5
    near[0, 11, 11] -= 5  # the same mean
    place = adapter(x)[0, 0, 0]
    assert not torch.allclose(adapter(far)[0, 0, 0], place, rtol=1e-3)
    assert not torch.allclose(adapter(near)[0, 0, 0], place, rtol=1e-3)
    adapter.channel[2].weight.zero_()  # every channel weighs sigmoid(0), whatever the mean
    place = adapter(x)[0, 0, 0]
    assert torch.equal(adapter(far)[0, 0, 0], place)
    assert not torch.allclose(adapter(near)[0, 0, 0], place, rtol=1e-3)
    expected = adapter.space(0.5 * x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    assert torch.allclose(adapter(x), expected, atol=1e-5)


def test_bundles_that_name_a_width_alone_have_adapters_before_blocks(hiera):
    """As versions before 0.6 wrote them."""
    encoder = adapted_encoder(copy.deepcopy(hiera), {"encoder": "tiny", "adapter_width": 3})
    assert encoder.state_dict()["blocks.0.adapter.2.weight"].shape == (16, 3)
    assert "blocks.0.block.attn.qkv.weight" in encoder.state_dict()
    assert adapted_encoder(hiera, {"encoder": "tiny", "adapter_width": None}) is hiera


# ---- the folder -----------------------------------------------------------------------------------------------------


@every_saved
def test_an_adapter_folder_opens_on_a_fresh_encoder(hiera, trained, pictures, tmp_path, tuning):
    encoder, folder = trained(tuning), tmp_path / "adapter"
    encoder.to(memory_format=torch.channels_last)  # as training has it
    save_adapters(encoder, tuning, folder)
    expected = features(plain_encoder(encoder, tuning), pictures)
    opened = load_adapters(copy.deepcopy(hiera), folder).to(memory_format=torch.channels_last)
    assert torch.equal(features(opened, pictures), expected)
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    texts = (folder / "README.md").read_text() + (folder / "adapter_config.json").read_text()
    assert str(tmp_path) not in texts
    assert "/home" not in texts
    values = sum(p.numel() for p in encoder.parameters() if p.requires_grad)
    if tuning.kind not in PEFT_KINDS:
        assert (folder / "adapter_model.safetensors").stat().st_size < 4 * values + 10_000


@pytest.mark.parametrize(
    "tuning", [t for t in SAVED if t.kind in PEFT_KINDS], ids=lambda t: f"{t.kind}-{t.target}"
)
def test_peft_opens_its_folder_itself(hiera, trained, pictures, tmp_path, tuning):
    encoder = trained(tuning)
    save_adapters(encoder, tuning, tmp_path)
    base = copy.deepcopy(hiera)
    if tuning.splits:
        assert "split_queries_keys_values" in (tmp_path / "README.md").read_text()
        split_queries_keys_values(base)
    opened = peft.PeftModel.from_pretrained(base, tmp_path)
    assert torch.equal(features(opened, pictures), features(encoder, pictures))
    assert error(features(plain_encoder(encoder, tuning), pictures), features(opened, pictures)) < 1e-5


@pytest.mark.parametrize("kind", ["decoder", "all"])
def test_nothing_is_written_where_nothing_lies_beside_the_weights(hiera, tmp_path, kind):
    save_adapters(hiera, Tuning(kind), tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


def fails(message, encoder, folder):
    with pytest.raises(InputError) as caught:
        load_adapters(copy.deepcopy(encoder), folder)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    "tuning", [Tuning("lora"), Tuning("lora", target="q-v"), Tuning("adapter"), Tuning("bitfit")]
)
def test_a_folder_for_another_encoder(tiny, hiera, tmp_path, tuning):
    save_adapters(tune_encoder(copy.deepcopy(hiera), tuning), tuning, tmp_path)
    fails(
        f"{tmp_path}: must be for an encoder of this size, got tensors of another; build the encoder that the bundle's "
        "manifest names",
        tiny,
        tmp_path,
    )


def test_what_is_no_adapter_folder(hiera, tmp_path):
    none = (
        f"{tmp_path}: must be an adapter folder with adapter_config.json, got none; give a bundle's adapter/"
    )
    fails(none, hiera, tmp_path)
    (tmp_path / "adapter_config.json").write_text("[]")
    config = f"{tmp_path / 'adapter_config.json'}: must"
    fails(f"{config} hold names and values, got list; copy the bundle's adapter/ again", hiera, tmp_path)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"kind": "prefix"}))
    none = f"{tmp_path}: must hold adapter_model.safetensors, does not; copy the bundle's adapter/ again"
    fails(none, hiera, tmp_path)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"torn")
    torn = (
        f"{tmp_path / 'adapter_model.safetensors'}: must be safetensors, is damaged (Error while deserializing header: "
        "header too small); copy the bundle's adapter/ again"
    )
    fails(torn, hiera, tmp_path)
    save_adapters(tune_encoder(copy.deepcopy(hiera), Tuning("bitfit")), Tuning("bitfit"), tmp_path)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"kind": "prefix"}))
    fails(f"{tmp_path}: must be of a kind that is known, got prefix; update sam2edge", hiera, tmp_path)


# ---- flags ----------------------------------------------------------------------------------------------------------


def flags(*words):
    required = ["--data", "phantom:cxr", "--out", "unused"]
    return tuning_of(parse_settings(TeacherSettings, "python -m teacher.train", [*required, *words]))


def test_the_flags_tuning():
    assert flags() == Tuning("lora", 4, "attention", 32)
    assert flags("--system", "sam2-lora", "--lora-rank", "8") == Tuning("lora", 8, "q-v")
    assert flags("--system", "sam2-lora", "--lora-target", "attention").target == "attention"
    assert flags("--tune", "dora", "--lora-target", "q-v") == Tuning("dora", target="q-v")
    assert flags("--tune", "adapter-parallel", "--adapter-width", "8").adapter_settings == {
        "adapter_kind": "adapter-parallel",
        "adapter_width": 8,
    }
    assert flags("--tune", "bitfit").adapter_settings == {"adapter_kind": None, "adapter_width": None}


@pytest.mark.parametrize("flag", ["--lora-rank", "--adapter-width"])
def test_rank_and_width_of_zero_are_refused(flag):
    with pytest.raises(InputError) as caught:
        flags(flag, "0")
    assert str(caught.value) == f"{flag}: must be greater than or equal to 1, got '0'"


def test_without_peft(hiera, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(InputError) as caught:
        tune_encoder(copy.deepcopy(hiera), Tuning("lora"))
    assert str(caught.value) == "peft: must be installed, is not; run: pip install 'sam2edge[teacher]'"


# ---- export ---------------------------------------------------------------------------------------------------------


def test_a_teacher_with_odd_maps_exports(hiera, tmp_path):
    """The riskiest adapter: transposed convolutions that are cropped at 3×3, the deepest map of 96 px."""
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    from export.graph.onnx_export import write_onnx
    from segcore.learn.network import DeployGraph
    from segcore.picture.preprocess import InputSpec, output_spec
    from teacher.decoders.supervised_heads import FinestHead
    from teacher.systems.s2agscunet import S2AgScUNet

    torch.manual_seed(0)
    short = type(hiera)(embed_dim=16, stages=(1, 1, 1, 1), global_att_blocks=())
    encoder = add_adapters(short, "adapter-channel-space", 8)
    for p in encoder.parameters():
        if p.requires_grad:
            torch.nn.init.normal_(p, std=0.05)
    network = S2AgScUNet(encoder, encoder.channel_list, outputs=1)
    spec = InputSpec(height_px=96, width_px=96, channels=1, mean=(0.45,) * 3, std=(0.23,) * 3)
    graph = DeployGraph(FinestHead(network), spec).eval()
    write_onnx(graph, spec, output_spec(("lung",), 4), tmp_path / "m.onnx")
    picture = torch.randint(0, 256, (1, 96, 96, 1), dtype=torch.uint8)
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    found = session.run(None, {session.get_inputs()[0].name: picture.numpy()})[0]
    with torch.no_grad():
        expected = graph(picture)
    assert error(torch.from_numpy(found), expected) < 1e-5
