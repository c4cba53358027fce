"""Benchmarks: what the report says and holds, from made-up measurements."""

import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest

from benchmarks import plots, tables
from benchmarks.answer import answer
from benchmarks.networks import network_tables
from benchmarks.pictures import choose_cases, draw_example
from benchmarks.report import Report, render_html, render_markdown
from segcore.bundle import Bundle, DataRecord, FileEntry, Manifest
from segcore.case import Case, PhantomSource
from segcore.host import Made
from segcore.preprocess import InputSpec, OutputSpec

_spec = importlib.util.spec_from_file_location(
    "numbers", Path(__file__).with_name("test_benchmarks_numbers.py")
)
assert _spec is not None
assert _spec.loader is not None
numbers = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(numbers)
record, score, timed = numbers.record, numbers.score, numbers.timed

MADE = Made(
    command="python -m x", time="2026-01-02T03:04:05", commit="abc", python="3.11", host="a CPU", versions={}
)


def manifest(name: str, **changes: object) -> Manifest:
    fields: dict[str, object] = {
        "name": name, "kind": "student", "format": "torch", "precision": "fp32", "architecture": "unet",
        "architecture_settings": {"base": 2}, "classes": ("lung",), "parameters": 1, "trained_parameters": 1,
        "macs": 1,
        "input": InputSpec(height_px=32, width_px=32, channels=1, mean=(0.5,), std=(0.25,)),
        "output": OutputSpec(activation="sigmoid", channels=1, stride=1), "pretrained": "ImageNet",
        "data": DataRecord(name="phantom:cxr", sha256="d", split_sha256="s"), "made": MADE, "model_file": "m",
        "files": {"m": FileEntry(sha256="0" * 64, bytes=1)},
    }  # fmt: skip
    return Manifest.model_validate(fields | changes)


def make_report(records, *, case_id: str = "cxr-0001", **manifest_changes) -> Report:
    rng = np.random.default_rng(0)
    shown = {r.name: r for r in records}
    dice = rng.uniform(0.8, 0.95, 12)
    scores = [
        [score(case_id if i == 0 else f"c{i}", float(d), name=name) for i, d in enumerate(dice)]
        for name in shown
    ]
    case = Case(case_id, "p1", PhantomSource("cxr", 0, 0), "test")
    example = draw_example(
        "worst case of x", case, [("x", lambda image: np.zeros(image.shape, np.uint8), 0.5)]
    )
    bundles = [
        Bundle(folder=Path("runs") / str(i), manifest=manifest(name, **manifest_changes), sha256="1" * 64)
        for i, name in enumerate(shown)
    ]
    return Report(records, scores, bundles, [example], ["tensorrt: not installed"], MADE, "d")


@pytest.fixture(scope="module")
def page() -> str:
    names = ["big", "a <i>model</i>", "b", "c"]
    records = [record(n, **timed(40.0 / (i + 1), faster=i + 1.0)) for i, n in enumerate(names)]
    return render_html(make_report(records, case_id="<b>bold</b>"))


def test_page_names_no_address_outside_itself(page):
    assert not re.search(
        r"https?:|//[a-z]|url\((?!#)|@import|<script|<link|<iframe", re.sub(r'"data:[^"]*"', '""', page)
    )
    assert set(re.findall(r'src="([^:]*:[^;]*);', page)) == {"data:image/png"}
    assert all(target.startswith("#") for target in re.findall(r'href="([^"]*)"', page))


def test_page_escapes_names(page):
    assert "<b>bold" not in page
    assert "&lt;b&gt;bold" in page
    assert "<i>model" not in page


def test_ids_of_plots_do_not_clash(page):
    ids = re.findall(r'\bid="([^"]*)"', page)
    assert len(ids) == len(set(ids))


def test_plots_take_the_pages_colour(page):
    assert page.count("<svg") == 3
    assert "currentColor" in page
    svgs = "".join(re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL))
    assert "#010203" not in svgs
    texts = re.findall(r"<text[^>]*>", svgs)
    assert texts
    assert all("currentColor" in text for text in texts)  # black text would be lost on a dark page


def test_page_answers_first(page):
    body = page[page.index("<body>") :]
    assert body.index("<h1>") < body.index("Read this before") < body.index("<table>") < body.index("<svg")
    assert "prefers-color-scheme: dark" in page
    assert "@media print" in page


