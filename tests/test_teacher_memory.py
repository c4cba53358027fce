"""SAM 2 over the slices of a volume: the memory bank's rules, tracking, training, and what a bundle keeps of it."""

import copy
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("sam2")

from safetensors.torch import save_file  # noqa: E402

from segcore.dataset.case import volumes_of  # noqa: E402
from segcore.dataset.dataset import open_dataset  # noqa: E402
from segcore.errors import InputError  # noqa: E402
from segcore.learn.augment import sample_seed  # noqa: E402
from segcore.learn.evaluate import Validator  # noqa: E402
from segcore.learn.loader import build_loader, to_device, training_input  # noqa: E402
from segcore.learn.network import normalise_pictures, normaliser  # noqa: E402
from segcore.learn.transforms import PRESETS  # noqa: E402
from segcore.picture.preprocess import output_spec  # noqa: E402
from segcore.picture.prompts import BOX_BOTTOM_RIGHT, BOX_TOP_LEFT, FOREGROUND, PADDING  # noqa: E402
from teacher.label import label_parts  # noqa: E402
from teacher.memory.clips import ClipSet, agreement, pick_object, walk  # noqa: E402
from teacher.memory.slice_memory import (  # noqa: E402  # noqa: E402
    Memory,
    SliceMemory,
    VolumeSam2,
    outwards,
    remember,
    shown,
    unstack,
)
from teacher.memory.volumes import (  # noqa: E402
    inmost,
    label_volume,
    volume_dice,
    volume_logits,
    volume_prompt,
)
from teacher.promptable import PromptedSam2  # noqa: E402
from teacher.sam2_model import (  # noqa: E402
    Sam2ImageModel,
    build_sam2,
)
from teacher.settings import TeacherSettings  # noqa: E402
from teacher.system import Task, protocols  # noqa: E402
from teacher.systems.sam2_memory import MEAN_STD, build_system  # noqa: E402

SIZE = 64
DATA = "phantom:volume:3"


def settings(**more):
    given = {
        "system": "sam2-memory",
        "data": DATA,
        "out": "unused",
        "weights": "none",
        "tune": "all",
        "size": SIZE,
    }
    return TeacherSettings(**{**given, "clip_slices": 3, "batch_size": 1, **more})


@pytest.fixture(scope="module")
def task():
    dataset = open_dataset(DATA)
    cases = dataset.split("train")
    return Task(dataset.classes, training_input(cases, (SIZE, SIZE), MEAN_STD), cases)


def build(task, **more):
    torch.manual_seed(0)
    return build_system(settings(**more), task)


@pytest.fixture(scope="module")
def system(task):
    """Random weights, everything trained."""
    return build(task)


@pytest.fixture(scope="module")
def network(system):
    return system.network.model.eval()


@pytest.fixture(scope="module")
def batch(task):
    data = ClipSet(task.cases, task.spec, classes=1, seed=0, length=3, transforms=PRESETS["film"])
    loader, _ = build_loader(data, batch_size=1, workers=0, seed=0)
    return to_device(next(iter(loader)), torch.device("cpu"))


def loss_of(system, network, task, batch):
    torch.manual_seed(0)  # the prompt is drawn anew in each step
    return system.loss(network, normaliser(task.spec, torch.device("cpu"))(batch["image"]), batch)


# the memory bank: features and pictures are directions in a plane, told by their angle


def memory(degrees, confidence=0.9, place=0, prompted=False):
    angle = np.radians(degrees)
    vector = torch.tensor([np.cos(angle), np.sin(angle)], dtype=torch.float32)
    return Memory(vector, vector, vector, confidence, place, prompted)


def test_what_is_not_confident_is_not_remembered():
    prompt, sure, unsure = memory(0, 0.1, prompted=True), memory(10, 0.5), memory(20, 0.49)
    bank = remember((), prompt)
    assert bank == (prompt,)  # a prompt is remembered whatever the estimate
    assert remember(bank, unsure) == (prompt,)
    assert remember(bank, sure) == (prompt, sure)
    assert remember(bank, unsure, confident=0.4) == (prompt, unsure)


