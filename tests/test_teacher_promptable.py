"""The systems that answer prompts: what of them is trained, what they answer, and the bundles they become."""

import numpy as np
import pytest
import torch

pytest.importorskip("sam2")

from segcore.errors import InputError
from segcore.learn.evaluate import Validator
from segcore.learn.loader import TrainingSet
from segcore.picture.preprocess import InputSpec, output_spec
from segcore.picture.prompts import FOREGROUND, PADDING, Prompt, prompt_arrays
from teacher.promptable import SLOTS, PromptedSam2, best, compete
from teacher.prompts.mean_mask import automatic_prompts, mean_masks
from teacher.prompts.protocols import kept_features, prompted
from teacher.prompts.training import dice_focal, points_inside
from teacher.sam2_model import Answers, Embedding, Promptable, Sam2ImageModel
from teacher.settings import TeacherSettings, check_settings
from teacher.system import AUTOMATIC, Task, protocols, system_module

SPEC = InputSpec(height_px=64, width_px=64, channels=1, mean=(0.45,) * 3, std=(0.23,) * 3)
DATA = "phantom:cxr:12"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Random weights of SAM 2.1 tiny, as Meta's file has them; how large the input is does not show in them."""
    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("weights") / "sam2.1_hiera_tiny.pt"
    torch.save({"model": Sam2ImageModel("tiny", 64).state_dict()}, path)
    return path


class HalfAndDisc:
    """A picture whose left half is class 1, with a disc of class 2 at the right."""

    labelled = True

    def image(self):
        return np.uint8(40 + 90 * self.mask())

    def padding(self):
        return None

    def mask(self):
        y, x = np.mgrid[:64, :64]
        return np.uint8(x < 32) + 2 * np.uint8((x - 48) ** 2 + (y - 20) ** 2 < 81)


@pytest.fixture(scope="module")
def cases():
    from segcore.dataset.case import Case

    return [Case(id=f"c{i}", patient=f"p{i}", source=HalfAndDisc(), split="train") for i in range(2)]


def settings(weights, system, **more):
    return TeacherSettings(system=system, data=DATA, out="unused", weights=str(weights), size=64, **more)


def build(weights, cases, system, classes=("half", "disc"), **more):
    torch.manual_seed(0)
    chosen = settings(weights, system, **more)
    return system_module(system).build_system(chosen, Task(classes, SPEC, cases))


@pytest.mark.parametrize(
    ("system", "more", "whole", "in_part"),
    [
        ("sam2-med2d", {}, {"sam_prompt_encoder"}, {"image_encoder", "sam_mask_decoder"}),
        ("sam2-med2d", {"tune": "decoder", "rounds": 1}, set(), {"sam_prompt_encoder", "sam_mask_decoder"}),
        ("sam2-med2d", {"tune": "all"}, {"image_encoder", "sam_prompt_encoder", "no_mem_embed"}, {"sam_mask_decoder"}),
        ("sam2-points", {"prompt": "both"}, set(), {"sam_mask_decoder"}),
    ],
)  # fmt: skip
def test_what_is_trained_gets_a_gradient_and_nothing_else_does(weights, cases, system, more, whole, in_part):
    built = build(weights, cases, system, **more)
    for p in built.network.parameters():  # adapters start at zero, where some gradients are zero by design
        if p.requires_grad and p.abs().sum() == 0:
            torch.nn.init.normal_(p, std=0.02)
    data = TrainingSet(cases, SPEC, classes=2, seed=0, augment=None)
    batch = {k: torch.stack([data[0, i][k] for i in range(2)]) for k in data[0, 0]}
    built.loss(built.network, torch.randn(2, 3, 64, 64), batch).backward()
    for name, p in built.network.named_parameters():
        assert (p.grad is not None) == p.requires_grad, name
        assert p.grad is None or p.grad.isfinite().all(), name
    found = {}
    for name, p in built.network.named_parameters():
        found.setdefault(name.split(".")[2], []).append(p.requires_grad)
    assert {part for part, trained in found.items() if all(trained)} == whole
    assert {part for part, trained in found.items() if any(trained) and not all(trained)} == in_part


