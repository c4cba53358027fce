"""Does the student know when it is wrong, and what does it gain by asking the teacher?

`python -m benchmarks.deferral --bundle STUDENT --defer-to TEACHER --data D [--also-test OTHER] --out O` scores the
test split as it is and degraded, and writes

    O/cases.csv        a line a picture: condition, case, patient, estimate, Dice of both models
    O/record.json      correlations, deferral curves, latencies
    O/deferral.png     estimate against truth, and the curves
"""

from __future__ import annotations

import csv
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, Field
from tqdm import tqdm

from benchmarks.deferral_numbers import CaseRow, Condition, Curve, condition_of, curve_of
from benchmarks.degrade import DEGRADATIONS, SEEN, Sample
from benchmarks.subject import check_fair
from runtime.deferral import BELOW, DeferringPredictor
from runtime.interleaved import ModelCalls, time_interleaved
from runtime.load import others_share, read_processor_times
from runtime.predictor import Predictor
from segcore.bundle import open_bundle
from segcore.case import Case
from segcore.command import Settings, log, print_result, run_command
from segcore.dataset import open_dataset
from segcore.errors import InputError, need
from segcore.host import Made, made_now
from segcore.metrics import dice_per_class
from segcore.outfolder import out_folder
from segcore.preprocess import prepare

CLEAN = "clean"
PICTURES = 8


class DeferralSettings(Settings):
    """Scores a student's estimate of its own Dice, in and out of domain, and what passing on unsure cases gains."""

    bundle: Path
    """Exported student that estimates its quality."""
    defer_to: Path
    """Exported model that gets the unsure cases."""
    data: str
    """Dataset whose test split is scored, as it is and degraded."""
    also_test: str | None = None
    """A dataset that shows none of the classes: whatever is marked in its test split is wrong."""
    below: float = Field(BELOW, ge=0, le=1)
    """A case is poor below this Dice, and flagged below this estimate."""
    limit: int | None = Field(None, gt=0)
    """At most so many test cases, and as many of --also-test."""
    threads: int = Field(1, gt=0)
    """CPU threads of each engine."""
    rounds: int = Field(10, gt=0)
    """Bursts of the interleaved timing of both models."""
    out: Path
    """Folder to write."""
    overwrite: bool = False
    """Replace a finished --out."""