def test_of_the_two_most_alike_the_less_confident_one_goes():
    far, near, twin = memory(90, 0.6), memory(0, 0.8), memory(5, 0.7)
    assert remember((far, near), twin, capacity=2) == (far, near)
    better = replace(twin, confidence=0.9)
    assert remember((far, near), better, capacity=2) == (far, better)
    assert remember((near, better), far, capacity=2) == (better, far)  # the new one is unlike both: it stays


def test_a_prompted_memory_never_goes():
    prompt, twin, far = memory(0, 0.5, prompted=True), memory(1, 0.99), memory(90, 0.5)
    assert remember((prompt, far), twin, capacity=2) == (prompt, far)
    second = memory(2, 0.5, prompted=True)
    assert remember((prompt, far), second, capacity=2) == (prompt, second)


def test_a_slice_is_shown_the_prompt_and_what_resembles_it_whatever_the_order():
    prompt, a, b, c = memory(180, prompted=True), memory(10), memory(40), memory(-30)
    here = memory(0).picture
    assert shown((a, b, c, prompt), here, most=3) == (prompt, a, c)
    assert shown((b, prompt, c, a), here, most=3) == (prompt, a, c)
    assert shown((prompt,), here) == (prompt,)


# tracking


def pictures(count=3):
    torch.manual_seed(1)
    return torch.randn(count, 3, SIZE, SIZE)


def point(x, y):
    points, labels = torch.zeros(1, 2, 2), torch.tensor([[FOREGROUND, PADDING]]).float()
    points[0, 0] = torch.tensor([x, y])
    return points, labels


def test_slices_are_visited_outwards_from_the_prompt():
    assert outwards(2, 5) == [2, 3, 1, 4, 0]
    assert outwards(0, 3) == [0, 1, 2]
    assert outwards(2, 3) == [2, 1, 0]


