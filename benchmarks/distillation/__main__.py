"""Does distillation pay? `python -m benchmarks.distillation --data D --systems unet:efficientnet-lite0 --out O`.

Trains teachers, students alone and distilled students on a share of the labels and on all of them, exports the students
to INT8, tests everything by patient, and tells how far the teacher leads, how much of that the distilled student takes
over, and how sure that is. It writes

    O/report.html    everything, in one file             O/share0.1/seed0/teacher-…     a bundle each, and the soft
    O/results.md     the tables in Markdown              O/share0.1/seed0/soft-…        labels between them
    O/results.json   every figure                        O/share0.1/seed0/alone-small
    O/plots/*.png    the plots                           O/share0.1/seed0/distilled-small-…

Every finished stage is a folder that is taken up again when the command is repeated, also with more seeds, shares or
systems; a folder that another command made is taken, too, if it was made with the same settings. A stage that fails
does not stop the others: the command then ends with status 3, and tries it again when it is repeated.
"""

from __future__ import annotations

import fcntl
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks.children import Child, ChildFailure, run_children, slots_of
from benchmarks.distillation.job import Job
from benchmarks.distillation.page import REPORT, TABLE, write_report
from benchmarks.distillation.pictures import draw_cases
from benchmarks.distillation.plan import Plan, Stage, make_plan
from benchmarks.distillation.record import Problem, ScoreFile
from benchmarks.distillation.results import Outcome, choose_values, read_outcome, summarise
from benchmarks.distillation.settings import DistillationSettings
from benchmarks.distillation.trainers import (
    DISTILL,
    EXPORT,
    LABEL,
    check_child,
    check_labels,
    check_training,
    read_manifest,
)
from benchmarks.measuring import check_libraries
from segcore.bundle.folder import MANIFEST
from segcore.command import EXIT_GATE, log, print_result, repeat_flags, run_command
from segcore.dataset.dataset import Dataset, open_dataset
from segcore.errors import GateError, InputError
from segcore.outfolder import write_text
from segcore.words import plural

LIST_FLAGS = ("--systems", "--design", "--labelled-share", "--grid")
"""Flags that several values may follow."""
LOCK = ".lock"


def main(settings: DistillationSettings) -> None:
    """Runs what is not finished, and writes the report.

    Raises:
        InputError: data, systems or flags that do not go together, or folders in --out that are of other settings.
        GateError: stages failed; the report of the others is written.
    """
    check_libraries("matplotlib", "jinja2")
    if settings.out.exists() and not settings.out.is_dir():
        raise InputError(f"--out {settings.out}: must be a folder, is a file; choose another")
    dataset = open_dataset(settings.data, seed=settings.split_seed)
    plan = make_plan(settings)
    grid = plan.grid_stages()
    _check_found(plan, [*grid, *plan.stages({})], dataset)  # all but what the grid has yet to choose
    slots = slots_of(settings.parallel, settings.device)
    settings.out.mkdir(parents=True, exist_ok=True)
    with _sole_user(settings.out):
        failures = _run_stages(plan, grid, dataset, slots)
        cells, chosen = choose_values(_read(grid))
        stages = plan.stages(chosen)
        _check_found(plan, stages, dataset)
        log(f"{plural(len(stages), 'stage')} of {plural(len(plan.seeds), 'seed')} in {settings.out}")
        failures += _run_stages(plan, stages, dataset, slots)
        refused = [_problem(stage, stage.refused.read_text()) for stage in stages if stage.refused.exists()]
        # A stage of the grid is often one of the final ones, too, and then has failed twice.
        problems = list({one.name: Problem(name=one.name, reason=one.reason) for one in failures}.values())
        finished = _read(stages)
        record = summarise(plan, dataset, stages, finished, cells, problems, refused)
        drawn = draw_cases(record, finished, dataset.split("test", limit=settings.test_limit))
        write_report(settings.out, record, drawn)
    if problems:
        raise GateError(
            f"{len(problems)} of {len({s.name for s in (*grid, *stages)})} stages failed, first {problems[0].name}: "
            f"{problems[0].reason} (the report without them is {settings.out / TABLE}; the same command tries them "
            "again)"
        )
    print((settings.out / TABLE).read_text())
    print_result(
        report=str(settings.out / REPORT),
        table=str(settings.out / TABLE),
        headline=record.headline,
        dice={row.label: row.dice.mean for row in record.rows},
        gap_closed={
            f"{g.design} from {g.teacher}, {g.share:g}, {g.precision}": g.closed and g.closed.mean
            for g in record.gaps
        },
        runs=len(record.runs),
    )


