"""From the files of finished stages to the record: what the grid chose, rows, paired differences, share of the gap."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np

from benchmarks.distillation.plan import Arm, Plan, Stage, Values
from benchmarks.distillation.record import (
    CaseScore,
    Comparison,
    DistillationRecord,
    Figure,
    GapShare,
    GridCell,
    Precision,
    Problem,
    Row,
    RunRecord,
    ScoreFile,
    StageCost,
    Usage,
)
from benchmarks.distillation.trainers import EXPORT, read_manifest
from benchmarks.distillation.words import INT8, answers, doubts
from benchmarks.measuring import read_history
from segcore.bundle.manifest import Manifest
from segcore.dataset.dataset import Dataset
from segcore.errors import GateError
from segcore.host import made_now
from segcore.stats import Estimate, percentile_interval, resampled_over_runs

PRECISIONS: tuple[Precision, ...] = ("fp32", "int8")
"""Of the students."""


@dataclass(frozen=True)
class Outcome:
    """A bundle that was made and tested."""

    stage: Stage
    manifest: Manifest
    scores: Mapping[str, CaseScore]

    @property
    def dice(self) -> float:
        return float(np.mean([score.dice for score in self.scores.values()]))


class Outcomes:
    """All tested bundles of the arms, by arm, precision and seed.

    Attributes:
        patients: by case.
        small: cases whose object is small; large the others.
        threshold: share of the picture up to which an object is small; None where nothing is marked anywhere.
    """

    def __init__(self, finished: Sequence[Outcome], small_share: float | None) -> None:
        self._by_arm: dict[tuple[str, Precision], dict[int, Outcome]] = {}
        marked: dict[str, float] = {}
        self.patients: dict[str, str] = {}
        for one in finished:
            assert one.stage.arm is not None
            key = one.stage.arm.label, precision_of(one.stage)
            self._by_arm.setdefault(key, {})[one.stage.seed] = one
            for case, score in one.scores.items():
                self.patients[case] = score.patient
                if score.true_share > 0:
                    marked[case] = score.true_share
        self.threshold = small_share or (float(np.median(list(marked.values()))) if marked else None)
        self.small = {case for case, share in marked.items() if share <= (self.threshold or 0)}
        self.large = marked.keys() - self.small

    def of(self, arm: Arm, precision: Precision = "fp32") -> dict[int, Outcome]:
        """By seed."""
        return self._by_arm.get((arm.label, precision), {})

    def table(
        self, arms: Sequence[tuple[Arm, Precision]], what: str = "dice", among: set[str] | None = None
    ) -> tuple[list[int], list[str], np.ndarray] | None:
        """Seeds and cases that all have, and the scores, arms×seeds×cases; None where they share none."""
        found = [self.of(*one) for one in arms]
        seeds = sorted(set.intersection(*(set(by_seed) for by_seed in found)))
        if not seeds:
            return None
        cases = set.intersection(*(set(by_seed[s].scores) for by_seed in found for s in seeds))
        listed = sorted(cases if among is None else cases & among)
        if not listed:
            return None
        values = [
            [[getattr(by_seed[s].scores[case], what) for case in listed] for s in seeds] for by_seed in found
        ]
        return seeds, listed, np.array(values, float)


def read_outcome(stage: Stage) -> Outcome | None:
    """What a stage left behind; None where it is not complete."""
    if not stage.scores.exists() or not stage.folder.exists():
        return None
    scores = ScoreFile.model_validate_json(stage.scores.read_text())
    return Outcome(stage, read_manifest(stage.folder)[0], {score.case: score for score in scores.cases})


def precision_of(stage: Stage) -> Precision:
    """Of the bundle that a stage makes."""
    return "int8" if stage.module == EXPORT else "fp32"


def choose_values(
    finished: Sequence[Outcome],
) -> tuple[list[GridCell], dict[tuple[float, str], Values]]:
    """What the student alone takes of the grid for each share and design: the best on validation, of equals the first.

    Returns:
        The grid's cells, and the choice by (share, design).
    """
    best: dict[tuple[float, str], Outcome] = {}
    for one in finished:
        assert one.stage.arm is not None
        key = one.stage.share, one.stage.arm.design
        if key not in best or _dice_val(one.manifest) > _dice_val(best[key].manifest):
            best[key] = one
    cells = []
    for one in finished:
        assert one.stage.arm is not None
        key = one.stage.share, one.stage.arm.design
        cells.append(
            GridCell(
                share=key[0],
                design=key[1],
                values=dict(one.stage.values),
                dice_val=_dice_val(one.manifest),
                chosen=best[key] is one,
            )
        )
    return cells, {key: one.stage.values for key, one in best.items()}


def summarise(
    plan: Plan,
    dataset: Dataset,
    stages: Sequence[Stage],
    finished: Sequence[Outcome],
    cells: Sequence[GridCell],
    failures: Sequence[Problem],
    refused: Sequence[Problem],
) -> DistillationRecord:
    """Everything that the report tells.

    Args:
        plan: of the comparison.
        dataset: what was trained on.
        stages: the planned ones.
        finished: those that left a tested bundle.
        cells: of the grid; empty where there is none.
        failures: stages that failed.
        refused: INT8 exports that the guard refused.

    Raises:
        GateError: nothing is complete.
    """
    settings = plan.settings
    outcomes = Outcomes(finished, settings.small_share)
    rows = [row for arm in plan.arms if (row := make_row(arm, outcomes, settings.seeds))]
    if not rows:
        reasons = "; ".join(f"{one.name}: {one.reason}" for one in failures)
        raise GateError(f"no network is complete, there is nothing to report ({reasons})")
    gaps, comparisons = make_gaps(plan, outcomes), make_comparisons(plan, outcomes)
    said = answers(rows, gaps, comparisons, settings.seeds)
    runs = [_run_record(one, outcomes) for one in finished if precision_of(one.stage) == "fp32"]
    return DistillationRecord(
        data=dataset.name,
        data_sha256=dataset.sha256,
        classes=dataset.classes,
        settings=settings.model_dump(mode="json"),
        seeds=settings.seeds,
        small_share=outcomes.threshold,
        small_cases=len(outcomes.small),
        headline=said[0],
        answers=tuple(said[1:]),
        doubts=tuple(
            doubts(
                rows,
                seeds=settings.seeds,
                ensemble=settings.ensemble,
                failed=len(failures),
                grid=bool(plan.grid),
                commits=sorted({run.commit for run in runs}),
            )
        ),
        rows=tuple(rows),
        comparisons=tuple(comparisons),
        gaps=tuple(gaps),
        grid=tuple(cells),
        costs=tuple(_costs(stages)),
        runs=tuple(runs),
        failures=tuple(failures),
        refused=tuple(refused),
        commands=tuple(stage.line for stage in stages if stage.seed == plan.seeds[0]),
        made=made_now(),
    )


def make_row(arm: Arm, outcomes: Outcomes, seeds: int) -> Row | None:
    """An arm's figures; None where none of its networks is complete."""
    by_seed = outcomes.of(arm)
    if not by_seed:
        return None
    first = next(iter(by_seed.values()))
    dice = _figure(outcomes, arm)
    assert dice is not None
    manifests = [one.manifest for one in by_seed.values()]
    return Row(
        label=arm.label,
        what=arm.what,
        kind=arm.kind,
        share=arm.share,
        teacher=arm.teacher,
        design=arm.design,
        title=first.manifest.name,
        pretrained=first.manifest.pretrained,
        seeds=len(by_seed),
        missing=seeds - len(by_seed),
        cases=len(first.scores),
        patients=len({score.patient for score in first.scores.values()}),
        dice=dice,
        iou=_figure(outcomes, arm, "iou") or dice,
        precision=_figure(outcomes, arm, "precision") or dice,
        recall=_figure(outcomes, arm, "recall") or dice,
        small=_figure(outcomes, arm, among=outcomes.small),
        large=_figure(outcomes, arm, among=set(outcomes.large)),
        int8=_figure(outcomes, arm, precision="int8"),
        dice_val=float(np.mean([_dice_val(manifest) for manifest in manifests])),
        parameters=first.manifest.parameters,
        macs=first.manifest.macs,
    )


