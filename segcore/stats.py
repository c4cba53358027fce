"""How sure a number is: intervals that resample patients, paired differences, tests, ranks. Pure functions.

Cases of one patient are not independent, and neither are runs on one split: patients are what is resampled and flipped,
after each case's scores were averaged over the runs that tested it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product
from typing import NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict

DRAWS = 2000
"""Resamples of the patients, unless a caller asks for another number."""
FLIPS = 10_000
"""Random sign flips of a permutation test."""
_ENDS = (2.5, 97.5)
"""Percentiles that hold 95 % of the resamples between them."""
_EXACT_PATIENTS = 13
"""Up to so many patients all 2^P sign flips are counted: fewer than `FLIPS`."""


class Estimate(BaseModel):
    """A figure with its 95 % interval over patients; no interval for a single patient."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mean: float
    low: float | None
    high: float | None


class FlipTest(NamedTuple):
    """Two-sided p, and how many permutations it comes from."""

    p: float
    flips: int


def sums_by_patient(values: Sequence[float] | np.ndarray, patients: Sequence[str]) -> np.ndarray:
    """N, one a case → P, summed over each patient's cases; patients in the order of their sorted names."""
    names, group = np.unique(np.asarray(patients), return_inverse=True)
    return np.bincount(group, weights=np.asarray(values, float), minlength=len(names))


def resampled(per_patient: np.ndarray, *, draws: int = DRAWS, seed: int = 0) -> np.ndarray:
    """Sums over as many patients as there are, drawn with replacement: of P numbers, or of each row of K×P.

    Every statistic that follows from sums over cases is resampled so: patients are drawn, and their cases come with
    them. Two calls with one seed and as many patients draw the same ones.

    Args:
        per_patient: P or K×P, as of `sums_by_patient`.
        draws: resamples.
        seed: of the resamples.

    Returns:
        draws, or K×draws.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13.
    """
    return np.asarray(per_patient[..., _resample_picks(per_patient.shape[-1], draws, seed)].sum(axis=-1))


def resampled_cases(patients: Sequence[str], *, draws: int = DRAWS, seed: int = 0) -> Iterator[np.ndarray]:
    """Indices of the cases of each resample of the patients, for what does not follow from sums, such as ranks."""
    names, group = np.unique(np.asarray(patients), return_inverse=True)
    members = [np.flatnonzero(group == k) for k in range(len(names))]
    for picks in _resample_picks(len(names), draws, seed):
        yield np.concatenate([members[k] for k in picks])


def _resample_picks(patients: int, draws: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, patients, size=(draws, patients))


def resampled_over_runs(
    values: np.ndarray, patients: Sequence[str], *, draws: int = DRAWS, seed: int = 0
) -> np.ndarray:
    """Means over runs and cases of each resample of both patients and runs: how sure a mean is of other ones of both.

    Patients and runs are drawn independently, each with replacement, so that the spread over both is in the result.
    What is drawn is the same for all systems: differences and ratios of the rows of one call are paired. With few runs
    their part comes out too small (of S runs by a factor of about (S − 1) / S in the variance); with one run it is
    not there.

    Args:
        values: A×S×N, systems by runs by cases; run s of one system belongs to run s of the others.
        patients: of the N cases.
        draws: resamples.
        seed: of the resamples.

    Returns:
        A×draws.

    Source: Owen, The pigeonhole bootstrap, Annals of Applied Statistics 1, 2007.
    """
    names, group = np.unique(np.asarray(patients), return_inverse=True)
    count = len(names)
    picks = _resample_picks(count, draws, seed)
    # How often each resample holds each patient, draws×P, and with it the patient's cases, draws×N.
    times = np.stack([np.bincount(one, minlength=count) for one in picks])[:, group].astype(float)
    means = values @ times.T / times.sum(axis=1)  # A×S×draws
    runs = values.shape[1]
    chosen = np.random.default_rng([seed, 1]).integers(0, runs, size=(draws, runs))
    return np.asarray(means[:, chosen, np.arange(draws)[:, None]].mean(axis=-1))


def percentile_interval(drawn: np.ndarray) -> tuple[float, float]:
    """What 95 % of the resamples lie between."""
    low, high = np.percentile(drawn, _ENDS)
    return float(low), float(high)


