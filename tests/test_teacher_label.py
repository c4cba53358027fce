"""Soft labels of several teachers and of mirrored pictures, and which bundles may teach together."""

import json
import math
import shutil
from functools import cache

import numpy as np
import pytest
import torch

from runtime.predictor import Predictor
from segcore.bundle.folder import open_bundle, seal_bundle
from segcore.bundle.manifest import DataRecord
from segcore.command import parse_settings
from segcore.dataset.dataset import open_dataset, split_counts
from segcore.dataset.soft_labels import open_soft_labels
from segcore.errors import InputError
from segcore.host import made_now
from segcore.learn.network import DeployGraph, save_weights
from segcore.picture.preprocess import InputSpec, output_spec, prepare, probabilities, resize_logits
from teacher.decoders.supervised_heads import FinestHead
from teacher.ensemble import mean_logits
from teacher.label import LabelSettings, main, teacher_hash, teacher_name
from teacher.promptable import SLOTS, PromptedSam2, mask_prompts
from teacher.prompts.mean_mask import automatic_prompts, mean_masks
from teacher.sam2_model import Sam2ImageModel
from teacher.system import load_teacher
from teacher.systems.s2agscunet import build_s2agscunet

DATA = "phantom:cxr:24"  # that of conftest's bundles


def seal_teacher(folder, *, size_px):
    """An untrained teacher bundle: its masks are nonsense, but its logits differ from pixel to pixel."""
    torch.manual_seed(0)
    dataset = open_dataset(DATA)
    output = output_spec(dataset.classes, 4)
    network = FinestHead(build_s2agscunet(encoder="tiny", outputs=output.channels)).eval()
    with torch.no_grad():
        spread = network(torch.randn(1, 3, size_px, size_px)).std()
        network.network.heads[-1].weight.mul_(3 / spread)
    kept = {"encoder": "tiny", "adapter_width": None}
    return seal(folder, network, "s2agscunet", kept, dataset, size_px=size_px)


def seal_promptable(folder, *, kind="points"):
    """An untrained promptable teacher: of the mean training mask it knows the prompts."""
    torch.manual_seed(0)
    dataset = open_dataset(DATA)
    network = PromptedSam2(Sam2ImageModel("tiny", 64), classes=1, slots=SLOTS, candidates="single").eval()
    means = mean_masks(dataset.split("train"), 1, (64, 64))
    network.points, network.labels = automatic_prompts(means, kind, 2, SLOTS)
    with torch.no_grad():
        network.sam.sam_mask_decoder.output_hypernetworks_mlps[0].layers[-1].weight.mul_(30)
    kept = {"encoder": "tiny", "slots": SLOTS}
    told = {"prompt": kind, "points": 2}
    return seal(folder, network, "sam2-points", kept, dataset, size_px=64, settings=told)


def seal(folder, network, architecture, kept, dataset, *, size_px, settings=None):
    folder.mkdir()
    save_weights(folder / "model.safetensors", network)
    seal_bundle(
        folder,
        name="S2AgScUNet tiny",
        kind="teacher",
        format="torch",
        precision="fp32",
        architecture=architecture,
        architecture_settings=kept,
        settings=settings or {},
        classes=dataset.classes,
        input=InputSpec(height_px=size_px, width_px=size_px, channels=1, mean=(0.5,) * 3, std=(0.25,) * 3),
        output=output_spec(dataset.classes, 4),
        parameters=1,
        trained_parameters=1,
        macs=1,
        pretrained="no pretrained weights",
        data=DataRecord(
            name=DATA,
            sha256=dataset.sha256,
            split_sha256=dataset.split_sha256,
            counts=split_counts(dataset),
        ),
        made=made_now(f"python -m made {folder.name}"),
        model_file="model.safetensors",
    )
    return folder


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return seal_teacher(tmp_path_factory.mktemp("teacher") / "t", size_px=32)


@pytest.fixture(scope="module")
def labelled(teacher, tmp_path_factory):
    """The labels of that teacher alone; copy the folder to change it."""
    out = tmp_path_factory.mktemp("labelled") / "s"
    label(out, teacher)
    return out


@cache
def network_of(folder):
    return load_teacher(open_bundle(folder))


def label(out, *bundles, **more):
    main(LabelSettings(bundle=bundles, data=DATA, out=out, device="cpu", **{"tta": "none", **more}))
    return open_soft_labels(out)