def test_no_claim_where_the_interval_includes_zero():
    same = {"dice_difference": -0.001, "dice_difference_low": -0.004, "dice_difference_high": 0.002}
    said = answer([record("big"), record(**same)], [], "d")
    text = " ".join((said.headline, *said.sentences))
    assert "includes 0: these cases show no difference, which does not prove that there is none" in text
    assert not re.search(r"better|worse|lower\b(?! end)|higher", text)


def test_claim_where_the_interval_leaves_zero_out():
    said = answer([record("big", **timed(100)), record(**timed(4, faster=25.0))], [], "d")
    assert (
        said.headline
        == "small has 10× fewer parameters than big, is 25× faster, and keeps 98.9 % of its Dice."
    )
    assert any("leaves 0 out: on these data it is lower." in s for s in said.sentences)


def test_about_as_fast_where_the_rounds_disagree():
    mixed = timed(100, faster=1.1) | {"times_faster_low": 0.8, "times_faster_high": 1.3}
    assert "is about as fast" in answer([record("big", **timed(100)), record(**mixed)], [], "d").headline


def test_limits_are_said_plainly():
    few = {"patients": 4, "split": "val", "other_load_share": 0.6}
    said = answer(
        [record("big", **few), record(**few)],
        [manifest("big", pretrained="no pretrained weights"), manifest("small")],
        "other data",
    )
    text = "\n".join(said.limits)
    assert said.limits[0].startswith("No pretrained weights: big started from random weights.")
    assert "phantoms, not patients" in text
    assert "other programs took 60 % of its processor time" in text
    assert "Scored on the val split" in text
    assert "all models here: made with other data than phantom:cxr" in text
    assert "4 patients only" in text


def test_reference_alone_is_compared_with_nothing():
    report = make_report([record("big", **timed(10))])
    assert report.answer.headline == "big reaches a Dice of 0.900; nothing was measured to compare it with."
    assert "faster than" not in render_html(report)


def test_accuracy_alone_has_no_times():
    records = [record("big", threads=None), record(threads=None)]
    page = render_html(make_report(records))
    assert "end to end" not in page
    assert len(tables.tables_of(records)) == 1
    assert "98.9 % of its Dice" in render_markdown(make_report(records))


def test_plain_table_is_aligned():
    table = tables.tables_of(
        [record("big", **timed(100)), record("a much longer name", **timed(3, faster=33.3))]
    )[0]
    lines = tables.plain_table(table).splitlines()
    column = lines[0].index("faster") + len("faster")
    assert [
        line[:column].endswith(end) for line, end in zip(lines[3:], ("reference", "33×"), strict=True)
    ] == [True, True]


def test_p99_is_shown_only_from_enough_calls():
    few, many = record(**timed(7.5)), record(**(timed(7.5) | {"samples": 100}))
    p99 = next(i for i, c in enumerate(tables.tables_of([few])[1].columns) if c.unit == "ms p99")
    assert [tables.tables_of([r])[1].rows[0][p99] for r in (few, many)] == ["–", "7.50"]


def test_labels_do_not_overlap():
    figure, axes = plots._new("x", 9, 4.4)
    axes.set_xscale("log")
    axes.set_xlim(1, 100)
    axes.set_ylim(0.8, 1)
    points = [(2.0, 0.9), (2.05, 0.9), (2.1, 0.901), (50.0, 0.95), (48.0, 0.95)]
    boxes = plots.place_labels(figure, axes, points, [f"LightUNet 8 INT8 number {i}" for i in range(5)])
    clashes = [(i, j) for i in range(5) for j in range(i) if boxes[i].overlaps(boxes[j])]
    assert clashes == []


def test_worst_median_and_best_case():
    scores = [score("a", 0.5), score("b", 0.9), score("c", 0.1), score("d", 0.7), score("e", 0.8)]
    assert choose_cases(scores) == [("worst", 2), ("median", 3), ("best", 1)]
    assert choose_cases(scores[:1]) == [("worst", 0)]


def test_headline_says_when_no_model_keeps_accuracy():
    poor = {"dice_difference": -0.3, "dice_difference_low": -0.4, "dice_mean": 0.6}
    said = answer([record("big"), record("a", **poor), record("b", **poor)], [], "d")
    assert said.sentences[-1].startswith("No model here loses at most 2 points of Dice")


def test_a_students_random_start_is_no_limit_beside_a_pretrained_teacher():
    student = manifest("small", pretrained="no pretrained weights")
    with_teacher = answer([record("big"), record()], [manifest("big", kind="teacher"), student], "d")
    alone = answer([record("big"), record()], [manifest("big"), student], "d")
    assert "No pretrained" not in " ".join(with_teacher.limits)
    assert "No pretrained weights: small" in alone.limits[0]


