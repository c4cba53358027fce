"""What the comparison's files hold: the scores of a stage, and results.json."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from benchmarks.children import TrainingMemory
from benchmarks.measuring import Part
from segcore.host import Made
from segcore.stats import Estimate

Precision = Literal["fp32", "int8"]


class CaseScore(Part):
    """One test image under one bundle; means over the foreground classes, all 0–1.

    Attributes:
        true_share: of the picture that is marked in truth, all classes together.
    """

    case: str
    patient: str
    dice: float
    iou: float
    precision: float
    recall: float
    true_share: float


class ScoreFile(Part):
    """A bundle's scores; they hold as long as bundle, data and limit are the same."""

    bundle_sha256: str
    engine: str
    data_sha256: str
    test_limit: int | None
    cases: tuple[CaseScore, ...]


class Usage(TrainingMemory):
    """What a stage took; of one that was resumed its last part."""

    seconds: float


class Figure(Estimate):
    """A score: its mean over seeds and images, the 95 % interval over patients and seeds, and each seed's mean."""

    by_seed: tuple[float, ...]


class RunRecord(Part):
    """One trained network.

    Attributes:
        name: of its folders, "share0.1-seed0-alone-small".
        arm: label of its row.
        values: what the grid chose.
        dice_val: of the manifest.
        dice: mean over the test images.
        int8_dice: the same of its INT8 export.
        seconds: of its epochs, validation with them; None where nothing is told.
        curve: validation Dice after each epoch.
    """

    name: str
    arm: str
    share: float
    seed: int
    values: dict[str, float]
    title: str
    dice_val: float
    dice: float
    int8_dice: float | None
    seconds: float | None
    curve: tuple[float, ...] = ()
    commit: str


class Row(Part):
    """An arm: a teacher, a student alone or a distilled student, with a share of the labels.

    Attributes:
        label: unique; `what` is the same without the share.
        small: Dice of the images whose object is small; None without such.
        large: of the others.
        int8: Dice of the INT8 exports.
        missing: planned seeds that failed.
        macs: of one picture.
    """

    label: str
    what: str
    kind: Literal["teacher", "alone", "distilled"]
    share: float
    teacher: str
    design: str
    title: str
    pretrained: str
    seeds: int
    missing: int
    cases: int
    patients: int
    dice: Figure
    iou: Figure
    precision: Figure
    recall: Figure
    small: Figure | None
    large: Figure | None
    int8: Figure | None
    dice_val: float
    parameters: int
    macs: int


class Comparison(Figure):
    """Mean paired difference of Dice, first minus second, over the seeds that both have.

    Attributes:
        first: label of a row, with ", INT8" where that is meant; second likewise.
        question: what it answers, such as "distilled − alone".
        above: seeds in which the first was better.
        small: the same over the images whose object is small.
    """

    question: str
    first: str
    second: str
    share: float
    above: int
    small: Estimate | None


class GapShare(Part):
    """How much of the gap between teacher and student alone the distilled student closes.

    Attributes:
        gap: teacher − alone.
        gain: distilled − alone.
        closed: gain / gap, 1 where the distilled student is as good as its teacher; None where the gap's interval
            reaches 0, since the share of a gap that may be none means nothing.
        small: the same over the images whose object is small.
    """

    share: float
    teacher: str
    design: str
    precision: Precision
    gap: Comparison
    gain: Comparison
    closed: Estimate | None
    small: Estimate | None


class GridCell(Part):
    """Validation Dice of the student alone under one choice, with the first seed."""

    share: float
    design: str
    values: dict[str, float]
    dice_val: float
    chosen: bool


class StageCost(Part):
    """What a kind of stage took: medians over its runs.

    Attributes:
        seconds: of a training its epochs with validation; of the others the command.
        peak_memory_mib: largest resident size of the process; None where the folder was made by another command.
    """

    stage: str
    runs: int
    seconds: float | None
    peak_memory_mib: float | None
    peak_gpu_memory_mib: float | None


class Problem(Part):
    """A stage that failed, or an INT8 export that the guard refused, and why."""

    name: str
    reason: str


class DistillationRecord(Part):
    """All that results.json holds.

    Attributes:
        settings: of the command.
        small_share: share of the picture up to which an object counts as small.
        small_cases: test images with such an object.
        headline: the answer for the smallest share of the labels; answers the further ones.
        rows: share by share.
        comparisons: paired differences.
        gaps: share of the gap closed.
        commands: those of the first seed, as one would type them.
    """

    data: str
    data_sha256: str
    classes: tuple[str, ...]
    settings: dict[str, Any] = Field(default_factory=dict)
    seeds: int
    small_share: float | None
    small_cases: int
    headline: str
    answers: tuple[str, ...]
    doubts: tuple[str, ...]
    rows: tuple[Row, ...]
    comparisons: tuple[Comparison, ...]
    gaps: tuple[GapShare, ...]
    grid: tuple[GridCell, ...]
    costs: tuple[StageCost, ...]
    runs: tuple[RunRecord, ...]
    failures: tuple[Problem, ...]
    refused: tuple[Problem, ...]
    commands: tuple[str, ...]
    made: Made