def sigmoid(logits):
    return 1 / (1 + np.exp(-logits.astype(np.float64)))


def torch_logits(folder, case, *, mirrored=False):
    bundle = open_bundle(folder)
    picture = prepare(case.image(), bundle.manifest.input)
    picture = picture[:, ::-1] if mirrored else picture
    with torch.inference_mode():
        logits = DeployGraph(network_of(folder), bundle.manifest.input)(
            torch.from_numpy(picture[None].copy())
        )
    logits = logits[0].numpy()
    return logits[..., ::-1] if mirrored else logits


def test_the_mean_is_that_of_the_probabilities():
    views = np.random.default_rng(0).normal(0, 4, (3, 2, 1, 5, 5))
    assert np.allclose(sigmoid(mean_logits(views, "sigmoid")), sigmoid(views).mean(0), atol=1e-6)
    views = np.random.default_rng(0).normal(0, 4, (3, 2, 4, 5, 5))
    softmax = np.exp(views) / np.exp(views).sum(2, keepdims=True)
    mean = np.exp(mean_logits(views, "softmax"))
    assert np.allclose(mean, softmax.mean(0), atol=1e-6)


def test_certain_views_stay_finite():
    views = np.array([6e4, 6e4, -6e4]).reshape(3, 1, 1, 1, 1)
    two_thirds = mean_logits(views, "sigmoid").item()
    assert two_thirds == pytest.approx(math.log(2), rel=1e-4)
    assert mean_logits(views[:2], "sigmoid").item() == pytest.approx(6e4)
    several = mean_logits(np.concatenate([views, -views], axis=2), "softmax")
    assert np.isfinite(several).all()


def test_names_and_hashes_of_several_teachers():
    assert teacher_name(["A"]) == "A"
    assert teacher_name(["U", "A", "U"]) == "2 × U + A"
    assert teacher_hash(["a"]) == "a"
    assert teacher_hash(["a", "b"]) == teacher_hash(["b", "a"]) != teacher_hash(["a", "c"])


def test_flags_take_one_bundle_or_several():
    words = ["--data", "d", "--out", "o", "--bundle"]
    one = parse_settings(LabelSettings, "teacher.label", [*words, "a"])
    two = parse_settings(LabelSettings, "teacher.label", [*words, "a", "--bundle", "b"])
    assert [str(p) for p in one.bundle] == ["a"]
    assert [str(p) for p in two.bundle] == ["a", "b"]
    assert LabelSettings(bundle="a", data="d", out="o").bundle == one.bundle


def test_an_exported_student_teaches_beside_a_torch_teacher(teacher, exported, tmp_path):
    """Sizes 32 and 64: the labels have 64, each pixel the mean of the two probabilities."""
    student = exported("onnx", "fp32")
    soft = label(tmp_path / "s", teacher, student)
    case = open_dataset(DATA).split("train")[0]
    spec = open_bundle(student).manifest.input
    with Predictor.open(student, threads=1) as predictor:
        found = predictor.run(prepare(case.image(), spec)[None])[0]
    expected = (sigmoid(resize_logits(torch_logits(teacher, case), (64, 64))) + sigmoid(found)) / 2
    assert soft.of(case.id).shape == (1, 64, 64)
    assert np.allclose(sigmoid(soft.of(case.id)), expected, atol=1e-3)
    record = soft.record
    hashes = [open_bundle(b).sha256 for b in (teacher, student)]
    manifests = [open_bundle(b).manifest for b in (teacher, student)]
    assert record.teacher == teacher_hash(hashes)
    assert [t.sha256 for t in record.teachers] == hashes
    assert record.teacher_name == "S2AgScUNet tiny + " + open_bundle(student).manifest.name
    assert [made in record.lineage for made in (m.made for m in manifests)] == [True, True]


def test_flips_average_the_picture_and_its_mirror_image(teacher, tmp_path):
    soft = label(tmp_path / "s", teacher, tta="flips")
    case = open_dataset(DATA).split("train")[0]
    views = [resize_logits(torch_logits(teacher, case, mirrored=m), (32, 32)) for m in (False, True)]
    assert not np.allclose(views[0], views[1], atol=0.3)
    expected = (sigmoid(views[0]) + sigmoid(views[1])) / 2
    assert np.allclose(sigmoid(soft.of(case.id)), expected, atol=1e-3)
    assert (soft.record.tta, soft.record.teacher) == ("flips", open_bundle(teacher).sha256)
    assert soft.record.prompt_from is None


