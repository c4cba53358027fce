"""Do the models' masks measure what was measured by hand? Truth, true masks and every model's masks, pair by pair.

`python -m benchmarks.checks.agreement --data D --bundle TEACHER --bundle STUDENT --out O` measures the test split's
masks and writes

    O/agreement.md      a table: mean difference, limits of agreement with intervals, mean absolute difference
    O/agreement.json    the same and every pair of measurements
    O/agreement.png     Bland–Altman plots, against the truth and between models
    O/cases.csv         a line a case: what each measured, empty where nothing was found

The true masks are measured, too: what they differ from the truth is not the models' doing.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field

from benchmarks.measuring import Part, check_libraries, results_folder, write_record
from benchmarks.report.agreement import WITHIN, Agreement, agreement_of, write_panels
from benchmarks.report.subject import (
    Subject,
    engines_of,
    name_subjects,
    open_bundles,
    open_fair_cases,
    open_subject,
)
from segcore.command import Progress, Settings, print_result, run_command
from segcore.dataset.case import Case
from segcore.errors import InputError
from segcore.host import Made, made_now
from segcore.measure.masks import measure_mask
from segcore.stats import Estimate
from segcore.tables import table_of
from segcore.words import difference, plural, ranged, signed

TRUTH, TRUE_MASKS = "truth", "true masks"
Quantity = Literal["circumference", "area", "diameter"]
WHAT: dict[Quantity, str] = {
    "circumference": "circumference of the fitted ellipse",
    "area": "area",
    "diameter": "longest diameter",
}
_HEAD = (
    "measured on",
    "minus",
    "cases",
    "left out",
    "mean difference",
    "lower limit",
    "upper limit",
    "mean absolute difference",
    "rise of the difference by the mean",
)


class AgreementSettings(Settings):
    """`python -m benchmarks.checks.agreement` compares what masks measure with a measured truth.

    It tells the mean difference and the limits of agreement (Bland-Altman).
    """

    data: str
    """Dataset whose test split is measured; its index holds the true measurement of each case."""
    bundle: tuple[Path, ...] = ()
    """Bundle whose masks are measured; give it several times, the teacher first: others are compared with it, too."""
    truth_column: str = "head_circumference_mm"
    """Column of the index with the true measurement, in mm or mm²; in pixels if its name ends with _px."""
    measure: Quantity = "circumference"
    """What is measured: circumference (of an ellipse fitted to the largest part), area, or diameter (the longest)."""
    of_class: str | None = None
    """The class that is measured; by default the first."""
    limit: int | None = Field(None, gt=0)
    """At most so many cases."""
    threads: int = Field(1, gt=0)
    """CPU threads of each engine."""
    out: Path
    """Folder to write."""
    overwrite: bool = False
    """Replace a finished --out."""


class Comparison(Part):
    """One row of the table: first minus second.

    Attributes:
        not_found: cases left out because one of both found nothing to measure.
        agreement: None with fewer than two cases.
    """

    first: str
    second: str
    not_found: int
    agreement: Agreement | None


class AgreementRecord(Part):
    """What agreement.json holds.

    Attributes:
        unit: "mm", "mm²" or "px".
        not_found: cases in which each found nothing to measure, by name.
        bundles: sha256 by name.
    """

    data: str
    data_sha256: str
    split: str
    of_class: str
    measure: Quantity
    truth_column: str
    unit: str
    cases: int
    patients: int
    not_found: dict[str, int]
    bundles: dict[str, str]
    comparisons: tuple[Comparison, ...]
    made: Made


def main(settings: AgreementSettings) -> None:
    """Measures, writes the folder, prints the table and one JSON line.

    Raises:
        InputError: data without the truth or a spacing, or bundles that do not fit the data.
    """
    check_libraries("matplotlib")
    with results_folder(settings) as folder:
        record, rows = compare_measurements(settings)
        panels = [
            (c.agreement, (c.first, c.second))
            for c in record.comparisons
            if c.agreement and c.second != TRUE_MASKS  # hardly to be told from those against the truth
        ]
        if panels:
            write_panels(folder / "agreement.png", panels, what=WHAT[settings.measure])
        write_record(folder / "agreement.json", record)
        table = describe_agreement(record)
        (folder / "agreement.md").write_text(table)
        with (folder / "cases.csv").open("w", newline="") as file:
            csv.writer(file).writerows(rows)
    print(table)
    print_result(
        table=str(settings.out / "agreement.md"),
        record=str(settings.out / "agreement.json"),
        plot=str(settings.out / "agreement.png") if panels else None,
        not_found=record.not_found,
        mean_difference={
            f"{c.first} - {c.second}": c.agreement and c.agreement.bias.mean for c in record.comparisons
        },
    )


def compare_measurements(settings: AgreementSettings) -> tuple[AgreementRecord, list[list[str]]]:
    """Everything between the settings and the files; also the rows of cases.csv."""
    bundles = open_bundles(settings.bundle)
    dataset, cases = open_fair_cases(settings.data, bundles, bundles[0], limit=settings.limit)
    of_class = settings.of_class or dataset.classes[0]
    if of_class not in dataset.classes:
        raise InputError(f"--of-class: must be one of {', '.join(dataset.classes)}, got {of_class}")
    in_px = settings.truth_column.endswith("_px")
    if not in_px:
        _check_spacing(cases, settings.truth_column)
    engines = engines_of(bundles, [])
    subjects = name_subjects([(bundle, engines[bundle.sha256][0]) for bundle in bundles])
    # Masks are drawn one by one as they are measured: no model's are all in memory.
    masks: dict[str, Iterator[np.ndarray]] = {TRUE_MASKS: (case.mask() for case in cases)}
    masks |= {s.name: _masks_of(s, cases, settings.threads) for s in subjects}
    measured: dict[str, list[float | None]] = {
        TRUTH: [_true_value(case, settings.truth_column) for case in cases]
    }
    for name, drawn in masks.items():
        measured[name] = [
            _measured_value(
                mask, of_class, dataset.classes, settings.measure, None if in_px else case.spacing_mm
            )
            for mask, case in zip(drawn, cases, strict=True)
        ]
    pairs = [(name, TRUTH) for name in masks]
    pairs += [(s.name, TRUE_MASKS) for s in subjects] + [(s.name, subjects[0].name) for s in subjects[1:]]
    patients = [case.patient for case in cases]
    unit = "px" if in_px else "mm²" if settings.measure == "area" else "mm"
    rows = [["case", "patient", *measured]]
    for case, *values in zip(cases, *measured.values(), strict=True):
        rows.append([case.id, case.patient, *("" if v is None else f"{v:.6g}" for v in values)])
    return AgreementRecord(
        data=settings.data,
        data_sha256=dataset.sha256,
        split="test",
        of_class=of_class,
        measure=settings.measure,
        truth_column=settings.truth_column,
        unit=unit,
        cases=len(cases),
        patients=len(set(patients)),
        not_found={name: values.count(None) for name, values in measured.items() if name != TRUTH},
        bundles={s.name: s.bundle.sha256 for s in subjects},
        comparisons=tuple(_compare_pair(measured, first, second, patients, unit) for first, second in pairs),
        made=made_now(),
    ), rows


def _true_value(case: Case, column: str) -> float:
    text = case.metadata.get(column, "")
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        have = ", ".join(case.metadata) or "no such column"
        raise InputError(
            f"--truth-column {column}: must hold a positive number for case {case.id}, got {text or 'nothing'}; "
            f"the index has {have}"
        )
    return value


def _check_spacing(cases: Sequence[Case], column: str) -> None:
    for case in cases:
        if case.spacing_mm is None:
            raise InputError(
                f"--data: case {case.id} must have a spacing, as {column} is not in pixels (_px), got none; "
                "fill in spacing_row_mm and spacing_col_mm"
            )


def _masks_of(subject: Subject, cases: Sequence[Case], threads: int) -> Iterator[np.ndarray]:
    with closing(open_subject(subject.bundle, subject.engine, threads)) as opened:
        for case in Progress(cases, subject.name, unit="case"):
            yield opened.predict(case.image(), name=f"case {case.id}").mask


def _measured_value(
    mask: np.ndarray,
    of_class: str,
    classes: Sequence[str],
    what: Quantity,
    spacing_mm: tuple[float, float] | None,
) -> float | None:
    """None where nothing was found, or too little to fit an ellipse to."""
    one = measure_mask(mask, classes, spacing_mm=spacing_mm)[classes.index(of_class)]
    if what == "circumference":
        return one.ellipse.circumference if one.ellipse else None
    return one.longest_diameter if what == "diameter" else one.area or None


def _compare_pair(
    measured: Mapping[str, Sequence[float | None]],
    first: str,
    second: str,
    patients: Sequence[str],
    unit: str,
) -> Comparison:
    pairs = zip(measured[first], measured[second], patients, strict=True)
    both = [(a, b, patient) for a, b, patient in pairs if a is not None and b is not None]
    agreement = None
    if len(both) > 1:
        agreement = agreement_of(
            [a for a, _, _ in both], [b for _, b, _ in both], [p for _, _, p in both], unit
        )
    return Comparison(first=first, second=second, not_found=len(patients) - len(both), agreement=agreement)


def describe_agreement(record: AgreementRecord) -> str:
    """What was compared, a row for each pair, and how to read it."""
    of = f"{record.measure} of {record.of_class} in {record.unit}"
    rows = [_comparison_row(comparison) for comparison in record.comparisons]
    table = table_of(of.capitalize(), _HEAD, rows, words=[True] * len(_HEAD))
    nothing = ", ".join(f"{name} {count}" for name, count in record.not_found.items())
    return "\n".join(
        (
            f"{table.title}: {record.split} split of {record.data}, {plural(record.cases, 'case')} of "
            f"{plural(record.patients, 'patient')}; the truth is the column {record.truth_column}.",
            "",
            table.markdown(),
            "",
            f"Limits of agreement are the mean difference ± {WITHIN} SD. In brackets: 95 % intervals that resample "
            f"patients. Nothing found to measure: {nothing}; pairs without both are left out.",
            "",
        )
    )


def _comparison_row(comparison: Comparison) -> tuple[str, ...]:
    one = comparison.agreement
    if one is None:
        return (comparison.first, comparison.second, "0 or 1", str(comparison.not_found), *("–",) * 5)
    share, size = 100 * one.bias.mean / float(np.mean(one.second)), one.mean_absolute
    return (
        comparison.first,
        comparison.second,
        str(one.cases),
        str(comparison.not_found),
        f"{_signed_estimate(one.bias)}, {signed(share, 2)} %",
        _signed_estimate(one.limit_low),
        _signed_estimate(one.limit_high),
        ranged(size.mean, size.low, size.high, 2),
        "–" if one.slope is None else _signed_estimate(one.slope, decimals=4),
    )


def _signed_estimate(estimate: Estimate, decimals: int = 2) -> str:
    return difference(estimate.mean, estimate.low, estimate.high, decimals)


if __name__ == "__main__":
    run_command(main, AgreementSettings, "python -m benchmarks.checks.agreement")
