"""All teachers on equal terms, on your data: `python -m benchmarks.study --data D --systems unet,sam2-unet --out S`.

Trains and tests every system on the same splits with the same steps, and tells in tables, plots and words how they
differ and how sure that is. It writes

    S/report.html   everything, in one file          S/cases.jsonl   every case of every run
    S/study.md      the tables in Markdown           S/runs/NAME     the bundle of each run
    S/study.json    every figure                     S/plots/*.png   the plots

A study that was killed goes on with the same command; systems, seeds, folds and ablations may be added to one that has
not finished. A run that fails does not stop the others: the command then ends with status 3, and tries it again when it
is repeated.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.children import Child, run_children, slots_of
from benchmarks.measuring import check_libraries, read_masks, write_lines
from benchmarks.report.pictures import Example
from benchmarks.study.job import Job
from benchmarks.study.page import REPORT, TABLE, draw_examples, write_report
from benchmarks.study.plan import Plan, Run, flags_of, make_plan
from benchmarks.study.record import Failure, StudyRecord
from benchmarks.study.results import RunOutcome, choose_values, read_outcome, summarise_study
from benchmarks.study.settings import StudySettings, words_of
from benchmarks.study.teachers import check_other
from segcore.bundle.folder import hash_file
from segcore.command import log, print_result, repeat_flags, run_command
from segcore.dataset.dataset import Dataset, open_dataset
from segcore.errors import GateError, InputError
from segcore.outfolder import out_folder
from segcore.words import plural

CASES = "cases.jsonl"
LIST_FLAGS = ("--systems", "--rank", "--tune", "--labelled-share", "--grid")
"""Flags that several values may follow."""


@dataclass(frozen=True)
class Study:
    """What a study works with: its plan, and where the files of each run are.

    Attributes:
        dataset: as the first split divides it.
        folder: OUT.partial.
    """

    settings: StudySettings
    plan: Plan
    dataset: Dataset
    folder: Path

    def bundle(self, run: Run) -> Path:
        return self.folder / "runs" / run.name

    def file(self, run: Run, kind: str) -> Path:
        return self.folder / "tests" / f"{run.name}{kind}"

    def job(self, run: Run) -> Job:
        settings, plan = self.settings, self.plan
        flags = flags_of(settings, run.arm, run.values) | {
            "fold": run.split.fold or None,
            "split_seed": run.split.seed,
            "seed": run.seed,
        }
        drawn = run.arm in plan.main and (run.split, run.seed) == (plan.splits[0], plan.seeds[0])
        return Job(
            name=run.name,
            words=tuple(words_of(flags)),
            bundle=self.bundle(run),
            memory=self.file(run, ".memory.json"),
            scores=self.file(run, ".jsonl"),
            masks=self.file(run, ".npz") if drawn else None,
            data=settings.data,
            data_sha256=self.dataset.sha256,
            also_test=settings.also_test,
            test_limit=settings.test_limit,
            device=settings.device,
            drop_weights=settings.drop_weights,
        )

    def read(self, runs: Sequence[Run]) -> list[RunOutcome]:
        """Of these runs those that are complete."""
        return [
            read_outcome(run, self.bundle(run), self.file(run, ".memory.json"), self.file(run, ".jsonl"))
            for run in runs
            if self.file(run, ".jsonl").exists()
        ]


def main(settings: StudySettings) -> None:
    """Runs what is not finished, and writes the report.

    Raises:
        InputError: data, systems or flags that do not go together, or data that changed since the study began.
        GateError: runs failed; the report of the others is written.
    """
    check_libraries("matplotlib", "jinja2")
    dataset = open_dataset(settings.data, fold=f"1/{settings.folds}" if settings.folds > 1 else "")
    recipe = settings.recipe() | {"data_sha256": dataset.sha256} | _data_hashes(settings, dataset)
    plan = make_plan(settings, dataset)
    _check_plan(settings, plan, dataset)
    _check_unchanged(settings, recipe)
    slots = slots_of(settings.parallel, settings.device)
    with out_folder(settings.out, recipe, overwrite=settings.overwrite) as folder:
        study = Study(settings, plan, dataset, folder)
        for name in ("runs", "tests"):
            (folder / name).mkdir(exist_ok=True)
        _log_plan(plan)
        failures = _run_all(study, plan.grid_runs(), slots)
        cells, chosen = choose_values(study.read(plan.grid_runs()), plan)
        runs = plan.runs(chosen)
        failures += _run_all(study, runs, slots)
        # A run of the grid is often one of the final runs, too, and then has failed twice.
        failures = list({failure.run: failure for failure in failures}.values())
        finished = study.read(runs)
        record = summarise_study(settings, plan, dataset, runs, finished, cells, failures)
        write_report(folder, record, _read_examples(study, finished, record))
        write_lines(folder / CASES, (score for one in finished for score in one.scores))
        if failures:
            first = failures[0]
            raise GateError(
                f"{len(failures)} of {len({*runs, *plan.grid_runs()})} runs failed, first {first.run}: {first.reason} "
                f"(the report without them is {folder / REPORT}; the same command tries them again)"
            )
    print((settings.out / TABLE).read_text())
    print_result(
        report=str(settings.out / REPORT),
        table=str(settings.out / TABLE),
        headline=record.headline,
        reference=record.reference,
        dice={row.label: row.dice.mean for row in record.of("main")},
        runs=len(record.runs),
    )


def _run_all(study: Study, runs: Sequence[Run], slots: Sequence[dict[str, str]]) -> list[Failure]:
    children = []
    for run in runs:
        job = study.job(run)
        words = ("benchmarks.study.job", job.model_dump_json())
        children.append(Child(run.name, run.label, words, done=job.scores))
    failures = run_children(children, slots, study.folder / "logs")
    return [Failure(run=failure.name, reason=failure.reason) for failure in failures]


def _read_examples(study: Study, finished: Sequence[RunOutcome], record: StudyRecord) -> list[Example]:
    """The page's pictures, in the table's order; masks were kept of the first split and seed alone."""
    masks = {}
    places = [row.label for row in record.of("main")]

    def place(one: RunOutcome) -> int:
        return places.index(one.run.arm.label) if one.run.arm.label in places else 0

    for one in sorted(finished, key=place):
        path = study.file(one.run, ".npz")
        if path.exists():
            masks[one.run.arm.label] = read_masks(path)
    return draw_examples(study.dataset.split("test"), masks, record.reference)


def _data_hashes(settings: StudySettings, dataset: Dataset) -> dict[str, str]:
    """Of what else a resumed study must find as it was."""
    found = {}
    if settings.also_test is not None:
        other = open_dataset(settings.also_test)
        check_other(other, dataset)
        found["also_test_sha256"] = other.sha256
    if settings.weights is not None and Path(settings.weights).is_file():
        found["weights_sha256"] = hash_file(Path(settings.weights)).sha256
    return found


def _check_unchanged(settings: StudySettings, recipe: dict[str, object]) -> None:
    """Refuses in the data's own name what `out_folder` would call other settings."""
    partial = settings.out.with_name(settings.out.name + ".partial")
    try:
        stored = json.loads((partial / "settings.json").read_text())
    except (OSError, ValueError):
        return
    for flag in ("data", "also_test", "weights"):
        key, value = f"{flag}_sha256", getattr(settings, flag)
        if stored.get(flag) == value and key in stored and stored[key] != recipe.get(key):
            raise InputError(
                f"--{flag.replace('_', '-')} {value}: must be as it was when {partial} was begun, has changed since; "
                f"restore it, or remove {partial} to begin anew"
            )


