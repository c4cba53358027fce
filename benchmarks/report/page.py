"""Renders report.html and report.md: the headline first, then plots, cases, tables, method and lineage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.report import plots, tables
from benchmarks.report.agreement import AreaPlot, plot_areas
from benchmarks.report.devices import device_remarks, device_tables
from benchmarks.report.guard_tables import TITLE, guard_markdown, summarise_guards
from benchmarks.report.headline import Headline, make_headline
from benchmarks.report.measure import KEPT_CALLS
from benchmarks.report.pictures import Example
from benchmarks.report.record import CaseRecord, Record, for_threads
from benchmarks.report.reliability import ECE_IN_WORDS, calibrated, plot_reliability, plot_thresholds
from benchmarks.report.tables import P99_SAMPLES
from runtime.device.report import DeviceReport
from runtime.timing.roofline import Roofline, describe_roofline
from segcore.bundle.folder import Bundle
from segcore.host import Made
from segcore.picture.overlay import COLOURS, EXTRA, MISSED
from segcore.tables import Table

PAIRED = 3
"""Models in the plot of case against case: the headline's and the next best by Dice."""

_TEMPLATES = Path(__file__).parent


@dataclass(frozen=True)
class Report:
    """All that a report shows.

    Attributes:
        records: one a model and thread count, the first thread count first.
        scores: one sequence a model, in the order of the records.
        bundles: what was measured.
        examples: cases as pictures.
        skipped: engines that could not be measured, and why.
        made: this run.
        data_sha256: of the dataset.
        ratio_to: sha256 of the bundles that latencies are told in ratios to.
        rooflines: measured peaks; empty if not asked for.
        devices: what other devices measured; empty if no report of one was given.
    """

    records: Sequence[Record]
    scores: Sequence[Sequence[CaseRecord]]
    bundles: Sequence[Bundle]
    examples: Sequence[Example]
    skipped: Sequence[str]
    made: Made
    data_sha256: str
    ratio_to: Sequence[str] = ()
    rooflines: Sequence[Roofline] = ()
    devices: Sequence[DeviceReport] = ()

    @property
    def tables(self) -> list[Table]:
        return [*tables.tables_of(self.records, self.ratio_to), *device_tables(self.records, self.devices)]

    @property
    def headline(self) -> Headline:
        return make_headline(self.records, [bundle.manifest for bundle in self.bundles], self.data_sha256)


def render_html(report: Report) -> str:
    """The page: one file, no address outside it, light and dark, fit to print."""
    from markupsafe import Markup

    shown = for_threads(report.records)
    chosen = report.headline.chosen

    def drawn(table: Table) -> Markup:
        def row_class(one: Any) -> str:
            return "reference" if one.is_reference else "chosen" if one.name == chosen else ""

        return Markup(table.html(row_class=row_class))

    classes = list(report.records[0].dice_by_class)
    areas = draw_areas(report)
    return open_template("report.html.j2").render(
        headline=report.headline,
        report=report,
        records=report.records,
        record=report.records[0],
        tables=report.tables,
        drawn=drawn,
        guard=Markup(guard_html(report.bundles)),
        peaks=[describe_roofline(one) for one in report.rooflines],
        charts={name: Markup(svg) for name, svg in draw_plots(report, shown).items()},
        areas=[{"svg": Markup(area.svg), "caption": area.caption} for area in areas],
        areas_left_out=classes[len({area.of for area in areas}) :] if areas else [],
        reliability=report.records[0].reliability,
        ece_in_words=ECE_IN_WORDS,
        class_colours=[(name, css_colour(COLOURS[k % len(COLOURS)])) for k, name in enumerate(classes)],
        missed=css_colour(MISSED),
        extra=css_colour(EXTRA),
        p99_samples=P99_SAMPLES,
        kept_calls=KEPT_CALLS,
        device_remarks=device_remarks(report.devices),
    )


def open_template(name: str, *folders: Path) -> Any:
    """A template of the report's, or of other folders, which come first. What it is given is escaped.

    Args:
        name: of the file.
        folders: beside the report's own.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader([*folders, _TEMPLATES]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)


def guard_html(bundles: Sequence[Bundle]) -> str:
    """The page's section on INT8; empty if no bundle has a guard."""
    from markupsafe import Markup

    def drawn(grid: Table, name: str) -> Markup:
        return Markup(grid.html(label=f"{grid.title}, {name}", row_heads=False))

    page: str = open_template("guard.html.j2").render(
        title=TITLE, guarded=summarise_guards(bundles), drawn=drawn
    )
    return page


def draw_plots(report: Report, shown: Sequence[Record]) -> dict[str, str]:
    """The plots that these records allow, by name."""
    names = [record.name for record in shown]
    charts = {"spread": plots.plot_distribution(report.scores, names)}
    if all(record.end_to_end_ms_p50 is not None for record in shown):
        charts["pareto"] = plots.plot_pareto(shown, names)
    if all(record.end_to_end_ms_sorted for record in shown):
        charts["latency"] = plots.plot_latency(shown, names)
    if all(record.reliability for record in shown):
        charts["reliability"] = plot_reliability(shown, names)
    manifests = {bundle.sha256: bundle.manifest for bundle in report.bundles}
    curves = calibrated([(r.name, manifests[r.bundle_sha256]) for r in shown if r.bundle_sha256 in manifests])
    if curves:
        charts["thresholds"] = plot_thresholds(curves, names)
    reference = _scores_of(report, shown[0].reference)
    others = [s for s in report.scores if s is not reference]
    if others:
        others.sort(key=lambda s: (s[0].name != report.headline.chosen, -sum(c.dice_mean for c in s)))
        charts["paired"] = plots.plot_paired(reference, others[:PAIRED], names)
    return charts


def draw_areas(report: Report) -> list[AreaPlot]:
    """Areas of the headline's model against the reference's and the truth's; none where there is no such model."""
    if report.headline.chosen is None:
        return []
    return plot_areas(
        _scores_of(report, report.headline.chosen), _scores_of(report, report.records[0].reference)
    )


def _scores_of(report: Report, name: str) -> Sequence[CaseRecord]:
    return next(scores for scores in report.scores if scores[0].name == name)


def render_markdown(report: Report) -> str:
    """The headline and the tables, for a repository or a message."""
    said = report.headline
    lines = [f"# {said.title}", ""]
    lines += [f"* {' '.join(filter(None, (f'**{t.value}** {t.label}.', t.detail)))}" for t in said.numbers]
    lines += ["", *(sentence + "\n" for sentence in said.sentences)]
    if said.limits:
        lines += ["**Limits**", "", *(f"* {limit}" for limit in said.limits), ""]
    for table in report.tables:
        lines += [f"**{table.title}**", "", table.markdown(), ""]
    lines += [f"* {remark}" for remark in device_remarks(report.devices)] + [""] * bool(report.devices)
    lines += guard_markdown(report.bundles)
    lines += [f"{describe_roofline(one)}\n" for one in report.rooflines]
    lines += [f"Not measured: {reason}" for reason in report.skipped]
    lines += [f"Made {report.made.time} on {report.made.host}: `{report.made.command}`", ""]
    return "\n".join(lines)


def css_colour(colour: tuple[int, int, int]) -> str:
    """A colour of `segcore.picture.overlay` for a page."""
    return "rgb({}, {}, {})".format(*colour)
