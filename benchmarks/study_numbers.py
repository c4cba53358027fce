"""What a study's scores say: spread, paired differences with their tests, ranks. Pure functions.

Cases of one patient are not independent, and neither are runs on one split: patients are what is resampled and flipped,
after each case's scores were averaged over the runs that tested it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import product
from typing import NamedTuple

import numpy as np

from benchmarks.record import Estimate

FLIPS = 10_000
"""Random sign flips of a permutation test."""
_EXACT_PATIENTS = 13
"""Up to so many patients all 2^P sign flips are counted: fewer than `FLIPS`."""
_DRAWS = 2000


class FlipTest(NamedTuple):
    """Two-sided p, and how many permutations it comes from."""

    p: float
    flips: int


def mean_sd(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and standard deviation (n − 1); no deviation of one value."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None


def sd_within(values: Sequence[float], groups: Sequence[object]) -> float | None:
    """Standard deviation within groups, pooled over them (n − 1 each); None where no group has two values."""
    members: dict[object, list[float]] = {}
    for value, group in zip(values, groups, strict=True):
        members.setdefault(group, []).append(value)
    several = [np.array(one) for one in members.values() if len(one) > 1]
    if not several:
        return None
    squares = sum(float(((one - one.mean()) ** 2).sum()) for one in several)
    return math.sqrt(squares / sum(len(one) - 1 for one in several))


def mean_by_case(runs: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Each case's mean over the runs that scored it."""
    found: dict[str, list[float]] = {}
    for run in runs:
        for case, value in run.items():
            found.setdefault(case, []).append(value)
    return {case: float(np.mean(values)) for case, values in found.items()}


def differences(pairs: Sequence[tuple[Mapping[str, float], Mapping[str, float]]]) -> dict[str, float]:
    """Each case's mean over pairs of runs of first minus second; a case that one lacks is left out of that pair."""
    return mean_by_case([{case: a[case] - b[case] for case in a.keys() & b.keys()} for a, b in pairs])


def sign_flip_test(values: Sequence[float], patients: Sequence[str], *, seed: int = 0) -> FlipTest:
    """Whether paired differences are 0 on average: how often random signs make the mean as far from 0.

    Under the hypothesis that both systems are alike, a patient's difference could as well have the other sign. A
    patient's cases flip together. All sign patterns are counted where there are at most 2^13, else 10 000 random ones
    and the one that was found.

    Args:
        values: differences, one a case.
        patients: of the cases.
        seed: of the random signs.

    Source: Good, Permutation, Parametric and Bootstrap Tests of Hypotheses, 2005, section 3.2; the one that is added:
        Phipson and Smyth, Permutation p-values should never be zero, SAGMB 9, 2010.
    """
    _, group = np.unique(np.asarray(patients), return_inverse=True)
    sums = np.bincount(group, weights=np.asarray(values, float))
    found = abs(sums.sum()) * (1 - 1e-9)  # as far, to rounding
    if len(sums) <= _EXACT_PATIENTS:
        signs = np.array(list(product((-1.0, 1.0), repeat=len(sums))))
        return FlipTest(float((abs(signs @ sums) >= found).mean()), len(signs))
    signs = np.random.default_rng(seed).choice((-1.0, 1.0), size=(FLIPS, len(sums)))
    return FlipTest((1 + int((abs(signs @ sums) >= found).sum())) / (1 + FLIPS), FLIPS)


def holm(p: Sequence[float]) -> list[float]:
    """P values corrected for their number, so that one wrong finding among all has at most the stated probability.

    Source: Holm, A simple sequentially rejective multiple test procedure, Scand. J. Statistics 6, 1979.
    """
    corrected, least = [0.0] * len(p), 0.0
    for place, i in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        least = max(least, min(1.0, (len(p) - place) * p[i]))
        corrected[i] = least
    return corrected


