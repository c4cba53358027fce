"""Benchmarks: what the report says and holds, from made-up measurements."""

import base64
import importlib.util
import io
import re
import shutil
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.report import plots, tables
from benchmarks.report import plots as drawing
from benchmarks.report.headline import make_headline
from benchmarks.report.measure import KEPT_CALLS
from benchmarks.report.page import Report, render_html, render_markdown
from benchmarks.report.pictures import choose_cases, draw_example
from benchmarks.report.record import Reliability
from benchmarks.report.tables import network_tables
from segcore.bundle.folder import Bundle
from segcore.bundle.manifest import DataRecord, FileEntry, Manifest
from segcore.dataset.case import Case, PhantomSource
from segcore.host import Made
from segcore.picture.preprocess import InputSpec, OutputSpec

_spec = importlib.util.spec_from_file_location(
    "benchmark_records", Path(__file__).with_name("benchmark_records.py")
)
assert _spec is not None
assert _spec.loader is not None
records = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(records)
record, score, timed = records.record, records.score, records.timed

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
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


def areas(lung: float, true_lung: float) -> dict[str, object]:
    return {"area_by_class": {"lung": lung}, "true_area_by_class": {"lung": true_lung}, "area_unit": "mm²"}


def make_report(records, *, case_id: str = "cxr-0001", measured: bool = False, **manifest_changes) -> Report:
    rng = np.random.default_rng(0)
    shown = {r.name: r for r in records}
    dice = rng.uniform(0.8, 0.95, 12)
    scores = [
        [score(case_id if i == 0 else f"c{i}", float(d), name=name) for i, d in enumerate(dice)]
        for name in shown
    ]
    if measured:
        drawn = {name: rng.uniform(900, 1100, (12, 2)) for name in shown}
        scores = [
            [s.model_copy(update=areas(*drawn[s.name][i])) for i, s in enumerate(cases)] for cases in scores
        ]
    case = Case(case_id, "p1", PhantomSource("cxr", 0, 0), "test")
    example = draw_example(
        "worst case of x", case, [("x", lambda image: np.zeros(image.shape, np.uint8), 0.5)],
        InputSpec(height_px=64, width_px=64, channels=1, mean=(0.5,), std=(0.25,)),
    )  # fmt: skip
    bundles = [
        Bundle(folder=Path("runs") / str(i), manifest=manifest(name, **manifest_changes), sha256="1" * 64)
        for i, name in enumerate(shown)
    ]
    return Report(records, scores, bundles, [example], ["tensorrt: not installed"], MADE, "d")


@pytest.fixture(scope="module")
def page() -> str:
    names = ["big", "a <i>model</i>", "b", "c"]
    records = [record(n, **measured(40.0 / (i + 1), faster=i + 1.0)) for i, n in enumerate(names)]
    return render_html(make_report(records, case_id="<b>bold</b>", measured=True))


def measured(ms: float, faster: float) -> dict[str, object]:
    """Times with their single calls, and a reliability."""
    found = Reliability(
        of="foreground", pixels=(60, 0, 40), confidence=(0.1, 0, 0.9), observed=(0.2, 0, 0.8), ece=0.1
    )
    calls = tuple(ms * (1 + i / 20) for i in range(20))
    return timed(ms, faster) | {"end_to_end_ms_sorted": calls, "reliability": found}


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
    assert page.count("<svg") == 7
    assert "currentColor" in page
    svgs = "".join(re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL))
    assert "#010203" not in svgs
    texts = re.findall(r"<text[^>]*>", svgs)
    assert texts
    assert all("currentColor" in text for text in texts)  # black text would be lost on a dark page


def test_page_answers_first(page):
    body = page[page.index("<body>") :]
    assert body.index("<h1>") < body.index("Read this before") < body.index("<svg") < body.index("<table>")
    assert "prefers-color-scheme: dark" in page
    assert "@media print" in page


def test_no_claim_where_the_interval_includes_zero():
    same = {"dice_difference": -0.001, "dice_difference_low": -0.004, "dice_difference_high": 0.002}
    said = make_headline([record("big"), record(**same)], [], "d")
    text = " ".join((said.title, *said.sentences))
    assert "includes 0: these cases show no difference, which does not prove that there is none" in text
    assert not re.search(r"better|worse|lower\b(?! end)|higher", text)


def test_claim_where_the_interval_leaves_zero_out():
    said = make_headline([record("big", **timed(100)), record(**timed(4, faster=25.0))], [], "d")
    assert (
        said.title == "small has 10× fewer parameters than big, is 25× faster, and keeps 98.9 % of its Dice."
    )
    assert any("leaves 0 out: on these data it is lower." in s for s in said.sentences)