def _family() -> list:
    """Two networks in INT8 and FP32 at one and two threads: big 40 and 100 ms, small 1 and 4 ms at one thread."""
    found = []
    for threads in (1, 2):
        for network, pair in (("big", (40.0, 100.0)), ("small", (1.0, 4.0))):
            for precision, ms in zip(("int8", "fp32"), pair, strict=True):
                found.append(
                    record(
                        f"{network}, {precision.upper()}", reference="big, FP32", precision=precision, threads=threads,
                        parent=network, bundle_sha256=f"{network}-{precision}", **timed(ms / threads),
                    )
                )  # fmt: skip
    return found


def test_networks_have_a_row_with_both_precisions_and_all_thread_counts():
    times = network_tables(_family())[0]
    heads = [(c.header, c.unit) for c in times.columns[-4:]]
    assert heads == [(p, t) for p in ("INT8", "FP32") for t in ("1 thread", "2 threads")]
    assert [row[:1] + row[-4:] for row in times.rows] == [
        ["big", "40.0", "20.0", "100", "50.0"],
        ["small", "1.00", "0.500", "4.00", "2.00"],
    ]


def test_networks_as_ratios_to_several_others():
    fp32, int8 = network_tables(_family(), ["big-fp32", "big-int8"])[1:]
    assert fp32.title == (
        "Networks, engine latency as a share of big, FP32 at as many threads (times faster)"
    )
    assert fp32.rows[1] == ["small", *["1.00 % (100×)"] * 2, *["4.00 % (25.0×)"] * 2]
    assert int8.rows[1][1] == "2.50 % (40.0×)"


def test_networks_share_of_the_peak():
    records = [r.model_copy(update={"share_of_peak": 0.4, "peak_gmac_s": 500.0}) for r in _family()[:-1]]
    table = network_tables(records)[-1]
    assert table.title == "Networks, share of the measured peak of their precision"
    assert table.rows[1][1:] == ["40.0 %", "40.0 %", "40.0 %", "–"]


def test_an_export_made_twice_has_a_row_of_its_own():
    twice = [r.model_copy(update={"name": r.name + " again", "bundle_sha256": "x"}) for r in _family()[2:3]]
    rows = network_tables([*_family()[:4], *twice])[0].rows
    assert [row[-2:] for row in rows] == [["40.0", "100"], ["1.00", "4.00"], ["1.00", "–"]]


def test_no_table_of_networks_where_each_was_measured_once():
    assert network_tables([record("big", **timed(9)), record(bundle_sha256="1" * 64, **timed(3))]) == []


def test_small_parts_are_reported_only_where_there_are_any():
    some = {"small_parts": 8, "small_recall": 0.5, "small_recall_low": 0.25, "small_recall_high": 0.75,
            "small_recall_by_class": {"lung": 0.5}}  # fmt: skip
    with_, without = ([record("big", **timed(9), **more), record(**timed(3), **more)] for more in (some, {}))
    assert "| 0.500 (0.250–0.750) |" in render_markdown(make_report(with_))
    assert "fewer than 50 pixels at the picture's own size: 8 in these cases" in render_html(
        make_report(with_)
    )
    assert (
        "small parts" not in render_markdown(make_report(without)) + render_html(make_report(without)).lower()
    )


def test_distance_names_its_unit():
    report = make_report([record("big", **timed(9)), record(hd95_unit="mm", **timed(3))])
    assert "3.21 px (2.90–3.62)" in render_markdown(report)
    assert "3.21 mm (2.90–3.62)" in render_markdown(report)


def test_every_class_has_its_columns():
    two = {"dice_by_class": {"a": 0.9, "b": 0.8}, "hd95_by_class": {"a": 1.5, "b": 2.5}, "small_parts": 1,
           "small_recall_by_class": {"b": 1.0}, "small_recall": 1.0}  # fmt: skip
    table = tables.tables_of([record("big", **timed(9), **two)])[-1]
    assert [(c.header, c.unit) for c in table.columns[2:]] == [
        ("a", "Dice"), ("a", "HD95 px"), ("b", "Dice"), ("b", "HD95 px"), ("b", "small parts found"),
    ]  # fmt: skip
    assert table.rows == [["big", "openvino", "0.900", "1.50", "0.800", "2.50", "1.000"]]
