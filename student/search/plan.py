"""What to measure next, and what was found: plain arithmetic on candidates and their latencies.

First the presets, then a sample spread over the sizes of every kind of stem. A model of latency, fitted to all that is
measured,

    ms = a + b·MACs + c·activations + d·layers        (a, b, c, d ≥ 0, of least relative error)

times what the measured candidates of the same kind took of it, says what others should take. Of those that should
keep the budget, the ones of highest capacity are measured next, a few of different kinds at a time, until time is up
or none is worth it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from benchmarks.report.headline import pareto_front
from student.search.candidates import Candidate

SPREAD, BATCH, FINALISTS = 16, 4, 5
_WIDE = 3.0
"""The first sample reaches so many times over the budget: the picture shows what a larger one would buy."""
_HOPELESS = 20
"""So many measured and none within the budget: no other will be, as those that should be fastest went first."""
REACH = 1.05
"""Candidates predicted to be so much over the budget are still tried: a prediction is a few percent off."""
_WORTH = 0.6
"""Share of the best capacity within the budget below which a candidate is not worth a measurement."""


@dataclass(frozen=True)
class Measurement:
    """A candidate's latency, and that of the anchor, a candidate that is timed in every batch.

    Attributes:
        name: of the candidate.
        ms: median of its calls.
        anchor_ms: of the anchor in the same interleaved run.
        took_s: making and timing it, the anchor's share included.
    """

    name: str
    ms: float
    anchor_ms: float
    took_s: float


def on_one_scale(measured: Sequence[Measurement]) -> dict[str, float]:
    """Milliseconds by name, as if the anchor had run at its median speed in every batch: so drift cancels out."""
    usual = float(np.median([one.anchor_ms for one in measured])) if measured else 0.0
    return {one.name: one.ms * usual / one.anchor_ms for one in measured}


def spread_sample(
    candidates: Sequence[Candidate], ms: Mapping[str, float], budget_ms: float, count: int = SPREAD
) -> list[Candidate]:
    """The first sample: from each kind of stem, evenly spaced by MACs, smallest and largest included.

    Args:
        candidates: all.
        ms: latencies by name of those that were measured, at least one.
        budget_ms: candidates that should take several times as long are left out.
        count: at most so many.
    """
    expected = predict_ms([c for c in candidates if c.name in ms], ms, candidates)
    candidates = [c for c, t in zip(candidates, expected, strict=True) if t <= _WIDE * budget_ms]
    stems = sorted({c.kind[:2] for c in candidates}, key=str)
    picked: list[Candidate] = []
    for i, stem in enumerate(stems):
        group = sorted((c for c in candidates if c.kind[:2] == stem), key=lambda c: c.macs)
        share = count // len(stems) + (i < count % len(stems))
        for k in np.unique(np.linspace(0, len(group) - 1, min(share, len(group))).round().astype(int)):
            picked.append(group[k])
    return picked


def predict_ms(
    known: Sequence[Candidate], ms: Mapping[str, float], others: Sequence[Candidate]
) -> np.ndarray:
    """Latency of `others` after the module's model.

    Args:
        known: measured candidates, at least one.
        ms: their latencies by name.
        others: to predict.
    """
    took = np.array([ms[c.name] for c in known])
    weights = _fit_weights(_features(known) / took[:, None])
    errors: dict[tuple[object, ...], list[float]] = {}
    for candidate, error in zip(known, np.log(took / (_features(known) @ weights)), strict=True):
        errors.setdefault(candidate.kind, []).append(float(error))
    # The mean error of the kind, drawn towards none where few of the kind were measured.
    correction = [sum(errors.get(c.kind, [])) / (len(errors.get(c.kind, [])) + 1) for c in others]
    return np.asarray(_features(others) @ weights * np.exp(correction))


def _features(candidates: Sequence[Candidate]) -> np.ndarray:
    return np.array([(1e-2, c.macs / 1e8, c.activations / 1e6, c.layers / 1e1) for c in candidates])


def _fit_weights(rows: np.ndarray) -> np.ndarray:
    """Weights ≥ 0 so that rows · weights is nearly 1: least squares, dropping what comes out negative."""
    keep = list(range(rows.shape[1]))
    while True:
        weights = np.zeros(rows.shape[1])
        weights[keep] = np.linalg.lstsq(rows[:, keep], np.ones(len(rows)), rcond=None)[0]
        worst = int(weights.argmin())
        if weights[worst] >= 0:
            return weights
        keep.remove(worst)


def next_batch(
    candidates: Sequence[Candidate], ms: Mapping[str, float], budget_ms: float, count: int = BATCH
) -> list[Candidate]:
    """The candidates to measure next; none when nothing is left that could be better.

    Args:
        candidates: all.
        ms: latencies by name of those that were measured, at least one.
        budget_ms: what the chosen one must keep.
        count: at most so many.
    """
    known = [c for c in candidates if c.name in ms]
    others = [c for c in candidates if c.name not in ms]
    if not others:
        return []
    expected = predict_ms(known, ms, others)
    best = max((c.capacity for c in known if ms[c.name] <= budget_ms), default=None)
    if best is None:  # nothing keeps the budget yet: whatever may be faster than the fastest
        order = [int(i) for i in np.argsort(expected, kind="stable")]
        fastest = min(ms.values())
        return [others[i] for i in order if expected[i] < fastest][:count] if len(ms) < _HOPELESS else []
    worth = [
        c
        for c, t in zip(others, expected, strict=True)
        if t <= REACH * budget_ms and c.capacity >= _WORTH * best
    ]
    return of_each_kind(worth, count)


def of_each_kind(candidates: Sequence[Candidate], count: int) -> list[Candidate]:
    """The candidates of highest capacity, one of each kind first, then the next of each kind."""
    rank: dict[str, int] = {}
    seen: dict[tuple[object, ...], int] = {}
    ordered = sorted(candidates, key=lambda c: -c.capacity)
    for candidate in ordered:
        rank[candidate.name] = seen[candidate.kind] = seen.get(candidate.kind, -1) + 1
    return sorted(ordered, key=lambda c: rank[c.name])[:count]


def front_of(candidates: Sequence[Candidate], ms: Mapping[str, float]) -> list[Candidate]:
    """The measured candidates that no other beats in latency and capacity, fastest first."""
    known = [c for c in candidates if c.name in ms]
    return [known[i] for i in pareto_front([ms[c.name] for c in known], [c.capacity for c in known])]


def proxies(
    candidates: Sequence[Candidate], ms: Mapping[str, float], budget_ms: float, count: int
) -> list[Candidate]:
    """Whom to train briefly: the highest capacity of each kind within the budget, and one with RepVGG's branches.

    The second is the first's twin: the same graph once sealed, so the same latency, but another training.
    """
    kept = of_each_kind([c for c in candidates if ms.get(c.name, np.inf) <= budget_ms], count)
    twin = [
        replace(c, name=f"{c.name}-reparam", design=c.design.model_copy(update={"block": "reparam"}))
        for c in kept[:1]
        if c.design.block == "plain"
    ]
    return [*kept[:1], *twin, *kept[1:]][:count]
