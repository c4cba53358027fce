"""Does the student know when it is wrong, and what does it gain by asking the teacher?

`python -m benchmarks.checks.deferral --bundle STUDENT --defer-to TEACHER --data D [--also-test OTHER] --out O` scores
the test split as it is and degraded, and writes

    O/cases.csv        a line a picture: condition, case, patient, estimate, Dice of both models
    O/record.json      correlations, deferral curves, latencies
    O/deferral.png     estimate against truth, and the curves
"""

from __future__ import annotations

import csv
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from benchmarks.checks.degrade import DEGRADATIONS, SEEN, Sample
from benchmarks.measuring import Part, check_libraries, new_png_figure, results_folder, write_record
from benchmarks.report.subject import open_fair_cases
from runtime.deferral import BELOW, DeferringPredictor
from runtime.predictor import Predictor
from runtime.timing.latency import ModelCalls, others_share, read_processor_times, time_interleaved
from segcore.bundle.folder import open_and_tell
from segcore.command import Progress, Settings, log, print_result, run_command
from segcore.dataset.case import Case
from segcore.dataset.dataset import open_dataset
from segcore.errors import InputError
from segcore.host import Made, made_now
from segcore.measure.metrics import dice_per_class
from segcore.picture.preprocess import prepare
from segcore.stats import auroc, correlation_interval, interval, pearson, spearman

CLEAN = "clean"
PICTURES = 8
DRAWS = 1000
"""Resamples for a correlation, which must be computed anew for each."""
# Okabe and Ito, Color Universal Design, 2008; yellow is left out, it is lost on white.
_COLOURS = ("#000000", "#e69f00", "#56b4e9", "#009e73", "#cc79a7", "#0072b2", "#d55e00", "#999999")
_MARKERS = "os^vDPX*"
_LEAST = 0.012
"""1 − Dice at the axes' end; what is better is drawn there."""
_TICKS = [1.0, 0.8, 0.5, 0.3, 0.2, 0.1, 0.05, 0.03, 0.02]
_BELOW: dict[str, Any] = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.13), "frameon": False}


class DeferralSettings(Settings):
    """`python -m benchmarks.checks.deferral` scores a student's estimate of its own Dice, in and out of domain.

    It also tells what passing on unsure cases gains.
    """

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


class CaseRow(Part):
    """One picture under one condition; Dice and quality are 0–1, means over classes."""

    condition: str
    case: str
    patient: str
    quality: float
    dice_student: float
    dice_teacher: float


class ValueWithInterval(Part):
    """A number with its 95 % interval over patients; None where it cannot be computed (one patient, no spread)."""

    value: float | None
    low: float | None = None
    high: float | None = None


class Condition(Part):
    """The student's estimate of its Dice against the true one, over the cases of one condition.

    Attributes:
        condition: clean, a degradation, or the name of the other data.
        mae: mean absolute error of the estimate.
        poor: share of cases whose true Dice is below the threshold.
        flagged: share whose estimate is.
        auroc: how well the estimate tells poor cases from the others: 0.5 is chance, 1 perfect.
    """

    condition: str
    cases: int
    patients: int
    quality_mean: float
    dice_student: float
    dice_teacher: float
    spearman: ValueWithInterval
    pearson: ValueWithInterval
    mae: ValueWithInterval
    poor: float
    flagged: float
    auroc: float | None


class ThresholdEffect(Part):
    """What `--below` does to the cases of a curve.

    Attributes:
        sent: share of cases that go to the teacher.
        dice: mean Dice of the pair.
        latency_ms: mean time of a picture.
        dice_kept: the student's mean Dice on what it keeps; None if it keeps nothing.
        dice_sent: the student's mean Dice on what it sends; None if it sends nothing.
        dice_sent_teacher: the teacher's on the same cases.
    """

    sent: float
    dice: float
    latency_ms: float
    dice_kept: float | None
    dice_sent: float | None
    dice_sent_teacher: float | None


