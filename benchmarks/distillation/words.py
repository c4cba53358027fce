"""What the figures allow to say, and what not, in sentences."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.distillation.record import Comparison, GapShare, Row
from segcore.stats import Estimate
from segcore.words import plural, signed

LEAST_SEEDS = 3
LEAST_PATIENTS = 20
INT8 = ", INT8"
"""What a network's label has at its end where its INT8 export is meant."""


def answers(
    rows: Sequence[Row], gaps: Sequence[GapShare], comparisons: Sequence[Comparison], seeds: int
) -> list[str]:
    """For each share of the labels, how far the teacher leads and how much of that the student takes over.

    Args:
        rows: all of them.
        gaps: all of them; of each share the first design's under the teacher with the best validation Dice is told.
        comparisons: all of them.
        seeds: planned trainings.

    Returns:
        Sentences, the smallest share's first; the first of them is the headline.
    """
    said = []
    for share in sorted({gap.share for gap in gaps}):
        told = [gap for gap in gaps if gap.share == share and gap.precision == "fp32"]
        if told:
            gap = _chosen_gap(told, rows)
            said.append(_answer(gap, several=len({one.teacher for one in told}) > 1))
            said += _other_answers(gap, comparisons)
    if not said:
        return ["Teacher, student alone and distilled student are not all there yet: no answer."]
    if seeds < LEAST_SEEDS:
        said[0] += f" Nothing is claimed: {plural(seeds, 'seed')} of at least {LEAST_SEEDS}."
    return said


def points(one: Estimate, *, named: bool = False) -> str:
    """+15.2 points (+12.9 to +17.4); `named` says that this is the 95 % interval."""
    said = interval_words(one)
    return f"{signed(100 * one.mean, 1)} points" + (said.replace("(", "(95 % interval ") if named else said)


def interval_words(one: Estimate, decimals: int = 1) -> str:
    """(+12.9 to +17.4), in points of Dice; empty where there is no interval."""
    if one.low is None or one.high is None:
        return ""
    return f" ({signed(100 * one.low, decimals)} to {signed(100 * one.high, decimals)})"


def closed_words(one: Estimate | None) -> str:
    """84 % (71 to 96 %); a student that got worse has closed −5 %."""
    if one is None:
        return "–"
    said = f"{_whole_percent(one.mean)} %"
    if one.low is None or one.high is None:
        return said
    return f"{said} ({_whole_percent(one.low)} to {_whole_percent(one.high)} %)"


def _whole_percent(share: float) -> str:
    return signed(100 * share, 0).removeprefix("+")


def is_told_apart(one: Estimate) -> bool:
    """Whether the interval leaves 0 out."""
    return one.low is not None and one.high is not None and (one.low > 0 or one.high < 0)


def doubts(
    rows: Sequence[Row], *, seeds: int, ensemble: bool, failed: int, grid: bool, commits: Sequence[str]
) -> list[str]:
    """What the reader must know before believing a difference; the gravest first.

    Args:
        rows: all of them.
        seeds: planned trainings.
        ensemble: whether students learnt from the mean of all seeds' teachers.
        failed: stages that failed.
        grid: whether the student alone chose its settings from a grid.
        commits: of sam2edge, that trained the networks.
    """
    said = []
    if failed:
        said.append(
            f"{plural(failed, 'stage')} failed: rows with missing seeds are averages over fewer, and differences are "
            "over the seeds that both have."
        )
    if seeds < LEAST_SEEDS:
        said.append(
            f"Everything was trained with {plural(seeds, 'seed')}: the intervals speak of other patients and hardly of "
            f"another training. Nothing is claimed with fewer than {LEAST_SEEDS}."
        )
    else:
        said.append(
            f"{plural(seeds, 'seed')} are resampled with the patients; of so few their part of the interval comes out "
            "too small. Look at each seed's dot."
        )
    patients = min(row.patients for row in rows)
    if patients < LEAST_PATIENTS:
        said.append(
            f"There are {plural(patients, 'test patient')}: percentile intervals are too narrow so far down."
        )
    if len(commits) > 1:
        said.append(
            f"The networks were trained by {len(commits)} versions of sam2edge ({', '.join(commits)}), which may be "
            "behind a difference."
        )
    if ensemble:
        said.append(
            "Students learnt from the mean of all seeds' teachers: they differ by their own seed alone, and the "
            "teacher's row is of single teachers."
        )
    if not grid:
        said.append(
            "The student alone was trained with the distilled one's learning rate: --grid lr=1e-3,3e-3 lets it choose "
            "its own on validation patients."
        )
    said.append(
        "Intervals are not corrected for the number of differences. There is one split: how all of this turns out on "
        "other training patients, or on pictures of another source, is not known."
    )
    return said


def _chosen_gap(gaps: Sequence[GapShare], rows: Sequence[Row]) -> GapShare:
    """Of the first design, under the teacher that is best on validation: test images do not choose."""
    val = {(row.share, row.teacher): row.dice_val for row in rows if row.kind == "teacher"}
    of_first = [gap for gap in gaps if gap.design == gaps[0].design]
    return max(of_first, key=lambda gap: val.get((gap.share, gap.teacher), 0.0))


def _answer(gap: GapShare, *, several: bool) -> str:
    where = "With all labels" if gap.share == 1 else f"At {100 * gap.share:g} % of the labels"
    teacher = f"the teacher {gap.teacher}" if several else "the teacher"
    led, gain = points(gap.gap, named=True), _gain_words(gap.gain)
    if not is_told_apart(gap.gap):
        return (
            f"{where} {teacher} is not told apart from the student alone, {led}, so there is no gap to "
            f"close; distilling {gain}."
        )
    if gap.gap.mean < 0:
        return f"{where} {teacher} is {led} behind the student alone; distilling {gain}."
    return (
        f"{where} {teacher} is {led} above the student alone; distilling closes {closed_words(gap.closed)} "
        f"of that gap and {gain}."
    )


def _other_answers(gap: GapShare, comparisons: Sequence[Comparison]) -> list[str]:
    """What else one wants to know of the distilled student: in INT8, and against one that had all labels."""
    of_student = {
        one.question: one
        for one in comparisons
        if one.first.removesuffix(INT8) == gap.gain.first and one.share == gap.share
    }
    said = []
    if "distilled − alone with all labels" in of_student:
        said.append(
            f"With those labels the distilled student is {points(of_student['distilled − alone with all labels'])} "
            "from the student alone that had all labels."
        )
    if "INT8: distilled − teacher" in of_student:
        text = f"In INT8 it is {points(of_student['INT8: distilled − teacher'])} from its teacher"
        if most := of_student.get("INT8: distilled − alone with all labels"):
            text += f", and {points(most)} from the INT8 student alone that had all labels"
        said.append(f"{text}.")
    return said


def _gain_words(gain: Comparison) -> str:
    if not is_told_apart(gain):
        return f"changes the student by {points(gain)}, which is not told from nothing"
    verb = "gains" if gain.mean > 0 else "costs"
    return f"{verb} the student {points(gain)}"
