"""Writes results.json, results.md, report.html and the plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.distillation.pictures import TRUTH, CasePictures, as_examples, save_sheet, shown_words
from benchmarks.distillation.plots import CAPTIONS, draw_plots
from benchmarks.distillation.record import DistillationRecord, Row
from benchmarks.distillation.tables import all_tables
from benchmarks.report.page import css_colour, open_template
from benchmarks.report.pictures import Example
from benchmarks.report.plots import to_svg
from segcore.outfolder import write_text
from segcore.picture.overlay import COLOURS
from segcore.tables import Table

RECORD, TABLE, REPORT, PLOTS, SHEET = "results.json", "results.md", "report.html", "plots", "cases.png"


def write_report(folder: Path, record: DistillationRecord, drawn: Sequence[CasePictures]) -> None:
    """Writes everything that a reader opens."""
    (folder / PLOTS).mkdir(exist_ok=True)
    charts = []
    for name, (figure, said) in draw_plots(record).items():
        figure.savefig(folder / PLOTS / f"{name}.png", dpi=120, facecolor="white")
        charts.append({"svg": to_svg(figure, name, said), "caption": CAPTIONS[name], "name": name})
    if drawn:
        save_sheet(drawn, folder / PLOTS / SHEET)
    write_text(folder / RECORD, record.model_dump_json(indent=2) + "\n")
    write_text(folder / TABLE, render_markdown(record))
    write_text(folder / REPORT, render_html(record, charts, as_examples(drawn)))


def render_html(
    record: DistillationRecord, charts: Sequence[Mapping[str, str]], examples: Sequence[Example]
) -> str:
    """The page: one file, no address outside it."""
    from markupsafe import Markup

    first, *others = all_tables(record)

    def drawn(one: Table) -> Markup:
        def row_class(row: Row) -> str:
            return "chosen" if row.kind == "distilled" else ""

        return Markup(one.html(row_class=row_class if one is first else None))

    page: str = open_template("distillation.html.j2", Path(__file__).parent).render(
        record=record,
        report={"examples": examples},
        shown=shown_words(record) if examples else "",
        table=first,
        tables=others,
        drawn=drawn,
        charts=[{**chart, "svg": Markup(chart["svg"])} for chart in charts],
        truth=css_colour(TRUTH),
        class_colours=[(n, css_colour(COLOURS[k % len(COLOURS)])) for k, n in enumerate(record.classes)],
    )
    return page


def render_markdown(record: DistillationRecord) -> str:
    """The answer, the tables and the doubts, for a repository or a message."""
    lines = [f"# {record.headline}", ""]
    lines += [*(f"* {answer}" for answer in record.answers), ""] if record.answers else []
    for table in all_tables(record):
        lines += [f"**{table.title}**", "", table.markdown(), ""] + [f"{table.note}\n"] * bool(table.note)
    lines += ["**Before believing a difference**", "", *(f"* {doubt}" for doubt in record.doubts), ""]
    lines += [f"Failed: {one.name}: {one.reason}\n" for one in record.failures]
    lines += [f"Refused by the INT8 guard: {one.name}: {one.reason}\n" for one in record.refused]
    lines += ["**Commands of the first seed**", "", "```bash", *record.commands, "```", ""]
    lines += [f"Made {record.made.time} on {record.made.host}: `{record.made.command}`", ""]
    return "\n".join(lines)