@torch.no_grad()
def test_a_prompt_on_one_slice_reaches_the_others_in_both_directions(network):
    slices = network.look(pictures())
    at_a, iou = network.track(slices, *point(10.0, 10.0), start=1)
    at_b, _ = network.track(slices, *point(50.0, 40.0), start=1)
    again, _ = network.track(slices, *point(10.0, 10.0), start=1)
    assert at_a.shape == (3, SIZE // 4, SIZE // 4)
    assert iou.shape == (3,)
    assert torch.equal(at_a, again)
    for place in range(3):
        assert (at_a[place] - at_b[place]).abs().max() > 1e-5, place


@torch.no_grad()
def test_without_memory_a_prompt_stays_on_its_slice(network):
    slices = network.look(pictures())
    at_a, _ = network.track(slices, *point(10.0, 10.0), start=1, remembering=False)
    at_b, _ = network.track(slices, *point(50.0, 40.0), start=1, remembering=False)
    assert [torch.equal(at_a[i], at_b[i]) for i in range(3)] == [True, False, True]
    seen, _ = network.track(slices, *point(10.0, 10.0), start=1)
    assert torch.equal(seen[1], at_a[1])  # the prompted slice comes first and has nothing to remember


@torch.no_grad()
def test_another_neighbour_changes_an_unprompted_slice(network):
    one, other = pictures(), pictures()
    other[1] = other[1].flip(-1)
    at_one, _ = network.track(network.look(one), *point(10.0, 10.0), start=1)
    at_other, _ = network.track(network.look(other), *point(10.0, 10.0), start=1)
    assert (at_one[0] - at_other[0]).abs().max() > 1e-5


@torch.no_grad()
def test_the_prompted_slice_is_what_the_decoder_answers_without_memory(network):
    x, asked = pictures(), point(20.0, 30.0)
    tracked, _ = network.track(network.look(x), *asked, start=2)
    alone = network.decode(network.encode(x[2:]), *asked).logits[:, 0]
    torch.testing.assert_close(tracked[2:], alone, atol=1e-4, rtol=1e-4)


def test_the_step_is_sam2s_own():
    """Two frames, the first one prompted: the same numbers as sam2's `track_step` gives with single masks."""
    torch.manual_seed(3)
    sam2 = build_sam2("tiny", SIZE).eval()
    sam2.multimask_output_in_sam = False
    torch.nn.init.constant_(
        sam2.sam_mask_decoder.pred_obj_score_head.layers[-1].bias, 9.0
    )  # the object is there
    image, memory = Sam2ImageModel("tiny", SIZE), SliceMemory(SIZE)
    for ours in (image, memory):
        ours.load_state_dict({k: v for k, v in sam2.state_dict().items() if k in ours.state_dict()})
    network = VolumeSam2(PromptedSam2(image, classes=1, slots=2, candidates="single"), memory).eval()
    x, (points, labels) = pictures(2), point(20.0, 30.0)
    frames = {"cond_frame_outputs": {}, "non_cond_frame_outputs": {}}
    with torch.no_grad():
        for t in range(2):
            _, features, where, sizes = sam2._prepare_backbone_features(sam2.forward_image(x[t : t + 1]))
            padding = {"point_coords": torch.zeros(1, 2, 2), "point_labels": torch.full((1, 2), -1.0)}
            asked = {"point_coords": points, "point_labels": labels} if t == 0 else padding
            out = sam2.track_step(t, t == 0, features, where, sizes, asked, None, frames, 2)
            frames["cond_frame_outputs" if t == 0 else "non_cond_frame_outputs"][t] = out
            tracked, _ = network.track(network.look(x), points, labels, start=0)
            torch.testing.assert_close(tracked[t], out["pred_masks"][0, 0], atol=1e-3, rtol=1e-3)


# training


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """All of SAM 2 with random numbers, laid out as Meta's file."""
    torch.manual_seed(2)
    path = tmp_path_factory.mktemp("weights") / "sam2.safetensors"
    save_file({k: v.contiguous() for k, v in build_sam2("tiny", SIZE).state_dict().items()}, path)
    return path


MEMORY = {"memory_attention", "memory_encoder", "maskmem_tpos_enc", "obj_ptr_proj", "obj_ptr_tpos_proj"}


def check_gradients(system, task, batch, trained):
    network = copy.deepcopy(system.network).train()
    loss_of(system, network, task, batch).backward()
    for name, p in network.named_parameters():
        assert (p.grad is not None) == p.requires_grad, name
    names = [name for name, p in network.named_parameters() if p.requires_grad]
    assert {n.removeprefix("model.").removeprefix("pictures.sam.").removeprefix("memory.").split(".")[0]
            for n in names} == trained  # fmt: skip
    return names


def test_lora_trains_little_of_the_encoder_and_all_of_memory_and_mask_decoder(task, batch, weights):
    system = build(task, tune="lora", weights=str(weights))
    assert system.pretrained == "sam2.safetensors"
    names = check_gradients(system, task, batch, MEMORY | {"image_encoder", "sam_mask_decoder"})
    assert all("lora_" in name for name in names if "image_encoder" in name)


def test_everything_is_trained_where_there_are_no_weights(system, task, batch):
    others = {"image_encoder", "sam_mask_decoder", "sam_prompt_encoder", "no_mem_embed"}
    check_gradients(system, task, batch, MEMORY | others)


def test_the_gradient_goes_through_the_memory(system, task, batch):
    strips = normaliser(task.spec, torch.device("cpu"))(batch["image"]).requires_grad_()
    logits, _ = copy.deepcopy(system.network)(strips, *point(20.0, 20.0))
    logits[0, 2].sum().backward()  # the last slice alone
    assert (unstack(strips.grad)[0].abs().flatten(1).sum(1) > 0).all()


def test_the_loss_falls_and_the_same_seed_gives_the_same_loss(system, task, batch):
    network = copy.deepcopy(system.network).eval()  # no dropout: one clip, learned by heart
    first = loss_of(system, network, task, batch)
    assert torch.equal(first, loss_of(system, network, task, batch))
    optimiser = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], 5e-4)
    for _ in range(4):
        loss_of(system, network, task, batch).backward()
        optimiser.step()
        optimiser.zero_grad()
    assert loss_of(system, network, task, batch) < 0.85 * first


