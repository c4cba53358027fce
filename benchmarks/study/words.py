"""What a study's numbers allow to say, and what not, in sentences."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.study.record import ArmRow
from segcore.words import plural, signed

LEAST_SEEDS = 3
LEAST_PATIENTS = 20
_LEVEL = 0.05
"""A p below this counts."""


def headline(main: Sequence[ArmRow], reference: str, seeds: int) -> str:
    """Who leads, and whether it is told from the reference.

    Args:
        main: the compared rows, best first.
        reference: label of the row that the others are compared with.
        seeds: trainings of each system and split.
    """
    best = main[0]
    if len(main) == 1:
        return f"{best.label} reaches a Dice of {best.dice.mean:.3f}; nothing was compared with it"
    others = main[1].label if len(main) == 2 else f"{len(main) - 1} others"
    few = "" if seeds >= LEAST_SEEDS else f" ({plural(seeds, 'seed')})"
    leads = f"{best.label} leads {others} with a Dice of {best.dice.mean:.3f}{few}"
    if best.label == reference:
        near = [row for row in main[1:] if not is_told_apart(row)]
        if not near:
            return f"{leads}, told apart from {'it' if len(main) == 2 else 'every one of them'}"
        return f"{leads}, but {_names_of(near)} {'is' if len(near) == 1 else 'are'} not told apart from it"
    if not is_told_apart(best):
        return f"{leads}, not told apart from {reference}"
    assert best.versus is not None
    return f"{leads}, {signed(100 * best.versus.mean, 2)} points over {reference}"


def is_told_apart(row: ArmRow) -> bool:
    """Whether other patients, and as far as is known other trainings, would show a difference to the reference, too.

    Over patients p, corrected, is below 0.05; over splits p is as well or, with fewer than three splits, every pair of
    runs has the same sign.
    """
    one = row.versus
    if one is None or one.p_holm is None or one.p_holm >= _LEVEL:
        return False
    return one.p_splits < _LEVEL if one.p_splits is not None else one.above in (0, one.runs)


def doubts(
    main: Sequence[ArmRow],
    *,
    splits: int,
    folds: int,
    seeds: int,
    test_patients: int,
    tuned: bool,
    chosen_reference: bool,
    failed: int,
    commits: Sequence[str],
) -> list[str]:
    """What the reader must know before believing a difference; the gravest first.

    Args:
        main: the compared rows, best first.
        splits: of the data, all folds and repeats.
        folds: of one cross-validation; 1 where there was none.
        seeds: trainings of each system and split.
        test_patients: behind the compared rows.
        tuned: whether each system had settings of its own (a grid, or the user's).
        chosen_reference: whether the reference was taken because its Dice is best among the controls.
        failed: runs that failed.
        commits: of sam2edge, that trained the runs.
    """
    said = []
    if failed:
        said.append(
            f"{plural(failed, 'run')} failed: rows with missing runs are averages over fewer, and pairs are of "
            "the runs that both have."
        )
    if len(commits) > 1:
        said.append(
            f"The runs were trained by {len(commits)} versions of sam2edge ({', '.join(commits)}): the study was "
            "resumed after a change, which may be behind a difference between systems."
        )
    said += _on_luck(main)
    said += _on_seeds(seeds) + _on_splits(splits, folds) + _on_patients(test_patients, splits, folds)
    compared = sum(row.versus is not None and row.versus.p is not None for row in main)
    if compared:
        flips = max(row.versus.flips for row in main if row.versus)
        said.append(
            f"p is of a sign-flip permutation test over patients ({flips:,} permutations, two-sided), corrected by "
            f"Holm for the {plural(compared, 'comparison')} of the table. Other figures (classes, IoU, HD95, "
            "ablations) are not corrected: read them as hints. A p above 0.05 does not say that two systems are "
            "equal: the interval says how far apart they may still be."
        )
    if chosen_reference:
        said.append(
            "The reference is the control that was best on these test patients: a choice after the fact, which makes "
            "it harder, not easier, to look better than it. --reference names one beforehand."
        )
    if not tuned:
        said.append(
            "Equal terms here mean equal data, steps and learning rate. A rate that suits one system starves another, "
            "and large random networks need more steps than tuned ones: --grid lets each choose its own on validation "
            "patients."
        )
    if still := [row for row in main if row.trained_parameters == 0]:
        said.append(
            f"{_names_of(still)}: nothing is trained, so there is no seed; one run a split goes with every seed of the "
            "others."
        )
    if any(row.system == "sam2-memory" for row in main):
        said.append(
            "sam2-memory is ranked by its automatic form, which sees slice by slice and remembers nothing; what its "
            "memory makes of one prompt a volume stands under “Told by the truth”. Dice is by slice everywhere, and a "
            "slice without the class where none is marked counts as 1: papers on volumes mostly give it by volume."
        )
    said.append(
        "Images are of the same source for training and test: other scanners and hospitals are another matter, which "
        "only --also-test touches."
    )
    return said


def _on_luck(main: Sequence[ArmRow]) -> list[str]:
    """Where seeds matter more than patients, intervals over patients are the smaller part of the doubt."""
    shaky = [row for row in main if _is_shaky(row)]
    if not shaky:
        return []
    return [
        f"{_names_of(shaky)}: from seed to seed the Dice varies by more than the interval over patients is wide. p and "
        "intervals do not know that: look at “runs above” and at every run's dot."
    ]


def _is_shaky(row: ArmRow) -> bool:
    dice = row.dice
    if dice.sd_seeds is None or dice.low is None or dice.high is None:
        return False
    return dice.sd_seeds > (dice.high - dice.low) / 2


def _on_seeds(seeds: int) -> list[str]:
    if seeds >= LEAST_SEEDS:
        return []
    once = "once" if seeds == 1 else "twice"
    return [
        f"Each system was trained {once} a split. Intervals and p speak of other patients, not of another training: "
        "with fewer than 3 seeds it may not be concluded that a system is better than another, only that these "
        f"trained weights are. {'No sd over seeds is known' if seeds == 1 else 'An sd of 2 values says little'}."
    ]


def _on_splits(splits: int, folds: int) -> list[str]:
    if splits == 1:
        return ["There is one split: how a system fares when trained on other patients is not known."]
    said = []
    if folds > 1:
        said.append(
            f"The {folds} folds share most of their training patients, so the sd over runs is no standard error and "
            "has no unbiased estimate (Bengio and Grandvalet, JMLR 5, 2004)."
        )
    else:
        said.append(
            "The random splits overlap, in training and in test patients: their runs are not independent."
        )
    if splits >= LEAST_SEEDS:
        said.append(
            "“p, splits” is a second opinion: the corrected resampled t-test (Nadeau and Bengio, Machine Learning 52, "
            "2003), which asks whether another draw of training patients would give the same sign. Where both p "
            "disagree, believe neither."
        )
    return said


def _on_patients(patients: int, splits: int, folds: int) -> list[str]:
    if patients >= LEAST_PATIENTS:
        return []
    verb = "is" if patients == 1 else "are"
    more = " --folds 5 tests every patient once." if folds == 1 and splits == 1 else ""
    return [
        f"There {verb} {plural(patients, 'test patient')}: percentile intervals are too narrow so far down.{more}"
    ]


def _names_of(rows: Sequence[ArmRow]) -> str:
    names = [row.label for row in rows]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
