"""The headline of a report: how much smaller, how much faster, how much accuracy is kept, on what, how sure.

It is about one model, which `choose_headline_record` picks, against the reference. A difference is called one only
where the paired interval leaves 0 out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.report.record import Record, for_threads
from runtime.timing.latency import BUSY_SHARE
from segcore import words
from segcore.bundle.manifest import Manifest
from segcore.bundle.story import has_random_start, is_procedural

ALLOWED_LOSS = 0.02
"""Dice that a smaller model may lose and still be the headline: two points."""
FEW_PATIENTS = 20
"""Below about so many an interval over patients tends to be too narrow."""
_SAME = 0.05
"""Sizes whose ratio is nearer to 1 than this are called equal."""


@dataclass(frozen=True)
class HeadlineNumber:
    """One large number of the first screen."""

    value: str
    label: str
    detail: str


@dataclass(frozen=True)
class Headline:
    """The first screen.

    Attributes:
        title: one sentence.
        numbers: those in it.
        sentences: what they were measured on and how sure they are.
        limits: what a reader must know before using them.
        chosen: name of the model that it is about, None if only the reference was measured.
    """

    title: str
    numbers: tuple[HeadlineNumber, ...]
    sentences: tuple[str, ...]
    limits: tuple[str, ...]
    chosen: str | None = None


def make_headline(records: Sequence[Record], manifests: Sequence[Manifest], data_sha256: str) -> Headline:
    """Puts the measurements into words.

    Args:
        records: all of one run.
        manifests: of the bundles in it, for their limits.
        data_sha256: of the dataset they were scored on.
    """
    shown = for_threads(records)
    reference = next(record for record in shown if record.is_reference)
    chosen = choose_headline_record(shown)
    limits = known_limits(records, manifests, data_sha256)
    if chosen is None:
        reached = f"{reference.name} reaches a Dice of {reference.dice_mean:.3f}"
        title = f"{reached}; nothing was measured to compare it with."
        return Headline(title, _numbers_alone(reference), (_data_sentence(reference),), limits)
    sentences = (
        _data_sentence(chosen),
        _dice_sentence(chosen),
        _speed_sentence(chosen, reference),
        _choice_sentence(chosen, shown),
    )
    return Headline(
        title=f"{chosen.name} {_size_words(chosen)}{_speed_words(chosen)}, and {_accuracy_words(chosen)}.",
        numbers=_numbers_against(chosen, reference),
        sentences=tuple(filter(None, sentences)),
        limits=limits,
        chosen=chosen.name,
    )


def choose_headline_record(records: Sequence[Record]) -> Record | None:
    """The model that the headline is about, among the records of one thread count.

    The fastest (without times: the one with fewest parameters) whose loss of Dice is at most two points, by
    the lower end of its interval; if there is none, the one with the highest Dice to three decimals, the
    fastest of equals. None if only the reference was measured.
    """
    others = [record for record in records if not record.is_reference]
    near = [record for record in others if keeps_accuracy(record)]
    if near:
        return min(near, key=lambda r: (r.end_to_end_ms_p50 or 0.0, r.parameters, r.size_bytes))
    return max(others, key=lambda r: (round(r.dice_mean, 3), -(r.end_to_end_ms_p50 or 0.0)), default=None)


def keeps_accuracy(record: Record) -> bool:
    """Whether the loss of Dice is at most two points, by the lower end of its interval where there is one."""
    difference = record.difference
    if difference is None:
        return True
    return (difference.mean if difference.low is None else difference.low) >= -ALLOWED_LOSS


def pareto_front(costs: Sequence[float], gains: Sequence[float]) -> list[int]:
    """Indices of the points that no other beats: as cheap, as good, and better in one of both.

    Returns:
        Indices by rising cost. Of equal points all are kept.
    """
    points = list(zip(costs, gains, strict=True))

    def beaten(p: tuple[float, float]) -> bool:
        return any(q[0] <= p[0] and q[1] >= p[1] and q != p for q in points)

    return sorted((i for i, p in enumerate(points) if not beaten(p)), key=lambda i: points[i])


def known_limits(
    records: Sequence[Record], manifests: Sequence[Manifest], data_sha256: str
) -> tuple[str, ...]:
    """What the numbers do not say, most important first."""
    record = records[0]
    found = []
    # Students always start from random weights, by design: the limit is a teacher that did, or that is not here.
    judged = [m for m in manifests if m.kind == "teacher"] or manifests
    scratch = [m.name for m in judged if has_random_start(m)]
    if scratch:
        found.append(
            f"No pretrained weights: {_model_names(scratch, len(manifests))} started from random weights. Networks "
            "that start from pretrained weights may do quite differently, and the comparison may come out otherwise."
        )
    if is_procedural(record.data):
        found.append(
            "The pictures are procedural phantoms, not patients: Dice here says nothing about a clinic."
        )
    busy = max((r.other_load_share or 0.0 for r in records), default=0.0)
    if busy > BUSY_SHARE:
        found.append(
            f"The machine was busy: other programs took {words.percent(busy, 0)} of its processor time while times "
            "were taken. Times with several threads suffer most; measure again on a quiet machine."
        )
    if record.split != "test":
        found.append(f"Scored on the {record.split} split, which training saw or was steered by.")
    other = [m.name for m in manifests if m.data.sha256 != data_sha256]
    if other:
        found.append(
            f"{_model_names(other, len(manifests))}: made with other data than {record.data}, or with another version "
            "of it. If both hold the same patients, test cases may have been trained on; the hashes cannot tell."
        )
    if record.patients < FEW_PATIENTS:
        found.append(
            f"{words.plural(record.patients, 'patient')} only: below about {FEW_PATIENTS} "
            "a bootstrap interval tends to be too narrow."
        )
    return tuple(found)


def _numbers_alone(record: Record) -> tuple[HeadlineNumber, ...]:
    numbers = [
        HeadlineNumber(f"{record.dice_mean:.3f}", "Dice", _dice_range(record)),
        HeadlineNumber(words.count(record.parameters), "parameters", ""),
    ]
    if record.end_to_end_ms_p50 is not None:
        numbers.insert(
            1, HeadlineNumber(f"{words.figures(record.end_to_end_ms_p50)} ms", "picture to mask", "median")
        )
    return tuple(numbers)


def _dice_range(record: Record) -> str:
    if record.dice_low is None or record.dice_high is None:
        return "no interval: one patient"
    return f"95 % interval {record.dice_low:.3f} to {record.dice_high:.3f}"


def _size_words(record: Record) -> str:
    ratio = record.times_fewer_parameters
    if abs(ratio - 1) < _SAME:
        smaller = record.times_smaller_file
        file = f", in a file {words.times(smaller)} smaller" if smaller >= 1 + _SAME else ""
        return f"has as many parameters as {record.reference}{file}"
    if ratio < 1:
        return f"has {words.times(1 / ratio)} the parameters of {record.reference}"
    return f"has {words.times(ratio)} fewer parameters than {record.reference}"


def _speed_words(record: Record) -> str:
    if record.times_faster is None or record.times_faster_low is None or record.times_faster_high is None:
        return ""
    if record.times_faster_low <= 1 <= record.times_faster_high:
        return ", is about as fast"
    if record.times_faster < 1:
        return f", is {words.times(1 / record.times_faster)} slower"
    return f", is {words.times(record.times_faster)} faster"


def _accuracy_words(record: Record) -> str:
    if record.dice_share_kept is None:
        return f"reaches a Dice of {record.dice_mean:.3f} where the reference's is 0"
    share = f"{words.percent(record.dice_share_kept, 1)} of its Dice"
    return f"keeps {share}" if record.dice_share_kept <= 1 else f"reaches {share}"


def _numbers_against(record: Record, reference: Record) -> tuple[HeadlineNumber, ...]:
    size = f"{words.count(record.parameters)} for {words.count(reference.parameters)}; "
    size += f"files {words.megabytes(record.size_bytes)} for {words.megabytes(reference.size_bytes)}"
    numbers = [HeadlineNumber(words.times(record.times_fewer_parameters), "fewer parameters", size)]
    if record.times_fewer_parameters < 1:
        numbers = [HeadlineNumber(words.times(1 / record.times_fewer_parameters), "the parameters", size)]
    if record.times_faster is not None and record.end_to_end_ms_p50 and reference.end_to_end_ms_p50:
        detail = (
            f"{words.figures(record.end_to_end_ms_p50)} ms for "
            f"{words.figures(reference.end_to_end_ms_p50)} ms, "
            f"picture to mask, {words.plural(record.threads or 1, 'thread')}"
        )
        fast = record.times_faster >= 1
        numbers.append(
            HeadlineNumber(
                words.times(record.times_faster if fast else 1 / record.times_faster),
                "faster" if fast else "slower",
                detail,
            )
        )
    if record.dice_share_kept is not None:
        difference = words.difference(
            record.dice_difference, record.dice_difference_low, record.dice_difference_high
        )
        detail = f"{record.dice_mean:.3f} for {reference.dice_mean:.3f}; difference {difference}"
        numbers.append(HeadlineNumber(words.percent(record.dice_share_kept, 1), "of the Dice", detail))
    return tuple(numbers)


def _data_sentence(record: Record) -> str:
    return (
        f"Scored on {words.plural(record.cases, 'case')} of {words.plural(record.patients, 'patient')}: "
        f"the {record.split} split of {record.data}, at the pictures' own size."
    )


def _dice_sentence(record: Record) -> str:
    difference = record.difference
    if difference is None:
        return ""
    mean = words.signed(difference.mean)
    if difference.low is None or difference.high is None:
        return f"The Dice differs by {mean}; one patient gives no interval, so nothing follows from it."
    span = f"95 % interval over patients {words.signed(difference.low)} to {words.signed(difference.high)}"
    text = f"Case by case its Dice differs by {mean} ({span}), and the interval "
    if difference.includes_zero:
        return text + "includes 0: these cases show no difference, which does not prove that there is none."
    return text + f"leaves 0 out: on these data it is {'lower' if difference.mean < 0 else 'higher'}."


def _speed_sentence(record: Record, reference: Record) -> str:
    if record.times_faster_low is None or record.times_faster_high is None:
        return ""
    low, high = words.times(record.times_faster_low), words.times(record.times_faster_high)
    text = (
        "Speed is the ratio of median times of one interleaved run "
        f"({record.engine} against {reference.engine}); "
        f"over {words.plural(record.rounds or 0, 'round')} it lay between {low} and {high}."
    )
    if record.engine != reference.engine:
        text += " The engines differ, so part of it is the engine's."
    return text


def _choice_sentence(chosen: Record, shown: Sequence[Record]) -> str:
    if len(shown) < 3:
        return ""
    rule = (
        f"loses at most {100 * ALLOWED_LOSS:g} points of Dice (0.01 each; by the lower end of its interval)"
    )
    if not keeps_accuracy(chosen):
        return (
            f"No model here {rule}, so the headline is about the most accurate one; the table has them all."
        )
    speed = "fastest" if chosen.times_faster is not None else "smallest"
    return f"The headline is about the {speed} model that {rule}; the table has them all."


def _model_names(found: Sequence[str], among: int) -> str:
    return "all models here" if len(found) == among and among > 1 else ", ".join(found)
