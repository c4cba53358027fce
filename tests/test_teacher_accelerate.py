"""Training that scales: two processes, accumulated batches and recomputed blocks make the steps of one plain process."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from segcore.bundle.folder import open_bundle
from segcore.learn.network import load_file
from teacher.sam2_model import Sam2ImageModel

REPO = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "sam2.pt"
    torch.save({"model": Sam2ImageModel("tiny", 64).state_dict()}, path)
    return path


def train(weights, out, *flags, launch=()):
    """sam2-lora: its norms are LayerNorm, so a picture's loss does not depend on its batch."""
    command = [sys.executable, "-m", *launch, "teacher.train", "--system", "sam2-lora", "--weights", weights]
    common = ["--data", "phantom:cxr:20", "--size", "64", "--epochs", "2", "--device", "cpu", "--out", out]
    # lr: large enough that a difference in the gradient shows in the second epoch
    done = subprocess.run(
        [str(word) for word in (*command, *common, "--lr", "1e-3", "--warmup-epochs", "0", *flags)],
        cwd=REPO,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    with (out / "steps.csv").open() as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def plain(weights, tmp_path_factory):
    out = tmp_path_factory.mktemp("plain") / "t"
    return out, train(weights, out, "--batch-size", "4")


# --multi_gpu is how accelerate starts a process group; with --device cpu its processes speak gloo (its own --cpu would
# start one process without an MPI). `python -m torch.distributed.run --nproc_per_node 2` does the same.
TWO = (
    "accelerate.commands.launch",
    *("--multi_gpu", "--num_processes", "2", "--num_machines", "1"),
    *("--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0", "-m"),
)


@pytest.mark.parametrize(
    ("flags", "launch"),
    [
        (("--batch-size", "2"), TWO),
        (("--batch-size", "2", "--accumulate", "2"), ()),
        (("--batch-size", "4", "--checkpointing"), ()),
    ],
    ids=["two processes", "accumulated", "recomputed"],
)
def test_the_same_steps_as_one_plain_process(plain, weights, tmp_path, flags, launch):
    out, losses = plain
    found = train(weights, tmp_path / "t", *flags, launch=launch)
    assert len(losses) == 6  # 12 images, 4 a step, 2 epochs
    assert losses[0] != pytest.approx(losses[-1], rel=1e-3)  # it learns, so equal steps mean something
    assert found == pytest.approx(losses, rel=1e-4)
    one, other = (load_file(open_bundle(folder).model_path) for folder in (out, tmp_path / "t"))
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.allclose(tensor, other[name], atol=2e-4), name