@pytest.mark.parametrize(("flip", "expected"), [(True, "flips"), (False, "none"), (None, "none")])
def test_without_a_word_pictures_are_mirrored_as_the_teacher_was_trained(teacher, tmp_path, flip, expected):
    path = shutil.copytree(teacher, tmp_path / "t") / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps({**manifest, "settings": {} if flip is None else {"flip": flip}}))
    assert label(tmp_path / "s", tmp_path / "t", tta="auto").record.tta == expected


def test_one_teacher_keeps_its_logits(teacher, labelled):
    soft = open_soft_labels(labelled)
    case = open_dataset(DATA).split("train")[1]
    expected = resize_logits(torch_logits(teacher, case), (32, 32))
    assert np.allclose(soft.of(case.id), expected, atol=0.01)  # float16 near 11


def test_a_partial_folder_of_another_mean_is_not_resumed(teacher, labelled, tmp_path):
    partial = shutil.copytree(labelled, tmp_path / "s.partial")
    record = open_soft_labels(partial).record
    recipe = {
        "teacher": record.teacher,
        "tta": "none",
        "data_sha256": record.data_sha256,
        "split_sha256": record.split_sha256,
        "shard_images": 256,
    }
    (partial / "settings.json").write_text(json.dumps(recipe))
    with pytest.raises(InputError, match=r"was made with other settings \(tta\); use the same settings"):
        label(tmp_path / "s", teacher, tta="flips")


def test_labels_of_version_0_2_still_open(labelled, tmp_path):
    shutil.copytree(labelled, tmp_path / "s")
    path = tmp_path / "s" / "labels.json"
    old = {k: v for k, v in json.loads(path.read_text()).items() if k not in ("teachers", "tta")}
    path.write_text(json.dumps(old))
    record = open_soft_labels(tmp_path / "s").record
    assert (record.teachers, record.tta) == ((), "none")


def fails(message, *bundles, out, **more):
    with pytest.raises(InputError) as caught:
        label(out, *bundles, **more)
    assert str(caught.value) == message
    assert not out.exists()


def test_a_torch_student_must_be_exported(torch_bundle, teacher, tmp_path):
    fails(
        f"bundle {torch_bundle}: must be exported first, got torch format; "
        f"run python -m export --bundle {torch_bundle} --to openvino --precision fp32 --out OUT",
        torch_bundle,
        out=tmp_path / "s",
    )


def alter(folder, to, **data):
    """A copy of a bundle whose manifest says another thing of its data."""
    shutil.copytree(folder, to)
    path = to / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["data"].update(data)
    path.write_text(json.dumps(manifest))
    return to


def test_teachers_of_other_data_do_not_teach_together(teacher, tmp_path):
    other = alter(teacher, tmp_path / "o", sha256="0" * 64)
    fails(
        f"--bundle {other}: must have the data of {teacher}, has other; average teachers that were trained alike",
        teacher,
        other,
        out=tmp_path / "s",
    )


def test_a_teacher_of_another_split(teacher, tmp_path):
    other = alter(teacher, tmp_path / "o", split_sha256="0" * 64)
    fails(
        f"bundle {other}: must have the same split of {DATA}, got another; use the --split-seed it was trained "
        "with, else it has seen images that are now in the test split",
        teacher,
        other,
        out=tmp_path / "s",
    )