def test_pictures_without_an_object_or_a_mask_do_not_count(weights, cases):
    built = build(weights, cases, "sam2-med2d", tune="decoder", rounds=2)
    mask = torch.zeros(2, 64, 64, dtype=torch.uint8)
    mask[1, :20, :20] = 1
    images, both = torch.randn(2, 3, 64, 64), torch.tensor([True, True])

    def loss(labelled):
        torch.manual_seed(0)
        with torch.no_grad():
            return built.loss(built.network, images, {"mask": mask, "labelled": labelled}).item()

    assert loss(both) == loss(torch.tensor([False, True])) > 0
    assert loss(torch.tensor([True, False])) == 0


def test_the_automatic_form_is_the_decoder_asked_with_the_mean_masks_prompts(weights, cases):
    built = build(weights, cases, "sam2-med2d", prompt="both", points=2)
    network = built.view(built.network).eval()
    assert isinstance(network, Promptable)
    means = mean_masks(cases, 2, (64, 64))
    points, labels = automatic_prompts(means, "both", 2, SLOTS)
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        embedding = network.encode(x)
        asked = [network.decode(embedding, points[k : k + 1], labels[k : k + 1]) for k in range(2)]
        automatic = network(x)
    assert [tuple(a.logits.shape) for a in asked] == [(1, 3, 16, 16)] * 2
    expected = torch.stack([a.logits[0, a.iou.argmax()] for a in asked])
    assert automatic.shape == (1, 3, 16, 16)
    assert automatic[0, 0].abs().max() == 0  # the background
    assert torch.allclose(automatic[0, 1:], expected, atol=1e-5)


def test_each_system_takes_its_own_candidate(weights):
    torch.manual_seed(0)
    network = PromptedSam2(Sam2ImageModel("tiny", 64), classes=1, slots=2, candidates="single").eval()
    points, labels = torch.tensor([[[20.0, 20], [0, 0]]]), torch.tensor([[1.0, PADDING]])
    with torch.no_grad():
        embedding = network.encode(torch.randn(1, 3, 64, 64))
        four = network.sam.decode(embedding, points, labels)
        found = {}
        for kind in ("single", "three", "all"):
            network.candidates = kind
            found[kind] = network.answer(embedding, points, labels)
        clear = network.answer(embedding, points, torch.tensor([[2.0, 3]]))
        first = network.sam.decode(embedding, points, torch.tensor([[2.0, 3]])).logits[:, 0]
    best_of_three = four.logits[:, 1 + four.iou[0, 1:].argmax()]
    assert torch.equal(found["single"], four.logits[:, 0])
    assert torch.equal(found["three"], best_of_three)
    assert torch.equal(found["all"], best_of_three)  # one point may mean several things
    assert torch.equal(clear, first)


def test_best_and_competing_answers():
    logits = torch.arange(6.0).view(2, 3, 1, 1)
    assert best(Answers(logits, torch.tensor([[0.1, 0.9, 0.5], [0.7, 0.2, 0.1]]))).flatten().tolist() == [
        1,
        3,
    ]
    assert compete(torch.tensor([[[[2.0]]]])).tolist() == [[[[2]]]]
    several = compete(torch.tensor([[[[-1.0, 3]], [[-2, 4]]]]))
    assert several.argmax(1).tolist() == [[[0, 2]]]