class DeferralRecord(BaseModel):
    """What record.json holds.

    Attributes:
        seen: conditions of the kinds that the estimate was fitted on, besides clean.
        student_ms: median end-to-end time of a picture.
        other_load_share: share of the processor time that others took while it was timed, 0–1.
        curves: over clean cases, and over clean and degraded ones together; not over --also-test.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    student: str
    student_sha256: str
    teacher: str
    teacher_sha256: str
    data: str
    also_test: str | None
    below: float
    threads: int
    quality_cases: int
    quality_error: float
    quality_error_degraded: float
    seen: tuple[str, ...]
    student_ms: float
    teacher_ms: float
    other_load_share: float | None
    conditions: tuple[Condition, ...]
    curves: tuple[Curve, ...]
    made: Made


def main(settings: DeferralSettings) -> None:
    """Scores, writes the folder, prints a table and one JSON line.

    Raises:
        InputError: bundles or data that do not go together.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise need("matplotlib", "bench") from None
    from benchmarks.deferral_plot import draw_deferral

    made_from = settings.model_dump(mode="json", exclude={"out", "overwrite"})
    with out_folder(settings.out, made_from, overwrite=settings.overwrite, keep_on_error=False) as folder:
        record, rows = measure(settings)
        with (folder / "cases.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(CaseRow.model_fields))
            writer.writeheader()
            writer.writerows(row.model_dump() for row in rows)
        (folder / "record.json").write_text(record.model_dump_json(indent=2) + "\n")
        draw_deferral(record, rows, folder / "deferral.png")
    for line in _table(record):
        print(line)
    print_result(
        record=str(settings.out / "record.json"),
        plot=str(settings.out / "deferral.png"),
        student_ms=record.student_ms,
        teacher_ms=record.teacher_ms,
        spearman={c.condition: c.spearman.value for c in record.conditions},
        mae={c.condition: c.mae.value for c in record.conditions},
        at_threshold={curve_name(c): c.at_threshold.model_dump() for c in record.curves},
    )


def measure(settings: DeferralSettings) -> tuple[DeferralRecord, list[CaseRow]]:
    """Everything between the settings and the files."""
    student, teacher = open_bundle(settings.bundle), open_bundle(settings.defer_to)
    dataset = open_dataset(
        settings.data, seed=student.manifest.data.split_seed, fold=student.manifest.data.fold
    )
    cases = dataset.split("test", limit=settings.limit)
    check_fair([student, teacher], dataset, cases, "test")
    foreign: Sequence[Case] = ()
    if settings.also_test is not None:
        foreign = open_dataset(settings.also_test, need_masks=False).split("test", limit=settings.limit)
        if not foreign:
            raise InputError(
                f"--also-test {settings.also_test}: must have a test case, got none; name other data"
            )
    with ExitStack() as stack:
        pair = stack.enter_context(
            DeferringPredictor.open(student, teacher, below=settings.below, threads=settings.threads)
        )
        samples = list(_conditions(settings, cases, foreign))
        rows = [
            _score(pair, condition, case, sample)
            for condition, case, sample in tqdm(
                _samples(samples), total=len(samples), unit="picture", mininterval=1.0
            )
        ]
        student_ms, teacher_ms, load = _time(pair, cases, settings.rounds)
    log(f"timed with {0.0 if load is None else 100 * load:.0f} % of the processor taken by other programs")
    conditions = tuple(dict.fromkeys(row.condition for row in rows))
    quality = student.manifest.quality
    assert quality is not None
    by_condition = {c: [row for row in rows if row.condition == c] for c in conditions}
    mixed = [row for c in conditions if c == CLEAN or c in DEGRADATIONS for row in by_condition[c]]
    return DeferralRecord(
        student=student.manifest.name,
        student_sha256=student.sha256,
        teacher=teacher.manifest.name,
        teacher_sha256=teacher.sha256,
        data=settings.data,
        also_test=settings.also_test,
        below=settings.below,
        threads=settings.threads,
        quality_cases=quality.cases,
        quality_error=quality.error,
        quality_error_degraded=quality.error_degraded,
        seen=SEEN,
        student_ms=student_ms,
        teacher_ms=teacher_ms,
        other_load_share=load,
        conditions=tuple(condition_of(by_condition[c], settings.below) for c in conditions),
        curves=tuple(
            curve_of(some, below=settings.below, student_ms=student_ms, teacher_ms=teacher_ms)
            for some in (by_condition[CLEAN], mixed)
        ),
        made=made_now(),
    ), rows


def curve_name(curve: Curve) -> str:
    """`clean`, or `clean and degraded`."""
    return CLEAN if curve.of == (CLEAN,) else "clean and degraded"


def _conditions(
    settings: DeferralSettings, cases: Sequence[Case], foreign: Sequence[Case]
) -> Iterator[tuple[str, Case]]:
    for condition in (CLEAN, *DEGRADATIONS):
        yield from ((condition, case) for case in cases)
    name = Path(str(settings.also_test)).name
    yield from ((f"foreign: {name}", case) for case in foreign)


def _samples(pairs: Sequence[tuple[str, Case]]) -> Iterator[tuple[str, Case, Sample]]:
    """Reads each case and degrades it, always the same way for its name."""
    for condition, case in pairs:
        image = case.image()
        if condition in DEGRADATIONS:
            rng = np.random.default_rng(zlib.crc32(f"{condition} {case.id}".encode()))
            yield condition, case, DEGRADATIONS[condition](Sample(image, case.mask()), rng)
        elif condition == CLEAN:
            yield condition, case, Sample(image, case.mask())
        else:
            yield condition, case, Sample(image, np.zeros(image.shape[:2], np.uint8))


def _score(pair: DeferringPredictor, condition: str, case: Case, sample: Sample) -> CaseRow:
    first = pair.first.predict(sample.image, name=f"case {case.id}")
    second = pair.open_second().predict(sample.image, name=f"case {case.id}")
    classes = len(pair.first.manifest.classes)
    assert first.quality is not None
    return CaseRow(
        condition=condition,
        case=case.id,
        patient=case.patient,
        quality=first.quality,
        dice_student=float(dice_per_class(first.mask, sample.mask, classes).mean()),
        dice_teacher=float(dice_per_class(second.mask, sample.mask, classes).mean()),
    )


def _time(pair: DeferringPredictor, cases: Sequence[Case], rounds: int) -> tuple[float, float, float | None]:
    """Median milliseconds of a picture end to end, both models in one interleaved run, and the others' load."""
    images = [case.image() for case in cases[:PICTURES]]

    def timed(predictor: Predictor) -> ModelCalls:
        batches = [prepare(image, predictor.manifest.input)[None] for image in images]
        return ModelCalls(
            run=lambda i: predictor.run(batches[i % len(images)]),
            predict=lambda i: predictor.predict(images[i % len(images)]),
        )

    before = read_processor_times()
    samples = time_interleaved([timed(pair.first), timed(pair.open_second())], rounds=rounds)
    student, teacher = (float(np.median(np.concatenate(s.end_to_end_ms))) for s in samples)
    return student, teacher, others_share(before, read_processor_times())


def _table(record: DeferralRecord) -> Iterator[str]:
    yield f"{'condition':24}{'cases':>6}{'Dice':>8}{'estimate':>10}{'Spearman':>10}{'MAE':>8}{'poor':>7}{'flagged':>9}"
    for c in record.conditions:
        rho = "–" if c.spearman.value is None else f"{c.spearman.value:.2f}"
        yield (
            f"{c.condition:24}{c.cases:6}{c.dice_student:8.3f}{c.quality_mean:10.3f}{rho:>10}{c.mae.value:8.3f}"
            f"{c.poor:7.0%}{c.flagged:9.0%}"
        )
    for curve in record.curves:
        at = curve.at_threshold
        kept = "nothing is kept" if at.dice_kept is None else f"what is kept has {at.dice_kept:.4f}"
        yield (
            f"{curve_name(curve)}: student {curve.least_sure[0]:.4f} at {curve.latency_ms[0]:.1f} ms, teacher "
            f"{curve.least_sure[-1]:.4f}; below {record.below:g} sends {at.sent:.0%}: {at.dice:.4f} at "
            f"{at.latency_ms:.1f} ms, {kept}"
        )


if __name__ == "__main__":
    run_command(main, DeferralSettings, "python -m benchmarks.deferral")
