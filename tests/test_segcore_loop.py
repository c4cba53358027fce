"""The parts of a step: accumulated gradients, AdamW by hand, channels-last weights, and the allocator."""

import platform
from pathlib import Path

import pytest
import torch
from torch import nn

from segcore.errors import InputError
from segcore.learn.loop import (
    Epoch,
    add_gradient,
    fit,
    keep_freed_memory,
    open_accelerator,
    open_run,
    should_stop,
    update_weights,
)
from segcore.learn.settings import TrainSettings

SETTINGS = TrainSettings(data="-", out=Path("-"), device="cpu", lr=0.01, weight_decay=0.1, ema=0.75)


def batch(images):
    return {"image": torch.randn(images, 2, 8, 8, generator=torch.Generator().manual_seed(images))}


def opened():
    torch.manual_seed(0)
    network = nn.Conv2d(2, 4, 3)

    def loss_of(network, batch):
        return network(batch["image"]).square().mean()

    return open_run(network, loss_of, SETTINGS, open_accelerator(SETTINGS))


def test_weights_and_features_are_channels_last():
    run = opened()
    seen = run.network(batch(2)["image"].contiguous(memory_format=torch.channels_last))
    assert run.network.weight.is_contiguous(memory_format=torch.channels_last)
    assert seen.is_contiguous(memory_format=torch.channels_last)


def test_two_halves_give_the_gradient_of_the_whole():
    whole, halves, images = opened(), opened(), batch(4)["image"]
    add_gradient(whole, {"image": images})
    add_gradient(halves, {"image": images[:2]}, accumulate=2, last=False)
    add_gradient(halves, {"image": images[2:]}, accumulate=2, last=True)
    assert torch.allclose(whole.network.weight.grad, halves.network.weight.grad, atol=1e-6)


@pytest.mark.parametrize("clip_norm", [1e9, 0.01])
def test_a_step_is_adamw_with_clipping_and_averaging(clip_norm):
    run = opened()
    before = run.network.bias.detach().clone()
    add_gradient(run, batch(2))
    norm = torch.cat([p.grad.flatten() for p in run.network.parameters()]).norm()
    assert norm > 0.01
    gradient = run.network.bias.grad * min(1.0, clip_norm / norm.item())
    update_weights(run, 0.5, clip_norm)
    # The first step of AdamW: both moments are the gradient's, so the step is its sign but for epsilon.
    expected = before * (1 - 0.5 * 0.1) - 0.5 * gradient / (gradient.abs() + 1e-8)
    assert torch.allclose(run.network.bias, expected, atol=1e-3)
    assert run.network.bias.grad is None
    assert torch.allclose(run.average.module.bias, run.network.bias)  # the first average is the weights


def test_the_average_follows_slowly():
    run = opened()
    bias = []
    for _ in range(2):
        add_gradient(run, batch(2))
        update_weights(run, 0.5, 1.0)
        bias.append(run.network.bias.detach().clone())
    assert torch.allclose(run.average.module.bias, 0.75 * bias[0] + 0.25 * bias[1], atol=1e-6)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_glibc_takes_the_allocators_settings():
    assert keep_freed_memory()


def test_stopping_counts_the_epochs_since_the_first_best():
    def stops(dice, patience):
        return should_stop([Epoch(i + 1, 0.1, d, 0.01, 1.0, 1.0) for i, d in enumerate(dice)], patience)

    assert not stops([], 1)
    assert not stops([0.5, 0.4, 0.4, 0.4], 0)  # off
    assert stops([0.5, 0.4, 0.5], 2)  # equal is not risen
    assert not stops([0.5, 0.4, 0.6, 0.5], 2)
    assert stops([0.5, 0.6, 0.5, 0.59], 2)


class Images(torch.utils.data.Dataset):
    """Small images; an item follows from its number and the epoch, and is counted when it is read."""

    def __init__(self, count=6):
        self.count, self.read = count, 0

    def __len__(self):
        return self.count

    def __getitem__(self, item):
        self.read += 1
        epoch, i = item
        generator = torch.Generator().manual_seed(100 * epoch + i)
        return {"image": torch.randn(2, 8, 8, generator=generator)}


def trained(folder, dice, **more):
    """A short training whose validation gives these figures; the network, the history, and what was validated."""
    folder.mkdir(exist_ok=True)
    settings = SETTINGS.model_copy(update={"epochs": 6, "batch_size": 2, **more})
    torch.manual_seed(0)
    network, asked = nn.Conv2d(2, 4, 3), []

    def validate(network):
        asked.append(network.weight.detach().clone())
        return dice[len(asked) - 1]

    history = fit(
        network,
        Images(),
        loss_of=lambda network, batch: network(batch["image"]).square().mean(),
        validate=validate,
        settings=settings,
        folder=folder,
        accelerator=open_accelerator(settings),
    )
    return network, history, asked


