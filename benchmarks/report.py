"""Renders report.html and report.md: the answer first, then tables, plots, cases, method and lineage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import plots, tables
from benchmarks.answer import Answer, answer
from benchmarks.columns import P99_SAMPLES
from benchmarks.devices import device_remarks, device_tables
from benchmarks.guard_tables import guard_html, guard_markdown
from benchmarks.pictures import Example
from benchmarks.record import CaseRecord, Record, for_threads
from benchmarks.roofline import Roofline, describe_roofline
from runtime.device_report import DeviceReport
from segcore.bundle import Bundle
from segcore.host import Made
from segcore.overlay import COLOURS, EXTRA, MISSED

PAIRED = 3
"""Models in the plot of case against case: the headline's and the next best by Dice."""

TEMPLATE = Path(__file__).with_name("report.html.j2")


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
    def tables(self) -> list[tables.Table]:
        return [*tables.tables_of(self.records, self.ratio_to), *device_tables(self.records, self.devices)]

    @property
    def answer(self) -> Answer:
        return answer(self.records, [bundle.manifest for bundle in self.bundles], self.data_sha256)


def render_html(report: Report) -> str:
    """The page: one file, no address outside it, light and dark, fit to print."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    shown = for_threads(report.records)
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(TEMPLATE.read_text())
    classes = list(report.records[0].dice_by_class)
    return template.render(
        answer=report.answer,
        report=report,
        records=report.records,
        record=report.records[0],
        tables=report.tables,
        guard=Markup(guard_html(report.bundles)),
        peaks=[describe_roofline(one) for one in report.rooflines],
        charts={name: Markup(svg) for name, svg in draw_plots(report, shown).items()},
        class_colours=[(name, _css(COLOURS[k % len(COLOURS)])) for k, name in enumerate(classes)],
        missed=_css(MISSED),
        extra=_css(EXTRA),
        p99_samples=P99_SAMPLES,
        device_remarks=device_remarks(report.devices),
    )


def draw_plots(report: Report, shown: Sequence[Record]) -> dict[str, str]:
    """The plots that these records allow, by name."""
    names = [record.name for record in shown]
    charts = {"spread": plots.plot_distribution(report.scores, names)}
    if all(record.end_to_end_ms_p50 is not None for record in shown):
        charts["pareto"] = plots.plot_pareto(shown, names)
    reference = next(s for s in report.scores if s[0].name == shown[0].reference)
    others = [s for s in report.scores if s is not reference]
    if others:
        others.sort(key=lambda s: (s[0].name != report.answer.chosen, -sum(c.dice_mean for c in s)))
        charts["paired"] = plots.plot_paired(reference, others[:PAIRED], names)
    return charts


def render_markdown(report: Report) -> str:
    """The answer and the table, for a repository or a message."""
    said = report.answer
    lines = [f"# {said.headline}", ""]
    lines += [f"* {' '.join(filter(None, (f'**{t.value}** {t.label}.', t.detail)))}" for t in said.tiles]
    lines += ["", *(sentence + "\n" for sentence in said.sentences)]
    if said.limits:
        lines += ["**Limits**", "", *(f"* {limit}" for limit in said.limits), ""]
    for table in report.tables:
        lines += [f"**{table.title}**", "", tables.markdown_table(table), ""]
    lines += [f"* {remark}" for remark in device_remarks(report.devices)] + [""] * bool(report.devices)
    lines += guard_markdown(report.bundles)
    lines += [f"{describe_roofline(one)}\n" for one in report.rooflines]
    lines += [f"Not measured: {reason}" for reason in report.skipped]
    lines += [f"Made {report.made.time} on {report.made.host}: `{report.made.command}`", ""]
    return "\n".join(lines)


def _css(colour: tuple[int, int, int]) -> str:
    return "rgb({}, {}, {})".format(*colour)
