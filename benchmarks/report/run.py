"""The benchmark from settings to a folder: checks, measurements, records, report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing

import numpy as np

from benchmarks.measuring import check_libraries, results_folder, write_lines
from benchmarks.report.devices import read_reports
from benchmarks.report.headline import choose_headline_record
from benchmarks.report.measure import (
    PICTURES,
    SubjectScores,
    make_records,
    measure_accuracy,
    measure_rooflines,
    measure_speed,
    measure_starts,
    probe,
)
from benchmarks.report.memory import CHILDREN
from benchmarks.report.page import Report, render_html, render_markdown
from benchmarks.report.pictures import MODELS, Example, choose_cases, draw_example
from benchmarks.report.record import Record, for_threads
from benchmarks.report.settings import BenchmarkSettings
from benchmarks.report.subject import (
    SubjectPredictor,
    choose_reference,
    engines_of,
    name_subjects,
    open_bundles,
    open_fair_cases,
    open_subject,
)
from runtime.engines.seam import available_threads
from segcore.command import log, print_result
from segcore.dataset.case import Case
from segcore.errors import InputError
from segcore.host import made_now

_HEADLINE = {
    "name", "engine", "threads", "dice_mean", "dice_difference", "dice_difference_low",
    "dice_difference_high", "dice_share_kept", "times_faster", "times_fewer_parameters", "end_to_end_ms_p50",
}  # fmt: skip


def main(settings: BenchmarkSettings) -> None:
    """Measures, writes the folder, prints the table and one JSON line."""
    check_libraries("matplotlib", "jinja2")
    with results_folder(settings, {"command": "benchmarks"}) as folder:
        report = measure_bundles(settings)
        write_lines(folder / "records.jsonl", report.records)
        if report.devices:
            write_lines(folder / "devices.jsonl", report.devices)
        write_lines(folder / "cases.jsonl", [score for scores in report.scores for score in scores])
        (folder / "report.html").write_text(render_html(report))
        (folder / "report.md").write_text(render_markdown(report))
    for table in report.tables:
        print(f"{table.title}\n{table.plain()}\n")
    print(f"{report.headline.title}\nreport: {settings.out / 'report.html'}")
    headline = choose_headline_record(for_threads(report.records))
    print_result(
        report=str(settings.out / "report.html"),
        records=str(settings.out / "records.jsonl"),
        reference=report.records[0].reference,
        headline=headline and headline.model_dump(include=_HEADLINE),
    )


def measure_bundles(settings: BenchmarkSettings) -> Report:
    """Everything between the settings and the report.

    Raises:
        InputError: no bundle, one twice, an engine that opens none, an empty split, an unfair comparison.
    """
    threads = _checked_threads(settings.threads)
    devices = read_reports(settings.records)
    bundles = open_bundles(settings.bundle, settings.expect)
    base = choose_reference(bundles, settings.reference)
    ratio_to = [choose_reference(bundles, name, flag="--ratio-to").sha256 for name in settings.ratio_to]
    engines = engines_of(bundles, settings.engine)
    dataset, cases = open_fair_cases(settings.data, bundles, base, split=settings.split, limit=settings.limit)
    named = name_subjects([(bundle, engine) for bundle in bundles for engine in engines[bundle.sha256]])
    subjects, skipped = probe(named, wanted=bool(settings.engine))
    for reason in skipped:
        log(f"not measured: {reason}")
    reference = next(i for i, subject in enumerate(subjects) if subject.bundle.sha256 == base.sha256)

    scored = measure_accuracy(subjects, cases, threads=threads[0], small_px=settings.small_px)
    starts, speeds, rooflines = None, {}, []
    if not settings.skip_latency:
        images = [case.image() for case in cases[:PICTURES]]
        starts = measure_starts(
            subjects, images[0], threads=threads[0], children=min(CHILDREN, settings.rounds)
        )
        for count in threads:
            speeds[count] = measure_speed(
                subjects, images, threads=count, rounds=settings.rounds, reference=reference
            )
        if settings.roofline:
            rooflines = measure_rooflines(subjects, threads)
    records = make_records(
        scored,
        reference,
        data=settings.data,
        split=settings.split,
        speeds=speeds,
        starts=starts,
        small_px=settings.small_px,
        rooflines=rooflines,
    )
    return Report(
        records=records,
        scores=[one.scores for one in scored],
        bundles=bundles,
        examples=draw_examples(scored, cases, for_threads(records), threads=threads[0]),
        skipped=skipped,
        made=made_now(),
        data_sha256=dataset.sha256,
        ratio_to=ratio_to,
        rooflines=rooflines,
        devices=devices,
    )


def draw_examples(
    scored: Sequence[SubjectScores], cases: Sequence[Case], records: Sequence[Record], *, threads: int
) -> list[Example]:
    """The worst, the median and the best cases of the headline's model, with the reference and at most one more."""
    headline = choose_headline_record(records)
    reference = next(record for record in records if record.is_reference)
    first = [reference.name] if headline is None else [reference.name, headline.name]
    rest = sorted((r for r in records if r.name not in first), key=lambda r: -r.dice_mean)
    names = (first + [r.name for r in rest])[:MODELS]
    shown = [next(one for one in scored if one.subject.name == name) for name in names]
    lead = next(one for one in scored if one.subject.name == first[-1])
    with ExitStack() as stack:
        opened = [
            stack.enter_context(closing(open_subject(one.subject.bundle, one.subject.engine, threads)))
            for one in shown
        ]
        return [
            draw_example(
                f"{why} case of {lead.subject.name}",
                cases[i],
                [
                    (one.subject.name, _segment_with(model), one.scores[i].dice_mean)
                    for one, model in zip(shown, opened, strict=True)
                ],
                lead.subject.bundle.manifest.input,
            )
            for why, i in choose_cases(lead.scores)
        ]


def _segment_with(model: SubjectPredictor) -> Callable[[np.ndarray], np.ndarray]:
    def mask(image: np.ndarray) -> np.ndarray:
        predicted: np.ndarray = model.predict(image).mask
        return predicted

    return mask


def _checked_threads(wanted: Sequence[int]) -> list[int]:
    if bad := [count for count in wanted if count < 1]:
        raise InputError(f"--threads: must be at least 1, got {bad[0]}")
    return list(dict.fromkeys(wanted)) or [available_threads()]
