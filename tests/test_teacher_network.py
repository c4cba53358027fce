"""SAM 2's encoder, its adapters and the decoder over it; and every way its weights can be wrong."""

import pickle

import pytest
import torch
from safetensors.torch import save_file

from segcore.errors import InputError
from teacher.adapter import AdaptedBlock, add_adapters
from teacher.lora import add_lora, merge_lora
from teacher.network import build_s2agscunet, deployed
from teacher.sam2_encoder import NO_WEIGHTS, build_encoder, load_encoder_weights
from teacher.scconv import ScConv
from teacher.train import TeacherSettings, build_teacher

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


@pytest.mark.parametrize(
    ("tune", "in_encoder"), [("lora", 110_208), ("adapter", 262_464), ("decoder", 0), ("all", 26_849_472)]
)
def test_what_is_trained_gets_a_gradient_and_nothing_else_does(weights, tune, in_encoder):
    torch.manual_seed(0)
    network, origin = build_teacher(settings(weights, tune=tune), 1)
    assert origin == "sam2.1_hiera_tiny.pt"
    assert sum(p.numel() for p in network.encoder.parameters() if p.requires_grad) == in_encoder
    for p in network.parameters():  # adapters and LoRA start at zero, where some gradients are zero by design
        if p.requires_grad and p.abs().sum() == 0:
            torch.nn.init.normal_(p, std=0.02)
    sum(o.square().mean() for o in network(torch.randn(2, 3, 64, 64))).backward()
    for name, p in network.named_parameters():
        assert (p.grad is not None) == p.requires_grad, name


def test_merging_lora_keeps_the_function(encoder, weights):
    network, _ = build_teacher(settings(weights, tune="lora"), 1)
    for name, p in network.encoder.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=0.05)
    x = torch.randn(1, 3, 64, 64)
    network.eval()
    with torch.no_grad():
        before = network(x)[-1]
        plain = deployed(network, "lora").eval()
        after = plain(x)
    assert torch.allclose(before, after, atol=1e-4)
    assert not any("lora" in k for k in plain.state_dict())
    rebuilt = build_s2agscunet(encoder="tiny", outputs=1)
    assert {f"network.{k}" for k in rebuilt.state_dict()} == set(plain.state_dict())


def test_lora_changes_what_the_encoder_computes(weights):
    encoder = build_encoder("tiny").eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        before = encoder(x)[-1]
        wrapped = add_lora(encoder, 4)
        assert torch.allclose(wrapped(x)[-1], before, atol=1e-5)  # starts as the encoder it adapts
        for name, p in wrapped.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(p, std=0.05)
        assert not torch.allclose(merge_lora(wrapped)(x)[-1], before, atol=1e-3)


def test_adapters_start_as_the_unchanged_encoder():
    encoder = build_encoder("tiny").eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        before = encoder(x)[-1]
        add_adapters(encoder, 8)
        assert torch.equal(encoder(x)[-1], before)
    assert all(isinstance(block, AdaptedBlock) for block in encoder.blocks)


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
        f"--weights {weights}: must be of SAM 2.1 Hiera small, got another encoder (50 tensors missing, 2 unknown, "
        "22 of another shape, e.g. blocks.12.attn.proj.bias); "
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
    fails(f"--weights facebook/sam3: must be one of {hubs}; got another name", "facebook/sam3")


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


class Attack:
    def __reduce__(self):
        return (print, ("code was executed",))


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path, capsys):
    path = tmp_path / "evil.pt"
    with path.open("wb") as file:
        pickle.dump({"model": Attack()}, file)
    with pytest.raises(InputError, match=r"must be a checkpoint that holds tensors only, cannot be read"):
        load_encoder_weights(build_encoder("tiny"), str(path), "tiny")
    assert "code was executed" not in capsys.readouterr().out


def test_a_checkpoint_of_something_else(tmp_path):
    path = tmp_path / "other.pt"
    torch.save({"model": {"fc.weight": torch.zeros(2)}}, path)
    fails(f"--weights {path}: must hold tensors named {PREFIX}*, got none; is it a SAM 2 checkpoint?", path)