@contextmanager
def _sole_user(out: Path) -> Iterator[None]:
    """Holds a lock on --out, which ends with this process however it ends.

    Raises:
        InputError: another run of this command holds it: both would write the same folders.
    """
    with (out / LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"--out {out}: must not be in use, another run of this command writes there; wait for it"
            ) from None
        yield


def _run_stages(
    plan: Plan, stages: Sequence[Stage], dataset: Dataset, slots: Sequence[dict[str, str]]
) -> list[ChildFailure]:
    """Runs the stages that are not complete; a refusal of the INT8 guard is noted, and is no failure."""
    children = []
    for stage in stages:
        drop_stale(stage, dataset.sha256, plan.settings.test_limit)
        for file in (stage.scores, stage.usage):
            file.parent.mkdir(parents=True, exist_ok=True)
        done = stage.folder if stage.arm is None else stage.scores
        if stage.module == EXPORT and stage.refused.exists():
            done = stage.refused
        words = ("benchmarks.distillation.job", _job_of(plan, stage).model_dump_json())
        children.append(Child(stage.name, stage.label, words, done, stage.after))
    return note_refusals(stages, run_children(children, slots, plan.settings.out / "logs"))


def note_refusals(stages: Sequence[Stage], failures: Sequence[ChildFailure]) -> list[ChildFailure]:
    """Keeps beside its stage why the INT8 guard refused it, so that it is not asked again; returns the others."""
    by_name = {stage.name: stage for stage in stages}
    others = []
    for failure in failures:
        stage = by_name[failure.name]
        if stage.module == EXPORT and failure.status == EXIT_GATE and not failure.follows:
            write_text(stage.refused, failure.reason)
        else:
            others.append(failure)
    return others


def _job_of(plan: Plan, stage: Stage) -> Job:
    return Job(
        module=stage.module,
        words=stage.words,
        folder=stage.folder,
        usage=stage.usage,
        scores=stage.scores if stage.arm else None,
        masks=stage.masks if stage.keeps_masks else None,
        engine=stage.engine,
        data=plan.settings.data,
        test_limit=plan.settings.test_limit,
    )


def drop_stale(stage: Stage, data_sha256: str, test_limit: int | None) -> None:
    """Removes scores of a bundle that was made anew, or of other test images, and a refusal of an earlier student."""
    source = Path(stage.flags.get("bundle", "")) / MANIFEST
    if stage.refused.exists() and source.is_file() and stage.refused.stat().st_mtime < source.stat().st_mtime:
        stage.refused.unlink()
    if not stage.scores.exists():
        return
    try:
        known = ScoreFile.model_validate_json(stage.scores.read_text())
        same = stage.folder.exists() and known.bundle_sha256 == read_manifest(stage.folder)[1]
    except (ValueError, InputError):
        same = False
    if not same or (known.data_sha256, known.test_limit) != (data_sha256, test_limit):
        stage.scores.unlink()


def _check_found(plan: Plan, stages: Sequence[Stage], dataset: Dataset) -> None:
    """Checks that the folders in --out are what this command would make, before anything is run."""
    for stage in stages:
        if not stage.folder.exists():
            continue
        if stage.module == LABEL:
            check_labels(stage.folder, stage.flags["bundles"], plan.settings.tta, dataset.sha256)
        elif stage.module == EXPORT:
            check_child(stage.folder, Path(stage.flags["bundle"]))
        else:
            check_training(stage.folder, stage.module, stage.words, dataset.sha256)
            if stage.module == DISTILL and "soft" in stage.flags:
                check_child(stage.folder, Path(stage.flags["soft"]))


def _read(stages: Sequence[Stage]) -> list[Outcome]:
    return [one for stage in stages if stage.arm and (one := read_outcome(stage))]


def _problem(stage: Stage, reason: str) -> Problem:
    return Problem(name=stage.name, reason=reason)


if __name__ == "__main__":
    words = repeat_flags(sys.argv[1:], LIST_FLAGS)
    run_command(main, DistillationSettings, "python -m benchmarks.distillation", words)