def test_about_as_fast_where_the_rounds_disagree():
    mixed = timed(100, faster=1.1) | {"times_faster_low": 0.8, "times_faster_high": 1.3}
    assert "is about as fast" in make_headline([record("big", **timed(100)), record(**mixed)], [], "d").title


def test_limits_are_said_plainly():
    few = {"patients": 4, "split": "val", "other_load_share": 0.6}
    said = make_headline(
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
    assert report.headline.title == "big reaches a Dice of 0.900; nothing was measured to compare it with."
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
    lines = table.plain().splitlines()
    column = lines[0].index("faster") + len("faster")
    assert [
        line[:column].endswith(end) for line, end in zip(lines[3:], ("reference", "33×"), strict=True)
    ] == [True, True]


def test_p99_is_shown_only_from_enough_calls():
    few, many = record(**timed(7.5)), record(**(timed(7.5) | {"samples": 100}))
    p99 = next(i for i, c in enumerate(tables.tables_of([few])[1].columns) if c.unit == "ms p99")
    assert [tables.tables_of([r])[1].rows[0][p99] for r in (few, many)] == ["–", "7.50"]


def test_labels_do_not_overlap():
    figure, axes = drawing.new_axes("x", 9, 4.4)
    axes.set_xscale("log")
    axes.set_xlim(1, 100)
    axes.set_ylim(0.8, 1)
    points = [(2.0, 0.9), (2.05, 0.9), (2.1, 0.901), (50.0, 0.95), (48.0, 0.95)]
    boxes = plots.place_labels(figure, axes, points, [f"LightUNet 8 INT8 number {i}" for i in range(5)])
    clashes = [(i, j) for i in range(5) for j in range(i) if boxes[i].overlaps(boxes[j])]
    assert clashes == []


def test_the_worst_the_median_and_the_best_case():
    scores = [score("a", 0.5), score("b", 0.9), score("c", 0.1), score("d", 0.7), score("e", 0.8)]
    more = [*scores, score("f", 0.91), score("g", 0.92)]
    worst = [("worst", 2), ("second worst", 0), ("third worst", 3)]
    assert choose_cases(more) == [*worst, ("median", 4), ("best", 6)]
    assert choose_cases(scores) == [*worst, ("best", 1)]  # the median is the third worst
    assert choose_cases(scores[:1]) == [("worst", 0)]


def test_headline_says_when_no_model_keeps_accuracy():
    poor = {"dice_difference": -0.3, "dice_difference_low": -0.4, "dice_mean": 0.6}
    said = make_headline([record("big"), record("a", **poor), record("b", **poor)], [], "d")
    assert said.sentences[-1].startswith("No model here loses at most 2 points of Dice")


def test_a_students_random_start_is_no_limit_beside_a_pretrained_teacher():
    student = manifest("small", pretrained="no pretrained weights")
    with_teacher = make_headline([record("big"), record()], [manifest("big", kind="teacher"), student], "d")
    alone = make_headline([record("big"), record()], [manifest("big"), student], "d")
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


def test_headings_are_in_order_and_pictures_are_described(page):
    levels = [int(level) for level in re.findall(r"<h([1-6])[ >]", page)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b <= a + 1 for a, b in pairwise(levels))
    assert all(re.search(r'role="img" aria-label="[^"]+"', svg) for svg in re.findall(r"<svg[^>]*>", page))
    alts = re.findall(r'<img [^>]*alt="([^"]*)"', page)
    assert alts[:2] == ["the picture of &lt;b&gt;bold&lt;/b&gt;", "the true mask of &lt;b&gt;bold&lt;/b&gt;"]
    assert len(alts) == len(set(alts)) == 4


def test_links_lead_somewhere(page):
    targets = re.findall(r'href="#([^"]*)"', page)
    assert {"plots", "areas", "cases", "figures", "method", "lineage"} <= set(targets)
    assert set(targets) <= set(re.findall(r'\bid="([^"]*)"', page))


def test_areas_are_compared_with_the_reference_and_the_truth(page):
    assert page.count("Bland–Altman plot of area of lung, c minus ") == 2
    assert "lung, c minus big: on average " in page
    assert "lung, c minus the truth: on average " in page
    assert "times a pixel's area in mm²" in page
    without = render_html(make_report([record("big", **timed(9)), record(**timed(3))]))
    assert "Bland" not in without


def test_reliability_is_told_in_words_and_in_the_table(page):
    assert "Probability given to pixels against how often it was right. big: ECE 0.10; " in page
    assert "0 is perfect" in page
    report = make_report([record("big", **measured(9, 1)), record(**measured(3, 3))])
    assert "| ECE of pixels |" in render_markdown(report)
    assert "| 0.1000 |" in render_markdown(report)
    assert "ECE" not in render_markdown(make_report([record("big"), record()]))


def test_the_threshold_and_its_curve_are_shown():
    found = {
        "thresholds": (0.25, 0.5, 0.75),
        "dice": (0.7, 0.8, 0.9),
        "ece_before": 0.1,
        "ece": 0.1,
        "cases": 9,
    }
    chosen = OutputSpec(activation="sigmoid", channels=1, stride=1, threshold=0.75)
    sealed = [record(name, bundle_sha256="1" * 64) for name in ("big", "small")]
    page = render_html(make_report(sealed, calibration=found, output=chosen))
    assert (
        "Dice against the threshold. big: threshold 0.75, Dice 0.9000" in page
    )  # one curve for both exports
    assert "How the threshold was chosen" in page
    assert "How the threshold was chosen" not in render_html(make_report(sealed))


def test_single_calls_are_drawn_where_they_were_kept(page):
    assert "Distribution of the time a call took. big: median 59.0 ms; " in page
    assert f"at most {KEPT_CALLS} of each model" in page
    old = render_html(make_report([record("big", **timed(9)), record(**timed(3))]))  # records without calls
    assert "Distribution of the time" not in old


def test_a_name_cannot_leave_a_plots_description():
    figure, _ = drawing.new_axes("x", 2, 2)
    assert 'aria-label="a &quot; onload=&quot;x\\1 &lt;b&gt;"' in drawing.to_svg(
        figure, "x", 'a " onload="x\\1 <b>'
    )


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed: the report is not driven")
@pytest.mark.skipif(
    find_spec("playwright") is None, reason="playwright is not installed: the report is not driven"
)
def test_report_is_accessible_and_no_wider_than_the_screen(page, tmp_path):
    from playwright.sync_api import sync_playwright

    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed")
    path = tmp_path / "report.html"
    path.write_text(page)
    requests: set[str] = set()
    with sync_playwright() as playwright:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        for width, scheme in ((1280, "light"), (1280, "dark"), (820, "light"), (390, "light")):
            tab = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
            tab.on("request", lambda r: requests.add(r.url.partition(":")[0]))
            tab.goto(path.as_uri())
            if (width, scheme) in ((1280, "dark"), (390, "light")):  # it takes seconds
                response = axe.Axe().run(tab, options={}).response
                found = [(v["id"], v["nodes"][0]["html"]) for v in response["violations"]]
                assert found == [], (width, scheme)
                assert {"color-contrast", "heading-order", "image-alt"} <= {
                    p["id"] for p in response["passes"]
                }
            assert tab.evaluate("document.documentElement.scrollWidth") == width
            if width == 1280:
                wide = "[...document.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth).length"
                assert tab.evaluate(wide) == 0
                assert tab.locator(".limits").bounding_box()["y"] < 800 / 2  # on the first screen
            tab.close()
        tab = browser.new_page()
        tab.goto(path.as_uri())
        pdf = tab.pdf(prefer_css_page_size=True, print_background=True)
        browser.close()
    assert requests <= {"file", "data"}
    assert 3 < len(re.findall(rb"/Type\s*/Page\b", pdf)) < 20


def test_a_picture_is_shown_through_the_window_of_its_model():
    """Hounsfield units: -1000 is near black through the lung window and 0 nearly white, whatever else is there."""

    class Source(PhantomSource):
        def image(self) -> np.ndarray:
            return np.float32([[-1350, -600], [150, 3000]])

        def mask(self) -> np.ndarray:
            return np.zeros((2, 2), np.uint8)

    lung = InputSpec(
        height_px=64, width_px=64, channels=1, depth="float32", window=(-1350, 150), mean=(0.5,), std=(0.25,)
    )
    seen = []

    def predict(image: np.ndarray) -> np.ndarray:
        seen.append(image)
        return np.zeros(image.shape, np.uint8)

    example = draw_example("worst", Case("a", "p", Source("ct", 0, 0), "test"), [("x", predict, 0.5)], lung)
    picture, truth, mask, _ = [
        np.asarray(Image.open(io.BytesIO(base64.b64decode(tile.uri.partition(",")[2]))))
        for tile in example.tiles
    ]
    for shown in (picture, truth, mask):
        np.testing.assert_array_equal(shown[..., 0], [[0, 128], [255, 255]])
    assert seen[0].dtype == np.float32  # the model still gets what it was trained on