def bootstrap_interval(
    values: Sequence[float],
    patients: Sequence[str],
    *,
    counts: Sequence[float] | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> tuple[float, float]:
    """95 % percentile interval of the mean over cases, resampling patients.

    Cases of one patient are not independent: resampling cases would make the interval too narrow.

    Args:
        values: one a case.
        patients: of the cases.
        counts: with them, the interval is of sum(values) / sum(counts), as of parts found out of parts; every
            patient must have some.
        draws: resamples.
        seed: of the resamples.
    """
    return percentile_interval(_resampled_means(values, patients, counts, draws, seed))


def interval(
    values: Sequence[float], patients: Sequence[str], *, counts: Sequence[float] | None = None
) -> tuple[float, float] | tuple[None, None]:
    """The bootstrap interval over patients; none for a single patient, whose resamples are all the same."""
    return bootstrap_interval(values, patients, counts=counts) if len(set(patients)) > 1 else (None, None)


def _resampled_means(
    values: Sequence[float],
    patients: Sequence[str],
    counts: Sequence[float] | None,
    draws: int,
    seed: int,
) -> np.ndarray:
    """Means over the cases of each resample."""
    sums = sums_by_patient(values, patients)
    totals = sums_by_patient(np.ones(len(patients)) if counts is None else counts, patients)
    return np.asarray(resampled(sums, draws=draws, seed=seed) / resampled(totals, draws=draws, seed=seed))


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
    sums = sums_by_patient(values, patients)
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
    sums = np.stack([sums_by_patient(row, patients) for row in values])  # S×P
    counts = sums_by_patient(np.ones(len(patients)), patients)
    place = _rank_means(resampled(sums, seed=seed) / resampled(counts, seed=seed))  # S×draws
    low, high = np.percentile(place, _ENDS, axis=1, method="nearest")
    found = _rank_means(values.mean(1, keepdims=True))[:, 0]
    return [(int(a), int(b), int(c)) for a, b, c in zip(found, low, high, strict=True)]


def _rank_means(means: np.ndarray) -> np.ndarray:
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
    mean = float(np.mean(list(other.values())) - np.mean(list(own.values())))
    drawn = []
    for i, (scores, by_case) in enumerate(((own, own_patients), (other, other_patients))):
        patients = [by_case[case] for case in scores]
        if len(set(patients)) < 2:
            return Estimate(mean=mean, low=None, high=None)
        drawn.append(_resampled_means(list(scores.values()), patients, None, DRAWS, seed + i))
    low, high = percentile_interval(drawn[1] - drawn[0])
    return Estimate(mean=mean, low=low, high=high)


def pearson(a: np.ndarray, b: np.ndarray) -> float | None:
    """Pearson's correlation; None where one of the two does not vary."""
    a, b = a - a.mean(), b - b.mean()
    spread = float(np.sqrt((a**2).sum() * (b**2).sum()))
    return float((a * b).sum()) / spread if spread > 1e-12 else None


def spearman(a: np.ndarray, b: np.ndarray) -> float | None:
    """Spearman's rank correlation, equal values sharing their mean rank; None where one does not vary."""
    return pearson(ranks(a), ranks(b))


def ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1; equal values share the mean of theirs."""
    _, group, counts = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(counts) - (counts - 1) / 2)[group])


def auroc(score: np.ndarray, positive: np.ndarray) -> float | None:
    """Chance that a positive has a higher score than a negative; None without both."""
    n, m = int(positive.sum()), int((~positive).sum())
    if not n or not m:
        return None
    return float((ranks(score)[positive].sum() - n * (n + 1) / 2) / (n * m))


def correlation_interval(
    a: np.ndarray,
    b: np.ndarray,
    patients: Sequence[str],
    kind: Callable[[np.ndarray, np.ndarray], float | None],
    *,
    draws: int = DRAWS,
    seed: int = 0,
) -> tuple[float, float] | tuple[None, None]:
    """Interval of a correlation, resampling patients; none for a single one, or where nothing varies.

    Args:
        a: one number a case.
        b: another.
        patients: of the cases.
        kind: `pearson` or `spearman`; resamples in which it is None are left out.
        draws: resamples.
        seed: of the resamples.
    """
    if len(set(patients)) < 2 or kind(a, b) is None:
        return None, None
    found = (kind(a[picks], b[picks]) for picks in resampled_cases(patients, draws=draws, seed=seed))
    drawn = [value for value in found if value is not None]
    return percentile_interval(np.array(drawn)) if drawn else (None, None)
