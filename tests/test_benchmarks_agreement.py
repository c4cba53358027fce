"""Bland and Altman's numbers in the head, their intervals over patients, the plot, and the command on made heads."""

import csv
import json
import math
import re

import numpy as np
import pytest
from PIL import Image

from benchmarks.report.agreement import agreement_of

ONE_EACH = [f"p{i}" for i in range(4)]


def test_numbers_in_the_head():
    # differences 1, 3, 1, 3: mean 2, variance 4/3; means 10, 20, 30, 40
    found = agreement_of([10.5, 21.5, 30.5, 41.5], [9.5, 18.5, 29.5, 38.5], ONE_EACH, "mm")
    reach = 1.96 * math.sqrt(4 / 3)
    assert (found.cases, found.patients, found.unit) == (4, 4, "mm")
    assert found.bias.mean == pytest.approx(2)
    assert (found.limit_low.mean, found.limit_high.mean) == pytest.approx((2 - reach, 2 + reach))
    assert found.mean_absolute.mean == pytest.approx(2)
    assert found.slope.mean == pytest.approx(20 / 500)  # Σ(m − 25)(d − 2) / Σ(m − 25)²
    assert found.bias.low < 2 < found.bias.high
    turned = agreement_of(found.second, found.first, ONE_EACH, "mm")
    assert (turned.bias.mean, turned.limit_low.mean) == pytest.approx((-2, -2 - reach))
    assert turned.mean_absolute.mean == pytest.approx(2)


def test_proportional_bias_is_the_slope():
    second = np.linspace(100, 300, 40)
    found = agreement_of(1.02 * second, second, [str(i) for i in range(40)], "mm")
    assert found.slope.mean == pytest.approx(0.02 / 1.01)
    assert found.slope.low == pytest.approx(found.slope.high)  # every resample lies on the same line
    assert agreement_of([1, 2, 3], [3, 2, 1], ["a", "b", "c"], "mm").slope is None  # all means are 2


def test_intervals_cover_as_often_as_they_say():
    """The bias' interval holds the true bias in about 95 of 100 draws, though cases of a patient go together."""
    rng = np.random.default_rng(0)
    patients = np.repeat(np.arange(40), 3)
    held = 0
    for _ in range(200):
        difference = 1.0 + np.repeat(rng.normal(0, 1, 40), 3) + rng.normal(0, 0.3, 120)
        found = agreement_of(50 + difference, np.full(120, 50.0), patients.astype(str), "mm", draws=300)
        held += found.bias.low <= 1.0 <= found.bias.high
    assert 175 <= held <= 199  # held 182 times; resampling cases instead, 132 times


def test_the_limits_interval_is_as_wide_as_the_formula_for_normal_differences():
    difference = np.random.default_rng(0).normal(0, 1, 400)
    found = agreement_of(difference, np.zeros(400), [str(i) for i in range(400)], "mm")
    half = (found.limit_high.high - found.limit_high.low) / 2
    # Bland and Altman 1986: standard error of a limit = about sqrt(3 / n) SD
    assert half == pytest.approx(1.96 * math.sqrt(3 / 400), rel=0.15)


def test_one_patient_has_no_interval():
    found = agreement_of([1, 2, 3], [1, 1, 1], ["a"] * 3, "mm")
    assert (found.bias.low, found.limit_high.high, found.slope.low) == (None, None, None)
    with pytest.raises(ValueError, match="at least 2 pairs, got 1, 1 and 1 patients"):
        agreement_of([1], [1], ["a"], "mm")


def test_plot_describes_itself_and_takes_the_pages_colour():
    pytest.importorskip("matplotlib")
    from benchmarks.report.agreement import bland_altman_svg

    a = agreement_of([10.5, 21.5, 30.5, 41.5], [9.5, 18.5, 29.5, 38.5], ONE_EACH, "mm²")
    svg = bland_altman_svg(a, what="area of <lung>", names=("student", "teacher & co"))
    assert svg.startswith("<svg")
    label = re.search('aria-label="([^"]*)"', svg)[1]
    assert label.startswith(
        "Bland–Altman plot of area of &lt;lung&gt;, student minus teacher &amp; co: mean difference"
    )
    assert "+2.00 mm², limits of agreement −0.263 to +4.26 mm², 4 cases." in label
    assert "currentColor" in svg
    assert "<lung>" not in svg
    other = bland_altman_svg(a, what="area of heart", names=("student", "teacher"))
    ids = [set(re.findall(' id="([^"]+)"', plot)) for plot in (svg, other)]
    assert ids[0] & ids[1] == set()  # both can be on one page


ROW_MM, COLUMN_MM = 0.5, 0.8


