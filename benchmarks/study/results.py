"""From the files of finished runs to a study's record: what the grid chose, rows, comparisons, places, drops."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np

from benchmarks.children import TrainingMemory
from benchmarks.measuring import read_history, read_lines
from benchmarks.study.plan import Arm, Plan, Run, Split, Values
from benchmarks.study.record import (
    ArmRow,
    CaseScore,
    DiceDrop,
    Failure,
    GridCell,
    PairedComparison,
    RankRange,
    RunRecord,
    Spread,
    StudyRecord,
)
from benchmarks.study.settings import StudySettings
from benchmarks.study.teachers import AUTOMATIC, CONTROLS
from benchmarks.study.words import doubts, headline
from segcore.bundle.folder import MANIFEST
from segcore.bundle.manifest import Manifest
from segcore.dataset.dataset import Dataset
from segcore.errors import GateError
from segcore.host import made_now
from segcore.stats import (
    corrected_t_p,
    differences,
    drop_between,
    holm,
    interval,
    mean_by_case,
    mean_sd,
    places,
    sd_within,
    sign_flip_test,
)

K = TypeVar("K")
Kind = Literal["main", "tune", "rank", "share"]


@dataclass(frozen=True)
class RunOutcome:
    """A run that was trained and tested.

    Attributes:
        run: of the plan.
        record: its figures.
        scores: every case, protocol and data set.
    """

    run: Run
    record: RunRecord
    scores: Sequence[CaseScore]

    def scores_of(self, protocol: str, data: str, what: str = "dice") -> dict[str, float]:
        """A score by case."""
        chosen = (s for s in self.scores if s.protocol == protocol and s.data == data)
        return {s.case: getattr(s, what) for s in chosen}


def read_outcome(run: Run, bundle: Path, memory: Path, scores: Path) -> RunOutcome:
    """Reads what a run left behind."""
    manifest = Manifest.model_validate_json((bundle / MANIFEST).read_text())
    lines = read_lines(scores, CaseScore)
    epochs = read_history(bundle / "history.csv")
    epochs = epochs[1:] or epochs  # the first one, which also warms up, only where it is alone
    own = [s for s in lines if s.data == manifest.data.name]
    by_protocol = {p: [s.dice for s in own if s.protocol == p] for p in _unique(s.protocol for s in own)}
    record = RunRecord(
        name=run.name,
        arm=run.arm.label,
        fold=run.split.fold,
        split_seed=run.split.seed,
        seed=run.seed,
        values=dict(run.values),
        title=manifest.name,
        trained_parameters=manifest.trained_parameters,
        parameters=manifest.parameters,
        macs=manifest.macs,
        dice_val=manifest.metric("dice_mean", "val") or 0.0,
        seconds_epoch=float(np.median([e["seconds"] for e in epochs])) if epochs else None,
        images_s=float(np.median([e["images_per_second"] for e in epochs])) if epochs else None,
        memory=read_lines(memory, TrainingMemory)[0] if memory.exists() else None,
        train_cases=_train_cases(manifest),
        test_cases=len({s.case for s in own}),
        dice_by_protocol={p: float(np.mean(values)) for p, values in by_protocol.items()},
        commit=manifest.made.commit,
    )
    return RunOutcome(run, record, lines)


def choose_values(
    finished: Sequence[RunOutcome], plan: Plan
) -> tuple[list[GridCell], dict[tuple[str, Split], Values]]:
    """What each system takes of the grid in each split: the best validation Dice, of equals the first.

    Returns:
        The grid's cells, and the choice by (system, split).
    """
    best: dict[tuple[str, Split], RunOutcome] = {}
    for one in finished:
        key = one.run.arm.system, one.run.split
        if key not in best or one.record.dice_val > best[key].record.dice_val:
            best[key] = one
    chosen = {key: one.run.values for key, one in best.items()}
    cells = []
    for system, values in dict.fromkeys((one.run.arm.system, one.run.values) for one in finished):
        of = [one for one in finished if (one.run.arm.system, one.run.values) == (system, values)]
        cells.append(
            GridCell(
                system=system,
                values=dict(values),
                dice_val=float(np.mean([one.record.dice_val for one in of])),
                chosen=sum(chosen[system, one.run.split] == values for one in of),
                splits=len(plan.splits),
            )
        )
    return cells, chosen


def summarise_study(
    settings: StudySettings,
    plan: Plan,
    dataset: Dataset,
    runs: Sequence[Run],
    finished: Sequence[RunOutcome],
    cells: Sequence[GridCell],
    failures: Sequence[Failure],
) -> StudyRecord:
    """Everything that the report tells.

    Args:
        settings: of the study.
        plan: of the study.
        dataset: what was trained on.
        runs: the planned ones, the grid's others left out.
        finished: those of them that are complete.
        cells: of the grid; empty where there is none.
        failures: runs that failed.

    Raises:
        GateError: no run of a compared system is complete.
    """
    data = dataset.name
    kinds = kinds_of(plan)
    rows = make_rows(finished, runs, kinds)
    main_rows = _compared_rows(rows, data)
    if not main_rows:
        reasons = "; ".join(f"{failure.run}: {failure.reason}" for failure in failures)
        raise GateError(f"no run of the compared systems is complete, there is nothing to report ({reasons})")
    reference = choose_reference_row(main_rows, settings.reference)
    rows = add_places(add_comparisons(rows, finished, data, reference), finished, data)
    order = list(kinds.values())
    rows.sort(key=lambda row: (order.index(row.kind), row.told, -row.dice.mean))
    main_rows = _compared_rows(rows, data)
    drops = make_drops(finished, main_rows, data, settings.also_test) if settings.also_test else []
    return StudyRecord(
        data=data,
        data_sha256=dataset.sha256,
        also_test=settings.also_test,
        classes=dataset.classes,
        size_px=settings.size,
        epochs=settings.epochs,
        batch_size=settings.batch_size * settings.accumulate,
        limit=settings.limit,
        own_settings=settings.own_settings,
        splits=len(plan.splits),
        folds=settings.folds,
        seeds=settings.seeds,
        reference=reference.label,
        rows=tuple(rows),
        drops=tuple(drops),
        grid=tuple(cells),
        runs=tuple(one.record for one in finished),
        failures=tuple(failures),
        skipped=plan.skipped,
        headline=headline(main_rows, reference.label, settings.seeds),
        doubts=tuple(
            doubts(
                main_rows,
                splits=len(plan.splits),
                folds=settings.folds,
                seeds=settings.seeds,
                test_patients=main_rows[0].patients,
                tuned=bool(plan.grid or settings.own_settings),
                chosen_reference=settings.reference is None and len(main_rows) > 1,
                failed=len(failures),
                commits=sorted({one.record.commit for one in finished}),
            )
        ),
        made=made_now(),
    )


def kinds_of(plan: Plan) -> dict[Arm, Kind]:
    """Which comparison each arm belongs to, the compared ones first."""
    most = plan.main[0].share
    kinds: dict[Arm, Kind] = dict.fromkeys(plan.main, "main")
    for arm in plan.ablations:
        kinds[arm] = "share" if arm.share < most else "rank" if arm.rank else "tune"
    return kinds


def make_rows(
    finished: Sequence[RunOutcome], planned: Sequence[Run], kinds: Mapping[Arm, Kind]
) -> list[ArmRow]:
    """A row for each arm, protocol and data set, without comparisons."""
    rows = []
    for arm, kind in kinds.items():
        runs = [f for f in finished if f.run.arm == arm]
        if not runs:
            continue
        missing = sum(run.arm == arm for run in planned) - len(runs)
        pairs = _unique((s.protocol, s.data) for f in runs for s in f.scores)
        rows += [_make_row(arm, kind, runs, missing, protocol, data) for protocol, data in pairs]
    return rows


def choose_reference_row(main: Sequence[ArmRow], wanted: str | None) -> ArmRow:
    """The row that others are compared with: the one asked for, else the best control, else the first."""
    if wanted is not None and (found := [row for row in main if row.system == wanted]):
        return found[0]
    controls = [row for row in main if row.system in CONTROLS]
    return max(controls, key=lambda row: row.dice.mean, default=main[0])


def add_comparisons(
    rows: Sequence[ArmRow], finished: Sequence[RunOutcome], data: str, reference: ArmRow
) -> list[ArmRow]:
    """Adds the differences: main rows to the reference, with corrected p values; tunings and ranks to their own arm."""
    by_arm: dict[str, list[RunOutcome]] = {}
    for one in finished:
        by_arm.setdefault(one.run.arm.label, []).append(one)
    own_arm = {(r.system, r.share): r.label for r in rows if r.own_tuning}
    compared = []
    for row in rows:
        base = reference.label if row.kind == "main" else own_arm.get((row.system, row.share))
        if row.told or row.data != data or base in (None, row.label) or base not in by_arm:
            compared.append(row)
            continue
        versus = _compare_outcomes(by_arm[row.label], by_arm[base], data, base)
        compared.append(row.model_copy(update={"versus": versus}))
    tested = [r for r in compared if r.kind == "main" and r.versus and r.versus.p is not None]
    corrected = holm([r.versus.p for r in tested])  # type: ignore[union-attr, misc]
    for row, p in zip(tested, corrected, strict=True):
        versus = row.versus.model_copy(update={"p_holm": p})  # type: ignore[union-attr]
        compared[compared.index(row)] = row.model_copy(update={"versus": versus})
    return compared


def add_places(rows: Sequence[ArmRow], finished: Sequence[RunOutcome], data: str) -> list[ArmRow]:
    """Adds each main row's place among the automatic ones, over the cases that all of them were tested on."""
    main = _compared_rows(rows, data)
    if len(main) < 2:
        return list(rows)
    means = {
        row.label: mean_by_case(
            [f.scores_of(AUTOMATIC, data) for f in finished if f.run.arm.label == row.label]
        )
        for row in main
    }
    cases = sorted(set.intersection(*(set(m) for m in means.values())))
    patient = _patient_by_case(finished, data)
    if len({patient[case] for case in cases}) < 2:  # nobody to draw again
        return list(rows)
    values = np.array([[means[row.label][case] for case in cases] for row in main])
    found = dict(zip((r.label for r in main), places(values, [patient[c] for c in cases]), strict=True))
    return [
        row.model_copy(update={"place": RankRange(place=p[0], low=p[1], high=p[2])})
        if row in main and (p := found[row.label])
        else row
        for row in rows
    ]