def make_comparisons(plan: Plan, outcomes: Outcomes) -> list[Comparison]:
    """Every paired difference that answers a question, share by share."""
    found = list[Comparison | None]()
    everything = plan.shares[-1] == 1.0
    for share, teacher, design in product(plan.shares, plan.teachers, plan.designs):
        taught = Arm("teacher", share, teacher.label)
        alone = Arm("alone", share, "", design)
        distilled = Arm("distilled", share, teacher.label, design)
        found += [
            compare(outcomes, "teacher − alone", taught, alone),
            compare(outcomes, "distilled − alone", distilled, alone),
            compare(outcomes, "distilled − teacher", distilled, taught),
            compare(outcomes, "INT8: distilled − alone", distilled, alone, "int8", "int8"),
            compare(outcomes, "INT8: distilled − teacher", distilled, taught, "int8", "fp32"),
            compare(outcomes, "distilled: INT8 − FP32", distilled, distilled, "int8", "fp32"),
        ]
        if share < 1 and everything:
            most = Arm("alone", 1.0, "", design)
            found += [
                compare(outcomes, "distilled − alone with all labels", distilled, most),
                compare(outcomes, "INT8: distilled − alone with all labels", distilled, most, "int8", "int8"),
            ]
    return [one for one in found if one]


def compare(
    outcomes: Outcomes,
    question: str,
    first: Arm,
    second: Arm,
    precision: Precision = "fp32",
    of_second: Precision = "fp32",
) -> Comparison | None:
    """First minus second over the seeds that both have; None where there is none."""
    pair: list[tuple[Arm, Precision]] = [(first, precision), (second, of_second)]
    table = outcomes.table(pair)
    if table is None:
        return None
    _, _, values = table
    by_seed = (values[0] - values[1]).mean(axis=1)
    small = outcomes.table(pair, among=outcomes.small)
    names = [arm.label + INT8 * (kind == "int8") for arm, kind in ((first, precision), (second, of_second))]
    return Comparison(
        question=question,
        first=names[0],
        second=names[1],
        share=first.share,
        by_seed=tuple(by_seed.tolist()),
        above=int((by_seed > 0).sum()),
        small=_difference(outcomes, small) if small else None,
        **_difference(outcomes, table).model_dump(),
    )