def test_the_mask_moves_with_the_click(weights):
    """Two equal discs: after a minute's clicks on one or the other the decoder gives the one that is clicked."""
    torch.manual_seed(0)
    network = PromptedSam2(Sam2ImageModel("tiny", 64), classes=1, slots=1, candidates="single")
    network.sam.load_state_dict(torch.load(weights, weights_only=True)["model"])
    y, x = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    discs = torch.stack([(x - c) ** 2 + (y - 32) ** 2 < 100 for c in (17, 46)])  # left, right
    picture = discs.any(0).float().expand(1, 3, -1, -1)
    with torch.no_grad():
        embedding = Embedding(*(f.expand(2, -1, -1, -1) for f in network.encode(picture)))
    trained = [*network.sam.sam_mask_decoder.parameters(), *network.sam.sam_prompt_encoder.parameters()]
    optimizer = torch.optim.AdamW(trained, lr=1e-3)
    label = torch.full((2, 1), float(FOREGROUND))
    coarse = discs[:, 2::4, 2::4]
    for _ in range(60):
        answers = network.answer(embedding, points_inside(discs, 1), label)
        optimizer.zero_grad()
        dice_focal(answers[:, None], coarse).mean().backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
    clicks = [Prompt(points=((17, 30, True),)), Prompt(points=((46, 34, True),))]
    points, labels = prompt_arrays(clicks, (64, 64), (64, 64), 1)
    with torch.no_grad():
        masks = network.answer(embedding, torch.from_numpy(points), torch.from_numpy(labels)) > 0
    for mask, disc, other in zip(masks, coarse, coarse.flip(0), strict=True):
        assert 2 * (mask & disc).sum() / (mask.sum() + disc.sum()) > 0.8
        assert (mask & other).sum() / other.sum() < 0.2


def test_a_reader_asks_for_what_is_there_alone(weights, cases):
    """Of three classes one is in no mask of the case: no answer comes, however sure the network is."""
    built = build(weights, cases, "sam2-points")
    asked = []

    def sure(network, embedding, truth):
        asked.append(int(truth.sum()))
        return torch.full((16, 16), 30.0)

    validator = Validator(cases[:1], SPEC, output_spec(("a", "b", "c"), 4), 3, batch=1)
    ((_, prediction, truth),) = prompted(sure, built.view(built.network), validator)
    assert asked == [(truth == 1).sum(), (truth == 2).sum()]
    assert set(np.unique(prediction)) <= {1, 2}


def test_what_it_was_pretrained_with_can_still_be_asked(weights, cases):
    assert build(weights, cases, "sam2-points", prompt="box").prompt.kinds == ("point", "box")


def test_every_protocol_reads_the_features_that_the_first_computed(weights, cases):
    built = build(weights, cases, "sam2-points")
    network, seen = built.view(built.network), []
    network.sam.image_encoder.register_forward_pre_hook(lambda *_: seen.append(1))
    validator = Validator(cases[:2], SPEC, built.output, 2, batch=2)
    asked = [protocols("sam2-points")[name] for name in (AUTOMATIC, "box", "1 point")]
    alone = [[mask for _, mask, _ in ask(network, validator)] for ask in asked]
    assert len(seen) == 1 + 2 + 2  # the automatic form takes both at once
    with kept_features(network):
        again = [[mask for _, mask, _ in ask(network, validator)] for ask in asked]
        assert len(seen) == 5 + 1
    assert np.array_equal(alone, again)
    list(asked[1](network, validator))
    assert len(seen) == 6 + 2


def test_weights_without_the_parts_that_stay_frozen(weights, cases, tmp_path):
    whole = torch.load(weights, weights_only=True)["model"]
    path = tmp_path / "trunk.pt"
    torch.save({"model": {k: v for k, v in whole.items() if k.startswith("image_encoder.trunk")}}, path)
    with pytest.raises(InputError) as caught:
        build(path, cases, "sam2-points")
    assert str(caught.value) == (
        f"--weights {path}: must hold image_encoder.neck, no_mem_embed, sam_prompt_encoder for --system sam2-points, "
        "which leaves most of that as it is; give all of SAM 2.1, such as facebook/sam2.1-hiera-tiny, or add --tune all"
    )
    with pytest.raises(InputError) as caught:
        check_settings(settings("none", "sam2-zeroshot"))
    assert str(caught.value) == (
        "--weights none: must have weights for --system sam2-zeroshot, which trains nothing; give SAM 2.1's weights"
    )
