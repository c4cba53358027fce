"""The student family: the paper's sizes, every part's shapes and gradients, what is fused, and that it can learn."""

import itertools

import pytest
import torch
import yaml
from pydantic import ValidationError

from segcore.errors import InputError
from segcore.learn.losses import dice_loss
from student.design import PRESETS, Design, find_design, title_of, unet
from student.network import Reparam, Student, build_student, design_of, sealed_form

QUARTER = {"stem": "strided", "stem_stride": 4, "widths": (16, 32), "depths": (0, 1), "up_depths": (1,)}
BLOCKS = ("plain", "residual", "reparam", "separable", "inverted")


def parameters(network):
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize(
    ("channels", "base", "count"), [(1, 8, 487_145), (3, 8, 487_289), (1, 64, 31_042_369)]
)
def test_the_literatures_members_have_its_size(channels, base, count):
    assert parameters(build_student(unet(base), channels=channels, outputs=1)) == count


def test_presets_keep_the_limit_of_half_a_million():
    sizes = {name: parameters(build_student(d, channels=3, outputs=1)) for name, d in PRESETS.items()}
    assert all(sizes[name] <= 500_000 for name in ("nano", "small", "base", "lightunet"))
    assert sizes["nano"] < sizes["small"]


@pytest.mark.parametrize("name", [n for n in PRESETS if n != "unet64"])
def test_presets_take_any_size_divisible_by_their_stride(name):
    design = PRESETS[name]
    size = (design.stride, 3 * design.stride)
    network = build_student(design, channels=3, outputs=5).eval()
    stride = design.logits_stride
    assert network(torch.zeros(2, 3, *size)).shape == (2, 5, size[0] // stride, size[1] // stride)


def variants():
    for block, skip, up in itertools.product(
        BLOCKS, ("add", "concat"), ("transposed", "nearest", "bilinear", "shuffle")
    ):
        yield {"block": block, "skip": skip, "up": up}
    for head in (1, 2, 4):
        yield {"head_upscale": head}
    yield {"stem": "unshuffle", "depths": (1, 1)}
    yield {"stem": "none", "stem_stride": 1, "depths": (1, 1), "down": "pool"}
    yield {"activation": "hardswish"}


@pytest.mark.parametrize("change", variants(), ids=lambda c: "-".join(map(str, c.values())))
def test_every_part_keeps_the_shape_and_trains_every_weight(change):
    torch.manual_seed(0)
    design = Design(**QUARTER | change)
    network = build_student(design, channels=1, outputs=2)
    logits = network(torch.randn(2, 1, 32, 48))
    assert logits.shape == (2, 2, 32 // design.logits_stride, 48 // design.logits_stride)
    logits.square().mean().backward()
    # a bias before batch norm has a gradient of (almost) nothing, but it has one
    assert all(p.grad is not None for p in network.parameters())
    assert all(p.grad.abs().sum() > 0 for n, p in network.named_parameters() if n.endswith("weight"))


def test_reparam_is_one_convolution_of_equal_function_when_sealed():
    torch.manual_seed(0)
    network = build_student(Design(**QUARTER, block="reparam"), channels=1, outputs=1)
    image = torch.randn(4, 1, 32, 32)
    for _ in range(3):  # running statistics that are not the initial 0 and 1
        network(image)
    sealed = sealed_form(network.eval())
    assert torch.allclose(sealed(image), network(image), atol=1e-5)
    assert sealed.design.block == "plain"
    assert not any(isinstance(m, Reparam) for m in sealed.modules())
    plain = build_student(sealed.design, channels=1, outputs=1)
    assert plain.load_state_dict(sealed.state_dict())  # a bundle's weights fit the plain design it names


def test_what_is_not_reparam_is_sealed_as_it_is():
    network = build_student(Design(**QUARTER), channels=1, outputs=1)
    assert sealed_form(network) is network


def test_it_learns_one_case_by_heart():
    torch.manual_seed(0)
    network: Student = build_student(unet(8), channels=1, outputs=1)
    target = torch.zeros(1, 32, 32, dtype=torch.uint8)
    target[0, 8:20, 5:28] = 1
    image = target[:, None].float() + 0.3 * torch.randn(1, 1, 32, 32)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    for _ in range(80):
        loss = dice_loss(network(image), target, torch.tensor([True]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depths": (1,)}, "depths must have 2 entries and up_depths 1 for 2 widths, got 1 and 1"),
        ({"stem": "none"}, "stem_stride must be 1 with stem none, 2 or 4 else, got 4"),
        ({"stem_stride": 2, "head_upscale": 4}, "head_upscale must be at most the stem's stride 2, got 4"),
        (
            {"widths": (4096, 4096)},
            "widths and depths must make at most 300 million weights, got about 603 million",
        ),
        ({"stem": "unshuffle"}, "depths must be at least 1 where nothing before changes the width"),
        (
            {"down": "pool", "depths": (1, 0)},
            "depths must be at least 1 where nothing before changes the width",
        ),
        (
            {"skip": "concat", "up_depths": (0,)},
            "up_depths must be at least 1 with skip concat, whose width a block halves",
        ),
    ],
)
def test_a_design_that_cannot_be_built_says_why(change, message):
    with pytest.raises(ValidationError, match=message):
        Design(**QUARTER | change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"widths": (0, 16)}, "widths.0: Input should be greater than or equal to 1"),
        ({"widths": (16, 5000)}, "widths.1: Input should be less than or equal to 4096"),
        ({"up_depths": (2_000_000,)}, "up_depths.0: Input should be less than or equal to 32"),
        ({"depths": (1, -1)}, "depths.1: Input should be greater than or equal to 0"),
        ({"widths": (16,) * 9}, "widths: Tuple should have at most 8 items after validation, not 9"),
    ],
)
def test_a_design_of_no_size_is_refused(change, message):
    """A depth of two million once built blocks without end."""
    with pytest.raises(InputError) as caught:
        find_design(QUARTER | change)
    assert str(caught.value) == f"--design: {message}; student/design.py says what each field means"


def test_an_older_manifest_still_names_a_design():
    assert design_of("unet", {"base": 8}) == PRESETS["lightunet"]
    assert design_of("student", PRESETS["nano"].model_dump(mode="json")) == PRESETS["nano"]


def test_a_design_is_found_by_name_by_file_and_by_its_fields(tmp_path):
    fields = PRESETS["small"].model_dump(mode="json")
    for name, content in (("plain.yaml", fields), ("config.yaml", {"design": fields, "size": 256})):
        (tmp_path / name).write_text(yaml.safe_dump(content))
        assert find_design(str(tmp_path / name)) == PRESETS["small"]
    assert find_design("small") == find_design(fields) == PRESETS["small"]


def test_a_wrong_design_is_one_line(tmp_path):
    with pytest.raises(
        InputError, match=r"--design tiny: must be one of nano, small, base, .*student\.search writes one"
    ):
        find_design("tiny")
    with pytest.raises(
        InputError, match=r"--design: block: Input should be 'plain', .*student/design\.py says"
    ):
        find_design({**QUARTER, "block": "dense"})
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(InputError, match="must hold `name: value` lines, got list"):
        find_design(str(tmp_path / "list.yaml"))


def test_titles_name_presets_and_count_others():
    assert title_of("nano", 1) == "Student nano"
    assert title_of("lightunet", 1) == "LightUNet"
    assert title_of({"widths": [1]}, 312_000) == "Student 0.31 M"
