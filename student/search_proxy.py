"""Short trainings of a few candidates, ranked by validation Dice: what capacity alone cannot tell."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path

from segcore.bundle import open_bundle
from segcore.command import log
from segcore.dataset import open_dataset
from segcore.errors import InputError
from student.candidates import Candidate
from student.distill import DistillSettings
from student.distill import main as distill


def check_data(data: str, *, channels: int, classes: int) -> None:
    """Checks that the search's model is one for this data, before anything is measured.

    Raises:
        InputError: the data has other channels or classes, or cannot be read.
    """
    dataset = open_dataset(data)
    if len(dataset.classes) != classes:
        raise InputError(
            f"--classes {classes}: must be {len(dataset.classes)} for --data {data} "
            f"({', '.join(dataset.classes)}), got {classes}; add --classes {len(dataset.classes)}"
        )
    found = 3 if dataset.split("train", limit=1)[0].image().ndim == 3 else 1
    if found != channels:
        raise InputError(
            f"--channels {channels}: must be {found} for --data {data}, got {channels}; add --channels {found}"
        )


def train_proxies(
    candidates: Sequence[Candidate],
    folder: Path,
    *,
    data: str,
    size_px: int,
    epochs: int,
    images: int | None,
    seed: int,
) -> dict[str, float]:
    """Trains each candidate briefly; what was trained before, or half trained, is taken up.

    Args:
        candidates: whom to train.
        folder: each becomes a bundle of its name in it.
        data: as every `--data`.
        size_px: of the input.
        epochs: of each training.
        images: train on at most so many; None for all.
        seed: of each training.

    Returns:
        Validation Dice by name.
    """
    dice = {}
    for i, candidate in enumerate(candidates):
        out = folder / candidate.name
        if not out.exists():
            log(f"proxy training {i + 1} of {len(candidates)}: {candidate.name}")
            settings = DistillSettings.model_validate(
                {
                    "data": data,
                    "out": out,
                    "size": size_px,
                    "epochs": epochs,
                    "limit": images,
                    "seed": seed,
                    "design": candidate.design.model_dump(mode="json"),
                }
            )
            with redirect_stdout(sys.stderr):  # its result line is not this command's
                distill(settings)
        dice[candidate.name] = open_bundle(out).manifest.metric("dice_mean", "val") or 0.0
    return dice
