"""SAM 2's encoder, the decoder over it, its norms as one operator; and every way its weights can be wrong."""

import pickle

import pytest
import torch
from safetensors.torch import save_file

from segcore.errors import InputError
from teacher.sam2_model import (
    NO_WEIGHTS,
    ChannelNorm,
    Sam2ImageModel,
    build_encoder,
    build_sam2,
    join_channel_norms,
    load_encoder_weights,
    load_sam2_weights,
)
from teacher.settings import TeacherSettings, check_settings
from teacher.systems.s2agscunet import ScConv, build_s2agscunet

PREFIX = "image_encoder.trunk."


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(1)
    return build_encoder("tiny").eval()


@pytest.fixture(scope="module")
def weights(encoder, tmp_path_factory):
    """A file laid out as Meta's, with random numbers and other parts of SAM 2 beside the encoder."""
    path = tmp_path_factory.mktemp("weights") / "sam2.1_hiera_tiny.pt"
    state = {PREFIX + k: v for k, v in encoder.state_dict().items()}
    torch.save({"model": {**state, "memory_encoder.out_proj.weight": torch.zeros(3)}}, path)
    return path


def settings(weights, **more):
    return TeacherSettings(data="phantom:cxr", out="unused", weights=str(weights), **more)


def test_hiera_tiny_is_sam2s(encoder):
    assert sum(p.numel() for p in encoder.parameters()) == 26_849_472
    features = encoder(torch.zeros(1, 3, 64, 64))
    assert [tuple(f.shape[1:]) for f in features] == [(96, 16, 16), (192, 8, 8), (384, 4, 4), (768, 2, 2)]


@pytest.mark.parametrize(("size", "channels"), [("small", 96), ("base+", 112), ("large", 144)])
def test_other_sizes_build_from_sam2s_own_configs(size, channels):
    network = build_s2agscunet(encoder=size, outputs=3)
    assert network.decoder[-1].up.out_channels == channels


def test_three_supervised_heads_the_finest_last():
    network = build_s2agscunet(encoder="tiny", outputs=2)
    assert [o.shape for o in network(torch.zeros(1, 3, 64, 64))] == [
        (1, 2, 4, 4),
        (1, 2, 8, 8),
        (1, 2, 16, 16),
    ]


def test_scconv_keeps_the_shape_and_uses_every_parameter():
    block = ScConv(96)
    x = torch.randn(2, 96, 6, 5)
    assert block(x).shape == x.shape
    block(x).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in block.parameters())


def test_safetensors_weights_load_too(encoder, tmp_path):
    path = tmp_path / "w.safetensors"
    save_file({PREFIX + k: v for k, v in encoder.state_dict().items()}, path)
    other = build_encoder("tiny")
    assert load_encoder_weights(other, str(path), "tiny") == "w.safetensors"
    assert all(
        torch.equal(a, b)
        for a, b in zip(other.state_dict().values(), encoder.state_dict().values(), strict=True)
    )
    assert load_encoder_weights(other, "none", "tiny") == NO_WEIGHTS


def fails(message, weights, size="tiny"):
    with pytest.raises(InputError) as caught:
        load_encoder_weights(build_encoder(size), str(weights), size)
    assert str(caught.value) == message


def test_weights_of_another_size(weights):
    fails(
        f"--weights {weights}: must be of SAM 2.1 Hiera small, got another model (50 tensors missing, 2 unknown, "
        "22 of another shape, e.g. image_encoder.trunk.blocks.12.attn.proj.bias); "
        "set --encoder to the weights' size (tiny, small, base+, large)",
        weights,
        "small",
    )


def test_no_such_weights(tmp_path):
    hubs = (
        "facebook/sam2.1-hiera-tiny, facebook/sam2.1-hiera-small, "
        "facebook/sam2.1-hiera-base-plus, facebook/sam2.1-hiera-large"
    )
    path = tmp_path / "nowhere.pt"
    fails(f"--weights {path}: must be a .pt or .safetensors file, one of {hubs}, or none; no such file", path)
    fails(
        f"--weights facebook/sam3: must be one of {hubs}, with @REVISION and #SHA256 behind it or without; got another",
        "facebook/sam3",
    )


