"""Teacher, soft labels and student for real, on phantoms: what they leave behind, resuming, and bad input."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from segcore.bundle.folder import open_bundle
from segcore.command import parse_settings
from segcore.dataset.dataset import open_dataset
from segcore.dataset.soft_labels import open_soft_labels
from segcore.errors import InputError
from segcore.learn.network import DeployGraph
from segcore.picture.preprocess import prepare
from student.design import unet
from student.distill import DistillSettings
from student.distill import main as distill
from student.network import load_student
from teacher.label import LabelSettings
from teacher.label import main as label
from teacher.settings import TeacherSettings
from teacher.system import load_teacher
from teacher.train import main as train

REPO = Path(__file__).parent.parent
DATA = "phantom:cxr:20"
SMALL = {"data": DATA, "size": 32, "batch_size": 4, "warmup_epochs": 0, "device": "cpu"}
SMALL_DESIGN = unet(4).model_dump(mode="json")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    out = tmp_path_factory.mktemp("teacher") / "t"
    train(TeacherSettings(**SMALL, out=out, epochs=1, weights="none", tune="all"))
    return out


@pytest.fixture(scope="module")
def soft(teacher, tmp_path_factory):
    out = tmp_path_factory.mktemp("soft") / "s"
    label(LabelSettings(bundle=teacher, data=DATA, out=out, shard_images=4, tta="none", device="cpu"))
    return out


def test_a_teacher_bundle_says_what_it_is(teacher):
    manifest = open_bundle(teacher).manifest
    assert manifest.pretrained == "no pretrained weights"
    assert (manifest.kind, manifest.format, manifest.output.stride) == ("teacher", "torch", 4)
    assert manifest.classes == ("lung",)
    assert manifest.data.counts == {"train": 12, "val": 4, "test": 4}
    assert manifest.trained_parameters == manifest.parameters == 34_176_630
    assert 0 <= manifest.metric("dice_mean", "val") <= 1
    assert set(manifest.files) == {
        "MODEL_CARD.md",
        "curves.png",
        "examples.png",
        "history.csv",
        "model.safetensors",
        "steps.csv",
        "train.yaml",
    }
    with Image.open(teacher / "examples.png") as picture:
        assert picture.width > 800


def test_lora_teacher_is_stored_merged_and_opens_without_peft(tmp_path, capsys):
    from teacher.sam2_model import build_encoder

    weights = tmp_path / "tiny.pt"
    state = build_encoder("tiny").state_dict()
    torch.save({"model": {f"image_encoder.trunk.{k}": v for k, v in state.items()}}, weights)
    more = {"weights": str(weights), "tune": "lora", "labelled_share": 0.34}
    train(TeacherSettings(**SMALL, out=tmp_path / "t", epochs=1, **more))
    assert "; 4 training and 4 validation images" in capsys.readouterr().err  # 2 of 6 patients
    manifest = open_bundle(tmp_path / "t").manifest
    assert manifest.name == "S2AgScUNet tiny, 34 % labelled"
    assert manifest.pretrained == "tiny.pt"
    assert manifest.trained_parameters == 7_437_366
    code = (
        "import sys; sys.modules['peft'] = None\n"
        "from segcore.bundle import open_bundle; from teacher.system import load_teacher\n"
        f"import torch; print(load_teacher(open_bundle({str(tmp_path / 't')!r}))(torch.zeros(1, 3, 32, 32)).shape)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True)
    assert done.stdout.strip() == "torch.Size([1, 1, 8, 8])", done.stderr


def test_soft_labels_are_the_teachers_logits(teacher, soft):
    bundle, labels, dataset = open_bundle(teacher), open_soft_labels(soft), open_dataset(DATA)
    assert labels.record.teacher == bundle.sha256
    assert len(labels.record.shards) == 3  # 12 images, 4 a shard
    graph = DeployGraph(load_teacher(bundle), bundle.manifest.input).eval()
    for case in dataset.split("train")[::4]:
        picture = torch.from_numpy(prepare(case.image(), bundle.manifest.input)[None].copy())
        with torch.inference_mode():
            logits = torch.nn.functional.interpolate(graph(picture), (32, 32), mode="bilinear")
        assert labels.of(case.id).dtype == np.float16
        assert np.allclose(labels.of(case.id), logits[0].numpy(), atol=0.02)
    assert not any(case.id in labels for case in dataset.split("test"))


def test_interrupted_labelling_keeps_its_whole_shards(teacher, soft, tmp_path):
    again = tmp_path / "s"
    label(LabelSettings(bundle=teacher, data=DATA, out=again, shard_images=4, tta="none", device="cpu"))
    shards = sorted(open_soft_labels(again).record.shards)
    partial = again.rename(tmp_path / "s.partial")  # back to what a kill after two shards leaves
    record = json.loads((partial / "labels.json").read_text())
    (partial / "labels.json").unlink()
    for name in shards[:2]:
        (partial / f"{name}.json").write_text(json.dumps(record["shards"][name]))
    (partial / shards[2]).write_bytes(b"half")
    recipe = {
        "teacher": record["teacher"],
        "tta": "none",
        "data_sha256": record["data_sha256"],
        "split_sha256": record["split_sha256"],
        "shard_images": 4,
    }
    (partial / "settings.json").write_text(json.dumps(recipe))
    stamp = (partial / shards[0]).stat().st_mtime_ns
    label(LabelSettings(bundle=teacher, data=DATA, out=again, shard_images=4, tta="none", device="cpu"))
    assert (again / shards[0]).stat().st_mtime_ns == stamp
    for name in shards:
        assert np.array_equal(np.load(again / name), np.load(soft / name))


def test_a_student_learns_from_soft_labels(soft, teacher, tmp_path):
    distill(DistillSettings(**SMALL, out=tmp_path / "s", epochs=2, soft=soft, design="lightunet"))
    manifest = open_bundle(tmp_path / "s").manifest
    assert manifest.teacher == open_bundle(teacher).sha256
    assert manifest.parameters == 487_145
    assert [made.command.split()[0] for made in manifest.lineage] == ["python", "python"]
    assert load_student(open_bundle(tmp_path / "s"))(torch.zeros(1, 1, 32, 32)).shape == (1, 1, 32, 32)


def test_a_live_teacher_and_no_teacher_work_too(teacher, tmp_path):
    distill(DistillSettings(**SMALL, out=tmp_path / "live", epochs=1, teacher=teacher))
    distill(DistillSettings(**SMALL, out=tmp_path / "alone", epochs=1))
    assert open_bundle(tmp_path / "alone").manifest.teacher is None
    live, alone = (load_file(tmp_path / n / "model.safetensors") for n in ("live", "alone"))
    assert any(not torch.equal(live[k], alone[k]) for k in live)


def test_images_without_a_mask_take_part_through_their_soft_labels(teacher, tmp_path, capsys):
    data = tmp_path / "data"
    for folder in ("images", "masks", "unlabelled"):
        (data / folder).mkdir(parents=True)
    for i, case in enumerate(open_dataset(DATA).cases):
        Image.fromarray(case.image()).save(data / ("images" if i < 10 else "unlabelled") / f"{i}.png")
        if i < 10:
            Image.fromarray(case.mask() * 255).save(data / "masks" / f"{i}.png")
    (data / "classes.txt").write_text("lung\n")
    small = {**SMALL, "data": str(data)}
    label(LabelSettings(bundle=teacher, data=str(data), out=tmp_path / "s", device="cpu"))
    distill(DistillSettings(**small, out=tmp_path / "with", epochs=1, soft=tmp_path / "s"))
    assert "16 training and 2 validation images" in capsys.readouterr().err  # 6 with and 10 without a mask
    distill(DistillSettings(**small, out=tmp_path / "without", epochs=1))
    assert "6 training and 2 validation images" in capsys.readouterr().err


def test_two_processes_train_one_student(tmp_path):
    words = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
        "-m",
        "student.distill",
    ]
    words += ["--data", DATA, "--size", "32", "--batch-size", "2", "--epochs", "2", "--device", "cpu"]
    done = subprocess.run(
        [*words, "--out", str(tmp_path / "s")], cwd=REPO, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count('"bundle"') == 1  # the first process alone reports and seals
    assert open_bundle(tmp_path / "s").manifest.data.counts["train"] == 12
    assert not (tmp_path / "s.partial").exists()


def test_a_student_is_not_a_teacher(teacher, tmp_path):
    with pytest.raises(InputError) as caught:
        load_student(open_bundle(teacher))
    assert str(caught.value) == (
        f"bundle {teacher}: must be a student in torch format, got a teacher in torch format; "
        "name the folder that its training wrote"
    )


def test_a_bundles_recipe_repeats_the_run(tmp_path):
    distill(DistillSettings(**SMALL, out=tmp_path / "a", epochs=1, design=SMALL_DESIGN, lr=0.003))
    words = ["--config", str(tmp_path / "a" / "train.yaml"), "--out", str(tmp_path / "b")]
    settings = parse_settings(DistillSettings, "student.distill", words)
    assert (settings.design, settings.lr, settings.soft) == (SMALL_DESIGN, 0.003, None)
    distill(settings)
    a, b = (load_file(tmp_path / n / "model.safetensors") for n in ("a", "b"))
    assert all(torch.equal(a[k], b[k]) for k in a)


def fails(message, function, settings):
    with pytest.raises(InputError) as caught:
        function(settings)
    assert str(caught.value) == message


def test_random_features_are_never_trained_on_silently(tmp_path):
    fails(
        "--weights none: must have weights for --tune lora, which leaves the encoder as it is; "
        "give SAM 2.1's weights, or add --tune all to train everything from random weights",
        train,
        TeacherSettings(**SMALL, out=tmp_path / "t", weights="none"),
    )
    assert not list(tmp_path.iterdir())


def test_two_kinds_of_teacher_at_once(soft, teacher, tmp_path):
    fails(
        "--soft, --teacher: must be one of the two, got both; soft labels are the quick way",
        distill,
        DistillSettings(**SMALL, out=tmp_path / "s", soft=soft, teacher=teacher),
    )


def test_soft_labels_of_other_data_or_another_split(soft, tmp_path):
    fails(
        f"--soft {soft}: must have the data's classes lesion, got lung; use a model trained on these classes",
        distill,
        DistillSettings(**{**SMALL, "data": "phantom:ct:16"}, out=tmp_path / "s", soft=soft),
    )
    fails(
        f"--soft {soft}: must hold every training image, 12 of 24 are missing (first: cxr-0020); "
        "run teacher.label on this --data",
        distill,
        DistillSettings(**{**SMALL, "data": "phantom:cxr:40"}, out=tmp_path / "s", soft=soft),
    )


def test_a_shard_that_was_cut(soft, tmp_path):
    import shutil

    broken = tmp_path / "broken"
    shutil.copytree(soft, broken)
    shard = broken / "shard-00-00001.npy"
    shard.write_bytes(shard.read_bytes()[:500])
    with pytest.raises(
        InputError, match=rf"^--soft {shard}: must be a whole shard, is damaged \(.*; label again"
    ):
        open_soft_labels(broken)
    shard.unlink()
    with pytest.raises(InputError, match=rf"^--soft {shard}: must be a whole shard, is missing; label again"):
        open_soft_labels(broken)


def test_out_that_exists_and_a_partial_of_other_settings(teacher, tmp_path):
    fails(
        f"--out {teacher}: must not exist yet, it does; add --overwrite to replace it",
        train,
        TeacherSettings(**SMALL, out=teacher, weights="none", tune="all"),
    )
    out = tmp_path / "s"
    (tmp_path / "s.partial").mkdir()
    settings = DistillSettings(**SMALL, out=out, epochs=1)
    (tmp_path / "s.partial" / "settings.json").write_text(json.dumps({**settings.recipe(), "lr": 5.0}))
    with pytest.raises(
        InputError, match=r"was made with other settings \(.*lr.*\); use the same settings to resume it"
    ):
        distill(settings)


def test_devices_and_precisions_that_are_not_there(tmp_path):
    if not torch.cuda.is_available():
        small = {**SMALL, "device": "cuda"}
        message = "--device cuda: must have a CUDA device, found none; use --device auto"
        fails(message, distill, DistillSettings(**small, out=tmp_path / "s"))
    message = "--amp fp16: must be fp32 or bf16 on a CPU, got fp16; leave --amp away"
    fails(message, distill, DistillSettings(**SMALL, out=tmp_path / "s2", amp="fp16"))


def test_a_learning_rate_that_explodes(tmp_path):
    with pytest.raises(
        InputError, match=r"^--lr 1e\+30: must keep the loss finite, got nan in epoch 1; use a lower --lr$"
    ):
        distill(DistillSettings(**SMALL, out=tmp_path / "s", epochs=1, lr=1e30))


def test_a_full_disk_ends_in_one_line_and_nothing_that_looks_finished(tmp_path):
    code = (
        "import resource, signal, sys\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "from student.distill import DistillSettings, main\n"
        "from segcore.command import run_command\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))\n"  # the weights take 2 MB
        "run_command(main, DistillSettings, 'distill', sys.argv[1:])"
    )
    words = ["--data", DATA, "--size", "32", "--epochs", "1", "--device", "cpu", "--out", str(tmp_path / "s")]
    done = subprocess.run([sys.executable, "-c", code, *words], cwd=REPO, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert "cannot be written, File too large; nothing was kept that looks finished" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "s").exists()
    assert not list((tmp_path / "s.partial").glob("*.tmp"))


COMMANDS = {
    # Here a kill also falls between steps: a checkpoint is made after each.
    "student.distill": ["--epochs", "4", "--ema", "0.9", "--accumulate", "2", "--checkpoint-minutes", "1e-9"],
    "teacher.train": ["--epochs", "3", "--weights", "none", "--tune", "all"],
}


@pytest.mark.parametrize("module", COMMANDS)
def test_a_killed_run_ends_with_the_same_weights(module, tmp_path):
    words = [
        sys.executable,
        "-m",
        module,
        "--data",
        DATA,
        "--size",
        "32",
        "--batch-size",
        "4",
        "--device",
        "cpu",
    ]
    words += COMMANDS[module]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(
        [*words, "--out", str(tmp_path / "whole")], cwd=REPO, env=env, check=True, capture_output=True
    )
    killed = [*words, "--out", str(tmp_path / "killed")]
    process = subprocess.Popen(
        killed, cwd=REPO, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    checkpoint = tmp_path / "killed.partial" / "last.pt"
    deadline = time.monotonic() + 120
    while not checkpoint.is_file() and time.monotonic() < deadline:
        assert process.poll() is None, "ended before it could be killed"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed").exists()
    done = subprocess.run(killed, cwd=REPO, env=env, check=True, capture_output=True, text=True)
    assert "resuming after epoch" in done.stderr or "resuming in epoch" in done.stderr
    whole, again = (load_file(tmp_path / n / "model.safetensors") for n in ("whole", "killed"))
    assert whole.keys() == again.keys()
    assert all(torch.equal(whole[k], again[k]) for k in whole)
