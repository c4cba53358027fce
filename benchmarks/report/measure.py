"""Runs the measurements of one report: accuracy, then cold start and memory, then interleaved latency."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass

import numpy as np

from benchmarks.report.accuracy import (
    distance_unit,
    paired_difference,
    recall_difference,
    score_case,
    summarise_scores,
)
from benchmarks.report.memory import measure_start
from benchmarks.report.record import CaseRecord, Record, Reliability, Speed, Start
from benchmarks.report.reliability import PixelCounts
from benchmarks.report.subject import TORCH, Subject, SubjectPredictor, open_subject
from runtime.timing.latency import (
    LatencySamples,
    ModelCalls,
    others_share,
    read_processor_times,
    time_interleaved,
)
from runtime.timing.roofline import Roofline, measure_roofline, share_of_peak
from segcore.bundle.manifest import Manifest
from segcore.command import Progress
from segcore.dataset.case import Case
from segcore.errors import InputError
from segcore.picture.preprocess import prepare

PICTURES = 8
"""Pictures that the timing goes round; held in memory, so that no file is read in a timed call."""
KEPT_CALLS = 200
"""Most timed calls that a record keeps of a model."""


@dataclass(frozen=True)
class SubjectScores:
    """A subject with its score of every case, in the order of the cases, and how far its probabilities hold."""

    subject: Subject
    engine_version: str
    scores: tuple[CaseRecord, ...]
    reliability: Reliability | None = None


def probe(subjects: Sequence[Subject], *, wanted: bool) -> tuple[list[Subject], list[str]]:
    """Opens every subject once, so that what cannot run is known before anything is measured.

    Args:
        subjects: bundles on the engines that could open them.
        wanted: the user asked for these engines, so one that does not open is an error.

    Returns:
        The subjects that opened, and why others did not, one line each.

    Raises:
        InputError: a wanted engine, or every engine of a bundle, does not open it.
    """
    usable, reasons = [], []
    for subject in subjects:
        try:
            open_subject(subject.bundle, subject.engine, None).close()
        except InputError as error:
            alone = not any(s.bundle == subject.bundle and s != subject for s in subjects)
            if wanted or alone:
                raise
            reasons.append(f"{subject.name}: {error}")
        else:
            usable.append(subject)
    for subject in subjects:
        if not any(s.bundle == subject.bundle for s in usable):
            raise InputError(
                f"--bundle {subject.bundle.folder}: must open with an engine; {'; '.join(reasons)}"
            )
    return usable, reasons


def measure_accuracy(
    subjects: Sequence[Subject], cases: Sequence[Case], *, threads: int, small_px: int
) -> list[SubjectScores]:
    """Scores every case with every subject, one opened at a time."""
    scored, unit = [], distance_unit(cases)
    with Progress[None](label="accuracy", total=len(subjects) * len(cases), unit="case") as bar:
        for subject in subjects:
            with closing(open_subject(subject.bundle, subject.engine, threads)) as opened:
                scores, counts = [], PixelCounts(subject.manifest.output)
                for case in cases:
                    predicted = opened.predict(case.image(), name=f"case {case.id}")
                    counts.add(predicted.probabilities, case.mask())
                    scores.append(
                        score_case(
                            predicted.mask,
                            case,
                            subject.manifest.classes,
                            name=subject.name,
                            engine=subject.engine,
                            unit=unit,
                            small_px=small_px,
                        )
                    )
                    bar.update()
                version = str(opened.engine_version)
                scored.append(SubjectScores(subject, version, tuple(scores), counts.reliability()))
    return scored


def measure_starts(
    subjects: Sequence[Subject], image: np.ndarray, *, threads: int, children: int
) -> list[Start]:
    """Cold start and peak memory of each subject, in processes of their own."""
    bar = Progress(subjects, "cold start", unit="model")
    return [measure_start(s.bundle, s.engine, image, threads=threads, children=children) for s in bar]


def measure_speed(
    subjects: Sequence[Subject], images: Sequence[np.ndarray], *, threads: int, rounds: int, reference: int
) -> list[Speed]:
    """Latency of all subjects in one interleaved run at one thread count.

    Ratios are against `subjects[reference]`.
    """
    with ExitStack() as stack:
        models = []
        for subject in subjects:
            opened = stack.enter_context(closing(open_subject(subject.bundle, subject.engine, threads)))
            models.append(_calls_of(opened, subject, images))
        bar = stack.enter_context(
            Progress[None](label=f"latency, threads {threads}", total=rounds * len(subjects), unit="burst")
        )
        before = read_processor_times()
        samples = time_interleaved(models, rounds=rounds, progress=bar.update)
        share = others_share(before, read_processor_times())
    speeds = [summarise_speed(s, samples[reference]) for s in samples]
    return [speed.model_copy(update={"other_load_share": share}) for speed in speeds]


def measure_rooflines(subjects: Sequence[Subject], threads: Sequence[int]) -> list[Roofline]:
    """The peaks of every engine in use, PyTorch left out, at every thread count."""
    engines = dict.fromkeys(s.engine for s in subjects if s.engine != TORCH)
    pairs = [(engine, count) for engine in engines for count in threads]
    bar = Progress(pairs, "peaks", unit="engine")
    return [measure_roofline(engine, count) for engine, count in bar]


def summarise_speed(samples: LatencySamples, reference: LatencySamples) -> Speed:
    """Percentiles over all rounds, and how many times faster than the reference (medians of the same run)."""
    engine, whole = np.concatenate(samples.engine_ms), np.concatenate(samples.end_to_end_ms)
    reference_engine = float(np.median(np.concatenate(reference.engine_ms)))
    reference_whole = float(np.median(np.concatenate(reference.end_to_end_ms)))
    by_round = [
        float(np.median(r) / np.median(s))
        for r, s in zip(reference.end_to_end_ms, samples.end_to_end_ms, strict=True)
    ]
    engine_p50, engine_p90, engine_p99 = (float(v) for v in np.percentile(engine, (50, 90, 99)))
    whole_p50, whole_p90, whole_p99 = (float(v) for v in np.percentile(whole, (50, 90, 99)))
    return Speed(
        latency_ms_p50=engine_p50,
        latency_ms_p90=engine_p90,
        latency_ms_p99=engine_p99,
        end_to_end_ms_p50=whole_p50,
        end_to_end_ms_p90=whole_p90,
        end_to_end_ms_p99=whole_p99,
        samples=min(len(engine), len(whole)),
        rounds=len(samples.end_to_end_ms),
        throughput_images_s=1e3 * len(whole) / float(whole.sum()),
        times_faster=reference_whole / whole_p50,
        times_faster_low=min(by_round),
        times_faster_high=max(by_round),
        times_faster_engine=reference_engine / engine_p50,
        end_to_end_ms_sorted=keep_calls(whole),
    )


def keep_calls(times_ms: np.ndarray) -> tuple[float, ...]:
    """Calls for a plot of their distribution: sorted, to four figures, `KEPT_CALLS` at most.

    Of more, evenly spaced ones are kept, the fastest and the slowest among them.
    """
    ordered = np.sort(times_ms)
    at = np.round(np.linspace(0, len(ordered) - 1, min(len(ordered), KEPT_CALLS))).astype(int)
    return tuple(float(f"{ms:.4g}") for ms in ordered[at])


def make_records(
    scored: Sequence[SubjectScores],
    reference: int,
    *,
    data: str,
    split: str,
    speeds: dict[int, list[Speed]],
    starts: Sequence[Start] | None,
    small_px: int,
    rooflines: Sequence[Roofline] = (),
) -> list[Record]:
    """One record a subject and thread count.

    Args:
        scored: subjects with their scores.
        reference: index of the one that all are compared with.
        data: the dataset's name.
        split: the split that was scored.
        speeds: thread count → one `Speed` a subject; empty if nothing was timed.
        starts: one a subject; None if nothing was timed.
        small_px: area below which a part of the truth counts as small.
        rooflines: peaks by engine and thread count; empty if not asked for.
    """
    base = scored[reference]
    summaries = [summarise_scores(one.scores, small_px=small_px) for one in scored]
    peaks = {(roofline.engine, roofline.threads): roofline for roofline in rooflines}
    records = []
    counts: list[int | None] = [*speeds] or [None]
    for threads in counts:
        for i, one in enumerate(scored):
            fields = _subject_fields(one, base) | summaries[i].model_dump() | {"reliability": one.reliability}
            if i != reference:
                fields |= _difference_fields(
                    one, base, dice=(summaries[i].dice_mean, summaries[reference].dice_mean)
                )
            if threads is not None:
                speed, roofline = speeds[threads][i], peaks.get((one.subject.engine, threads))
                fields |= speed.model_dump() | _peak_fields(one.subject.manifest, speed, roofline)
            if starts is not None:
                fields |= starts[i].model_dump()
            records.append(Record.model_validate(fields | {"threads": threads, "data": data, "split": split}))
    return records


def _calls_of(opened: SubjectPredictor, subject: Subject, images: Sequence[np.ndarray]) -> ModelCalls:
    batches = [
        prepare(image, subject.manifest.input)[None].copy() for image in images
    ]  # torch wants memory that it may write to
    return ModelCalls(
        run=lambda i: opened.run(batches[i % len(batches)]),
        predict=lambda i: opened.predict(images[i % len(images)]),
    )


def _subject_fields(one: SubjectScores, base: SubjectScores) -> dict[str, object]:
    subject, manifest = one.subject, one.subject.manifest
    return {
        "name": subject.name,
        "reference": base.subject.name,
        "bundle": str(subject.bundle.folder),
        "bundle_sha256": subject.bundle.sha256,
        "parent": None if manifest.format == "torch" else manifest.parent,
        "kind": manifest.kind,
        "precision": manifest.precision,
        "engine": subject.engine,
        "engine_version": one.engine_version,
        "input_height_px": manifest.input.height_px,
        "input_width_px": manifest.input.width_px,
        "parameters": manifest.parameters,
        "macs": manifest.macs,
        "size_bytes": subject.size_bytes,
        "times_fewer_parameters": base.subject.manifest.parameters / manifest.parameters,
        "times_smaller_file": base.subject.size_bytes / subject.size_bytes,
    }


def _difference_fields(
    one: SubjectScores, base: SubjectScores, *, dice: tuple[float, float]
) -> dict[str, object]:
    difference = paired_difference(one.scores, base.scores)
    recall = recall_difference(one.scores, base.scores)
    mine, theirs = dice
    return {
        "dice_difference": difference.mean,
        "dice_difference_low": difference.low,
        "dice_difference_high": difference.high,
        "dice_share_kept": mine / theirs if theirs > 0 else None,
        "small_recall_difference": recall.mean if recall else None,
        "small_recall_difference_low": recall.low if recall else None,
        "small_recall_difference_high": recall.high if recall else None,
    }


def _peak_fields(manifest: Manifest, speed: Speed, roofline: Roofline | None) -> dict[str, object]:
    """INT8 against the INT8 peak, everything else against FP32's: 16-bit weights still compute in 32."""
    if roofline is None:
        return {}
    peak = roofline.int8_gmac_s if manifest.precision == "int8" else roofline.fp32_gmac_s
    if peak is None:
        return {}
    share = share_of_peak(manifest.macs, speed.latency_ms_p50, peak)
    return {"peak_gmac_s": peak, "share_of_peak": share}