def test_classes_that_have_a_side_are_not_mirrored(teacher, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    (data / "index.csv").write_text(
        "case,patient,image\n" + "".join(f"c{i},p{i},c{i}.png\n" for i in range(3))
    )
    from PIL import Image

    for i in range(3):
        Image.fromarray(np.full((40, 40), 50 + i, np.uint8)).save(data / f"c{i}.png")
    classes = ("left_lung", "right lung")
    sided = shutil.copytree(teacher, tmp_path / "t")
    manifest = json.loads((sided / "manifest.json").read_text())
    manifest |= {"classes": classes, "output": output_spec(classes, 4).model_dump(mode="json")}
    (sided / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError) as caught:
        main(LabelSettings(bundle=sided, data=str(data / "index.csv"), out=tmp_path / "s", tta="flips"))
    assert str(caught.value) == (
        "--tta flips: classes must not have a side, got left_lung, whose mirror image is the other side's; "
        "leave --tta away"
    )


@pytest.fixture(scope="module")
def promptable(tmp_path_factory):
    return seal_promptable(tmp_path_factory.mktemp("promptable") / "p")


def asked_with_points_of(mask, folder, case, *, mirrored):
    """A promptable teacher's answer to two points of a mask, asked by hand."""
    bundle = open_bundle(folder)
    picture = prepare(case.image(), bundle.manifest.input)
    picture, mask = (picture[:, ::-1], mask[:, ::-1]) if mirrored else (picture, mask)
    points, labels = automatic_prompts(torch.tensor(mask[None].copy()).float(), "points", 2, SLOTS)
    x = torch.tensor(picture[None].copy()).permute(0, 3, 1, 2).float() / 255
    network = network_of(folder)
    with torch.inference_mode():
        answer = network.decode(network.encode((x.expand(-1, 3, -1, -1) - 0.5) / 0.25), points, labels)
    logits = answer.logits[0].numpy()
    return sigmoid(resize_logits(logits[..., ::-1] if mirrored else logits, (64, 64)))


def test_an_earlier_students_masks_say_where_a_promptable_teacher_looks(promptable, exported, tmp_path):
    student = exported("onnx", "fp32")
    case = open_dataset(DATA).split("train")[0]
    soft = label(tmp_path / "s", promptable, prompt_from=str(student), tta="flips")
    made = open_bundle(student).manifest
    with Predictor.open(student, threads=1) as predictor:
        found = predictor.run(prepare(case.image(), made.input)[None])[0]
    mask = probabilities(found, made.output, (64, 64))[0] >= made.output.threshold
    assert 0 < mask.mean() < 1
    views = [asked_with_points_of(mask, promptable, case, mirrored=m) for m in (False, True)]
    unmirrored = asked_with_points_of(mask[:, ::-1], promptable, case, mirrored=True)  # what must not be
    assert np.abs(unmirrored - views[1]).max() > 0.02
    assert np.allclose(sigmoid(soft.of(case.id)), (views[0] + views[1]) / 2, atol=2e-3)
    record = soft.record
    assert (record.prompt_from.sha256, record.prompt_from.name) == (open_bundle(student).sha256, made.name)
    assert record.teacher == open_bundle(promptable).sha256  # it is who labels
    assert made.made in record.lineage
    recipe = {
        "teacher": record.teacher,
        "tta": "flips",
        "data_sha256": record.data_sha256,
        "split_sha256": record.split_sha256,
        "shard_images": 256,
    }
    partial = (tmp_path / "s").rename(tmp_path / "s.partial")
    (partial / "settings.json").write_text(json.dumps(recipe))
    with pytest.raises(InputError, match=r"was made with other settings \(prompt_from\); use the same"):
        label(tmp_path / "s", promptable, prompt_from=str(student), tta="flips")


def test_a_class_that_the_student_missed_is_asked_for_as_in_the_automatic_form():
    nobody = torch.nn.Module()  # prompts are all that counts
    network = PromptedSam2(nobody, classes=2, slots=SLOTS, candidates="single")
    network.points[:, 0] = torch.tensor([[7.0, 8], [30, 31]])
    network.labels[:, 0] = 1
    mask = torch.zeros(1, 64, 64, dtype=torch.uint8)
    mask[0, 40:50, 40:50] = 1
    points, labels = mask_prompts(network, mask, "box", 0)
    assert points[0, 0, :2].tolist() == [[40, 40], [49, 49]]
    assert labels[0, 0, :3].tolist() == [2, 3, -1]
    assert torch.equal(points[0, 1], network.points[1])
    assert torch.equal(labels[0, 1], network.labels[1])


def test_a_teacher_without_prompts_refuses_them(teacher, exported, tmp_path):
    student = exported("onnx", "fp32")
    fails(
        f"--prompt-from {student}: must be mean for {teacher}, got a s2agscunet in torch format, which takes no prompts "
        "here; give a teacher in torch format of --system sam2-med2d or sam2-points or sam2-zeroshot or sam2-memory",
        teacher,
        out=tmp_path / "s",
        prompt_from=str(student),
    )
