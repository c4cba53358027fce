"""The page of a case: one file that prints on one sheet, as HTML and as PDF."""

import json
import re
import shutil
from dataclasses import replace
from datetime import datetime
from html.parser import HTMLParser

import numpy as np
import pytest

from demo.case.content import (
    CaseView,
    case_text,
    draw_heat_map,
    draw_outlines,
    probability_gap,
    shrink_picture,
)
from demo.case.downloads import case_html
from demo.case.pdf import best_face, case_pdf
from demo.session.answers import ModelAnswer, Times
from demo.session.trust import SCORE_HINT
from segcore.bundle.manifest import Manifest
from segcore.measure.masks import measure_mask, measure_volume
from segcore.phantom import phantom_case
from segcore.picture.overlay import COLOURS
from segcore.picture.quality import QualityModel

pytest.importorskip("jinja2", reason="jinja2 is not installed: the page of a case is not tested")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
QUALITY = QualityModel(
    weights=(0.0,) * 13, centre=(0.0,) * 6, spread=(1.0,) * 6, high=(1.0,) * 6, shape_centre=((0.0,) * 7,),
    shape_spread=((1.0,) * 7,), empty_right=(0.0,), cases=44, error=0.0163, error_degraded=0.0511,
)  # fmt: skip
MANIFEST = Manifest.model_validate(
    json.loads(
        """{
  "name": "net <8>", "kind": "teacher", "format": "onnx", "precision": "fp32", "architecture": "unet",
  "architecture_settings": {}, "classes": ["lung"], "parameters": 487145, "trained_parameters": 487145, "macs": 1,
  "input": {"height_px": 64, "width_px": 64, "channels": 1, "mean": [0.5], "std": [0.5]},
  "output": {"activation": "sigmoid", "channels": 1, "stride": 1},
  "pretrained": "no pretrained weights", "data": {"name": "/home/erika/cxr", "sha256": "a", "split_sha256": "b"},
  "made": {"command": "c", "time": "t", "commit": "c", "python": "3", "host": "h", "versions": {}},
  "model_file": "model.onnx", "files": {"model.onnx": {"sha256": "HASH", "bytes": 1048576}}
}""".replace("HASH", "0" * 64)
    )
)
PUPIL = MANIFEST.model_copy(update={"kind": "student", "name": "small", "quality": QUALITY})
IMAGE, TRUTH = phantom_case("cxr", 3)
SPACING = (2.0, 2.0)
MOVED = np.roll(TRUTH, 3, axis=1)


def answer(mask, manifest=MANIFEST, total_ms=40.0, quality=None) -> ModelAnswer:
    times = Times(pre_ms=1.0, engine_ms=total_ms - 3, post_ms=2.0, total_ms=total_ms, runs=5)
    classes = range(1, len(manifest.classes) + 1)
    return ModelAnswer(
        manifest, "e 1", mask, np.stack([mask == k for k in classes]).astype(np.float32), times, quality
    )


def view(masks=(TRUTH, MOVED), **changes) -> CaseView:
    first, second = answer(masks[0]), answer(masks[1], PUPIL, 10.0, 0.84)
    made = CaseView(
        name="", time=datetime(2026, 11, 21, 12, 30), image=IMAGE, answers=(first, second),
        hashes=("a" * 64, "b" * 64), spacing_mm=SPACING,
        measurements=tuple(measure_mask(mask, ["lung"], spacing_mm=SPACING) for mask in masks),
    )  # fmt: skip
    return replace(made, **changes)


def cells(text, title: str) -> dict[str, tuple[str, ...]]:
    return {row[0].strip(): row[1:] for row in next(t for t in text.tables if t.title == title).rows}


def test_what_the_page_says():
    text = case_text(view())
    assert text.heading == "What the models mark"
    assert text.facts == "2026-11-21 12:30 · 256 × 256 pixels · pixel 2 × 2 mm (height × width)"
    assert text.banner == "Research use only. Not a medical device. Do not use it for diagnosis or treatment."
    assert [one.heading for one in text.figures] == ["Teacher", "Student", "Where they differ"]
    assert [one.detail for one in text.figures] == ["net <8>", "small", "Teacher and Student"]
    assert text.figures[1].light.colour == "amber"
    assert text.figures[1].estimate == 0.84
    assert text.figures[0].light is None
    assert text.notes == (
        "Teacher: net <8> does not judge its own mask: it has no light.",
        "Light of Student: small: The model's own estimate, fitted on 44 validation cases; mean error ±0.016 on pictures "
        "like those, ±0.051 on degraded ones. A picture unlike the training pictures can still fool it.",
    )
    assert [one.title for one in text.tables] == ["Measurements", "Time and size"]
    assert cells(text, "Time and size")["Speed"] == ("compared with", "4.0 times faster")
    assert cells(text, "Time and size")["the network"] == ("37.0 ms", "7.0 ms")
    area = f"{TRUTH.sum() * 4 / 100:.3g} cm²"
    assert cells(text, "Measurements")["Area"] == (area, area)
    assert text.models[0][:2] == ("Teacher: net <8>", f"bundle {'a' * 16}")
    assert "one data set only (cxr)" in text.models[0][2]
    assert text.footer == (
        "Made on 2026-11-21 12:30 with sam2edge 0.1.0. Research use only. Not a medical device."
    )


