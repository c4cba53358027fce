"""Puts a study's finished runs together into its record, and chooses from its grid."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from benchmarks.study.plan import Arm, Plan, Run, Split, Values
from benchmarks.study.record import Failure, GridCell, StudyRecord
from benchmarks.study.results import (
    Finished,
    Kind,
    add_places,
    choose_reference,
    compare,
    make_drops,
    make_rows,
)
from benchmarks.study.settings import StudySettings
from benchmarks.study.words import doubts, headline
from segcore.dataset.dataset import Dataset
from segcore.errors import GateError
from segcore.host import made_now


def choose(
    finished: Sequence[Finished], plan: Plan
) -> tuple[list[GridCell], dict[tuple[str, Split], Values]]:
    """What each system takes of the grid in each split: the best validation Dice, of equals the first.

    Returns:
        The grid's cells, and the choice by (system, split).
    """
    best: dict[tuple[str, Split], Finished] = {}
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


def summarise(
    settings: StudySettings,
    plan: Plan,
    dataset: Dataset,
    runs: Sequence[Run],
    finished: Sequence[Finished],
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
    main_rows = [row for row in rows if row.kind == "main" and not row.told and row.data == data]
    if not main_rows:
        reasons = "; ".join(f"{failure.run}: {failure.reason}" for failure in failures)
        raise GateError(f"no run of the compared systems is complete, there is nothing to report ({reasons})")
    reference = choose_reference(main_rows, settings.reference)
    rows = add_places(compare(rows, finished, data, reference), finished, data)
    order = list(kinds.values())
    rows.sort(key=lambda row: (order.index(row.kind), row.told, -row.dice.mean))
    main_rows = [row for row in rows if row.kind == "main" and not row.told and row.data == data]
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
