"""The one training loop: AdamW, cosine, clipping, mixed precision, EMA, best epoch by validation Dice, exact resume.

It runs under Hugging Face Accelerate (`accelerate launch -m teacher.train …`) and in one process alike. All that is
random in an epoch follows from (seed, epoch), and a checkpoint in the middle of one holds what torch would draw next,
so a run that was killed ends with the weights of one that was not.
"""

from __future__ import annotations

import csv
import ctypes
import io
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from pydantic import BaseModel, ConfigDict, Json, TypeAdapter
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader

from segcore.command import Progress, log
from segcore.errors import InputError, reading
from segcore.learn.augment import Sample
from segcore.learn.loader import TrainingSet, build_loader, to_device
from segcore.learn.network import save_checkpoint, save_weights
from segcore.learn.settings import TrainSettings
from segcore.learn.tracking import log_figures, log_picture, start_tracking
from segcore.outfolder import write_text
from segcore.words import plural

HISTORY, STEPS = "history.csv", "steps.csv"
_LAST, _BEST = "last.pt", "best.safetensors"
CHECKPOINT = (_LAST, _BEST)
"""What only going on needs."""
_PICTURES = 10  # times that validation pictures are noted for a tracker
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_LARGEST_INT = 2**31 - 1
"""For `keep_freed_memory`. Source: mallopt(3) and glibc's malloc.h."""


@dataclass(frozen=True)
class Epoch:
    """One line of `history.csv`."""

    epoch: int
    loss: float
    dice_val: float
    lr: float
    seconds: float
    images_per_second: float


@dataclass(frozen=True)
class Step:
    """One line of `steps.csv`: a step of the optimiser.

    Attributes:
        epoch: from 1.
        step: from 1, over all epochs.
        loss: mean over the step's batches and processes, before the step.
        lr: learning rate of the step.
    """

    epoch: int
    step: int
    loss: float
    lr: float


@dataclass(frozen=True)
class EpochPart:
    """What was done of an epoch that is not over; nothing by default.

    Attributes:
        batches: done, in whole steps.
        losses: of each step.
        lrs: of each step.
        seconds: it took.
        random: states of torch's generators, by device.
    """

    batches: int = 0
    losses: tuple[float, ...] = ()
    lrs: tuple[float, ...] = ()
    seconds: float = 0.0
    random: dict[str, Tensor] | None = None


