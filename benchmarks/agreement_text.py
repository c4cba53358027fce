"""The table of an agreement in Markdown."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from benchmarks.agreement_numbers import WITHIN
from benchmarks.record import Estimate
from benchmarks.wording import plural, signed

if TYPE_CHECKING:
    from benchmarks.agreement import AgreementRecord, Comparison

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


def table_of(record: AgreementRecord) -> str:
    """What was compared, a row for each pair, and how to read it."""
    of = f"{record.measure} of {record.of_class} in {record.unit}"
    rows = [_HEAD, ("---",) * len(_HEAD), *(_row(comparison) for comparison in record.comparisons)]
    nothing = ", ".join(f"{name} {count}" for name, count in record.not_found.items())
    return "\n".join(
        (
            f"{of.capitalize()}: {record.split} split of {record.data}, {plural(record.cases, 'case')} of "
            f"{plural(record.patients, 'patient')}; the truth is the column {record.truth_column}.",
            "",
            *(f"| {' | '.join(row)} |" for row in rows),
            "",
            f"Limits of agreement are the mean difference ± {WITHIN} SD. In brackets: 95 % intervals that resample "
            f"patients. Nothing found to measure: {nothing}; pairs without both are left out.",
            "",
        )
    )


def _row(comparison: Comparison) -> tuple[str, ...]:
    one = comparison.agreement
    if one is None:
        return (comparison.first, comparison.second, "0 or 1", str(comparison.not_found), *("–",) * 5)
    share = 100 * one.bias.mean / float(np.mean(one.second))
    return (
        comparison.first,
        comparison.second,
        str(one.cases),
        str(comparison.not_found),
        f"{_signed(one.bias)}, {signed(share, 2)} %",
        _signed(one.limit_low),
        _signed(one.limit_high),
        _unsigned(one.mean_absolute),
        "–" if one.slope is None else _signed(one.slope, decimals=4),
    )


def _signed(estimate: Estimate, decimals: int = 2) -> str:
    def text(value: float) -> str:
        return signed(value, decimals)

    if estimate.low is None or estimate.high is None:
        return text(estimate.mean)
    return f"{text(estimate.mean)} ({text(estimate.low)} to {text(estimate.high)})"


def _unsigned(estimate: Estimate) -> str:
    text = f"{estimate.mean:.2f}"
    return text if estimate.low is None else f"{text} ({estimate.low:.2f}–{estimate.high:.2f})"