def make_drops(
    finished: Sequence[RunOutcome], main: Iterable[ArmRow], data: str, other: str
) -> list[DiceDrop]:
    """What each system loses on data that it was not trained on."""
    drops = []
    for row in main:
        runs = [f for f in finished if f.run.arm.label == row.label]
        own, far = (mean_by_case([f.scores_of(AUTOMATIC, d) for f in runs]) for d in (data, other))
        patients = [_patient_by_case(runs, d) for d in (data, other)]
        drops.append(
            DiceDrop(
                label=row.label,
                own=float(np.mean(list(own.values()))),
                other=float(np.mean(list(far.values()))),
                drop=drop_between(own, patients[0], far, patients[1]),
            )
        )
    return drops


def _train_cases(manifest: Manifest) -> int:
    given, settings = manifest.data.counts["train"], manifest.settings
    return max(1, round(min(given, settings["limit"] or given) * settings["labelled_share"]))


def _make_row(
    arm: Arm, kind: Kind, runs: Sequence[RunOutcome], missing: int, protocol: str, data: str
) -> ArmRow:
    scores = [s for f in runs for s in f.scores if s.protocol == protocol and s.data == data]
    patients = {s.case: s.patient for s in scores}
    first = runs[0].record
    classes = list(scores[0].dice_by_class)
    memories = [f.record.memory for f in runs if f.record.memory]

    def spread(what: str) -> Spread:
        scored = [(f.run.split, by_case) for f in runs if (by_case := f.scores_of(protocol, data, what))]
        by_run = [by_case for _, by_case in scored]
        means = [float(np.mean(list(one.values()))) for one in by_run]
        mean, sd = mean_sd(means)
        by_case = mean_by_case(by_run)
        low, high = interval(list(by_case.values()), [patients[case] for case in by_case])
        sd_seeds = sd_within(means, [split for split, _ in scored])
        return Spread(mean=mean, sd=sd, sd_seeds=sd_seeds, low=low, high=high, by_run=tuple(means))

    return ArmRow(
        label=arm.label,
        system=arm.system,
        tune=arm.resolved.tune,
        rank=arm.rank or arm.resolved.rank,
        share=arm.share,
        kind=kind,
        protocol=protocol,
        told=protocol != AUTOMATIC,
        own_tuning=arm.tune is None and arm.rank is None,
        data=data,
        title=first.title,
        runs=len(runs),
        missing_runs=missing,
        cases=len(patients),
        patients=len(set(patients.values())),
        dice=spread("dice"),
        iou=spread("iou"),
        hd95=spread("hd95"),
        hd95_unit=scores[0].hd95_unit,
        dice_by_class={k: float(np.mean([s.dice_by_class[k] for s in scores])) for k in classes},
        trained_parameters=first.trained_parameters,
        parameters=first.parameters,
        macs=first.macs,
        peak_memory_mib=_median_of_known(m.peak_memory_mib for m in memories),
        peak_gpu_memory_mib=_median_of_known(m.peak_gpu_memory_mib for m in memories),
        seconds_epoch=_median_of_known(f.record.seconds_epoch for f in runs),
        images_s=_median_of_known(f.record.images_s for f in runs),
    )


