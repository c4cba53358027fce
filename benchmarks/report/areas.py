"""What an area measured from a model's masks is worth: against the reference model's and against the truth's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.report.agreement import Agreement, agreement_of
from benchmarks.report.agreement_plot import bland_altman_svg
from benchmarks.report.record import CaseRecord
from segcore import words

DRAWN_CLASSES = 3
"""Classes whose areas the report draws."""


@dataclass(frozen=True)
class AreaPlot:
    """One Bland–Altman plot.

    Attributes:
        of: the class.
        svg: the plot.
        caption: what it shows, in words.
    """

    of: str
    svg: str
    caption: str


def plot_areas(scores: Sequence[CaseRecord], reference: Sequence[CaseRecord]) -> list[AreaPlot]:
    """Two plots for each of the first classes: minus the reference model's area, and minus the truth's.

    Args:
        scores: of the model that is judged.
        reference: of the same cases in the same order.

    Returns:
        Nothing for a single case, or where areas were not recorded.
    """
    if len(scores) < 2 or not all(case.area_by_class for case in (*scores, *reference)):
        return []
    patients, name, found = [case.patient for case in scores], scores[0].name, []
    for k in list(scores[0].area_by_class)[:DRAWN_CLASSES]:
        mine = [case.area_by_class[k] for case in scores]
        others = {
            reference[0].name: [case.area_by_class[k] for case in reference],
            "the truth": [case.true_area_by_class[k] for case in scores],
        }
        for other, theirs in others.items():
            agreement = agreement_of(mine, theirs, patients, scores[0].area_unit)
            svg = bland_altman_svg(agreement, what=f"area of {k}", names=(name, other))
            found.append(AreaPlot(k, svg, f"Area of {k}, {name} minus {other}: {_in_words(agreement)}"))
    return found


def _in_words(agreement: Agreement) -> str:
    """ "on average +223 px (0.275 % of the area); 19 of 20 cases between −2370 and +2810 px."."""
    mean = sum(agreement.first + agreement.second) / (2 * agreement.cases)
    share = f" ({words.percent(abs(agreement.bias.mean) / mean)} of the area)" if mean else ""
    low, high = (words.signed_figures(limit.mean) for limit in (agreement.limit_low, agreement.limit_high))
    average = words.signed_figures(agreement.bias.mean)
    return (
        f"on average {average} {agreement.unit}{share}; 19 of 20 cases between {low} and "
        f"{high} {agreement.unit}, if the differences are normally distributed. Grey: 95 % intervals over patients."
    )