def student_t_p(t: float, freedom: int) -> float:
    """Two-sided p of Student's t.

    Source: Abramowitz and Stegun, Handbook of Mathematical Functions, 1964, 26.7.3 and 26.7.4.
    """
    angle = math.atan2(abs(t), math.sqrt(freedom))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = freedom % 2
    term, total = (cosine, 0.0) if odd else (1.0, 0.0)
    for k in range(freedom // 2):
        total += term
        term *= cosine**2 * ((2 * k + 2) / (2 * k + 3) if odd else (2 * k + 1) / (2 * k + 2))
    inside = 2 / math.pi * (angle + sine * total) if odd else sine * total
    return min(1.0, max(0.0, 1.0 - inside))


def corrected_t_p(by_split: Sequence[float], test_to_train: float) -> float | None:
    """Two-sided p of the corrected resampled t-test over splits; None below three of them.

    Splits share training patients, so the plain t-test over them finds differences that are none: the variance of
    their mean is taken as (1/J + test/train) times theirs, not 1/J. A rule of thumb for cross-validation, which it was
    not derived for.

    Args:
        by_split: mean difference of each of J splits, seeds averaged.
        test_to_train: test cases for each training case.

    Source: Nadeau and Bengio, Inference for the generalization error, Machine Learning 52, 2003.
    """
    if len(by_split) < 3:
        return None
    mean, sd = mean_sd(by_split)
    if not sd:
        return 1.0 if mean == 0 else 0.0
    t = mean / (sd * math.sqrt(1 / len(by_split) + test_to_train))
    return student_t_p(t, len(by_split) - 1)


def places(values: np.ndarray, patients: Sequence[str], *, seed: int = 0) -> list[tuple[int, int, int]]:
    """Each system's place by its mean, 1 the highest, and the range of places in 95 % of resamples of patients.

    Args:
        values: S×N, systems by cases that all of them have.
        patients: of the N cases.
        seed: of the resamples.
    """
    names, group = np.unique(np.asarray(patients), return_inverse=True)
    sums = np.stack([np.bincount(group, weights=row, minlength=len(names)) for row in values])  # S×P
    counts = np.bincount(group)
    picks = np.random.default_rng(seed).integers(0, len(names), size=(_DRAWS, len(names)))
    drawn = sums[:, picks].sum(2) / counts[picks].sum(1)  # S×draws
    place = _place(drawn)
    low, high = np.percentile(place, (2.5, 97.5), axis=1, method="nearest")
    found = _place(values.mean(1, keepdims=True))[:, 0]
    return [(int(a), int(b), int(c)) for a, b, c in zip(found, low, high, strict=True)]


def _place(means: np.ndarray) -> np.ndarray:
    """S×D means → S×D places; equal means share the better place."""
    better = means[None] > means[:, None]  # S×S×D: whether another is better than one
    return np.asarray(1 + better.sum(1))


def drop_between(
    own: Mapping[str, float],
    own_patients: Mapping[str, str],
    other: Mapping[str, float],
    other_patients: Mapping[str, str],
    *,
    seed: int = 0,
) -> Estimate:
    """Mean of other patients' cases minus the mean of one's own; both resampled, each for itself.

    Args:
        own: score by case, of the data that was trained on.
        own_patients: patient by case.
        other: score by case, of the other data.
        other_patients: patient by case.
        seed: of the resamples.
    """
    draws = [_draw(s, p, seed + i) for i, (s, p) in enumerate(((own, own_patients), (other, other_patients)))]
    mean = float(np.mean(list(other.values())) - np.mean(list(own.values())))
    if any(draw is None for draw in draws):
        return Estimate(mean=mean, low=None, high=None)
    low, high = np.percentile(draws[1] - draws[0], (2.5, 97.5))  # type: ignore[operator]
    return Estimate(mean=mean, low=float(low), high=float(high))


def _draw(scores: Mapping[str, float], patients: Mapping[str, str], seed: int) -> np.ndarray | None:
    """Means of resamples of the patients; None for a single one."""
    names, group = np.unique([patients[case] for case in scores], return_inverse=True)
    if len(names) < 2:
        return None
    sums, counts = np.bincount(group, weights=list(scores.values())), np.bincount(group)
    picks = np.random.default_rng(seed).integers(0, len(names), size=(_DRAWS, len(names)))
    return np.asarray(sums[picks].sum(1) / counts[picks].sum(1))
