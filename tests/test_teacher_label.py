"""Soft labels of several teachers and of mirrored pictures, and which bundles may teach together."""

import json
import math
import shutil

import numpy as np
import pytest
import torch

from runtime.predictor import Predictor
from segcore.bundle import DataRecord, open_bundle, seal_bundle
from segcore.command import parse_settings
from segcore.dataset import Dataset, open_dataset, split_counts
from segcore.errors import InputError
from segcore.host import made_now
from segcore.learn.deploy import DeployGraph
from segcore.learn.weights import save_weights
from segcore.preprocess import InputSpec, output_spec, prepare, resize_logits
from segcore.soft_labels import open_soft_labels
from teacher.ensemble import mean_logits
from teacher.label import LabelSettings, main, teacher_hash, teacher_name
from teacher.network import FinestHead, build_s2agscunet, load_teacher

DATA = "phantom:cxr:24"  # that of conftest's bundles


def seal_teacher(folder, *, size_px, seed=0, data=DATA, classes=None, split_seed=0):
    """An untrained teacher bundle: its masks are nonsense, but its logits differ from pixel to pixel."""
    torch.manual_seed(seed)
    dataset: Dataset = open_dataset(data, seed=split_seed)
    classes = classes or dataset.classes
    output = output_spec(classes, 4)
    network = FinestHead(build_s2agscunet(encoder="tiny", outputs=output.channels)).eval()
    with torch.no_grad():
        spread = network(torch.randn(1, 3, size_px, size_px)).std()
        network.network.heads[-1].weight.mul_(3 / spread)
    folder.mkdir()
    save_weights(folder / "model.safetensors", network)
    seal_bundle(
        folder,
        name="S2AgScUNet tiny",
        kind="teacher",
        format="torch",
        precision="fp32",
        architecture="s2agscunet",
        architecture_settings={"encoder": "tiny", "adapter_width": None},
        classes=classes,
        input=InputSpec(height_px=size_px, width_px=size_px, channels=1, mean=(0.5,) * 3, std=(0.25,) * 3),
        output=output,
        parameters=1,
        trained_parameters=1,
        macs=1,
        pretrained="no pretrained weights",
        data=DataRecord(
            name=data,
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


def label(out, *bundles, **more):
    main(LabelSettings(bundle=bundles, data=DATA, out=out, device="cpu", **more))
    return open_soft_labels(out)


def sigmoid(logits):
    return 1 / (1 + np.exp(-logits.astype(np.float64)))


def torch_logits(folder, case, *, mirrored=False):
    bundle = open_bundle(folder)
    picture = prepare(case.image(), bundle.manifest.input)
    picture = picture[:, ::-1] if mirrored else picture
    with torch.inference_mode():
        logits = DeployGraph(load_teacher(bundle), bundle.manifest.input)(
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


def test_one_teacher_keeps_its_logits(teacher, tmp_path):
    soft = label(tmp_path / "s", teacher)
    case = open_dataset(DATA).split("train")[1]
    expected = resize_logits(torch_logits(teacher, case), (32, 32))
    assert np.allclose(soft.of(case.id), expected, atol=0.01)  # float16 near 11


def test_a_partial_folder_of_another_mean_is_not_resumed(teacher, tmp_path):
    label(tmp_path / "s", teacher)
    partial = (tmp_path / "s").rename(tmp_path / "s.partial")
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


def test_labels_of_version_0_2_still_open(teacher, tmp_path):
    label(tmp_path / "s", teacher)
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


def test_classes_that_have_a_side_are_not_mirrored(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    (data / "index.csv").write_text(
        "case,patient,image\n" + "".join(f"c{i},p{i},c{i}.png\n" for i in range(3))
    )
    from PIL import Image

    for i in range(3):
        Image.fromarray(np.full((40, 40), 50 + i, np.uint8)).save(data / f"c{i}.png")
    sided = seal_teacher(tmp_path / "t", size_px=32, classes=("left_lung", "right lung"))
    with pytest.raises(InputError) as caught:
        main(LabelSettings(bundle=sided, data=str(data / "index.csv"), out=tmp_path / "s", tta="flips"))
    assert str(caught.value) == (
        "--tta flips: classes must not have a side, got left_lung, whose mirror image is the other side's; "
        "leave --tta away"
    )
