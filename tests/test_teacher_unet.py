"""The controls: the students' U-Net trained as a teacher, from flags to an INT8 export."""

import shutil

import numpy as np
import pytest
import torch

from export.__main__ import ExportSettings, export_bundle
from export.graph.onnx_export import write_onnx
from export.int8.guard import has_attention
from runtime.engines.seam import open_engine
from segcore.bundle.folder import open_bundle, seal_bundle
from segcore.dataset.dataset import open_dataset
from segcore.errors import InputError
from segcore.learn.evaluate import Validator
from segcore.learn.loader import TrainingSet, training_input
from segcore.learn.network import DeployGraph, normaliser, save_weights
from segcore.picture.preprocess import InputSpec, prepare
from student.distill import DistillSettings, loss_function
from student.network import GREY_MEAN_STD, RGB_MEAN_STD, load_student
from teacher.settings import TeacherSettings, check_settings
from teacher.system import Task, load_teacher
from teacher.systems.unet import MEAN_STD, build_system
from teacher.train import main as train

DATA = "phantom:cxr:12"
SPEC = InputSpec(height_px=64, width_px=64, channels=1, mean=MEAN_STD[1][0], std=MEAN_STD[1][1])


def settings(system, **more):
    return TeacherSettings(
        **{"data": DATA, "out": "unused", "size": 64, "device": "cpu", **more}, system=system
    )


def system(name, classes=("lung",), spec=SPEC, **more):
    torch.manual_seed(0)
    return build_system(settings(name, **more), Task(classes, spec, ()))


def count(network):
    return sum(p.numel() for p in network.parameters() if p.requires_grad)


def test_they_are_normalised_as_students_are():
    assert MEAN_STD == {1: GREY_MEAN_STD, 3: RGB_MEAN_STD}


@pytest.mark.parametrize(
    ("name", "width", "title", "parameters"),
    [
        ("unet", None, "U-Net 64", 31_042_369),
        ("unet", 4, "U-Net 4", None),
        ("lightunet", None, "LightUNet 8", 487_145),
        ("lightunet", 4, "LightUNet 4", None),
    ],
)
def test_widths(name, width, title, parameters):
    found = system(name, unet_width=width)
    assert (found.title, found.pretrained, found.prompt) == (title, "no pretrained weights", None)
    assert found.settings == {"base": int(title.split()[-1])}
    if parameters:
        assert count(found.network) == sum(p.numel() for p in found.network.parameters()) == parameters
    else:
        assert count(found.network) < 130_000


def test_inputs_and_outputs_follow_the_task():
    colour = SPEC.model_copy(update={"channels": 3, "mean": MEAN_STD[3][0], "std": MEAN_STD[3][1]})
    found = system("lightunet", ("a", "b"), colour, unet_width=4)
    assert (found.output.activation, found.output.channels, found.output.stride) == ("softmax", 3, 1)
    assert found.network(torch.zeros(1, 3, 64, 32)).shape == (1, 3, 64, 32)


@pytest.mark.parametrize("classes", [1, 3])
def test_every_parameter_gets_a_gradient_from_the_loss_of_a_student_without_a_teacher(classes):
    names = tuple("abc"[:classes])
    found = system("lightunet", names, unet_width=4)
    mask = torch.randint(0, classes + 1, (2, 64, 64), dtype=torch.uint8)
    sample = {"image": torch.rand(2, 1, 64, 64), "mask": mask, "labelled": torch.tensor([True, False])}
    images = normaliser(SPEC, torch.device("cpu"))(sample["image"])
    found.network.eval()
    loss = found.loss(found.network, images, sample)
    loss.backward()
    assert all(p.grad is not None and p.requires_grad for p in found.network.parameters())
    distill = DistillSettings(data=DATA, out="unused")
    students = loss_function(distill, SPEC, None, torch.device("cpu"))(found.network, sample)
    assert loss.item() == pytest.approx(students.item(), rel=1e-6)


def test_it_learns_one_case_by_heart():
    dataset, found = open_dataset(DATA), system("lightunet", unet_width=4)
    case = dataset.split("train")[:1]
    spec = training_input(case, (64, 64), MEAN_STD)
    data = TrainingSet(case, spec, classes=1, seed=0, augment=None)
    sample = {name: value[None] for name, value in data[0, 0].items()}
    images = normaliser(spec, torch.device("cpu"))(sample["image"])
    network = found.network.train()
    optimiser = torch.optim.AdamW(network.parameters(), 1e-2)
    for _ in range(60):
        optimiser.zero_grad()
        found.loss(network, images, sample).backward()
        optimiser.step()
    assert Validator(case, spec, found.output, 1, batch=1).dice(found.view(network)) > 0.9


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """Trained for long enough that its masks are neither empty nor full."""
    out = tmp_path_factory.mktemp("control") / "t"
    train(settings("lightunet", out=out, epochs=2, passes=6, batch_size=4, lr=1e-2, warmup_epochs=0))
    return open_bundle(out)