@pytest.fixture
def heads(tmp_path):
    """20 patients with an ellipse of known circumference each; the masks' rows and columns differ in spacing."""
    rng = np.random.default_rng(0)
    rows = []
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    for i in range(20):
        a, b = rng.uniform(14, 18), rng.uniform(10, 13)  # mm
        down, right = (np.arange(96)[:, None] - 48) * ROW_MM, (np.arange(64) - 32) * COLUMN_MM
        mask = (right / a) ** 2 + (down / b) ** 2 <= 1
        picture = np.where(mask, 150, 40) + rng.integers(0, 20, mask.shape)
        Image.fromarray(picture.astype(np.uint8)).save(tmp_path / f"images/{i}.png")
        Image.fromarray(255 * mask.astype(np.uint8)).save(tmp_path / f"masks/{i}.png")
        h = ((a - b) / (a + b)) ** 2
        true = math.pi * (a + b) * (1 + 3 * h / (10 + math.sqrt(4 - 3 * h)))
        split = "test" if i < 8 else "val" if i < 12 else "train"
        rows.append(
            [i, f"p{i}", f"images/{i}.png", f"masks/{i}.png", split, ROW_MM, COLUMN_MM, f"{true:.2f}"]
        )
    write_index(tmp_path, rows)
    (tmp_path / "classes.txt").write_text("lung\n")
    return tmp_path, rows


def write_index(folder, rows):
    with (folder / "index.csv").open("w", newline="") as file:
        file.write("case,patient,image,mask,split,spacing_row_mm,spacing_col_mm,head_circumference_mm\n")
        csv.writer(file).writerows(rows)


def run(capsys, data, bundle, out, **settings) -> dict:
    from benchmarks.checks.agreement import AgreementSettings, main

    main(AgreementSettings(data=str(data), bundle=(bundle,), out=out, **settings))
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_command(heads, torch_bundle, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    data, _ = heads
    Image.new("L", (64, 96)).save(data / "masks/3.png")  # a test case without a head
    out = tmp_path / "out"
    printed = run(capsys, data, torch_bundle, out)
    assert sorted(p.name for p in out.iterdir()) == [
        "agreement.json",
        "agreement.md",
        "agreement.png",
        "cases.csv",
    ]
    record = json.loads((out / "agreement.json").read_text())
    assert [(c["first"], c["second"]) for c in record["comparisons"]] == [
        ("true masks", "truth"), ("lightunet-8", "truth"), ("lightunet-8", "true masks"),
    ]  # fmt: skip
    assert (record["cases"], record["unit"], record["not_found"]["true masks"]) == (8, "mm", 1)
    masks = record["comparisons"][0]
    assert (masks["not_found"], masks["agreement"]["cases"]) == (1, 7)
    assert abs(masks["agreement"]["bias"]["mean"]) < 0.005 * 88  # of about 88 mm
    assert printed["mean_difference"]["true masks - truth"] == masks["agreement"]["bias"]["mean"]
    table = (out / "agreement.md").read_text()
    assert "8 cases of 8 patients" in table
    assert "| true masks | truth | 7 | 1 |" in table
    with (out / "cases.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 8
    assert [line["case"] for line in lines if line["true masks"] == ""] == ["3"]


def test_area_in_pixels_needs_no_spacing(heads, torch_bundle, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    data, _ = heads
    text = (
        (data / "index.csv").read_text().replace("head_circumference_mm", "area_px").replace("0.5,0.8", ",")
    )
    (data / "index.csv").write_text(text)
    run(capsys, data, torch_bundle, tmp_path / "out", truth_column="area_px", measure="area", limit=3)
    record = json.loads((tmp_path / "out/agreement.json").read_text())
    assert (record["unit"], record["cases"]) == ("px", 3)
    area = np.count_nonzero(np.asarray(Image.open(data / "masks/0.png")))
    assert record["comparisons"][0]["agreement"]["first"][0] == area


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"truth_column": "weight_g"}, "--truth-column weight_g: must hold a positive number for case 0, got nothing; the index has head_circumference_mm"),
        ({"of_class": "heart"}, "--of-class: must be one of lung, got heart"),
        ({"no_spacing": True}, "--data: case 0 must have a spacing, as head_circumference_mm is not in pixels (_px), got none; fill in spacing_row_mm and spacing_col_mm"),
    ],
)  # fmt: skip
def test_what_the_user_can_mend(heads, torch_bundle, tmp_path, capsys, settings, message):
    pytest.importorskip("matplotlib")
    from segcore.errors import InputError

    data, rows = heads
    if settings.pop("no_spacing", False):
        write_index(data, [[*row[:5], "", "", row[7]] for row in rows])
    with pytest.raises(InputError) as error:
        run(capsys, data, torch_bundle, tmp_path / "out", **settings)
    assert str(error.value) == message
    assert not (tmp_path / "out").exists()
