"""The comparison's tables, once, for Markdown and the page."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.distillation.plan import design_slug, share_words
from benchmarks.distillation.record import DistillationRecord, Figure, StageCost
from benchmarks.distillation.words import closed_words, interval_words
from segcore.stats import Estimate
from segcore.tables import Column, Table, table_of
from segcore.words import count, figures, percent, plural, ranged, signed

_DASH = "–"


def all_tables(record: DistillationRecord) -> list[Table]:
    """Every table that there are figures for, the answer first."""
    found = [networks_table(record), gap_table(record), difference_table(record)]
    if record.small_cases:
        found.append(size_table(record))
    if record.grid:
        found.append(_grid_table(record))
    return [table for table in (*found, _cost_table(record), _run_table(record)) if table.records]


def networks_table(record: DistillationRecord) -> Table:
    """A row a network and share of the labels."""
    columns = [
        Column("network", "", lambda r: r.what, words=True),
        Column("labels", "", lambda r: share_words(r.share), words=True),
        Column("Dice", "", lambda r: _figure_text(r.dice)),
        Column("IoU", "", lambda r: f"{r.iou.mean:.3f}"),
        Column("precision", "", lambda r: f"{r.precision.mean:.3f}"),
        Column("recall", "", lambda r: f"{r.recall.mean:.3f}"),
    ]
    if any(row.int8 for row in record.rows):
        columns.append(Column("Dice, INT8", "", lambda r: _figure_text(r.int8)))
    columns += [
        Column("parameters", "", lambda r: count(r.parameters)),
        Column("MACs", "", lambda r: count(r.macs)),
        Column("seeds", "", lambda r: f"{r.seeds}" + (f" of {r.seeds + r.missing}" if r.missing else "")),
    ]
    row = record.rows[0]
    note = (
        f"{plural(row.cases, 'test image')} of {plural(row.patients, 'patient')}. In brackets the 95 % interval over "
        "patients and seeds. FP32 is tested in PyTorch, INT8 in OpenVINO."
    )
    return Table("Networks", tuple(columns), record.rows, note)


def gap_table(record: DistillationRecord) -> Table:
    """How much of the gap the distilled student closes."""
    columns = (
        Column("student, teacher", "", lambda g: f"{design_slug(g.design)}, {g.teacher}", words=True),
        Column("labels", "", lambda g: share_words(g.share), words=True),
        Column("student in", "", lambda g: g.precision.upper(), words=True),
        Column("teacher − alone, points", "", lambda g: points_text(g.gap)),
        Column("distilled − alone, points", "", lambda g: points_text(g.gain)),
        Column("gap closed", "", lambda g: closed_words(g.closed)),
        Column("small objects", "", lambda g: closed_words(g.small)),
    )
    note = (
        "Gap closed: (distilled − alone) / (teacher − alone); 100 % is a student as good as its teacher. A dash: the "
        "teacher is not told from the student alone, and a share of no gap means nothing."
    )
    return Table("Share of the gap closed", columns, record.gaps, note)


def difference_table(record: DistillationRecord) -> Table:
    """Every paired difference."""
    columns = (
        Column("difference", "", lambda c: c.question, words=True),
        Column("of", "", lambda c: c.first, words=True),
        Column("and", "", lambda c: c.second, words=True),
        Column("points of Dice", "", points_text),
        Column("seeds above", "", lambda c: f"{c.above} of {len(c.by_seed)}"),
        Column("small objects", "", lambda c: points_text(c.small)),
    )
    note = "First minus second, paired by test image and seed; the 95 % interval resamples patients and seeds together."
    return Table("Paired differences", columns, record.comparisons, note)


def size_table(record: DistillationRecord) -> Table:
    """Small and large objects apart."""
    rows = tuple(row for row in record.rows if row.small)
    columns = (
        Column("network", "", lambda r: r.what, words=True),
        Column("labels", "", lambda r: share_words(r.share), words=True),
        Column("Dice, small", "", lambda r: _figure_text(r.small)),
        Column("Dice, larger", "", lambda r: _figure_text(r.large)),
    )
    assert record.small_share is not None
    how = (
        "the median of the test images" if record.settings.get("small_share") is None else "as was asked for"
    )
    note = (
        f"Small: at most {percent(record.small_share)} of the picture is marked in truth ({how}), "
        f"{plural(record.small_cases, 'image')}. Images in which nothing is marked are in neither column."
    )
    return Table("By size of the object", columns, rows, note)


def points_text(one: Estimate | None, decimals: int = 1) -> str:
    """+12.8 (+10.1 to +15.6), in points of Dice."""
    return _DASH if one is None else f"{signed(100 * one.mean, decimals)}{interval_words(one, decimals)}"


def _figure_text(one: Figure | None) -> str:
    return _DASH if one is None else ranged(one.mean, one.low, one.high, 3)


def _grid_table(record: DistillationRecord) -> Table:
    names = list(record.grid[0].values)
    head = (
        "student alone",
        "labels",
        *(name.replace("_", "-") for name in names),
        "validation Dice",
        "chosen",
    )
    rows = [
        (
            design_slug(cell.design),
            share_words(cell.share),
            *(f"{cell.values[name]:g}" for name in names),
            f"{cell.dice_val:.4f}",
            "yes" if cell.chosen else "",
        )
        for cell in record.grid
    ]
    words = [i < 2 or i == len(head) - 1 for i in range(len(head))]
    return table_of("Grid of the student alone", head, rows, words=words, note="Chosen with the first seed.")


def _cost_table(record: DistillationRecord) -> Table:
    gpu = any(cost.peak_gpu_memory_mib is not None for cost in record.costs)
    columns = (
        Column("stage", "", lambda c: c.stage, words=True),
        Column("time", "", lambda c: _time_text(c.seconds)),
        Column("memory, MiB", "", _whole(lambda c: c.peak_memory_mib)),
        *((Column("GPU, MiB", "", _whole(lambda c: c.peak_gpu_memory_mib)),) if gpu else ()),
        Column("runs", "", lambda c: str(c.runs)),
    )
    note = (
        "Medians over the seeds. Time: of a training its epochs with validation; of the others the command. Memory: "
        "largest resident size of the process, with Python and PyTorch; a dash where the folder was made elsewhere."
    )
    return Table("Time and memory of each stage", columns, record.costs, note)


def _run_table(record: DistillationRecord) -> Table:
    columns = (
        Column("run", "", lambda r: r.name, words=True),
        Column("validation Dice", "", lambda r: f"{r.dice_val:.4f}"),
        Column("test Dice", "", lambda r: f"{r.dice:.4f}"),
        Column("test Dice, INT8", "", lambda r: _DASH if r.int8_dice is None else f"{r.int8_dice:.4f}"),
        Column("time", "", lambda r: _time_text(r.seconds)),
    )
    return Table("Every run", columns, record.runs)


def _whole(of: Callable[[StageCost], float | None]) -> Callable[[StageCost], str]:
    def text(cost: StageCost) -> str:
        value = of(cost)
        return _DASH if value is None else f"{value:.0f}"

    return text


def _time_text(seconds: float | None) -> str:
    if seconds is None:
        return _DASH
    if seconds < 90:
        return f"{figures(seconds, 2)} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