def test_a_bundle_says_what_it_is_and_opens(bundle):
    manifest = bundle.manifest
    assert (manifest.kind, manifest.architecture, manifest.name) == ("teacher", "lightunet", "LightUNet 8")
    assert manifest.architecture_settings == {"base": 8}
    assert manifest.trained_parameters == manifest.parameters == 487_145
    assert manifest.settings["weights"] is None
    assert not (bundle.folder / "adapter").exists()
    network = load_teacher(bundle)
    case = open_dataset(DATA).split("val")[0]
    picture = torch.from_numpy(prepare(case.image(), manifest.input)[None].copy())
    with torch.no_grad():
        assert DeployGraph(network, manifest.input)(picture).shape == (1, 1, 64, 64)
    validator = Validator(open_dataset(DATA).split("val"), manifest.input, manifest.output, 1, batch=4)
    assert validator.dice(network) == pytest.approx(manifest.metric("dice_mean", "val"), abs=1e-6)


def test_it_is_no_student_for_commands_that_want_one(bundle):
    with pytest.raises(InputError) as caught:
        load_student(bundle)
    assert str(caught.value) == (
        f"bundle {bundle.folder}: must be a student in torch format, got a teacher in torch format; "
        "name the folder that its training wrote"
    )


def test_the_graph_keeps_the_contract(tmp_path):
    found = system("unet", unet_width=4)
    graph = DeployGraph(found.plain(found.network).eval(), SPEC).eval()
    write_onnx(graph, SPEC, found.output, tmp_path / "m.onnx")
    picture = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 1), np.uint8)
    engine = open_engine("onnxruntime", tmp_path / "m.onnx", precision="fp32", threads=1)
    logits = engine.run(picture)
    engine.close()
    assert logits.shape == (1, 1, 64, 64)
    with torch.no_grad():
        assert np.allclose(logits, graph(torch.from_numpy(picture)).numpy(), atol=1e-4)


def test_the_controls_alone_of_the_teachers_have_no_attention(bundle):
    manifest = bundle.manifest
    assert not has_attention(manifest)
    for encoder, expected in {"tiny": True, "efficientnet-lite0": False}.items():
        assert (
            has_attention(manifest.model_copy(update={"architecture_settings": {"encoder": encoder}}))
            == expected
        )
    assert not has_attention(manifest.model_copy(update={"kind": "student", "architecture": "student"}))


def test_int8_levels_its_channels_as_a_students(bundle, fragile_student, tmp_path):
    """The control is quantised as the U-Net that it is: levelling repairs it, and a batch may be of two."""
    network = load_teacher(bundle)
    fragile = fragile_student.make_fragile(network, layers=["merge.2.0", "merge.3.0"], factor=1e4)
    folder, out = tmp_path / "fragile", tmp_path / "int8"
    shutil.copytree(bundle.folder, folder)
    save_weights(folder / "model.safetensors", fragile)
    manifest = dict(bundle.manifest)
    seal_bundle(folder, also=tuple(manifest.pop("files")), **manifest)
    settings = {"calibration_cases": 4, "guard_cases": 2, "min_speedup": 0, "batch": (2,)}
    settings |= {"max_drop_points": 3, "max_p05_drop_points": 3}
    found = export_bundle(
        ExportSettings(bundle=folder, out=out, data=DATA, to="openvino", precision="int8", **settings)
    )
    assert (found.kind, [v.batch for v in found.variants]) == ("teacher", [2])
    assert found.guard.steps[0].drop_points > 3
    assert found.guard.steps[-1].what == "every layer in INT8, channels levelled"
    assert found.guard.steps[-1].passed


def test_weights_are_no_option():
    with pytest.raises(InputError) as caught:
        check_settings(settings("unet", weights="facebook/sam2.1-hiera-tiny"))
    assert str(caught.value) == (
        "--weights facebook/sam2.1-hiera-tiny: must be none for --system unet, which has no part of SAM 2; "
        "leave --weights away"
    )
    check_settings(settings("unet", weights="none"))
    check_settings(settings("lightunet"))


def test_a_tuning_is_no_option():
    with pytest.raises(InputError) as caught:
        check_settings(settings("lightunet", tune="lora"))
    assert str(caught.value) == "--tune lora: must be all for --system lightunet; leave --tune away"
