"""Every system alike: what a step moves, what it leaves, and that the form of a bundle computes what was trained."""

import copy
import json

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch")
pytest.importorskip("sam2")
pytest.importorskip("peft")

from accelerate.state import AcceleratorState  # noqa: E402

from segcore.bundle.manifest import Manifest  # noqa: E402
from segcore.dataset.case import Case  # noqa: E402
from segcore.dataset.dataset import open_dataset  # noqa: E402
from segcore.errors import InputError  # noqa: E402
from segcore.learn.loader import TrainingSet, build_loader, training_input  # noqa: E402
from segcore.learn.loop import add_gradient, open_accelerator, open_run, update_weights  # noqa: E402
from segcore.learn.network import normaliser  # noqa: E402
from segcore.picture.prompts import PromptSpec  # noqa: E402
from student.distill import DistillSettings  # noqa: E402
from student.distill import main as distill  # noqa: E402
from teacher.checkpoint import sam2_state  # noqa: E402
from teacher.memory.slice_memory import SliceMemory  # noqa: E402
from teacher.sam2_model import Promptable, Sam2ImageModel  # noqa: E402
from teacher.settings import CONTROLS, PROMPTED_SYSTEMS, TeacherSettings, check_settings  # noqa: E402
from teacher.system import SYSTEMS, Task, open_plain, system_module  # noqa: E402
from teacher.train import main as train  # noqa: E402
from teacher.tuning.tune import recompute_blocks  # noqa: E402

PX = 64


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Random weights of all of SAM 2.1 tiny, as Meta's file has them."""
    torch.manual_seed(1)
    state = {**Sam2ImageModel("tiny", PX).state_dict(), **SliceMemory(PX).state_dict()}
    path = tmp_path_factory.mktemp("weights") / "sam2.1_hiera_tiny.pt"
    torch.save({"model": state}, path)
    return path


class HalfAndDisc:
    """A colour picture whose left half is class 1, with a disc of class 2 at the right."""

    labelled = True

    def image(self):
        return np.uint8(40 + 90 * self.mask())[..., None].repeat(3, 2)

    def padding(self):
        return None

    def mask(self):
        y, x = np.mgrid[:PX, :PX]
        return np.uint8(x < 32) + 2 * np.uint8((x - 48) ** 2 + (y - 20) ** 2 < 81)


def settings(system, weights, **more):
    given = {"data": "-", "out": "-", "size": PX, "device": "cpu", "batch_size": 2, "clip_slices": 2}
    own = {"unet_width": 4} if system in CONTROLS else {"weights": str(weights)}
    return TeacherSettings(system=system, **{**given, **own, **more})


def task(system, classes=("half", "disc")):
    module = system_module(system)
    if system == "sam2-memory":
        dataset = open_dataset("phantom:volume:3")
        classes, cases = dataset.classes, dataset.split("train")
    else:
        cases = [Case(id=f"c{i}", patient=f"p{i}", source=HalfAndDisc(), split="train") for i in range(2)]
    return Task(classes, training_input(cases, (PX, PX), module.MEAN_STD), cases)


def batch_of(built, given, chosen):
    data = built.training_set(0) if built.training_set else None
    data = data or TrainingSet(given.cases, given.spec, classes=len(given.classes), seed=0, augment=None)
    return next(iter(build_loader(data, batch_size=chosen.batch_size, workers=0, seed=0)[0]))


@pytest.fixture
def other_precision():
    """Accelerate keeps the precision that a process asked for first."""
    AcceleratorState._reset_state()
    yield
    AcceleratorState._reset_state()