class DeferralCurve(Part):
    """Mean Dice of the pair when q % of the cases go to the teacher, q = 0, 1, … 100.

    Attributes:
        of: the conditions that it is over.
        least_sure: the q % with the lowest estimates.
        random: on average over all choices of q %.
        oracle: the q % whose Dice rises most; nobody knows these beforehand.
        latency_ms: mean time of a picture: the student's, and the teacher's for q % of them.
        at_threshold: where `--below` lies on it.
    """

    of: tuple[str, ...]
    cases: int
    least_sure: tuple[float, ...]
    random: tuple[float, ...]
    oracle: tuple[float, ...]
    latency_ms: tuple[float, ...]
    at_threshold: ThresholdEffect


class DeferralRecord(Part):
    """What record.json holds.

    Attributes:
        seen: conditions of the kinds that the estimate was fitted on, besides clean.
        student_ms: median end-to-end time of a picture.
        other_load_share: share of the processor time that others took while it was timed, 0–1.
        curves: over clean cases, and over clean and degraded ones together; not over --also-test.
    """

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
    curves: tuple[DeferralCurve, ...]
    made: Made


def main(settings: DeferralSettings) -> None:
    """Scores, writes the folder, prints a table and one JSON line.

    Raises:
        InputError: bundles or data that do not go together.
    """
    check_libraries("matplotlib")
    with results_folder(settings) as folder:
        record, rows = measure_deferral(settings)
        with (folder / "cases.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(CaseRow.model_fields))
            writer.writeheader()
            writer.writerows(row.model_dump() for row in rows)
        write_record(folder / "record.json", record)
        draw_deferral(record, rows, folder / "deferral.png")
    for line in _summary_lines(record):
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


def measure_deferral(settings: DeferralSettings) -> tuple[DeferralRecord, list[CaseRow]]:
    """Everything between the settings and the files."""
    student, teacher = open_and_tell(settings.bundle), open_and_tell(settings.defer_to)
    _, cases = open_fair_cases(settings.data, [student, teacher], student, limit=settings.limit)
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
        pairs = list(_conditions_and_cases(settings, cases, foreign))
        rows = [
            _score_sample(pair, condition, case, sample)
            for condition, case, sample in Progress(
                _degraded_samples(pairs), "predicting", total=len(pairs), unit="picture"
            )
        ]
        student_ms, teacher_ms, load = _time_pair(pair, cases, settings.rounds)
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


def curve_name(curve: DeferralCurve) -> str:
    """`clean`, or `clean and degraded`."""
    return CLEAN if curve.of == (CLEAN,) else "clean and degraded"


def _conditions_and_cases(
    settings: DeferralSettings, cases: Sequence[Case], foreign: Sequence[Case]
) -> Iterator[tuple[str, Case]]:
    for condition in (CLEAN, *DEGRADATIONS):
        yield from ((condition, case) for case in cases)
    name = Path(str(settings.also_test)).name
    yield from ((f"foreign: {name}", case) for case in foreign)


def _degraded_samples(pairs: Sequence[tuple[str, Case]]) -> Iterator[tuple[str, Case, Sample]]:
    """Reads each case and degrades it, always the same way for its name."""
    for condition, case in pairs:
        image = case.image()
        if condition in DEGRADATIONS:
            rng = np.random.default_rng(zlib.crc32(f"{condition} {case.id}".encode()))
            yield condition, case, DEGRADATIONS[condition](Sample(image, case.mask()), rng)
        elif condition == CLEAN:
            yield condition, case, Sample(image, case.mask())
        else:  # other data, which shows none of the classes
            yield condition, case, Sample(image, np.zeros(image.shape[:2], np.uint8))


def _score_sample(pair: DeferringPredictor, condition: str, case: Case, sample: Sample) -> CaseRow:
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


def _time_pair(
    pair: DeferringPredictor, cases: Sequence[Case], rounds: int
) -> tuple[float, float, float | None]:
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


def condition_of(rows: Sequence[CaseRow], below: float) -> Condition:
    """Summarises the cases of one condition."""
    quality, dice = np.array([r.quality for r in rows]), np.array([r.dice_student for r in rows])
    patients = [r.patient for r in rows]
    errors = np.abs(quality - dice)
    low, high = interval(errors.tolist(), patients)
    return Condition(
        condition=rows[0].condition,
        cases=len(rows),
        patients=len(set(patients)),
        quality_mean=float(quality.mean()),
        dice_student=float(dice.mean()),
        dice_teacher=float(np.mean([r.dice_teacher for r in rows])),
        spearman=correlation(quality, dice, patients, spearman),
        pearson=correlation(quality, dice, patients, pearson),
        mae=ValueWithInterval(value=float(errors.mean()), low=low, high=high),
        poor=float((dice < below).mean()),
        flagged=float((quality < below).mean()),
        auroc=auroc(-quality, dice < below),
    )


def correlation(
    a: np.ndarray,
    b: np.ndarray,
    patients: Sequence[str],
    kind: Callable[[np.ndarray, np.ndarray], float | None],
) -> ValueWithInterval:
    """A correlation with its interval over patients."""
    low, high = correlation_interval(a, b, patients, kind, draws=DRAWS)
    return ValueWithInterval(value=kind(a, b), low=low, high=high)


def curve_of(rows: Sequence[CaseRow], *, below: float, student_ms: float, teacher_ms: float) -> DeferralCurve:
    """The deferral curve over all `rows`, with chance and the best possible order beside it."""
    quality = np.array([r.quality for r in rows])
    student, teacher = np.array([r.dice_student for r in rows]), np.array([r.dice_teacher for r in rows])
    gain = teacher - student
    shares = np.linspace(0.0, 1.0, 101)
    sent = quality < below
    return DeferralCurve(
        of=tuple(dict.fromkeys(r.condition for r in rows)),
        cases=len(rows),
        least_sure=_dice_by_share(student, gain, np.argsort(quality, kind="stable"), shares),
        random=tuple((student.mean() + shares * gain.mean()).tolist()),
        oracle=_dice_by_share(student, gain, np.argsort(-gain, kind="stable"), shares),
        latency_ms=tuple((student_ms + shares * teacher_ms).tolist()),
        at_threshold=ThresholdEffect(
            sent=float(sent.mean()),
            dice=float(np.where(sent, teacher, student).mean()),
            latency_ms=student_ms + float(sent.mean()) * teacher_ms,
            dice_kept=_mean_or_none(student[~sent]),
            dice_sent=_mean_or_none(student[sent]),
            dice_sent_teacher=_mean_or_none(teacher[sent]),
        ),
    )


def _mean_or_none(values: np.ndarray) -> float | None:
    return float(values.mean()) if len(values) else None


def _dice_by_share(
    student: np.ndarray, gain: np.ndarray, order: np.ndarray, shares: np.ndarray
) -> tuple[float, ...]:
    """Mean Dice when the first of `order` are replaced; a share between two cases is interpolated."""
    total = student.sum() + np.concatenate([[0.0], np.cumsum(gain[order])])
    return tuple((np.interp(shares * len(gain), np.arange(len(gain) + 1), total) / len(gain)).tolist())


def _summary_lines(record: DeferralRecord) -> Iterator[str]:
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


def draw_deferral(record: DeferralRecord, rows: Sequence[CaseRow], path: Path) -> None:
    """Writes a PNG with the estimates against the truth, and the curves."""
    figure = new_png_figure(16, 6)
    scatter, *curves = figure.subplots(
        1, 1 + len(record.curves), width_ratios=[1.15] + [1.0] * len(record.curves)
    )
    _draw_scatter(scatter, record, rows)
    for axes, curve in zip(curves, record.curves, strict=True):
        _draw_curve(axes, curve, record)
    load = (
        ""
        if record.other_load_share is None
        else f", others took {record.other_load_share:.0%} of the processor"
    )
    figure.suptitle(
        f"{record.student}  →  {record.teacher};  {record.threads} thread{'s' * (record.threads > 1)}: "
        f"{record.student_ms:.1f} and {record.teacher_ms:.1f} ms a picture{load}",
        fontsize=10,
    )
    figure.savefig(path, dpi=110)


def _draw_scatter(axes: Any, record: DeferralRecord, rows: Sequence[CaseRow]) -> None:
    """Both axes are 1 − Dice, logarithmic and turned round: most cases lie between 0.9 and 1."""
    axes.plot([1, _LEAST], [1, _LEAST], color="#888888", linewidth=1, zorder=1)
    axes.axhline(1 - record.below, color="#888888", linewidth=1, linestyle=":", zorder=1)
    axes.text(
        0.9,
        0.96 * (1 - record.below),
        f"estimates below {record.below:g} are passed on",
        fontsize=8,
        va="bottom",
    )
    for i, condition in enumerate(record.conditions):
        mine = [r for r in rows if r.condition == condition.condition]
        rho = condition.spearman.value
        kind = " (kind seen in the fit)" if condition.condition in record.seen else ""
        words = f"{condition.condition}{kind}: "
        words += "nothing to mark" if rho is None else f"ρ {rho:.2f}, error {condition.mae.value:.3f}"
        axes.scatter(
            [max(1 - r.dice_student, _LEAST) for r in mine],
            [max(1 - r.quality, _LEAST) for r in mine],
            s=13,
            alpha=0.5,
            linewidths=0,
            color=_COLOURS[i % len(_COLOURS)],
            marker=_MARKERS[i % len(_MARKERS)],
            label=words,
            zorder=3 if i else 4,
        )
    labels = [f"{1 - tick:g}" for tick in _TICKS]
    for axis, scale in ((axes.xaxis, axes.set_xscale), (axes.yaxis, axes.set_yscale)):
        scale("log")
        axis.set_ticks(_TICKS, labels)
        axis.set_ticks([], minor=True)
    axes.set(xlim=(1.1, _LEAST), ylim=(1.1, _LEAST))
    axes.set(xlabel="true Dice", ylabel="Dice as the student estimates it")
    axes.set_title("Does it know? Each dot is a test picture", fontsize=11)
    legend = axes.legend(fontsize=8, ncols=2, **_BELOW)
    for handle in legend.legend_handles:
        handle.set_alpha(1.0)
    _draw_grid_behind(axes)


def _draw_curve(axes: Any, curve: DeferralCurve, record: DeferralRecord) -> None:
    percent = list(range(101))
    axes.plot(percent, curve.oracle, color="#999999", linestyle="--", label="best possible order (oracle)")
    axes.plot(percent, curve.least_sure, color="#0072b2", linewidth=2.2, label="least sure first")
    axes.plot(percent, curve.random, color="#d55e00", linestyle=":", linewidth=1.8, label="random order")
    at = curve.at_threshold
    words = f"below {record.below:g}: {at.sent:.0%} sent, Dice {at.dice:.4f}, {at.latency_ms:.1f} ms"
    axes.plot([100 * at.sent], [at.dice], "o", color="#0072b2", markersize=8, zorder=5, label=words)
    axes.set(
        xlim=(-2, 102), xlabel="share of cases sent to the second model (%)", ylabel="mean Dice of the pair"
    )
    start, end = curve.latency_ms[0], curve.latency_ms[-1]
    time = axes.secondary_xaxis(
        "top",
        functions=(lambda q: start + q / 100 * (end - start), lambda ms: (ms - start) / (end - start) * 100),
    )
    time.set_xlabel("mean time of a picture (ms)", fontsize=9)
    time.tick_params(labelsize=8)
    name = (
        "Clean test cases"
        if len(curve.of) == 1
        else f"Clean and degraded ({len(curve.of)} conditions, equal shares)"
    )
    axes.set_title(name, fontsize=11)
    axes.legend(fontsize=8, ncols=2, **_BELOW)
    _draw_grid_behind(axes)


def _draw_grid_behind(axes: Any) -> None:
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["right"]].set_visible(False)


if __name__ == "__main__":
    run_command(main, DeferralSettings, "python -m benchmarks.checks.deferral")
