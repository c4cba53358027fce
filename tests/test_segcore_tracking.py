"""What trackers are given, read back with TensorBoard's own reader; what they need, and where they write."""

import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from segcore.command import parse_settings
from segcore.errors import InputError
from segcore.learn.loop import fit, open_accelerator
from segcore.learn.settings import TrainSettings, run_name
from segcore.picture.overlay import EXTRA, MISSED, outlines
from student.design import unet
from student.distill import DistillSettings
from student.distill import main as distill


def read_curves(folder):
    """Scalars by name, as (step, value), and the pictures' steps and sizes."""
    reader = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="tensorboard"
    )
    events = reader.EventAccumulator(str(folder)).Reload()
    scalars = {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    return scalars, {tag: [(e.step, e.height) for e in events.Images(tag)] for tag in events.Tags()["images"]}


class Images(torch.utils.data.Dataset):
    """Eight small images."""

    def __len__(self):
        return 8

    def __getitem__(self, item):
        return {"image": torch.randn(2, 8, 8, generator=torch.Generator().manual_seed(item[1]))}


class Killed(Exception):
    """In the place of a kill."""


def trained(tmp_path, *, killed_at=0, minutes=0.0, fresh=True):
    """A training of two epochs of four steps, or of what is left of it; losses as steps.csv has them."""
    settings = TrainSettings(
        data="-",
        out=tmp_path / "runs" / "study" / "net",
        device="cpu",
        epochs=2,
        batch_size=2,
        checkpoint_minutes=minutes,
        log_with=("tensorboard",),
        log_dir=tmp_path / "logs",
    )
    folder = tmp_path / "net.partial"
    folder.mkdir(exist_ok=not fresh)
    torch.manual_seed(0)
    network, calls = nn.Conv2d(2, 4, 3), []

    def loss_of(network, batch):
        calls.append(1)
        if len(calls) == killed_at:
            raise Killed
        return network(batch["image"]).square().mean()

    def draw(network):
        assert not network.training
        return np.zeros((12, 20, 3), np.uint8)

    fit(
        network,
        Images(),
        loss_of=loss_of,
        validate=lambda network: 0.25,
        settings=settings,
        folder=folder,
        accelerator=open_accelerator(settings),
        draw=draw,
    )
    lines = (folder / "steps.csv").read_text().splitlines()[1:]
    return [(int(step), float(loss), float(lr)) for _, step, loss, lr in (line.split(",") for line in lines)]


def check_curves(curves, steps):
    scalars, pictures = curves
    assert [step for step, _ in scalars["loss"]] == list(range(1, 9))
    assert [value for _, value in scalars["loss"]] == pytest.approx([loss for _, loss, _ in steps])
    assert [value for _, value in scalars["lr"]] == pytest.approx([lr for _, _, lr in steps])
    assert scalars["epoch/dice_val"] == [(4, 0.25), (8, 0.25)]
    assert set(scalars) == {"loss", "lr", "epoch/dice_val", "epoch/loss", "epoch/images_per_second"}
    assert pictures == {"validation": [(4, 12), (8, 12)]}


def test_a_killed_run_goes_on_with_its_curves(tmp_path):
    pytest.importorskip("tensorboard")
    logs = tmp_path / "logs" / "study" / "net"
    steps = trained(tmp_path)
    check_curves(read_curves(logs), steps)
    found = sorted(path.name for path in (tmp_path / "net.partial").iterdir())
    assert found == ["best.safetensors", "history.csv", "last.pt", "steps.csv"]
    # Another run of the same name takes the place of the first; it is killed twice, between and within epochs.
    (tmp_path / "net.partial").rename(tmp_path / "first")
    with pytest.raises(Killed):
        trained(tmp_path, killed_at=7, minutes=1e-9)  # in the second epoch, after its second step
    assert [step for step, _ in read_curves(logs)[0]["loss"]] == list(range(1, 7))
    with pytest.raises(Killed):
        trained(tmp_path, killed_at=2, minutes=1e-9, fresh=False)
    again = trained(tmp_path, fresh=False)
    assert again == steps
    check_curves(read_curves(logs), steps)


def test_what_was_noted_behind_the_checkpoint_is_noted_once(tmp_path):
    pytest.importorskip("tensorboard")
    with pytest.raises(Killed):
        trained(tmp_path, killed_at=7, minutes=1e-9)
    checkpoint = (tmp_path / "net.partial" / "last.pt").read_bytes()
    with pytest.raises(Killed):
        trained(tmp_path, killed_at=2, minutes=1e-9, fresh=False)  # step 7 is noted
    (tmp_path / "net.partial" / "last.pt").write_bytes(
        checkpoint
    )  # and its checkpoint did not reach the disk
    steps = trained(tmp_path, fresh=False)
    check_curves(read_curves(tmp_path / "logs" / "study" / "net"), steps)


def test_a_student_is_tracked_from_its_settings_to_its_final_figures(tmp_path):
    pytest.importorskip("tensorboard")
    settings = DistillSettings(
        data="phantom:cxr:20",
        out=tmp_path / "student",
        design=unet(4).model_dump(mode="json"),
        size=32,
        epochs=2,
        batch_size=4,
        device="cpu",
        log_with=("tensorboard",),
        log_dir=tmp_path / "logs",
    )
    distill(settings)
    scalars, pictures = read_curves(tmp_path / "logs" / "student")
    manifest = json.loads((tmp_path / "student" / "manifest.json").read_text())
    assert scalars["final/dice_mean_val"][0][1] == pytest.approx(manifest["metrics"][0]["value"])
    assert scalars["final/parameters"][0][1] == manifest["parameters"]
    assert scalars["final/threshold"][0][1] == pytest.approx(manifest["output"]["threshold"])
    assert [step for step, _ in pictures["validation"]] == [3, 6]
    (noted,) = (tmp_path / "logs" / "student").glob("*/hparams.yml")
    assert "learning" not in noted.read_text()
    assert "batch_size: 4" in noted.read_text()
    assert not [name for name in manifest["files"] if "event" in name or "tracking" in name]


def test_outlines_are_borders_of_truth_and_prediction():
    truth, prediction = np.zeros((2, 9, 9), np.uint8)
    truth[1:6, 1:6] = 1
    prediction[3:8, 3:8] = 1
    picture = outlines(np.full((9, 9), 100, np.uint8), prediction, truth)
    assert tuple(picture[1, 1]) == MISSED
    assert tuple(picture[3, 3]) == EXTRA
    assert tuple(picture[4, 4]) == tuple(picture[0, 0]) == (100, 100, 100)
    assert tuple(picture[5, 3]) == EXTRA  # where both are, the prediction is drawn over the truth


def settings_for(**more):
    return TrainSettings(**{"data": "-", "out": Path("runs/polyps/net"), **more})


@pytest.mark.skipif(find_spec("wandb") is not None, reason="wandb is installed")
def test_a_tracker_that_is_not_installed_is_named_with_its_package(tmp_path, monkeypatch):
    wanted = "--log-with wandb: wandb must be installed, is not; run: pip install wandb"
    with pytest.raises(InputError, match=f"^{wanted}$"):
        settings_for(log_with=("wandb",)).check_tracking()
    # A folder that wandb left in the working directory is not the library.
    (tmp_path / "wandb").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match=f"^{wanted}$"):
        settings_for(log_with=("wandb",)).check_tracking()


def test_runs_are_named_by_their_folder():
    assert [
        run_name(Path(out)) for out in ("runs/net", "/data/runs/polyps/net", "net", "/data/net", "runs")
    ] == [
        "net",
        "polyps/net",
        "net",
        "net",
        "runs",
    ]


def test_logs_lie_apart_from_the_bundle():
    pytest.importorskip("tensorboard")
    with pytest.raises(InputError) as error:
        settings_for(log_with=("tensorboard",), log_dir=Path("runs/polyps/net")).check_tracking()
    assert "--out runs/polyps/net: must be apart from --log-dir" in str(error.value)


def test_how_a_run_is_noted_does_not_change_what_it_is():
    words = [
        "--data",
        "d",
        "--out",
        "o",
        "--log-with",
        "tensorboard",
        "--log-with",
        "wandb",
        "--log-dir",
        "x",
    ]
    settings = parse_settings(TrainSettings, "train", [*words, "--checkpoint-minutes", "3"])
    assert settings.log_with == ("tensorboard", "wandb")
    assert settings.recipe() == TrainSettings(data="d", out=Path("o")).recipe()