def test_hub_name_of_another_size():
    fails(
        "--weights facebook/sam2.1-hiera-large: must fit --encoder tiny, is for large; add --encoder large",
        "facebook/sam2.1-hiera-large",
    )


def test_no_network_when_a_hub_name_was_asked_for(monkeypatch, tmp_path):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InputError) as caught:
        load_encoder_weights(build_encoder("tiny"), "facebook/sam2.1-hiera-tiny", "tiny")
    assert str(caught.value) == (
        "--weights facebook/sam2.1-hiera-tiny: must be downloaded once, the hub cannot be reached "
        "(LocalEntryNotFoundError); fetch sam2.1_hiera_tiny.pt on another machine and pass its path"
    )


def test_a_hub_name_takes_a_revision_and_a_hash(monkeypatch, tmp_path):
    import hashlib

    import huggingface_hub

    asked = []
    path = tmp_path / "sam2.1_hiera_tiny.pt"
    torch.save({"model": {"fc.weight": torch.zeros(2)}}, path)

    def download(repository, file, *, revision):
        asked.append((repository, file, revision))
        return str(path)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    right, wrong = hashlib.sha256(path.read_bytes()).hexdigest(), "0" * 64
    name = "facebook/sam2.1-hiera-tiny"
    fails(f"--weights {name}@v1#{right}: must hold tensors named {PREFIX}*, got none; is it a SAM 2 checkpoint?",
          f"{name}@v1#{right}")  # fmt: skip
    fails(
        f"--weights {name}@v1#{wrong}: must have the sha256 000000000000…, sam2.1_hiera_tiny.pt has {right[:12]}…; do not "
        "use it, or give the hash of the one that you mean",
        f"{name}@v1#{wrong}",
    )
    fails(f"--weights {name}: must hold tensors named {PREFIX}*, got none; is it a SAM 2 checkpoint?", name)
    assert asked == [(name, "sam2.1_hiera_tiny.pt", revision) for revision in ("v1", "v1", None)]
    with pytest.raises(
        InputError, match=r"must be one of facebook/.*, with @REVISION and #SHA256 behind it or without"
    ):
        load_encoder_weights(build_encoder("tiny"), f"{name}#12", "tiny")


class Attack:
    def __reduce__(self):
        return (print, ("code was executed",))


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path, capsys):
    path = tmp_path / "evil.pt"
    with path.open("wb") as file:
        pickle.dump({"model": Attack()}, file)
    with pytest.raises(InputError, match=r"must be a checkpoint that holds tensors only, is damaged"):
        load_encoder_weights(build_encoder("tiny"), str(path), "tiny")
    assert "code was executed" not in capsys.readouterr().out


def test_a_checkpoint_of_something_else(tmp_path):
    path = tmp_path / "other.pt"
    torch.save({"model": {"fc.weight": torch.zeros(2)}}, path)
    fails(f"--weights {path}: must hold tensors named {PREFIX}*, got none; is it a SAM 2 checkpoint?", path)


def test_weights_of_sam_1(tmp_path):
    path = tmp_path / "sam_vit_b.pth"
    torch.save({"image_encoder.blocks.0.attn.qkv.weight": torch.zeros(2)}, path)
    fails(
        f"--weights {path}: must be of SAM 2, got SAM 1 (its encoder is a plain ViT); "
        "download SAM 2.1's, such as facebook/sam2.1-hiera-tiny",
        path,
    )


@pytest.fixture(scope="module")
def image_model():
    torch.manual_seed(2)
    return Sam2ImageModel("tiny", 64).eval()


def test_all_of_sam_2_loads_and_other_parts_of_the_file_are_left(image_model, tmp_path):
    path = tmp_path / "all.pt"
    torch.save(
        {"model": {**image_model.state_dict(), "memory_encoder.out_proj.weight": torch.zeros(3)}}, path
    )
    other = Sam2ImageModel("tiny", 64)
    assert load_sam2_weights(other, str(path), "tiny") == "all.pt"
    for name, tensor in other.state_dict().items():
        assert torch.equal(tensor, image_model.state_dict()[name]), name


