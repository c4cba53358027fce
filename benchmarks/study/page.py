"""Writes a study's report.html, study.md, study.json and plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from benchmarks.report.drawing import to_svg
from benchmarks.report.pictures import Example, Tile, data_uri
from benchmarks.study.record import Row, StudyRecord
from benchmarks.study.tables import further_tables, main_table
from segcore.dataset.case import Case
from segcore.measure.metrics import dice_per_class
from segcore.picture.overlay import COLOURS, EXTRA, MISSED, as_rgb, error_map, overlay
from segcore.tables import Table
from segcore.words import plural

REPORT, TABLE, RECORD, PLOTS = "report.html", "study.md", "study.json", "plots"
_CAPTIONS = {
    "systems": "Large mark: mean over the runs. Bar: 95 % interval over patients. Dots: every run. Hollow, below the "
    "dotted line: told by the truth, as nobody is in use.",
    "parameters": "Whiskers: 95 % interval over patients. Hollow: other tunings than the system's own.",
    "shares": "Whiskers: 95 % interval over patients, beside each other so that they show. A smaller share is passed "
    "over more often an epoch, so that all take about as many steps.",
    "ranks": "Whiskers: 95 % interval over patients.",
    "grid": "Mean validation Dice over the splits, first seed. A star: chosen in some split.",
    "drops": "Other patients, other images: the difference is not paired.",
}


def write_report(folder: Path, record: StudyRecord, examples: Sequence[Example]) -> None:
    """Writes everything that a reader opens into a study's folder."""
    from benchmarks.study.plots import draw_plots

    plots = draw_plots(record)
    (folder / PLOTS).mkdir(exist_ok=True)
    charts = []
    for name, (figure, said) in plots.items():
        figure.savefig(folder / PLOTS / f"{name}.png", dpi=120, facecolor="white")
        charts.append({"svg": to_svg(figure, name, said), "caption": _CAPTIONS[name], "name": name})
    (folder / RECORD).write_text(record.model_dump_json(indent=2) + "\n")
    (folder / TABLE).write_text(render_markdown(record))
    (folder / REPORT).write_text(render_html(record, charts, examples))


def render_html(record: StudyRecord, charts: Sequence[Mapping[str, str]], examples: Sequence[Example]) -> str:
    """The page: one file, no address outside it."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    table = main_table(record)

    def drawn(one: Table) -> Markup:
        def row_class(row: Row) -> str:
            return "reference" if row.label == record.reference else ""

        return Markup(one.html(row_class=row_class if one is table else None))

    return environment.get_template("study.html.j2").render(
        record=record,
        report={"examples": examples},
        terms=terms(record),
        table=table,
        tables=further_tables(record),
        drawn=drawn,
        charts=[{**chart, "svg": Markup(chart["svg"])} for chart in charts],
        class_colours=[(n, _css(COLOURS[k % len(COLOURS)])) for k, n in enumerate(record.classes)],
        missed=_css(MISSED),
        extra=_css(EXTRA),
    )


def render_markdown(record: StudyRecord) -> str:
    """The tables and the doubts, for a repository or a message."""
    lines = [f"# {record.headline}", "", terms(record), ""]
    for table in (main_table(record), *further_tables(record)):
        lines += [f"**{table.title}**\n\n{table.markdown()}\n\n{table.note}\n"]
    lines += ["**Before believing a difference**", "", *(f"* {doubt}" for doubt in record.doubts), ""]
    lines += [f"Failed: {f.run}: {f.reason}" for f in record.failures]
    lines += [f"Left out: {reason}" for reason in record.skipped]
    lines += [f"Made {record.made.time} on {record.made.host}: `{record.made.command}`", ""]
    return "\n".join(lines)


def terms(record: StudyRecord) -> str:
    """What was equal for all, in a sentence."""
    splits = plural(record.splits, "split")
    if record.folds > 1:
        splits += f" (cross-validation in {record.folds} folds)"
    first = record.of("main")[0]
    limit = "" if record.limit is None else f" of at most {plural(record.limit, 'training image')}"
    said = (
        f"{record.data}: {splits}, {plural(record.seeds, 'seed')}, {record.size_px} px, "
        f"{plural(record.epochs, 'epoch')}{limit} in batches of "
        f"{record.batch_size} for every system; {plural(first.cases, 'test image')} of "
        f"{plural(first.patients, 'patient')}."
    )
    own = [
        f"{system}: {', '.join(f'{name} {value}' for name, value in given.items())}"
        for system, given in record.own_settings.items()
    ]
    return said + (f" Settings of their own: {'; '.join(own)}." if own else "")


def draw_examples(
    cases: Sequence[Case], masks: Mapping[str, Mapping[str, np.ndarray]], reference: str
) -> list[Example]:
    """The worst, the median and the best case of the reference, each with every system's mask.

    Args:
        cases: test cases of the first split.
        masks: label → case → mask, of the first split and seed; the reference's among them.
        reference: label.
    """
    if reference not in masks:
        return []
    known = [case for case in cases if all(case.id in of for of in masks.values())]
    classes = max((int(m.max(initial=0)) for of in masks.values() for m in of.values()), default=1) or 1
    truths = {case.id: case.mask() for case in known}
    classes = max(classes, *(int(t.max(initial=0)) for t in truths.values()), 1)

    def dice(label: str, case: Case) -> float:
        return float(dice_per_class(masks[label][case.id], truths[case.id], classes).mean())

    order = sorted(known, key=lambda case: (dice(reference, case), case.id))
    picks = {id(c): (why, c) for why, c in _ends(order)}
    examples = []
    for why, case in picks.values():
        image, truth = case.image(), truths[case.id]
        tiles = [
            Tile("picture", "", f"the picture of {case.id}", data_uri(as_rgb(image))),
            Tile("truth", "", f"the true mask of {case.id}", data_uri(overlay(image, truth))),
        ]
        for label, of in masks.items():
            said, mask = f"Dice {dice(label, case):.3f}", of[case.id]
            alt = f"the mask of {label} on {case.id}, {said}"
            tiles.append(Tile(label, said, alt, data_uri(overlay(image, mask))))
            tiles.append(
                Tile("its errors", "", f"errors of {label}", data_uri(error_map(image, mask, truth)))
            )
        examples.append(Example(f"{why} case of {reference}", case.id, case.patient, tuple(tiles)))
    return examples


def _ends(order: Sequence[Case]) -> list[tuple[str, Case]]:
    """The best first, so that of few cases each is called by its graver name."""
    return [] if not order else [("worst", order[0]), ("median", order[len(order) // 2]), ("best", order[-1])]


def _css(colour: tuple[int, int, int]) -> str:
    return "rgb({}, {}, {})".format(*colour)