def _check_plan(settings: StudySettings, plan: Plan, dataset: Dataset) -> None:
    systems = [arm.system for arm in plan.main]
    if settings.reference is not None and settings.reference not in systems:
        raise InputError(f"--reference {settings.reference}: must be one of {', '.join(systems)}")
    if settings.repeats > 1:
        again = open_dataset(settings.data, seed=1, fold=plan.splits[0].fold)
        if (again.sha256, again.split_sha256) == (dataset.sha256, dataset.split_sha256):
            raise InputError(
                f"--repeats {settings.repeats}: must be 1, {settings.data} gives the splits itself"
            )


def _log_plan(plan: Plan) -> None:
    arms, grid = (*plan.main, *plan.ablations), len(plan.grid_runs())
    runs = sum(len(plan.seeds) if arm.trains else 1 for arm in arms) * len(plan.splits)
    log(
        f"{', '.join(arm.label for arm in plan.main)}"
        + (f" and {plural(len(plan.ablations), 'ablation')}" if plan.ablations else "")
        + f", {plural(len(plan.splits), 'split')}, {plural(len(plan.seeds), 'seed')}: {plural(runs, 'run')}"
        + (f", after {grid} to choose from the grid (some are the same)" if grid else "")
    )
    for reason in plan.skipped:
        log(f"left out: {reason}")


if __name__ == "__main__":
    run_command(main, StudySettings, "python -m benchmarks.study", repeat_flags(sys.argv[1:], LIST_FLAGS))