def test_reference_adds_a_picture_a_column_and_the_scores():
    text = case_text(view(truth=TRUTH))
    assert text.figures[-1].heading == "Reference mask"
    assert len(cells(text, "Measurements")["Area"]) == 3
    scores = cells(text, "Fit to the reference mask")
    assert scores["Dice"][0] == "1.000"
    assert scores["HD95 (mm)"] == ("0.0", "6.0")  # 3 columns of 2 mm
    assert next(t for t in text.tables if t.title.startswith("Fit")).hint == SCORE_HINT


def test_a_slice_of_a_series_is_told_apart_from_the_whole():
    masks = np.stack([TRUTH] * 4)
    volume = tuple(
        measure_volume(masks, ["lung"], spacing_mm=SPACING, slice_spacing_mm=5.0) for _ in range(2)
    )
    text = case_text(view(slice_index=2, slices=4, volume=volume, spacing_mm=None))
    assert "slice 3 of 4" in text.facts
    assert "size of a pixel unknown, so sizes are in pixels (px)" in text.facts
    assert [one.title for one in text.tables] == [
        "Measurements, slice 3", "Measurements of all 4 slices", "Time and size",
    ]  # fmt: skip
    whole = cells(text, "Measurements of all 4 slices")
    assert whole["Slices"] == ("4 of 4", "4 of 4")
    assert whole["Cut off"] == (
        "goes through the first or last slice; what lies beyond them is not measured",
    )


def test_a_threshold_of_the_readers_is_said():
    assert case_text(view(threshold=0.35)).notes[-1] == (
        "Pixels are marked from a probability of 0.35 on, which the reader chose; a light judges the mask at the model's "
        "own threshold."
    )


def test_models_that_look_for_different_things_have_their_own_rows():
    heart = PUPIL.model_copy(update={"classes": ("heart",)})
    other = answer(TRUTH, heart)
    text = case_text(
        view(
            answers=(answer(TRUTH), other),
            measurements=tuple(measure_mask(TRUTH, [name], spacing_mm=SPACING) for name in ("lung", "heart")),
        )
    )
    assert [one.heading for one in text.figures] == ["Teacher", "Student"]
    assert text.notes[-1] == "Models that look for different things are not compared."
    rows = next(t for t in text.tables if t.title == "Measurements").rows
    at = rows.index(("lung",))
    assert rows[at + 1][0] == "Area"
    assert rows[at + 1][2] == "–"
    assert rows[rows.index(("heart",)) + 1][1] == "–"


def test_two_models_of_one_kind_are_called_by_name_and_by_number_if_that_is_one():
    same = answer(TRUTH, MANIFEST.model_copy(update={"name": "b"}))
    assert [one.heading for one in case_text(view(answers=(answer(TRUTH), same))).figures[:2]] == [
        "net <8>",
        "b",
    ]
    twins = case_text(view(answers=(answer(TRUTH), answer(TRUTH))))
    assert [one.heading for one in twins.figures[:2]] == ["1. net <8>", "2. net <8>"]


def test_nothing_found_is_said():
    text = case_text(view((TRUTH * 0, TRUTH)))
    assert text.figures[0].note == "Nothing was marked."
    assert text.figures[0].alt == "The picture with what Teacher: net <8> marks: nothing."
    assert cells(text, "Measurements")["Area"][0] == "none found"


def test_outline_is_thin_and_classes_differ_in_more_than_colour():
    image = np.zeros((640, 640), np.uint8)
    mask = np.zeros((640, 640), np.uint8)
    mask[100:500, 100:200], mask[100:500, 300:400], mask[100:500, 500:600] = 1, 2, 3
    drawn = draw_outlines(image, mask)
    assert drawn[300, 150].tolist() == [0, 0, 0]  # not filled
    left = [drawn[200:400, column] for column in (101, 301, 501)]
    shares = [float((edge == COLOURS[k]).all(-1).mean()) for k, edge in enumerate(left)]
    assert shares[0] == 1.0
    assert 0.35 < shares[1] < 0.65
    assert 0.35 < shares[2] < 0.65
    turns = [int(np.abs(np.diff((edge != 0).any(-1).astype(int))).sum()) for edge in left]
    assert turns[0] == 0 < turns[1] < turns[2]


def test_small_pictures_are_enlarged_and_large_ones_shrunk():
    assert draw_outlines(np.zeros((100, 50), np.uint8), np.zeros((100, 50), np.uint8)).shape == (600, 300, 3)
    assert draw_outlines(np.zeros((2000, 1000), np.uint8), np.ones((2000, 1000), np.uint8)).shape == (
        640,
        320,
        3,
    )


