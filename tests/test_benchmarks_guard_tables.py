"""Benchmarks: the guard's record of INT8 bundles on the page and in the Markdown."""

import importlib.util
import re
from pathlib import Path

import pytest

from benchmarks.report.guard_tables import TITLE, guard_markdown, summarise_guards
from benchmarks.report.page import guard_html, render_html, render_markdown
from segcore.bundle.folder import Bundle
from segcore.bundle.guard_record import (
    DiceScore,
    FloatLayer,
    GuardRecord,
    GuardStep,
    LayerSensitivity,
    SpeedRatio,
)
from segcore.bundle.manifest import DataRecord


def _load(name: str):
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


report_test = _load("test_benchmarks_report")
manifest, make_report, record = report_test.manifest, report_test.make_report, report_test.record

FP32 = DiceScore(mean=0.9550, p05=0.9140)
SPEED = SpeedRatio(
    engine="openvino", engine_version="2026.4", threads=2, against="fp32", speedup=1.62, low=1.5, high=1.75, rounds=7
)  # fmt: skip


def step(what: str, floats: int, mean: float, p05: float, *, passed: bool) -> GuardStep:
    drops = {"drop_points": 100 * (FP32.mean - mean), "p05_drop_points": 100 * (FP32.p05 - p05)}
    return GuardStep(
        what=what, float_layers=floats, int8=DiceScore(mean=mean, p05=p05), passed=passed, **drops
    )


def guard(**changes: object) -> GuardRecord:
    fields: dict[str, object] = {
        "engine": "openvino", "engine_version": "2026.4", "cases": 42,
        "max_drop_points": 0.1, "max_p05_drop_points": 0.5, "min_speedup": 1.05,
        "fp32": FP32, "int8": DiceScore(mean=0.9547, p05=0.9145),
        "steps": (
            step("every layer in INT8", 0, 0.90, 0.80, passed=False),
            step("1 of 17 layers in float", 1, 0.9547, 0.9145, passed=True),
        ),
        "layers": 17,
        "float_layers": (FloatLayer(layer="head", why="alone in INT8 it costs 5.40 points"),),
        "sensitivity": tuple(
            LayerSensitivity(layer="head" if i == 0 else f"layer{i}", drop_points=5.4 / (i + 1),
                             p05_drop_points=-0.25, error=0.123 / (i + 1))
            for i in range(12)
        ),
        "speeds": (SPEED,),
    }  # fmt: skip
    return GuardRecord.model_validate(fields | changes)


def bundle(record: GuardRecord | None, name: str = "small, INT8", calibration: int = 128) -> Bundle:
    data = DataRecord(
        name="x",
        sha256="d",
        split_sha256="s",
        calibration_cases=tuple(map(str, range(calibration))),
    )
    made = manifest(name, guard=record, data=data, precision="int8", format="openvino")
    return Bundle(folder=Path("runs/int8"), manifest=made, sha256="1" * 64)


def test_facts_of_a_guard():
    (one,) = summarise_guards([bundle(None, "float"), bundle(guard())])
    assert one.name == "small, INT8"
    assert dict(one.facts) == {
        "Dice, mean": "0.9550 → 0.9547, −0.03 points (at most 0.1 may be lost)",
        "Dice, 5th percentile": "0.9140 → 0.9145, +0.05 points (at most 0.5 may be lost)",
        "measured": "on 42 validation cases, in openvino 2026.4",
        "speed": "1.62 times as fast as FP32 (1.50–1.75 over 7 rounds) in openvino 2026.4, 2 threads",
        "bound on speed": "at least 1.05 times as fast",
        "layers": "16 of 17 are in INT8, 1 stayed in float",
        "calibration": "128 train cases, 1 at a time",
    }


def test_tables_of_a_guard():
    (one,) = summarise_guards([bundle(guard())])
    tried, floats, sensitive = one.grids
    assert tried.rows == [
        ["1", "every layer in INT8", "0", "0.9000", "−5.50", "0.8000", "−11.40", "too much"],
        ["2", "1 of 17 layers in float", "1", "0.9547", "−0.03", "0.9145", "+0.05", "kept"],
    ]
    assert floats.rows == [["head", "alone in INT8 it costs 5.40 points"]]
    assert sensitive.title == "The most sensitive layers, each alone in INT8 (10 of 12)"
    assert len(sensitive.rows) == 10
    assert sensitive.rows[0] == ["head", "−5.40", "+0.25", "12.3 %", "float"]
    assert sensitive.rows[1] == ["layer1", "−2.70", "+0.25", "6.15 %", "INT8"]
    assert all(len(row) == len(grid.columns) for grid in one.grids for row in grid.rows)


def test_speed_that_only_the_device_can_measure_is_said_to_be_unmeasured():
    (one,) = summarise_guards([bundle(guard(speeds=()))])
    assert dict(one.facts)["speed"] == "unmeasured, the engine is on another device"
    assert dict(one.facts)["bound on speed"] == "not applied"


def test_a_speed_below_its_bound_never_reads_as_the_bound():
    slow = guard().speeds[0].model_copy(update={"speedup": 1.0499})
    facts = dict(summarise_guards([bundle(guard(speeds=(slow,)))])[0].facts)
    assert facts["bound on speed"] == "at least 1.05 times as fast"
    assert facts["speed"].startswith("1.04 times as fast as FP32 (")


def test_a_guard_that_had_nothing_to_do_is_short():
    plain = guard(
        float_layers=(), sensitivity=(), steps=(step("every layer in INT8", 0, 0.955, 0.914, passed=True),)
    )
    (one,) = summarise_guards([bundle(plain, calibration=1)])
    facts = dict(one.facts)
    assert facts["layers"] == "all 17 that can be are in INT8"
    assert facts["calibration"] == "1 train case, 1 at a time"
    assert [grid.title for grid in one.grids] == ["What the guard tried"]


def test_fine_tuning_is_named():
    assert dict(summarise_guards([bundle(guard(qat_epochs=5))])[0].facts)["fine-tuning"].startswith(
        "5 epochs "
    )
    assert "fine-tuning" not in dict(summarise_guards([bundle(guard())])[0].facts)


def test_bundles_without_a_guard_show_nothing():
    assert guard_html([bundle(None)]).strip() == ""
    assert guard_markdown([bundle(None)]) == []
    report = make_report([record("big")])
    assert TITLE not in render_html(report)
    assert TITLE not in render_markdown(report)


@pytest.fixture(scope="module")
def report():
    hostile = guard(float_layers=(FloatLayer(layer="<i>head</i>", why="a | b"),))
    return make_report([record("big"), record("small")], guard=hostile)


def test_the_page_has_the_section_between_tables_and_method(report):
    page = render_html(report)
    body = page[page.index("<body>") :]
    assert body.index("<table>") < body.index(f"<h2>{TITLE}</h2>") < body.index('<h2 id="method">')
    assert body.count('<section class="guard">') == 2
    assert "0.9550 → 0.9547, −0.03 points" in body
    assert "&lt;i&gt;head&lt;/i&gt;" in body
    assert "<i>head" not in body


def test_the_markdown_has_the_same_facts(report):
    text = render_markdown(report)
    section = text[text.index(f"**{TITLE}**") :]
    assert "* Dice, mean: 0.9550 → 0.9547, −0.03 points (at most 0.1 may be lost)" in section
    assert "| <i>head</i> | a \\| b |" in section
    rows = re.findall(r"^\| 2 \|.*$", section, re.MULTILINE)
    assert rows[0] == "| 2 | 1 of 17 layers in float | 1 | 0.9547 | −0.03 | 0.9145 | +0.05 | kept |"
