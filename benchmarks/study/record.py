"""What a study's files hold: a line of cases.jsonl, and study.json."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from benchmarks.children import TrainingMemory
from benchmarks.measuring import Part
from segcore.host import Made
from segcore.stats import Estimate


class CaseScore(Part):
    """One case under one run and protocol; means over the foreground classes, Dice and IoU 0–1.

    Attributes:
        run: its name in the study.
        protocol: automatic, or how the truth was used to prompt.
        data: what the case is of: the study's data, or --also-test.
    """

    run: str
    protocol: str
    data: str
    case: str
    patient: str
    dice: float
    iou: float
    hd95: float
    hd95_unit: Literal["px", "mm"]
    dice_by_class: dict[str, float]


class RunRecord(Part):
    """One training.

    Attributes:
        values: what the grid chose, by flag.
        trained_parameters: what was trained; parameters: of the plain form.
        seconds_epoch: median over the epochs (the first left out), validation with it; None where nothing is trained.
        train_cases: that it was trained on; about, where --labelled-share hid patients of several.
        test_cases: of the study's data, that it was tested on.
        dice_by_protocol: mean over the test cases of the study's data.
        commit: of sam2edge, that trained it.
    """

    name: str
    arm: str
    fold: str
    split_seed: int
    seed: int
    values: dict[str, float]
    title: str
    trained_parameters: int
    parameters: int
    macs: int
    dice_val: float
    seconds_epoch: float | None
    images_s: float | None
    memory: TrainingMemory | None
    train_cases: int
    test_cases: int
    dice_by_protocol: dict[str, float]
    commit: str = ""


class Spread(Part):
    """A score over runs and over patients.

    Attributes:
        mean: over the runs' means.
        sd: standard deviation over the runs (n − 1); None for one run.
        sd_seeds: the part of it that is the seed's: over the seeds of one split; None for one seed.
        low: lower end of the 95 % interval of the mean over patients, each case's scores averaged over runs first.
        high: its upper end.
        by_run: the runs' means.
    """

    mean: float
    sd: float | None
    sd_seeds: float | None = None
    low: float | None
    high: float | None
    by_run: tuple[float, ...]


class PairedComparison(Estimate):
    """Mean paired difference of Dice to a reference, with its interval over patients.

    Attributes:
        p: two-sided, of the sign-flip test over patients.
        p_holm: the same, corrected for all comparisons of the table; None outside it.
        p_splits: two-sided, of the corrected resampled t-test over splits; None below three splits.
        flips: permutations behind `p`.
        patients: with both.
        runs: pairs of runs of the same split and seed.
        above: in how many of them the mean Dice was higher than the reference's.
    """

    reference: str
    p: float | None
    p_holm: float | None = None
    p_splits: float | None = None
    flips: int
    patients: int
    runs: int
    above: int


class RankRange(Part):
    """A system's place by Dice among the systems, 1 the best, and where resampled patients put it, 95 %."""

    place: int
    low: int
    high: int


class ArmRow(Part):
    """An arm under one protocol on one data set.

    Attributes:
        system: of teacher.train; tune: of its encoder; rank: of LoRA; share: of the labels.
        kind: main, tune, rank or share: which comparison it belongs to.
        own_tuning: tuning and rank are the system's own.
        told: the prompts were taken from the truth: never ranked among the others.
        versus: main: to the reference; tune and rank: to the system's own arm; None for those themselves.
    """

    label: str
    system: str
    tune: str
    rank: int | None
    share: float
    kind: Literal["main", "tune", "rank", "share"]
    protocol: str
    told: bool
    own_tuning: bool
    data: str
    title: str
    runs: int
    missing_runs: int
    cases: int
    patients: int
    dice: Spread
    iou: Spread
    hd95: Spread
    hd95_unit: Literal["px", "mm"]
    dice_by_class: dict[str, float]
    trained_parameters: int
    parameters: int
    macs: int
    peak_memory_mib: float | None
    peak_gpu_memory_mib: float | None
    seconds_epoch: float | None
    images_s: float | None
    versus: PairedComparison | None = None
    place: RankRange | None = None


class DiceDrop(Part):
    """Dice on the study's test patients minus Dice on the other data's; the patients differ, so it is not paired."""

    label: str
    own: float
    other: float
    drop: Estimate


class GridCell(Part):
    """Mean validation Dice of one choice over the splits, and in how many it was chosen."""

    system: str
    values: dict[str, float]
    dice_val: float
    chosen: int
    splits: int


class Failure(Part):
    """A run that failed, and the last line it said."""

    run: str
    reason: str


class StudyRecord(Part):
    """All that study.json holds.

    Attributes:
        limit: most training images of a training; None for all.
        own_settings: of single systems, or of `all`, that the user gave.
        reference: label of the arm that the main table compares with.
        rows: main arms by Dice, then the others.
        doubts: what may and may not be concluded, in words.
    """

    data: str
    data_sha256: str
    also_test: str | None
    classes: tuple[str, ...]
    size_px: int
    epochs: int
    batch_size: int
    limit: int | None = None
    own_settings: dict[str, dict[str, Any]] = Field(default_factory=dict)
    splits: int
    folds: int
    seeds: int
    reference: str
    rows: tuple[ArmRow, ...]
    drops: tuple[DiceDrop, ...]
    grid: tuple[GridCell, ...]
    runs: tuple[RunRecord, ...]
    failures: tuple[Failure, ...]
    skipped: tuple[str, ...]
    headline: str
    doubts: tuple[str, ...]
    made: Made

    def of(self, *kinds: str, told: bool = False) -> list[ArmRow]:
        """The rows of some kinds on the study's own data."""
        return [r for r in self.rows if r.kind in kinds and r.told == told and r.data == self.data]