class _Checkpoint(BaseModel):
    """What `_save_run` writes; in older ones there was no part and no number of processes."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    network: dict[str, Any]
    optimizer: dict[str, Any]
    average: dict[str, Any] | None = None
    history: Json[list[Epoch]]
    part: EpochPart | None = None
    processes: int = 1


_STEPS = TypeAdapter(list[Step])


def open_accelerator(settings: TrainSettings) -> Accelerator:
    """Device and precision as asked for.

    Raises:
        InputError: cuda was asked for and is not there, or fp16 without it.
    """
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: must have a CUDA device, found none; use --device auto")
    cpu = settings.device == "cpu" or not torch.cuda.is_available()
    amp = settings.amp
    if amp == "auto":
        amp = "bf16" if not cpu and torch.cuda.is_bf16_supported() else "fp32"
    if amp == "fp16" and cpu:
        raise InputError("--amp fp16: must be fp32 or bf16 on a CPU, got fp16; leave --amp away")
    precision = {"fp32": "no"}.get(amp, amp)
    return Accelerator(cpu=cpu, mixed_precision=precision)


def fit(
    network: nn.Module,
    data: TrainingSet,
    *,
    loss_of: Callable[[nn.Module, Sample], Tensor],
    validate: Callable[[nn.Module], float],
    settings: TrainSettings,
    folder: Path,
    accelerator: Accelerator,
    labelled_part: float | None = None,
    draw: Callable[[nn.Module], np.ndarray] | None = None,
) -> list[Epoch]:
    """Trains `network` in place and leaves the weights of its best epoch in it.

    Args:
        network: every parameter with `requires_grad` is trained.
        data: the training images.
        loss_of: (network, batch) → scalar.
        validate: network in eval mode → mean Dice of the validation cases; higher is better.
        settings: see `TrainSettings`.
        folder: the stage's OUT.partial; holds the checkpoint while it runs, `history.csv` and `steps.csv`.
        accelerator: from `open_accelerator`.
        labelled_part: share of each batch that has masks, where some images have none; None leaves it to chance.
        draw: network in eval mode → a picture H×W×3 uint8 of some validation cases, for `--log-with`.

    Returns:
        The epochs, fewer than were asked for where `--early-stop` ended it.
    """
    run = open_run(network, loss_of, settings, accelerator)
    loader, order = build_loader(
        data,
        batch_size=settings.batch_size,
        workers=settings.workers,
        seed=settings.seed,
        rank=accelerator.process_index,
        processes=accelerator.num_processes,
        passes=settings.passes,
        batches=settings.batches_an_epoch,
        labelled_part=labelled_part,
    )
    history, part = _resume_run(folder, run)
    # The checkpoint says how far the run came: what was noted of an epoch after it is done again.
    steps = [s for s in _read_steps(folder) if s.epoch <= len(history)]
    a_epoch = math.ceil(len(loader) / settings.accumulate)
    start_tracking(accelerator, settings, first_step=len(history) * a_epoch + _noted_steps(run, part) + 1)
    for epoch in range(len(history), settings.epochs):
        if should_stop(history, settings.early_stop):
            break
        started = time.perf_counter() - part.seconds
        order.epoch, order.skip = epoch, part.batches * settings.batch_size
        save = partial(_save_run, folder, run, history)
        made = _train_epoch(run, loader, epoch, settings, begun=part, save=save)
        loss, rate = sum(s.loss for s in made) / len(made), made[-1].lr
        steps += made
        # With EMA the average is validated and kept; the network itself is only where the next step starts.
        kept = network if run.average is None else run.average.module
        own = validate(kept.eval()) if accelerator.is_main_process else 0.0
        # The first process validates and tells the others, so that all of them stop together.
        dice = float(
            accelerator.reduce(torch.tensor(own, dtype=torch.float64, device=accelerator.device), "sum")
        )
        seconds = time.perf_counter() - started
        speed = len(loader) * settings.batch_size * accelerator.num_processes / seconds
        history.append(Epoch(epoch + 1, loss, dice, rate, seconds, speed))
        part = EpochPart()
        stops = should_stop(history, settings.early_stop)
        if accelerator.is_main_process:
            # Of epochs that are equally good the first stays.
            best = all(dice > e.dice_val for e in history[:-1])
            star = "*" if best else " "
            log(
                f"epoch {epoch + 1:3d}/{settings.epochs}  loss {loss:.4f}  val Dice {dice:.4f} {star} {seconds:.1f} s"
            )
            # Noted first: what a kill leaves behind the checkpoint is noted anew, and readers keep the later.
            figures = {"epoch/dice_val": dice, "epoch/loss": loss, "epoch/images_per_second": speed}
            number = len(history) * a_epoch  # of the epoch's last step
            log_figures(accelerator, [(number, figures)])
            if draw and (stops or (epoch + 1) % max(1, settings.epochs // _PICTURES) == 0):
                _note_picture(run, draw, kept, settings, number)
            _write_rows(folder / STEPS, steps)
            _save_epoch(folder, run, history, best=kept if best else None)
            if stops and len(history) < settings.epochs:
                log(
                    f"stopped after epoch {len(history)} of {settings.epochs}: the val Dice has not risen for "
                    f"{plural(settings.early_stop, 'epoch')} (--early-stop)"
                )
        accelerator.wait_for_everyone()
    # Also in processes that did not validate: all end with the same weights.
    with _reading_own(folder, _BEST):
        network.load_state_dict(load_file(folder / _BEST))
    return history


def should_stop(history: Sequence[Epoch], patience: int) -> bool:
    """Whether the validation Dice has not risen above its best for `patience` epochs; never for 0."""
    if not patience or not history:
        return False
    dice = [e.dice_val for e in history]
    # The first of equals is the best: what only equals it has not risen.
    return len(dice) - 1 - dice.index(max(dice)) >= patience


@dataclass(frozen=True)
class Run:
    """What a training changes: `wrapped` is `network` as Accelerate distributes it."""

    network: nn.Module
    wrapped: nn.Module
    optimizer: torch.optim.Optimizer
    average: AveragedModel | None
    loss_of: Callable[[nn.Module, Sample], Tensor]
    accelerator: Accelerator


def open_run(
    network: nn.Module,
    loss_of: Callable[[nn.Module, Sample], Tensor],
    settings: TrainSettings,
    accelerator: Accelerator,
) -> Run:
    """Puts a network on the device, channels-last, with its optimiser; see `fit`."""
    keep_freed_memory()
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    trained = [p for p in network.parameters() if p.requires_grad]
    # fused: one pass over each tensor; on a CPU the default takes many times as long for small tensors.
    optimizer = torch.optim.AdamW(trained, lr=settings.lr, weight_decay=settings.weight_decay, fused=True)
    wrapped, optimizer = accelerator.prepare(network, optimizer)
    # Accelerate puts its mixed precision into the network's own forward, and copies and sealed forms would keep it;
    # here steps alone are mixed, in `add_gradient`, and what is validated computes as what is deployed.
    accelerator.unwrap_model(wrapped, keep_fp32_wrapper=False)
    average = _moving_average(network, settings.ema) if settings.ema else None
    return Run(network, wrapped, optimizer, average, loss_of, accelerator)


def add_gradient(run: Run, batch: Sample, *, accumulate: int = 1, last: bool = True) -> Tensor:
    """Forward and backward of one batch; returns its loss.

    Args:
        run: from `open_run`.
        batch: from a loader of `build_loader`.
        accumulate: batches a step, of which this is one.
        last: the step follows: processes must agree on the gradient now.
    """
    accelerator = run.accelerator
    with nullcontext() if last else accelerator.no_sync(run.wrapped):
        with accelerator.autocast():
            loss = run.loss_of(run.wrapped, to_device(batch, accelerator.device))
        accelerator.backward(loss / accumulate)
    return loss.detach()


def update_weights(run: Run, rate: float, clip_norm: float) -> None:
    """One step of the optimiser, and of the average, with the gradient so far."""
    # Not by a scheduler: the rate follows from the step's number, so that there is no state of it to resume.
    for group in run.optimizer.param_groups:
        group["lr"] = rate
    run.accelerator.clip_grad_norm_([p for p in run.network.parameters() if p.requires_grad], clip_norm)
    run.optimizer.step()
    run.optimizer.zero_grad()
    if run.average is not None:
        run.average.update_parameters(run.network)


def learning_rate(step: int, *, steps: int, warmup: int, highest: float) -> float:
    """Linear from 0 over `warmup` steps, then along a half cosine to 1 % of `highest` at the last step."""
    if step < warmup:
        return highest * (step + 1) / warmup
    share = (step - warmup) / max(1, steps - warmup - 1)
    return highest * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, share))))


def keep_freed_memory() -> bool:
    """Tells glibc to keep large blocks that are freed, for the next step takes as much; returns whether it could.

    By default it maps each large tensor anew, and the kernel clears its pages when they are first written: a fifth
    of the time of a small student's step. A process that trains has no better use for the memory.
    """
    if sys.platform != "linux":
        return False
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if set_option is None:
        return False
    return bool(set_option(_M_MMAP_MAX, 0)) and bool(set_option(_M_TRIM_THRESHOLD, _LARGEST_INT))


def _train_epoch(
    run: Run,
    loader: DataLoader[Sample],
    epoch: int,
    settings: TrainSettings,
    *,
    begun: EpochPart,
    save: Callable[[EpochPart], None],
) -> list[Step]:
    """One pass over the data, or what `begun` left of it, which the loader's order skips; `save` makes a checkpoint."""
    steps = math.ceil(len(loader) / settings.accumulate)
    warmup = round(settings.warmup_epochs * steps)
    accelerator, first = run.accelerator, 1 + epoch * steps
    batches = iter(loader)  # before the seed, because making it draws a number, but for workers that live on
    # What the network and the loss draw (prompts, for one) follows from seed and epoch, as the data's order does.
    torch.manual_seed(settings.seed * 100_003 + epoch)
    if begun.random:
        _set_random_states(begun.random)
    run.wrapped.train()
    losses = [torch.tensor(loss, device=accelerator.device) for loss in begun.losses]
    rates, parts = list(begun.lrs), list[Tensor]()
    noted = _noted_steps(run, begun)
    began = saved = time.perf_counter()
    bar = Progress(
        batches,
        f"epoch {epoch + 1}/{settings.epochs}",
        unit="batch",
        total=len(loader),
        done=begun.batches,
        leave=False,
    )
    for i, batch in enumerate(bar, start=begun.batches):
        last = (i + 1) % settings.accumulate == 0 or i + 1 == len(loader)
        parts.append(add_gradient(run, batch, accumulate=settings.accumulate, last=last))
        if not last:
            continue
        rate = learning_rate(
            epoch * steps + i // settings.accumulate,
            steps=steps * settings.epochs,
            warmup=warmup,
            highest=settings.lr,
        )
        update_weights(run, rate, settings.clip_norm)
        # A tensor until it is needed: reading the number now would wait for the device in every step.
        losses.append(torch.stack(parts).mean())
        rates.append(rate)
        parts.clear()
        now = time.perf_counter()
        due = settings.checkpoint_minutes and now - saved >= 60 * settings.checkpoint_minutes
        if due and accelerator.is_main_process and i + 1 < len(loader):
            saved = now
            so_far = torch.stack(losses).tolist()
            seconds = begun.seconds + now - began
            done = EpochPart(i + 1, tuple(so_far), tuple(rates), seconds, _random_states())
            _note_steps(run, first, so_far[: _noted_steps(run, done)], rates, noted)
            noted = _noted_steps(run, done)
            save(done)
    mean = accelerator.reduce(torch.stack(losses), "mean").tolist()  # over the processes
    if not all(map(math.isfinite, mean)):
        wrong = next(loss for loss in mean if not math.isfinite(loss))
        raise InputError(
            f"--lr {settings.lr:g}: must keep the loss finite, got {wrong} in epoch {epoch + 1}; use a lower --lr"
        )
    _note_steps(run, first, mean, rates, noted)
    return [Step(epoch + 1, first + i, mean[i], rates[i]) for i in range(len(mean))]