def _compare_outcomes(
    runs: Sequence[RunOutcome], base: Sequence[RunOutcome], data: str, reference: str
) -> PairedComparison | None:
    pairs = [(f, other) for f, other in product(runs, base) if _is_pair(f, other)]
    scores = [(a.scores_of(AUTOMATIC, data), b.scores_of(AUTOMATIC, data)) for a, b in pairs]
    if not all(mine.keys() & theirs.keys() for mine, theirs in scores) or not pairs:
        return None
    patient = _patient_by_case(runs, data)
    by_case = differences(scores)
    values, patients = list(by_case.values()), [patient[case] for case in by_case]
    low, high = interval(values, patients)
    several = len(set(patients)) > 1
    test = sign_flip_test(values, patients) if several else None
    by_split: dict[Split, list[float]] = {}
    for (one, _), (mine, theirs) in zip(pairs, scores, strict=True):
        mean = float(np.mean([mine[case] - theirs[case] for case in mine.keys() & theirs.keys()]))
        by_split.setdefault(one.run.split, []).append(mean)
    counts = pairs[0][0].record
    return PairedComparison(
        reference=reference,
        mean=float(np.mean(values)),
        low=low,
        high=high,
        p=test.p if test else None,
        p_splits=corrected_t_p(
            [float(np.mean(v)) for v in by_split.values()], counts.test_cases / counts.train_cases
        ),
        flips=test.flips if test else 0,
        patients=len(set(patients)),
        runs=len(pairs),
        above=sum(mean > 0 for means in by_split.values() for mean in means),
    )


def _is_pair(one: RunOutcome, other: RunOutcome) -> bool:
    """Same split and seed; what is not trained has no seed and goes with every one."""
    untrained = not (one.record.trained_parameters and other.record.trained_parameters)
    return one.run.split == other.run.split and (untrained or one.run.seed == other.run.seed)


def _compared_rows(rows: Sequence[ArmRow], data: str) -> list[ArmRow]:
    """The rows that are ranked: the systems as they are compared, without help, on the study's own data."""
    return [row for row in rows if row.kind == "main" and not row.told and row.data == data]


def _patient_by_case(runs: Sequence[RunOutcome], data: str) -> dict[str, str]:
    """Patient by case of one data set: another one may use the same names."""
    return {s.case: s.patient for f in runs for s in f.scores if s.data == data}


def _median_of_known(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.median(known)) if known else None


def _unique(values: Iterable[K]) -> list[K]:
    return list(dict.fromkeys(values))