def _check_weights_count(run, batch, chosen):
    """--class-weight and --small-lesion-weight change the loss, or are refused."""
    if chosen.system in PROMPTED_SYSTEMS:
        wanted = f"--class-weight: must be for a system that marks a whole picture at once (.*), got --system {chosen.system},"
        with pytest.raises(InputError, match=wanted):
            check_settings(chosen.model_copy(update={"class_weight": ("disc=2",)}))
        with pytest.raises(InputError, match="--small-lesion-weight: must be for"):
            check_settings(chosen.model_copy(update={"small_lesion_weight": 4.0}))
        return
    check_settings(chosen.model_copy(update={"class_weight": ("disc=2",), "small_lesion_weight": 4.0}))
    alike = torch.ones(batch["mask"].shape)
    with torch.no_grad():
        losses = []
        for weight in (alike, 2 * alike, 1 + 9 * (batch["mask"] == 2)):
            torch.manual_seed(0)
            losses.append(run.loss_of(run.network.train(), {**batch, "weight": weight}).item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert abs(losses[0] - losses[2]) > 1e-3


@pytest.mark.usefixtures("other_precision")
@pytest.mark.parametrize("system", SYSTEMS)
def test_one_step_and_the_bundle_after_it(system, weights):
    """With all that is hard on a network: 16 bits, an average that is a copy of it, recomputed blocks, peft."""
    chosen, given = settings(system, weights, amp="bf16", ema=0.5), task(system)
    torch.manual_seed(0)
    built = system_module(system).build_system(chosen, given)
    network = built.network
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    trained = {name for name, p in network.named_parameters() if p.requires_grad}
    assert bool(trained) == (system != "sam2-zeroshot")
    kept = network
    if trained:
        recompute_blocks(network)
        normalised = normaliser(given.spec, torch.device("cpu"))
        run = open_run(
            network,
            lambda net, sample: built.loss(net, normalised(sample["image"]), sample),
            chosen,
            open_accelerator(chosen),
        )
        network.train()
        batch = batch_of(built, given, chosen)
        assert add_gradient(run, batch).isfinite()
        _check_weights_count(run, batch, chosen)
        for name, p in network.named_parameters():
            assert (p.grad is not None) == (name in trained), name
            assert p.grad is None or p.grad.isfinite().all(), name
        update_weights(run, 1e-3, 1.0)
        kept = run.average.module  # after one step it is the weights
    moved = {name for name, p in network.named_parameters() if not torch.equal(p, before[name])}
    assert moved <= trained
    assert bool(moved) == bool(trained)

    # in 32 bits, as deployed
    x = torch.randn(1, len(given.spec.mean), PX, PX)
    plain = built.plain(copy.deepcopy(kept)).eval()
    with torch.inference_mode():
        viewed, merged = built.view(network.eval())(x), plain(x)
    assert merged.dtype == torch.float32
    assert merged.shape == (1, built.output.channels, PX // built.output.stride, PX // built.output.stride)
    assert (viewed - merged).abs().max() <= 1e-5 * max(1, viewed.abs().max())

    # what a bundle keeps of it is enough to build it again
    manifest = Manifest.model_construct(
        architecture=system,
        architecture_settings=json.loads(json.dumps(built.settings)),
        classes=given.classes,
        input=given.spec,
        output=built.output,
    )
    opened, sealed = open_plain(manifest).eval(), plain.state_dict()
    opened.load_state_dict(sealed)  # the same names and shapes
    with torch.inference_mode():
        assert (opened(x) - merged).abs().max() <= 1e-5 * max(1, merged.abs().max())
    assert not any("lora" in name or "ia3" in name or "base_layer" in name for name in sealed)
    low, high = built.thresholds
    assert 0 < low <= 0.5 <= high < 1
    if built.prompt:
        assert isinstance(plain, Promptable)
        assert PromptSpec(**json.loads(built.prompt.model_dump_json())) == built.prompt

    # its SAM 2 comes out again under Meta's names, if that has a place for what was trained
    file = torch.load(weights, weights_only=True)["model"]
    if system in CONTROLS or chosen.tuned.startswith("adapter"):
        with pytest.raises(InputError) as caught:
            sam2_state(plain, "T")
        assert str(caught.value) == (
            "--bundle T: must hold a SAM 2 encoder, has none; name a teacher of another --system"
            if system in CONTROLS
            else "--bundle T: must have an encoder without adapters, has some, and SAM 2's format has no place for "
            "them; train with --tune all, lora or bitfit"
        )
    else:
        state = sam2_state(plain, "T")
        assert {n: t.shape for n, t in state.items()} == {n: file[n].shape for n in state}
        whole = {"sam2-memory": file, "sam2-points": Sam2ImageModel("tiny", PX).state_dict()}
        expected = whole.get(system, [n for n in file if n.startswith("image_encoder.trunk.")])
        if system != "sam2-zeroshot":
            assert state.keys() == set(expected)


@pytest.fixture(scope="module")
def two_of_three(tmp_path_factory):
    """A data set of three classes, of which masks show two."""
    folder = tmp_path_factory.mktemp("data") / "d"
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True)
    for i in range(5):
        Image.fromarray(HalfAndDisc().image() + np.uint8(i)).save(folder / "images" / f"p{i}.png")
        Image.fromarray(HalfAndDisc().mask()).save(folder / "masks" / f"p{i}.png")
    (folder / "classes.txt").write_text("half\ndisc\ncyst\n")
    return folder


@pytest.mark.parametrize(
    ("flags", "masks", "todo"),
    [
        ({}, 3, "add masks of it, raise --size"),
        ({"limit": 2}, 2, "raise --limit"),
        ({"limit": 3, "labelled_share": 0.4}, 1, "raise --limit or --labelled-share"),
    ],
)
@pytest.mark.parametrize("system", ["lightunet", "sam2-points", "student"])
def test_a_class_that_no_training_mask_shows(two_of_three, weights, tmp_path, system, flags, masks, todo):
    given = {"data": str(two_of_three), "out": tmp_path / "t", **flags}
    student = DistillSettings(size=PX, device="cpu", **given)
    with pytest.raises(InputError) as caught:
        distill(student) if system == "student" else train(settings(system, weights, **given))
    assert str(caught.value) == (
        f"--data {two_of_three}: class cyst must occur in the training masks, is in none of {masks} at 64×64 pixels; "
        f"{todo}, or take it out of the data"
    )


def test_a_system_that_trains_nothing_is_not_told_to_train_everything(weights, tmp_path):
    whole, path = torch.load(weights, weights_only=True)["model"], tmp_path / "encoder.pt"
    torch.save({"model": {n: t for n, t in whole.items() if n.startswith("image_encoder.trunk")}}, path)
    with pytest.raises(InputError) as caught:
        system_module("sam2-zeroshot").build_system(settings("sam2-zeroshot", path), task("sam2-zeroshot"))
    assert str(caught.value) == (
        f"--weights {path}: must hold image_encoder.neck, no_mem_embed, sam_prompt_encoder, sam_mask_decoder for "
        "--system sam2-zeroshot, which leaves most of that as it is; give all of SAM 2.1, such as "
        "facebook/sam2.1-hiera-tiny"
    )
