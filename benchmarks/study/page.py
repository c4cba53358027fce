"""Writes a study's report.html, study.md, study.json and plots; its tables, once, for Markdown and the page."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measuring import write_record
from benchmarks.report.page import css_colour, open_template
from benchmarks.report.pictures import Example, show_masks
from benchmarks.report.plots import to_svg
from benchmarks.study.plots import draw_plots
from benchmarks.study.record import ArmRow, PairedComparison, Spread, StudyRecord
from segcore.dataset.case import Case
from segcore.measure.metrics import dice_per_class
from segcore.picture.overlay import COLOURS, EXTRA, MISSED
from segcore.tables import Column, Table, table_of
from segcore.words import count, figures, plural, signed

REPORT, TABLE, RECORD, PLOTS = "report.html", "study.md", "study.json", "plots"
_DASH = "–"
_HINTS = (
    "Differences are paired, and their intervals are over patients: another seed may move them further. No p: these "
    "are hints."
)
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
    plots = draw_plots(record)
    (folder / PLOTS).mkdir(exist_ok=True)
    charts = []
    for name, (figure, said) in plots.items():
        figure.savefig(folder / PLOTS / f"{name}.png", dpi=120, facecolor="white")
        charts.append({"svg": to_svg(figure, name, said), "caption": _CAPTIONS[name], "name": name})
    write_record(folder / RECORD, record)
    (folder / TABLE).write_text(render_markdown(record))
    (folder / REPORT).write_text(render_html(record, charts, examples))


def render_html(record: StudyRecord, charts: Sequence[Mapping[str, str]], examples: Sequence[Example]) -> str:
    """The page: one file, no address outside it."""
    from markupsafe import Markup

    table = main_table(record)

    def drawn(one: Table) -> Markup:
        def row_class(row: ArmRow) -> str:
            return "reference" if row.label == record.reference else ""

        return Markup(one.html(row_class=row_class if one is table else None))

    page: str = open_template("study.html.j2", Path(__file__).parent).render(
        record=record,
        report={"examples": examples},
        terms=terms(record),
        table=table,
        tables=further_tables(record),
        drawn=drawn,
        charts=[{**chart, "svg": Markup(chart["svg"])} for chart in charts],
        class_colours=[(n, css_colour(COLOURS[k % len(COLOURS)])) for k, n in enumerate(record.classes)],
        missed=css_colour(MISSED),
        extra=css_colour(EXTRA),
    )
    return page


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
    picks = {id(c): (why, c) for why, c in _worst_median_best(order)}
    examples = []
    for why, case in picks.values():
        shown = [(label, of[case.id], dice(label, case)) for label, of in masks.items()]
        told = f"{why} case of {reference}"
        examples.append(show_masks(told, case, case.image(), truths[case.id], shown))
    return examples


def main_table(record: StudyRecord) -> Table:
    """The systems, best first."""
    rows = record.of("main")
    columns = [
        _row_column("system", lambda r: r.label),
        _row_column("Dice, mean ± sd", lambda r: _spread_text(r.dice)),
        _row_column("95 % interval", lambda r: _interval_text(r.dice.low, r.dice.high)),
        _row_column(
            "place", lambda r: _DASH if r.place is None else f"{r.place.place} ({r.place.low}–{r.place.high})"
        ),
        _row_column("difference, points", lambda r: _difference_text(r.versus, r.label == record.reference)),
        _row_column("runs above", lambda r: f"{r.versus.above} of {r.versus.runs}" if r.versus else _DASH),
        _row_column("p, Holm", lambda r: _p_text(r.versus.p_holm if r.versus else None)),
    ]
    if any(r.versus and r.versus.p_splits is not None for r in rows):
        columns.append(_row_column("p, splits", lambda r: _p_text(r.versus.p_splits if r.versus else None)))
    columns += _cost_columns(rows)
    note = (
        f"Difference to {record.reference}: paired, of the same patients, splits and seeds; runs above: pairs of runs "
        "in which it was the better. Place: by Dice; in brackets where 95 % of resampled patients put it. ± is the "
        "standard deviation over runs; the interval resamples patients."
    )
    return Table("Systems on equal terms", tuple(columns), tuple(rows), note)


def further_tables(record: StudyRecord) -> list[Table]:
    """Every other table that the study has rows for."""
    label = _row_column("system", lambda r: r.label)
    scores = [
        _row_column("Dice", lambda r: _spread_text(r.dice)),
        _row_column("95 % interval", lambda r: _interval_text(r.dice.low, r.dice.high)),
    ]
    rows = record.of("main")
    unit = rows[0].hd95_unit
    others = [
        label,
        _row_column("IoU, mean ± sd", lambda r: _spread_text(r.iou)),
        _row_column("IoU, 95 %", lambda r: _interval_text(r.iou.low, r.iou.high)),
        _row_column(f"HD95, {unit}, mean ± sd", lambda r: _spread_text(r.hd95, 2)),
        _row_column("HD95, 95 %", lambda r: _interval_text(r.hd95.low, r.hd95.high, 2)),
    ]
    if len(record.classes) > 1:
        others += [_row_column(f"Dice, {name}", _class_dice(name)) for name in record.classes]
    tables = [Table("Overlap and distance", tuple(others), tuple(rows), "HD95: smaller is better.")]
    if told := record.of("main", "tune", "rank", told=True):
        protocol = _row_column("told", lambda r: r.protocol)
        note = (
            "Here the prompts come from the true mask, as a reader's who knows it and clicks or draws with care; under "
            "“upper bound” the truth even chooses among the masks. Not ranked, and not comparable with the table above."
        )
        tables.append(Table("Told by the truth (not ranked)", (label, protocol, *scores), tuple(told), note))
    ablated = [label, _row_column("trained", lambda r: count(r.trained_parameters)), *scores]
    own = _row_column("against its own tuning, points", lambda r: _difference_text(r.versus, r.own_tuning))
    systems = {r.system for r in record.of("tune")}
    if systems:
        some = [r for r in record.of("main", "tune") if r.system in systems]
        note = f"The same system with other tunings of its encoder, best first. {_HINTS}"
        tables.append(
            Table("Tuning of the encoder", (*ablated, own), tuple(_by_system(some, _system_and_dice)), note)
        )
    systems = {r.system for r in record.of("rank")}
    if systems:
        some = [r for r in record.of("main", "rank") if r.system in systems]
        rank = _row_column("rank", lambda r: str(r.rank))
        note = f"The same system with other ranks of its LoRA. {_HINTS}"
        tables.append(
            Table("Rank", (label, rank, *ablated[1:], own), tuple(_by_system(some, _system_and_rank)), note)
        )
    if record.of("share"):
        tables.append(_share_table(record))
    return [*tables, *_drop_table(record), *_grid_table(record)]


def _worst_median_best(order: Sequence[Case]) -> list[tuple[str, Case]]:
    """The best first, so that of few cases each is called by its graver name."""
    return [] if not order else [("worst", order[0]), ("median", order[len(order) // 2]), ("best", order[-1])]


def _cost_columns(rows: Sequence[ArmRow]) -> list[Column]:
    columns = [
        _row_column("trained", lambda r: count(r.trained_parameters)),
        _row_column("parameters", lambda r: count(r.parameters)),
        _row_column("MACs", lambda r: count(r.macs)),
        _row_column(
            "memory, MiB", lambda r: _DASH if r.peak_memory_mib is None else f"{r.peak_memory_mib:.0f}"
        ),
    ]
    if any(r.peak_gpu_memory_mib is not None for r in rows):
        columns.append(
            _row_column(
                "GPU, MiB",
                lambda r: _DASH if r.peak_gpu_memory_mib is None else f"{r.peak_gpu_memory_mib:.0f}",
            )
        )
    return [
        *columns,
        _row_column("s an epoch", lambda r: _DASH if r.seconds_epoch is None else figures(r.seconds_epoch)),
        _row_column("images/s", lambda r: _DASH if r.images_s is None else figures(r.images_s)),
        _row_column(
            "runs", lambda r: f"{r.runs}" + (f" of {r.runs + r.missing_runs}" if r.missing_runs else "")
        ),
    ]


def _class_dice(name: str) -> Callable[[ArmRow], str]:
    return lambda row: f"{row.dice_by_class[name]:.3f}"


def _by_system(rows: Sequence[ArmRow], order: Callable[[ArmRow], Any]) -> list[ArmRow]:
    """Systems together; comparisons of the main table are not shown here."""
    return [r.model_copy(update={"versus": None}) if r.own_tuning else r for r in sorted(rows, key=order)]


def _system_and_dice(row: ArmRow) -> Any:
    return row.system, not row.own_tuning, -row.dice.mean


def _system_and_rank(row: ArmRow) -> Any:
    return row.system, row.rank or 0


def _share_table(record: StudyRecord) -> Table:
    rows = record.of("main", "tune", "share")
    shares = sorted({row.share for row in rows})
    keys = dict.fromkeys((r.system, r.tune) for r in rows if r.kind == "share")
    cells = []
    for system, tune in keys:
        by_share = {r.share: r for r in rows if (r.system, r.tune) == (system, tune)}
        trained = next(iter(by_share.values())).trained_parameters
        texts = [_spread_text(by_share[s].dice) if s in by_share else _DASH for s in shares]
        cells.append((f"{system}, {tune}", count(trained), *texts))
    note = (
        "Dice, mean ± sd over runs; the share is of the training patients whose masks are used. A smaller share is "
        "passed over more often an epoch, so that all take about as many steps."
    )
    head = ("system, tuning", "trained", *(f"{100 * share:g} %" for share in shares))
    return table_of("Share of the labels", head, cells, words=_first_is_words(head), note=note)


def _first_is_words(head: Sequence[str]) -> list[bool]:
    """Only the first column is of words."""
    return [i == 0 for i in range(len(head))]


def _drop_table(record: StudyRecord) -> list[Table]:
    if not record.drops:
        return []
    cells = tuple(
        (
            d.label,
            f"{d.own:.3f}",
            f"{d.other:.3f}",
            f"{signed(100 * d.drop.mean, 2)} {_interval_text(d.drop.low, d.drop.high, 2, 100)}",
        )
        for d in record.drops
    )
    far = next(row for row in record.rows if row.data == record.also_test)
    head = ("system", "Dice", "Dice, other data", "difference, points")
    note = (
        f"Trained on {record.data}, tested on {far.cases} labelled images of {far.patients} patients of "
        f"{record.also_test}. Other patients, so the difference is not paired, and part of it is that those images "
        "may be harder."
    )
    return [table_of("On other data", head, cells, words=_first_is_words(head), note=note)]


def _grid_table(record: StudyRecord) -> list[Table]:
    if not record.grid:
        return []
    names = list(record.grid[0].values)
    cells = tuple(
        (c.system, *(f"{c.values[n]:g}" for n in names), f"{c.dice_val:.4f}", f"{c.chosen} of {c.splits}")
        for c in record.grid
    )
    head = ("system", *(name.replace("_", "-") for name in names), "validation Dice", "chosen in splits")
    note = (
        "Each split chooses by its own validation patients, with the first seed; test patients have no say."
    )
    return [table_of("Grid", head, cells, words=_first_is_words(head), note=note)]


def _row_column(header: str, cell: Callable[[ArmRow], str]) -> Column:
    """A column of rows; of words where it names the system or what it was told."""
    return Column(header, "", cell, words=header in ("system", "told"))


def _spread_text(one: Spread, decimals: int = 4) -> str:
    """0.9512 ± 0.0021; no deviation of one run."""
    return f"{one.mean:.{decimals}f}" + ("" if one.sd is None else f" ± {one.sd:.{decimals}f}")


def _interval_text(low: float | None, high: float | None, decimals: int = 4, scale: float = 1.0) -> str:
    """(0.9480–0.9561), or with signs (−0.31 to +0.02) where the scale is in points."""
    if low is None or high is None:
        return _DASH
    if scale != 1.0:
        return f"({signed(scale * low, decimals)} to {signed(scale * high, decimals)})"
    return f"{low:.{decimals}f}–{high:.{decimals}f}"


def _difference_text(one: PairedComparison | None, is_reference: bool) -> str:
    """−0.31 (−0.52 to −0.11), in points of Dice."""
    if one is None:
        return "reference" if is_reference else _DASH
    return f"{signed(100 * one.mean, 2)} {_interval_text(one.low, one.high, 2, 100)}"


def _p_text(p: float | None) -> str:
    """0.043; tiny ones as < 0.001."""
    return _DASH if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"