def test_a_clip_is_a_strip_of_neighbouring_slices_with_one_geometry(task):
    data = ClipSet(task.cases, task.spec, classes=1, seed=0, length=4, transforms=PRESETS["film"])
    assert len(data) == 3  # twelve slices, four a clip
    one = data[0, 1]
    assert one["image"].shape == (1, 4 * SIZE, SIZE)
    assert one["mask"].shape == (4 * SIZE, SIZE)
    assert all(torch.equal(one[k], data[0, 1][k]) for k in one)
    assert any(not torch.equal(data[0, 1]["image"], data[epoch, 1]["image"]) for epoch in (1, 2))
    assert sample_seed(0, 0, 1) != sample_seed(0, 1, 1)
    clips = unstack(torch.stack([data[e, 0]["mask"] for e in range(6)])[:, None])[:, :, 0]
    assert clips[:, 0].flatten(1).any(1).all()  # a clip's first slice can be prompted
    for clip in clips.numpy() > 0:
        overlap = [(a & b).sum() / max(1, min(a.sum(), b.sum())) for a, b in pairwise(clip)
                   if a.any() and b.any()]  # fmt: skip
        assert min(overlap, default=1) > 0.3  # a geometry of its own for each slice would tear them apart


def test_walks_turn_round_at_the_ends():
    assert walk(3, 5, 4, up=True) == [3, 4, 3, 2]
    assert walk(1, 5, 4, up=False) == [1, 0, 1, 2]
    assert walk(0, 2, 5, up=False) == [0, 1, 0, 1, 0]


def test_the_thing_is_one_that_the_first_slice_shows():
    masks = torch.zeros(2, 2, 4, 4, dtype=torch.uint8)
    masks[0, 0, 0], masks[0, :, 1], masks[1, 1, 2] = 2, 2, 1
    truth, has_one = pick_object(masks)
    assert has_one.tolist() == [True, False]
    assert truth[0].sum() == 12


def test_agreement_of_masks_by_hand():
    logits, truth = torch.full((1, 3, 2, 2), -1.0), torch.zeros(1, 3, 2, 2, dtype=torch.bool)
    logits[0, 0, 0] = 1  # two pixels, of which one is true
    truth[0, 0, 0, 0] = True
    truth[0, 1] = True  # all missed; the third slice is empty, rightly
    assert agreement(logits, truth).tolist() == [[0.5, 0.0, 1.0]]


# volumes


def test_a_prompt_lies_on_the_largest_slice():
    masks = torch.zeros(3, 16, 16)
    masks[0, 4:6, 4:6], masks[2, 3:10, 5:12] = 1, 1
    place, points, labels = volume_prompt(masks, "points")
    assert place == 2
    assert points[0].tolist() == [8.0, 6.0]
    assert labels[:2].tolist() == [FOREGROUND, PADDING]
    place, points, labels = volume_prompt(masks, "box")
    assert points[:2].flatten().tolist() == [5.0, 3.0, 11.0, 9.0]
    assert labels[:2].tolist() == [BOX_TOP_LEFT, BOX_BOTTOM_RIGHT]
    assert volume_prompt(torch.zeros(3, 16, 16), "box") is None


def test_a_careful_click_is_far_from_the_border():
    thick_to_the_right = torch.zeros(12, 20, dtype=torch.bool)
    thick_to_the_right[5, 1:12] = True
    thick_to_the_right[3:10, 11:18] = True
    assert inmost(thick_to_the_right).tolist() == [14.0, 6.0]
    assert inmost(torch.ones(5, 5, dtype=torch.bool)).tolist() == [2.0, 2.0]