def test_an_encoder_alone_leaves_the_other_parts_random_and_says_so(image_model, weights, capsys):
    other = Sam2ImageModel("tiny", 64)
    origin = load_sam2_weights(other, str(weights), "tiny")
    parts = "image_encoder.neck, no_mem_embed, sam_mask_decoder, sam_prompt_encoder"
    assert origin == f"sam2.1_hiera_tiny.pt, without {parts}"
    assert f"holds no {parts}: random weights there" in capsys.readouterr().err


def test_a_prompt_is_answered_for_each_picture_and_a_mask_can_be_left_out(image_model):
    seen = image_model.encode(torch.randn(2, 3, 64, 64))
    assert [tuple(t.shape[1:]) for t in seen] == [(256, 4, 4), (64, 8, 8), (32, 16, 16)]
    points, labels = torch.rand(2, 3, 2) * 64, torch.tensor([[1.0, 0.0, -1.0]] * 2)
    before = torch.randn(2, 1, 16, 16)
    with torch.no_grad():
        plain = image_model.decode(seen, points, labels)
        flags = image_model.decode(seen, points, labels, before, torch.tensor([[0.0], [1.0]]))
        given = image_model.decode(seen, points, labels, before)
    assert plain.logits.shape == (2, 4, 16, 16)
    assert plain.iou.shape == (2, 4)
    assert torch.allclose(flags.logits[0], plain.logits[0], atol=1e-5)
    assert torch.allclose(flags.logits[1], given.logits[1], atol=1e-5)
    assert not torch.allclose(plain.logits, given.logits, atol=1e-3)


def refused(**flags):
    with pytest.raises(InputError) as caught:
        check_settings(TeacherSettings(data="phantom:cxr", out="unused", **flags))
    return str(caught.value)


def test_flags_that_do_not_go_together():
    assert refused(system="sam2-zeroshot", weights="w.pt", tune="lora") == (
        "--tune lora: must be decoder for --system sam2-zeroshot; leave --tune away"
    )
    assert refused(system="unet", weights="w.pt") == (
        "--weights w.pt: must be none for --system unet, which has no part of SAM 2; leave --weights away"
    )
    assert refused() == (
        "--weights: must be given for --system s2agscunet; give SAM 2.1's weights, or none with --tune all"
    )
    assert refused(system="sam2-lora", weights="none") == (
        "--weights none: must have weights for --tune lora, which leaves the encoder as it is; "
        "give SAM 2.1's weights, or add --tune all to train everything from random weights"
    )


# ---- LayerNorm over channels as one operator -----------------------------------------------------------------------


class LayerNorm2d(torch.nn.Module):
    """Named as sam2's, with its parameters; the formula is the textbook's."""

    def __init__(self, channels):
        super().__init__()
        self.weight, self.bias = (
            torch.nn.Parameter(torch.rand(channels)),
            torch.nn.Parameter(torch.rand(channels)),
        )
        self.eps = 1e-3

    def forward(self, x):
        variance, mean = torch.var_mean(x, dim=1, correction=0, keepdim=True)
        each = (None, slice(None), None, None)
        return (x - mean) / (variance + self.eps).sqrt() * self.weight[each] + self.bias[each]


def test_the_numbers_and_the_parameters_stay():
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 1), torch.nn.Sequential(LayerNorm2d(8)))
    x, names = torch.randn(2, 3, 4, 5), list(network.state_dict())
    before = network(x)
    join_channel_norms(network)
    assert isinstance(network[1][0], ChannelNorm)
    assert list(network.state_dict()) == names
    assert torch.allclose(network(x), before, atol=1e-6)
    network(x).sum().backward()
    assert all(p.grad is not None for p in network.parameters())


def test_sam2_has_none_left():
    sam2 = build_sam2("tiny", 64)
    kinds = [type(module).__name__ for module in sam2.modules()]
    assert "LayerNorm2d" not in kinds
    assert kinds.count("ChannelNorm") >= 3