def test_gap_is_the_largest_difference_over_classes():
    a, b = np.zeros((2, 1, 3)), np.array([[[0, 0.2, 1]], [[0, 0.7, 0.5]]])
    np.testing.assert_allclose(probability_gap(a, b), [[0, 0.7, 1]])
    np.testing.assert_array_equal(probability_gap(a, a), 0)


def test_heat_map_is_dark_where_models_agree_and_white_where_they_are_opposite():
    drawn = draw_heat_map(np.full((1, 3), 100, np.uint8), np.array([[0.0, 0.5, 1.0]]))
    assert drawn[0, 0].tolist() == [45, 45, 45]
    assert drawn[0, 2].tolist() == [255, 255, 255]
    assert drawn.sum(-1)[0, 0] < drawn.sum(-1)[0, 1] < drawn.sum(-1)[0, 2]


def test_only_what_is_large_is_shrunk():
    assert shrink_picture(np.zeros((1536, 384), np.uint8), 768).shape == (768, 192, 3)
    assert shrink_picture(np.zeros((5, 7), np.uint16), 768).shape == (5, 7, 3)


class Page(HTMLParser):
    """What a reader's browser would find."""

    VOID = ("meta", "img", "br", "line")

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open, self.images, self.heads, self.addresses = [], [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.addresses += [given[name] for name in ("src", "href", "action") if name in given]
        if tag == "img":
            self.images.append(given)
        if tag == "th":
            self.heads.append(given)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_html_is_one_file_with_described_pictures():
    html = case_html(view(truth=TRUTH))
    page = Page(html)
    assert page.open == []
    assert len(page.images) == 4
    assert all(one["alt"] and one["src"].startswith("data:image/png;base64,") for one in page.images)
    assert all(one["scope"] in ("col", "row", "rowgroup") for one in page.heads)
    assert [one for one in page.addresses if not one.startswith("data:")] == []
    assert not re.search(r"https?:|@import|url\(", html)
    assert '<html lang="en">' in html
    assert "Amber: check the outline" in html


def test_html_takes_no_name_for_markup_and_shows_no_path():
    html = case_html(view(name="<script>alert(1)</script>.png"))
    assert "<script" not in html
    assert "What the models mark in &lt;script&gt;" in html
    assert "net &lt;8&gt;" in html
    assert "erika" not in html


def test_pdf_is_one_sheet_for_one_slice_and_two_models():
    pytest.importorskip("reportlab")
    made = case_pdf(view(truth=np.roll(TRUTH, 1, axis=0), threshold=0.4))
    assert made.startswith(b"%PDF-")
    assert made.count(b"/Type /Page\n") == 1
    assert made.count(b"/Subtype /Image") == 4
    assert b"erika" not in made


@pytest.mark.parametrize(
    "name", ["Łódź.png", "患者.dcm", "مريض.png", "<b>&", "a" * 300, "\U0001fac1\x07.png"]
)
def test_pdf_of_any_name(name):
    pytest.importorskip("reportlab")
    assert case_pdf(view(name=name)).count(b"/Type /Page\n") == 1


def test_letters_that_the_font_lacks_become_question_marks():
    pytest.importorskip("reportlab")
    face = best_face()
    assert face.text("a–患é×±") == "a–?é×±"
    assert face.markup("<b>&患") == "&lt;b&gt;&amp;?"


def test_pdf_goes_on_on_more_sheets_where_there_is_much_to_say():
    pytest.importorskip("reportlab")
    names = tuple(f"organ {n}" for n in range(1, 13))
    many = MANIFEST.model_copy(update={"classes": names})
    mask = (np.arange(256 * 256, dtype=np.uint8).reshape(256, 256) // 8 % 13).astype(np.uint8)
    measured = measure_mask(mask, names, spacing_mm=SPACING)
    crowded = view(answers=(answer(mask, many),), hashes=("a" * 64,), measurements=(measured,))
    assert 1 < case_pdf(crowded).count(b"/Type /Page\n") <= 4


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed: the page of a case is not printed")
def test_html_prints_on_one_sheet(tmp_path):
    import subprocess

    (tmp_path / "case.html").write_text(case_html(view(truth=TRUTH, threshold=0.4)))
    flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--no-pdf-header-footer",
        "--disable-background-networking",
    ]
    command = [
        CHROMIUM,
        *flags,
        f"--user-data-dir={tmp_path / 'profile'}",
        f"--print-to-pdf={tmp_path / 'case.pdf'}",
    ]
    subprocess.run([*command, str(tmp_path / "case.html")], check=True, capture_output=True, timeout=120)
    assert len(re.findall(rb"/Type\s*/Page\b", (tmp_path / "case.pdf").read_bytes())) == 1