def test_a_training_stops_when_its_dice_no_longer_rises_and_keeps_the_best_epoch(tmp_path, capsys):
    dice = [0.1, 0.5, 0.4, 0.5, 0.9, 0.9]
    network, history, asked = trained(tmp_path / "a", dice, early_stop=2)
    assert [e.dice_val for e in history] == dice[:4]
    assert torch.equal(network.weight, asked[1])
    stopped = "stopped after epoch 4 of 6: the val Dice has not risen for 2 epochs (--early-stop)"
    assert stopped in capsys.readouterr().err.splitlines()
    # Killed after that epoch, it does not go on, either.
    again, resumed, asked = trained(tmp_path / "a", [], early_stop=2)
    assert (resumed, asked) == (history, [])
    assert torch.equal(again.weight, network.weight)
    # Until it stopped it was the training that does not stop: the rate falls as if all epochs came.
    whole = trained(tmp_path / "b", dice)[1]
    assert [(e.loss, e.lr) for e in whole[:4]] == [(e.loss, e.lr) for e in history]
    assert len(whole) == 6


class Killed(Exception):
    """In the place of a kill: nothing is tidied up after it."""


def trained_until(folder, step, minutes, **more):
    """A training in which much is random, killed before this step; the network, the history and the images read."""
    folder.mkdir(exist_ok=True)
    settings = SETTINGS.model_copy(
        update={"epochs": 3, "batch_size": 2, "accumulate": 2, "checkpoint_minutes": minutes, **more}
    )
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Conv2d(4, 1, 3))
    images, calls = Images(14), []  # 7 batches, 4 steps an epoch

    def loss_of(network, batch):
        calls.append(1)
        if len(calls) == step:
            raise Killed
        return (network(batch["image"]) - torch.rand(2, 1, 4, 4)).square().mean()

    def fit_once():
        return fit(
            network,
            images,
            loss_of=loss_of,
            validate=lambda network: network[0].weight.detach().abs().mean().item(),
            settings=settings,
            folder=folder,
            accelerator=open_accelerator(settings),
        )

    history = None
    if step:
        with pytest.raises(Killed):
            fit_once()
    else:
        history = fit_once()
    return network, history, images.read


@pytest.mark.parametrize("step", [2, 4, 12, 14, 16])
def test_a_training_killed_in_the_middle_of_an_epoch_ends_with_the_same_weights(step, tmp_path, capsys):
    whole, history, _ = trained_until(tmp_path / "whole", 0, 0)
    steps = (tmp_path / "whole" / "steps.csv").read_text()
    trained_until(tmp_path / "killed", step, 1e-9)
    capsys.readouterr()
    again, resumed, read = trained_until(tmp_path / "killed", 0, 1e-9)
    after = again.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in whole.state_dict().items())
    assert [(e.loss, e.dice_val, e.lr) for e in resumed] == [(e.loss, e.dice_val, e.lr) for e in history]
    assert (tmp_path / "killed" / "steps.csv").read_text() == steps
    # A step has two batches; of the epoch that was begun, only whole steps count, and what they read is not read again.
    epoch, batches = divmod(step - 1, 7)
    done = 2 * (batches // 2)
    assert read == 2 * (3 * 7 - (7 * epoch + done))
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("resuming")]
    middle = f"resuming in epoch {epoch + 1}, after {done} batches"
    assert [line.partition(", best")[0] for line in lines] == (
        [middle] if done else [f"resuming after epoch {epoch}"] if epoch else []
    )


def test_without_minutes_a_checkpoint_is_made_after_epochs_only(tmp_path):
    trained_until(tmp_path / "killed", 6, 0)
    assert list((tmp_path / "killed").iterdir()) == []


def test_the_middle_of_an_epoch_belongs_to_its_processes(tmp_path):
    trained_until(tmp_path / "killed", 6, 1e-9)
    path = tmp_path / "killed" / "last.pt"
    checkpoint = torch.load(path, weights_only=True)
    torch.save({**checkpoint, "processes": 4}, path)
    with pytest.raises(InputError) as error:
        trained_until(tmp_path / "killed", 0, 1e-9)
    assert "must be resumed in the middle of an epoch by as many processes as began it, 4, got 1" in str(
        error.value
    )
