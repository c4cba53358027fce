"""The settings of `python -m benchmarks.distillation`; the command line is generated from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from segcore.command import Settings


class DistillationSettings(Settings):
    """Answers whether distillation pays: trains teachers and students, tests them by patient, and says how sure it is.

    Student alone, student distilled and teacher are trained on a share of the labels and on all of them, each with
    several seeds, and tested in FP32 and in INT8. --out may hold finished bundles already: what fits is taken up, so
    that the same command goes on after an interruption, and one with more seeds, shares or systems adds to it.
    """

    data: str
    """Dataset: a folder, an index.csv, or phantom:KIND."""
    out: Path
    """Folder for results.md, results.json, report.html and every bundle, as SHARE/SEED/NAME; may be there already."""
    systems: tuple[str, ...] = Field(min_length=1)
    """Teachers, as systems of teacher.train, each with an encoder where it takes one, such as
    unet:efficientnet-lite0,sam2-unet:litemedsam,lightunet."""
    weights: str | None = None
    """Of SAM 2.1's encoders, as for teacher.train. Other encoders take theirs from the installed package."""
    design: tuple[str, ...] = ("small",)
    """The student's design, as for student.distill; give several to compare them."""
    labelled_share: tuple[float, ...] = (0.1,)
    """Shares of the training patients whose masks are used, such as 0.1,0.3; the others' pictures are unlabelled."""
    all_labels: bool = True
    """Also train teacher, student alone and distilled student with all labels."""
    seeds: int = Field(3, ge=1)
    """Trainings of everything, by seed; with fewer than 3 nothing is claimed."""
    ensemble: bool = False
    """Distil from the mean of all seeds' teachers, not each student from its own seed's."""
    tta: Literal["auto", "none", "flips"] = "auto"
    """Mirrored views of the teacher, as for teacher.label."""
    int8: bool = True
    """Also export every student to OpenVINO in INT8 and test that."""
    grid: tuple[str, ...] = ()
    """Values among which the student alone chooses by validation Dice with the first seed, as in
    `--grid lr=1e-3,3e-3`; the distilled student takes --lr as it is."""
    own_settings: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Through --config alone: settings of `teacher` (or one of --systems), `label`, `student`, `alone` or
    `distilled`, as in `own-settings: {teacher: {weight-decay: 0.01}}`."""

    size: int = Field(256, ge=32, multiple_of=32)
    """Height and width of every network's input, in pixels."""
    window: str | None = None
    """Values from black to white, as for teacher.train."""
    augment: str | None = None
    """Augmentation of every training, as for student.distill. Default: the trainings' own."""
    teacher_epochs: int | None = Field(None, ge=1)
    """Epochs of the teachers; with --teacher-steps, how often they are validated. Default, as of all that is not given:
    teacher.train's own."""
    teacher_steps: int | None = Field(None, ge=1)
    """Steps of the teachers, whatever the number of pictures. Without it a training on few labels passes over them more
    often an epoch, so that all take about as many."""
    teacher_lr: float | None = Field(None, gt=0)
    """Highest learning rate of the teachers."""
    teacher_batch_size: int | None = Field(None, ge=1)
    """Images a step of the teachers."""
    epochs: int | None = Field(None, ge=1)
    """Epochs of the students; with --steps, how often they are validated. Default: student.distill's own. Without
    --steps a student alone passes over few labels more often an epoch, so that all take about as many steps."""
    steps: int | None = Field(None, ge=1)
    """Steps of the students, alone and distilled, whatever the number of pictures."""
    lr: float | None = Field(None, gt=0)
    """Highest learning rate of the students."""
    batch_size: int | None = Field(None, ge=1)
    """Images a step of the students."""
    limit: int | None = Field(None, ge=1)
    """Use at most this many training images (and a third as many for validation) in every training."""

    split_seed: int = 0
    """Of the 60/20/20 split by patient, where the data does not give one."""
    test_limit: int | None = Field(None, ge=1)
    """Test on at most this many images."""
    small_share: float | None = Field(None, gt=0, lt=1)
    """Share of the picture up to which what is marked in a test image counts as small. Default: the median."""

    parallel: int | None = Field(None, ge=1)
    """Stages at once. Default: one a GPU, each on its own; one on a CPU. On a CPU they share the threads."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train; tests run on the CPU."""
    workers: int = Field(0, ge=0)
    """Loader processes of each training."""

    @field_validator("labelled_share")
    @classmethod
    def _shares_are_some(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if not value or not all(0 < share <= 1 for share in value):
            raise ValueError("shares above 0 and up to 1")
        return tuple(sorted(set(value)))

    @property
    def shares(self) -> tuple[float, ...]:
        """The shares of the labels, the smallest first, all of them last."""
        return tuple(sorted({*self.labelled_share, *((1.0,) if self.all_labels else ())}))