def make_gaps(plan: Plan, outcomes: Outcomes) -> list[GapShare]:
    """How much of the gap each distilled student closes, in FP32 and, where it was exported, in INT8."""
    found = []
    for share, teacher, design in product(plan.shares, plan.teachers, plan.designs):
        taught = Arm("teacher", share, teacher.label)
        alone = Arm("alone", share, "", design)
        distilled = Arm("distilled", share, teacher.label, design)
        for precision in PRECISIONS:
            three: list[tuple[Arm, Precision]] = [
                (taught, "fp32"),
                (alone, precision),
                (distilled, precision),
            ]
            table = outcomes.table(three)
            gap = compare(outcomes, "teacher − alone", taught, alone, "fp32", precision)
            gain = compare(outcomes, "distilled − alone", distilled, alone, precision, precision)
            if table is None or gap is None or gain is None:
                continue
            small = outcomes.table(three, among=outcomes.small)
            found.append(
                GapShare(
                    share=share,
                    teacher=teacher.label,
                    design=design,
                    precision=precision,
                    gap=gap,
                    gain=gain,
                    closed=share_closed(table[2], [outcomes.patients[c] for c in table[1]]),
                    small=share_closed(small[2], [outcomes.patients[c] for c in small[1]]) if small else None,
                )
            )
    return found


def share_closed(values: np.ndarray, patients: Sequence[str]) -> Estimate | None:
    """(distilled − alone) / (teacher − alone), with its interval over patients and seeds.

    Args:
        values: 3×S×N, Dice of teacher, student alone and distilled student by seeds by cases.
        patients: of the cases.

    Returns:
        None where the interval of the gap reaches 0, or the patients are one: the share of a gap that may be none has
        no meaning, and its interval no end.

    Source: Fieller, Some problems in interval estimation, J. R. Statist. Soc. B 16, 1954: the interval of a ratio is
        bounded only where the denominator is told from 0.
    """
    teacher, alone, distilled = values.mean(axis=(1, 2))
    if len(set(patients)) < 2:
        return None
    drawn = resampled_over_runs(values, patients)  # 3×draws
    gaps = drawn[0] - drawn[1]
    if percentile_interval(gaps)[0] <= 0:
        return None
    low, high = percentile_interval((drawn[2] - drawn[1])[gaps > 0] / gaps[gaps > 0])
    return Estimate(mean=float((distilled - alone) / (teacher - alone)), low=low, high=high)