def _noted_steps(run: Run, part: EpochPart) -> int:
    """How many of a part's steps trackers know: of several processes none, for their mean comes after the epoch."""
    return len(part.losses) if run.accelerator.num_processes == 1 else 0


def _note_steps(run: Run, first: int, losses: Sequence[float], rates: Sequence[float], noted: int) -> None:
    """Notes those of an epoch's steps that are not noted yet; `first` is the number of its first."""
    figures = [(first + i, {"loss": losses[i], "lr": rates[i]}) for i in range(noted, len(losses))]
    log_figures(run.accelerator, figures)


def _note_picture(
    run: Run, draw: Callable[[nn.Module], np.ndarray], kept: nn.Module, settings: TrainSettings, step: int
) -> None:
    if run.accelerator.trackers:
        log_picture(run.accelerator, settings, "validation", draw(kept), step=step)


def _random_states() -> dict[str, Tensor]:
    """Of this process; others of one training draw alike, as they are seeded alike."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def _set_random_states(states: dict[str, Tensor]) -> None:
    torch.set_rng_state(states["cpu"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])


def _moving_average(network: nn.Module, decay: float) -> AveragedModel:
    average = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
    # Buffers too: a batch norm's statistics belong to the weights that made them.
    return AveragedModel(network, multi_avg_fn=average, use_buffers=True)


def _save_epoch(folder: Path, run: Run, history: list[Epoch], *, best: nn.Module | None) -> None:
    """The checkpoint last: a kill before it repeats this epoch, which makes the others again."""
    if best is not None:
        save_weights(folder / _BEST, best)
    _write_rows(folder / HISTORY, history)
    _save_run(folder, run, history, EpochPart())


def _save_run(folder: Path, run: Run, history: Sequence[Epoch], part: EpochPart) -> None:
    """Writes the checkpoint, the old one or the new one at any time."""
    checkpoint: dict[str, Any] = {
        "network": run.network.state_dict(),
        "optimizer": run.optimizer.state_dict(),
        "average": run.average.state_dict() if run.average is not None else None,
        "history": json.dumps([asdict(e) for e in history]),
        "part": vars(part) if part.batches else None,
        "processes": run.accelerator.num_processes,
    }
    save_checkpoint(folder / _LAST, checkpoint)


def _write_rows(path: Path, rows: Sequence[Epoch] | Sequence[Step]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(asdict(rows[0])))
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    write_text(path, text.getvalue())


def _read_steps(folder: Path) -> list[Step]:
    if not (folder / STEPS).is_file():
        return []
    with _reading_own(folder, STEPS), (folder / STEPS).open(newline="", encoding="utf-8") as file:
        return _STEPS.validate_python(list(csv.DictReader(file)))


def _reading_own(folder: Path, name: str) -> AbstractContextManager[None]:
    """Around what a training reads of what it wrote itself, and a full disk or a kill may have cut off."""
    return reading(
        f"--out {folder / name}", "what this training wrote", remedy="remove the folder to begin anew"
    )


def _resume_run(folder: Path, run: Run) -> tuple[list[Epoch], EpochPart]:
    """The epochs that are over, and what was done of the next one.

    Raises:
        InputError: the checkpoint is damaged, or there are more or fewer processes than in the epoch that was begun.
    """
    if not (folder / _LAST).is_file():
        return [], EpochPart()
    with _reading_own(folder, _LAST):
        loaded = torch.load(folder / _LAST, weights_only=True, map_location="cpu")
        checkpoint = _Checkpoint.model_validate(loaded)
    history, part = checkpoint.history, checkpoint.part or EpochPart()
    if part.batches and checkpoint.processes != run.accelerator.num_processes:
        raise InputError(
            f"--out {folder}: must be resumed in the middle of an epoch by as many processes as began it, "
            f"{checkpoint.processes}, got {run.accelerator.num_processes}; use as many, or remove the folder"
        )
    with _reading_own(folder, _LAST):
        run.network.load_state_dict(checkpoint.network)
        run.optimizer.load_state_dict(checkpoint.optimizer)
        if run.average is not None:
            run.average.load_state_dict(checkpoint.average or {})
    where = f"after epoch {len(history)}"
    if part.batches:
        where = f"in epoch {len(history) + 1}, after {plural(part.batches, 'batch')}"
    best = f", best val Dice so far {max(e.dice_val for e in history):.4f}" if history else ""
    log(f"resuming {where}{best}")
    return history, part
