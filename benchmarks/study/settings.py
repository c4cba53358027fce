"""The settings of `python -m benchmarks.study`; the command line is generated from them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from segcore.command import Settings
from segcore.errors import InputError

EQUAL = frozenset(
    {
        "data", "out", "overwrite", "system", "size", "window", "epochs", "batch_size",
        "accumulate", "limit", "labelled_share", "passes", "seed", "split_seed", "fold", "device", "workers",
    }
)  # fmt: skip
"""Flags of teacher.train that are the same for every system, or that the study sets itself."""
_PLAN = {"systems", "folds", "repeats", "seeds", "labelled_share", "rank", "tune", "grid", "reference"}
_MACHINE = {"out", "overwrite", "parallel", "workers", "device", "drop_weights"}


class StudySettings(Settings):
    """Trains and tests teachers on equal terms: the same data, splits and steps; tells how sure the differences are."""

    data: str
    """Dataset: a folder, an index.csv, or phantom:KIND."""
    out: Path
    """New folder for report.html, study.json, study.md and every run; OUT.partial while it is not finished."""
    systems: tuple[str, ...] = ()
    """Systems of teacher.train, such as unet,sam2-unet,sam2-lora, or all. Default: all that fit the data; without
    --weights those that need none."""
    weights: str | None = None
    """SAM 2.1's weights, as for teacher.train: a file, a hub name, or none (then own-settings must be
    `{all: {tune: all}}`)."""
    encoder: Literal[
        "tiny",
        "small",
        "base+",
        "large",
        "litemedsam",
        "efficientnet-lite0",
        "efficientnet-lite1",
        "efficientnet-lite2",
    ] = "tiny"
    """The encoder of every system that has one; another for a single system, or one for unet, by own-settings:
    `{unet: {encoder: efficientnet-lite0, weights: package}}`."""

    folds: int = Field(1, ge=1)
    """Folds of a cross-validation by patient, at least 3; 1 is the usual 60/20/20 split alone."""
    repeats: int = Field(1, ge=1)
    """Random splits (or, with --folds, cross-validations), each with a split seed of its own."""
    seeds: int = Field(3, ge=1)
    """Trainings of each system on each split, by seed; fewer than 3 say nothing about a training's luck."""
    also_test: str | None = None
    """Other data with the same classes: every labelled image of it is a test image, too."""
    reference: str | None = None
    """The system that the others are compared with. Default: the best control (unet, lightunet), else the first."""

    labelled_share: tuple[float, ...] = (1.0,)
    """Shares of the training patients whose masks are used, such as 0.05,0.1,0.5,1; the largest is compared. A smaller
    one is passed over more often an epoch, so that all take about as many steps."""
    rank: tuple[int, ...] = ()
    """Ranks to try of systems that LoRA, DoRA or rank-stabilised LoRA tunes, such as 1,4,8."""
    tune: tuple[str, ...] = ()
    """Tunings of the encoder to try in the place of each system's own, such as lora,dora,ia3,adapter,bitfit."""
    grid: tuple[str, ...] = ()
    """Values to choose from, as in `--grid lr=1e-4,1e-3 --grid weight-decay=0,1e-4`: each system takes, split by split,
    what is best on that split's validation patients with the first seed."""
    own_settings: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Through --config alone: settings of one system, or of `all`, as in `own-settings: {sam2-lora: {lr: 1e-4}}`."""

    size: int = Field(256, ge=32, multiple_of=32)
    """Height and width of every network's input, in pixels."""
    window: str | None = None
    """Values from black to white, as for teacher.train."""
    epochs: int = Field(50, ge=1)
    """Passes over the training images of every training: with the batch size, the same number of steps for all."""
    batch_size: int = Field(8, ge=1)
    """Images a step."""
    accumulate: int = Field(1, ge=1)
    """Batches summed before a step."""
    lr: float = Field(1e-3, gt=0)
    """Highest learning rate; equal terms need not mean equal rates: see --grid and own-settings."""
    weight_decay: float = Field(1e-4, ge=0)
    """AdamW's weight decay."""
    amp: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Arithmetic of the trainings."""
    checkpointing: bool = False
    """Recompute a SAM 2 encoder's blocks in the backward pass: less memory, a third more time."""
    limit: int | None = Field(None, ge=1)
    """Use at most this many training images (and a third as many for validation) in every training."""
    test_limit: int | None = Field(None, ge=1)
    """Test on at most this many images of each split, and of --also-test; a scan stays whole, one at least."""

    parallel: int | None = Field(None, ge=1)
    """Trainings at once. Default: one a GPU, each on its own; one on a CPU. On a CPU they share the threads."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train and test."""
    workers: int = Field(0, ge=0)
    """Loader processes of each training."""
    drop_weights: bool = False
    """Remove a run's weights once it is tested: figures and pictures stay, its bundle cannot be opened any more."""
    overwrite: bool = False
    """Replace a finished --out."""

    @field_validator("folds")
    @classmethod
    def _folds_are_some(cls, value: int) -> int:
        if value == 2:
            raise ValueError("1 or at least 3 (one fold tests, one validates, the others train)")
        return value

    @field_validator("labelled_share")
    @classmethod
    def _shares_are_some(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if not value or not all(0 < share <= 1 for share in value):
            raise ValueError("shares above 0 and up to 1")
        return tuple(sorted(set(value)))

    @field_validator("rank")
    @classmethod
    def _ranks_are_some(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if not all(rank >= 1 for rank in value):
            raise ValueError("ranks of at least 1")
        return tuple(sorted(set(value)))

    def common(self) -> dict[str, Any]:
        """The flags of teacher.train that all trainings share."""
        names = (
            "data",
            "size",
            "window",
            "epochs",
            "batch_size",
            "accumulate",
            "lr",
            "weight_decay",
            "amp",
            "limit",
        )
        return {name: getattr(self, name) for name in (*names, "workers", "device")}

    def recipe(self) -> dict[str, Any]:
        """What a finished run depends on beside its name. Not the plan: runs may be added to a study that goes on."""
        return self.model_dump(mode="json", exclude=_PLAN | _MACHINE)


def parse_grid(words: tuple[str, ...]) -> dict[str, tuple[float, ...]]:
    """`lr=1e-4,1e-3` → {"lr": (1e-4, 1e-3)}. The parser may have split a word at its commas already.

    Raises:
        InputError: not NAME=NUMBER[,NUMBER…].
    """
    found: dict[str, list[float]] = {}
    name = ""
    for word in (part for one in words for part in one.split(",")):
        given, equals, text = word.rpartition("=")
        if equals:
            name = given.strip().removeprefix("--").replace("-", "_")
        try:
            if not name:
                raise ValueError(word)
            found.setdefault(name, []).append(float(text))
        except ValueError:
            raise InputError(f"--grid {word}: must be NAME=NUMBER,NUMBER…, such as lr=1e-4,1e-3") from None
    return {key: tuple(dict.fromkeys(values)) for key, values in found.items()}


def words_of(flags: Mapping[str, Any]) -> list[str]:
    """Settings as a command line has them."""
    words = []
    for name, value in flags.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        elif value is not None:
            words.append(f"--{flag}={value}")
    return words