def _figure(
    outcomes: Outcomes,
    arm: Arm,
    what: str = "dice",
    *,
    precision: Precision = "fp32",
    among: set[str] | None = None,
) -> Figure | None:
    table = outcomes.table(((arm, precision),), what, among)
    if table is None:
        return None
    _, cases, values = table
    patients = [outcomes.patients[case] for case in cases]
    low, high = _interval_of(resampled_over_runs(values, patients)[0], patients)
    by_seed = values[0].mean(axis=1)
    return Figure(mean=float(by_seed.mean()), low=low, high=high, by_seed=tuple(by_seed.tolist()))


def _difference(outcomes: Outcomes, table: tuple[list[int], list[str], np.ndarray]) -> Estimate:
    _, cases, values = table
    patients = [outcomes.patients[case] for case in cases]
    drawn = resampled_over_runs(values, patients)
    low, high = _interval_of(drawn[0] - drawn[1], patients)
    return Estimate(mean=float((values[0] - values[1]).mean()), low=low, high=high)


def _interval_of(drawn: np.ndarray, patients: Sequence[str]) -> tuple[float, float] | tuple[None, None]:
    """None for a single patient, whose resamples are all the same."""
    return percentile_interval(drawn) if len(set(patients)) > 1 else (None, None)


def _run_record(one: Outcome, outcomes: Outcomes) -> RunRecord:
    stage = one.stage
    assert stage.arm is not None
    int8 = outcomes.of(stage.arm, "int8").get(stage.seed)
    return RunRecord(
        name=stage.name,
        arm=stage.arm.label,
        share=stage.share,
        seed=stage.seed,
        values=dict(stage.values),
        title=one.manifest.name,
        dice_val=_dice_val(one.manifest),
        dice=one.dice,
        int8_dice=int8.dice if int8 else None,
        seconds=_training_seconds(stage.folder),
        curve=tuple(_history_column(stage.folder, "dice_val") or ()),
        commit=one.manifest.made.commit,
    )


def _dice_val(manifest: Manifest) -> float:
    return manifest.metric("dice_mean", "val") or 0.0


def _costs(stages: Sequence[Stage]) -> list[StageCost]:
    """Medians by kind of stage and arm, whatever the seed."""
    kinds: dict[str, list[Stage]] = {}
    for stage in stages:
        if stage.folder.exists():
            kinds.setdefault(cost_name(stage), []).append(stage)
    found = []
    for name, members in kinds.items():
        usages = [
            Usage.model_validate_json(stage.usage.read_text()) for stage in members if stage.usage.exists()
        ]
        seconds = [s for stage in members if (s := _training_seconds(stage.folder)) is not None]
        found.append(
            StageCost(
                stage=name,
                runs=len(members),
                seconds=_median(seconds or [usage.seconds for usage in usages]),
                peak_memory_mib=_median([usage.peak_memory_mib for usage in usages]),
                peak_gpu_memory_mib=_median(
                    [u.peak_gpu_memory_mib for u in usages if u.peak_gpu_memory_mib is not None]
                ),
            )
        )
    return found


def cost_name(stage: Stage) -> str:
    """The stage without its seed: "teacher unet, 10 % labelled", "INT8 of small alone, all labels"."""
    return stage.label.rpartition(", ")[0] or stage.label


def _training_seconds(folder: Path) -> float | None:
    """Of all epochs, validation with them, also where the training was resumed; None without such a log."""
    seconds = _history_column(folder, "seconds")
    return None if seconds is None else sum(seconds)


def _history_column(folder: Path, name: str) -> list[float] | None:
    """A column of the log of a training's epochs; None where there is no such log."""
    return [row[name] for row in read_history(folder / "history.csv")] or None


def _median(values: Sequence[float]) -> float | None:
    return float(np.median(values)) if values else None