def test_a_class_that_nobody_asked_for_is_nowhere(network):
    logits = volume_logits(network, pictures(), [None])
    assert logits.shape == (3, 1, SIZE // 4, SIZE // 4)
    assert (logits < 0).all()
    several = volume_logits(network, pictures(), [None, volume_prompt(torch.ones(3, SIZE, SIZE), "points")])
    assert several.shape == (3, 3, SIZE // 4, SIZE // 4)
    assert (several[:, 0] == 0).all()


def test_a_guess_at_a_volume_becomes_one_prompt(network, task):
    given = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, SIZE, SIZE, 1), np.uint8))
    guess = torch.zeros(3, SIZE, SIZE, dtype=torch.uint8)
    guess[0, 3:6, 3:6], guess[1, 20:40, 30:50] = 1, 1
    manifest = SimpleNamespace(input=task.spec, classes=task.classes, settings={"prompt": "points"})
    found = label_volume(network, manifest, given, guess)
    x = normalise_pictures(given, task.spec)
    expected = normaliser(task.spec, torch.device("cpu"))(given.permute(0, 3, 1, 2).float() / 255)
    torch.testing.assert_close(x, expected, rtol=0, atol=1e-5)
    assert torch.equal(found, volume_logits(network, x, [volume_prompt(guess.float(), "points")]))
    as_box = label_volume(
        network, SimpleNamespace(**{**vars(manifest), "settings": {"prompt": "box"}}), given, guess
    )
    assert (as_box - found).abs().max() > 1e-5
    with torch.no_grad():  # without a guess, the automatic form's
        own = torch.nn.functional.interpolate(network(x), (SIZE, SIZE), mode="bilinear")[:, 0] > 0
    assert torch.equal(
        label_volume(network, manifest, given, None),
        volume_logits(network, x, [volume_prompt(own.float(), "points")]),
    )


def test_a_batch_to_label_is_a_volume_where_neighbours_count():
    cases = open_dataset(DATA).cases
    mixed = [*cases[12:15], cases[1], *cases[15:18], cases[0], replace(cases[30], volume=None)]
    given = {"rank": 0, "processes": 1, "shard_images": 6, "batch_size": 4}
    ids = [
        [[case.id for case in batch] for batch in part]
        for part in label_parts(mixed, **given, by_volume=True)
    ]
    second = [case.id for case in cases[12:18]]
    assert ids == [[second], [[cases[0].id, cases[1].id], [cases[30].id]]]
    halves = [label_parts(mixed, **{**given, "rank": r, "processes": 2}, by_volume=True) for r in (0, 1)]
    assert [len(batch) for half in halves for part in half for batch in part] == [6, 1, 2]
    plain = label_parts(mixed, **given, by_volume=False)
    assert [[len(batch) for batch in part] for part in plain] == [[4, 2], [3]]
    assert [case for part in plain for batch in part for case in batch] == mixed


def test_volumes_are_in_the_order_of_their_slices():
    cases = open_dataset(DATA).cases
    assert volumes_of([cases[13], cases[2], cases[12], cases[0]]) == [[2, 0], [3, 1]]
    assert volumes_of([replace(cases[0], volume=None), replace(cases[1], volume=None)]) == [[0], [1]]


def test_dice_of_a_volume_is_over_all_its_slices_at_once():
    cases = open_dataset(DATA).cases
    full, empty = np.ones((2, 2), np.uint8), np.zeros((2, 2), np.uint8)
    half = np.array([[1, 1], [0, 0]], np.uint8)
    found = [(cases[0], half, full), (cases[1], half, empty), (cases[12], empty, empty)]
    assert volume_dice(iter(found), 1) == {"volume-000": 2 * 2 / (2 + 2 + 4)}


@pytest.mark.parametrize("name", ["one point a volume", "one box a volume"])
def test_protocols_give_every_slice_once(task, network, name):
    cases = open_dataset(DATA).split("val")[3:7]
    validator = Validator(cases, task.spec, output_spec(task.classes, 4), 1, batch=2)
    found = list(protocols("sam2-memory")[name](network, validator))
    assert [case.id for case, _, _ in found] == [case.id for case in cases]
    assert all(predicted.shape == truth.shape for _, predicted, truth in found)


def refused(message, task, **more):
    with pytest.raises(InputError) as caught:
        build(task, **more)
    assert str(caught.value) == message


def test_pictures_without_volumes_are_refused(task):
    alone = replace(task, cases=[replace(task.cases[0], volume=None)])
    message = (
        "--data phantom:volume:3: must have volumes of at least 2 slices for --system sam2-memory, "
        "case volume-000-s001 has 1; give scans of several slices, or use another --system"
    )
    refused(message, alone)
    refused(message, replace(task, cases=task.cases[:1]))


def test_a_limit_that_leaves_one_slice_is_refused(task):
    refused(
        "--data phantom:volume:3: must have volumes of at least 2 slices for --system sam2-memory, "
        "case volume-000-s001 has 1; leave --limit away",
        replace(task, cases=task.cases[:1]),
        limit=1,
    )
