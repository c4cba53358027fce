"""Which models are worth choosing, and which one the report's headline is about."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.report.record import Record

ALLOWED_LOSS = 0.02
"""Dice that a smaller model may lose and still be the headline: two points."""


def pareto_front(costs: Sequence[float], gains: Sequence[float]) -> list[int]:
    """Indices of the points that no other beats: as cheap, as good, and better in one of both.

    Returns:
        Indices by rising cost. Of equal points all are kept.
    """
    points = list(zip(costs, gains, strict=True))
    return sorted(
        (i for i, p in enumerate(points) if not any(_beats(q, p) for q in points)),
        key=lambda i: (points[i][0], points[i][1]),
    )


def _beats(q: tuple[float, float], p: tuple[float, float]) -> bool:
    return q[0] <= p[0] and q[1] >= p[1] and q != p


def choose_headline(records: Sequence[Record]) -> Record | None:
    """The model that the answer is about, among the records of one thread count.

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
