"""The search: its candidates' costs, what it measures next, what it writes, and that it resumes."""

import csv
import json
from contextlib import suppress
from dataclasses import asdict, replace
from importlib.util import find_spec

import numpy as np
import pytest
import yaml

from runtime.timing.roofline import Roofline
from segcore.errors import InputError
from segcore.learn.network import count_macs
from segcore.outfolder import out_folder
from segcore.picture.preprocess import InputSpec
from student.design import PRESETS, Design, find_design
from student.distill import DistillSettings
from student.network import GREY_MEAN_STD, build_student, sealed_form
from student.search.__main__ import ROOFLINE, SearchSettings, kept_with, main
from student.search.candidates import Candidate, cost_of, draw_candidates, name_of
from student.search.measure import MEASURED, Bench, draw_pictures, explore, final_run
from student.search.output import SearchRow, draw_search, write_table
from student.search.plan import (
    Measurement,
    front_of,
    next_batch,
    of_each_kind,
    on_one_scale,
    predict_ms,
    proxies,
    spread_sample,
)

SIZE = 64
SHAPE = {"widths": (16, 32, 32), "depths": (1, 1, 1), "up_depths": (1, 1)}
STEM = {"stem": "strided", "stem_stride": 4}


def draw(count, seed=0, **kwargs):
    fixed = {"size_px": SIZE, "channels": 1, "outputs": 1, "max_parameters": 500_000}
    return draw_candidates(**(fixed | kwargs), seed=seed, count=count)


def spec_of(size=SIZE, channels=1):
    mean, std = GREY_MEAN_STD
    return InputSpec(
        height_px=size, width_px=size, channels=channels, mean=mean * channels, std=std * channels
    )


def candidate(name, macs, parameters=10**5, activations=10**5, layers=10, **design):
    design = Design(**(STEM | SHAPE | design))
    return Candidate(name, design, parameters, macs, activations, layers)


def test_equal_seeds_draw_equal_lists_and_a_longer_one_begins_with_the_shorter():
    few, many = draw(8), draw(16)
    assert many[:8] == few
    assert draw(16, seed=1) != many
    assert len({c.name for c in many}) == len({c.design for c in many}) == 16
    assert many[0].name in PRESETS


def test_candidates_keep_the_limits():
    small = draw(10, max_parameters=60_000, size_px=96)
    assert len(small) == 10
    assert max(c.parameters for c in small) <= 60_000
    assert all(96 % c.design.stride == 0 for c in small)


@pytest.mark.parametrize(
    "fields",
    [
        {**STEM, "up": "transposed", "skip": "concat"},
        {**STEM, "up": "shuffle", "head_upscale": 4, "block": "residual"},
        {"stem": "unshuffle", "stem_stride": 2, "up": "bilinear", "block": "inverted"},
        {"down": "pool", "block": "separable"},
        {**STEM, "block": "reparam"},
    ],
    ids=["transposed", "shuffle", "inverted", "pool", "reparam"],
)
def test_costs_are_those_of_the_sealed_network(fields):
    design = Design(**(SHAPE | fields))
    cost = cost_of(name_of(design), design, size_px=SIZE, channels=3, outputs=4)
    network = sealed_form(build_student(design, channels=3, outputs=4).eval())
    assert cost.parameters == sum(p.numel() for p in network.parameters())
    assert cost.macs == count_macs(network, spec_of(channels=3))


def test_drift_of_the_machine_cancels_out():
    measured = [Measurement("a", 1.0, 0.5, 1), Measurement("b", 2.0, 0.5, 1), Measurement("c", 4.0, 1.0, 1)]
    assert on_one_scale(measured) == {"a": 1.0, "b": 2.0, "c": 2.0}


def test_prediction_recovers_a_linear_law():
    rng = np.random.default_rng(0)
    several = [
        candidate(
            str(i), *(int(rng.integers(10**6, 10**9)) for _ in range(2)), int(rng.integers(10**5, 10**7))
        )
        for i in range(30)
    ]
    law = {c.name: 0.05 + 2e-9 * c.macs + 1e-7 * c.activations for c in several}
    expected = predict_ms(several[:12], law, several[12:])
    np.testing.assert_allclose(expected, [law[c.name] for c in several[12:]], rtol=1e-6)


def test_a_slow_kind_is_predicted_slow():
    plain = [candidate(f"p{i}", i * 10**8) for i in range(1, 9)]
    shuffle = [candidate(f"s{i}", i * 10**8, up="shuffle") for i in range(1, 9)]
    law = {c.name: c.macs / 1e8 * (2 if c.name[0] == "s" else 1) for c in (*plain, *shuffle)}
    slow, fast = predict_ms([*plain[:7], *shuffle[:7]], law, [shuffle[7], plain[7]])
    assert slow > 1.5 * fast


def test_next_are_the_best_that_should_keep_the_budget():
    several = [candidate(str(i), i * 10**8) for i in range(1, 21)]
    law = {c.name: c.macs / 1e8 for c in several}  # 1 to 20 ms
    known = {name: law[name] for name in ("1", "7", "20")}
    assert [c.name for c in next_batch(several, known, 10.4, count=3)] == ["10", "9", "8"]
    assert next_batch(several, known | {"10": 10.0, "9": 9.0, "8": 8.0}, 10.4, count=3) != []
    assert next_batch(several, law, 10.4) == []


def test_what_is_far_below_the_best_is_not_worth_measuring():
    several = [candidate("small", 10**8), candidate("smaller", 9 * 10**7), candidate("large", 10**9)]
    assert next_batch(several, {"large": 9.0, "small": 1.0}, 10.0) == []


def test_without_any_within_the_budget_the_fastest_are_next_and_it_gives_up():
    several = [candidate(str(i), i * 10**8) for i in range(1, 61)]
    law = {c.name: c.macs / 1e8 for c in several}
    known = {name: law[name] for name in ("30", "40", "50")}
    assert [c.name for c in next_batch(several, known, 0.5, count=2)] == ["1", "2"]
    assert next_batch(several, {name: law[name] for name in map(str, range(20, 40))}, 0.5) == []


def test_the_first_sample_has_every_stem_and_nothing_far_over_the_budget():
    several = draw(50)
    law = {c.name: c.macs / 1e8 for c in several}
    known = {c.name: law[c.name] for c in several[:3]}
    sample = spread_sample(several, known, budget_ms=1.0, count=15)
    assert {c.kind[:2] for c in sample} == {c.kind[:2] for c in several}
    assert len(sample) <= 15
    assert max(law[c.name] for c in spread_sample(several, known, 0.05, 15)) <= 0.16


def test_proxies_differ_in_kind_and_the_first_has_a_twin():
    several = [
        candidate("plain", 9 * 10**8),
        candidate("plain2", 8 * 10**8),
        candidate("concat", 10**8, skip="concat"),
        candidate("over", 10**9),
    ]
    ms = {"plain": 1.0, "plain2": 0.9, "concat": 1.0, "over": 3.0}
    chosen = proxies(several, ms, 2.0, 3)
    assert [c.name for c in chosen] == ["plain", "plain-reparam", "concat"]
    assert chosen[1].design.block == "reparam"
    assert [c.name for c in of_each_kind(several[:3], 3)] == ["plain", "concat", "plain2"]
    assert [c.name for c in front_of(several, ms)] == ["plain2", "plain", "over"]


def test_table_and_picture(tmp_path):
    several = [candidate("a", 10**8), candidate("b", 2 * 10**8, skip="concat")]
    rows = [
        SearchRow(several[1], 2.0, True, 0.5, False, True, False),
        SearchRow(several[0], 1.0, True, 0.5, True, True, True, dice_val=0.9),
    ]
    write_table(tmp_path / "t.csv", rows)
    lines = list(csv.DictReader((tmp_path / "t.csv").open()))
    assert [line["name"] for line in lines] == ["a", "b"]
    assert lines[0]["widths"] == "16 32 32"
    assert (lines[0]["gmac_s"], lines[0]["dice_val"], lines[1]["dice_val"]) == ("100.0", "0.9000", "")
    draw_search(tmp_path / "p.png", rows, budget_ms=1.5, title="made up")
    assert (tmp_path / "p.png").read_bytes()[1:4] == b"PNG"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"engine": "tflite"}, "--engine tflite: must be one of openvino, onnxruntime"),
        (
            {"engine": "onnxruntime"},
            "--precision int8: must be fp32 with --engine onnxruntime, got int8 (it comes in a later version); "
            "use --engine openvino, or --precision fp32",
        ),
        (
            {"data": "phantom:ct:12", "classes": 7},
            "--classes 7: must be ",
        ),
        ({"data": "phantom:cxr:12", "channels": 3}, "--channels 3: must be 1 for --data phantom:cxr:12, got 3; add --channels 1"),
    ],
    ids=["engine", "int8", "classes", "channels"],
)  # fmt: skip
def test_what_cannot_be_is_said_at_once(tmp_path, fields, message):
    with pytest.raises(InputError) as caught:
        main(SearchSettings(budget_ms=1, out=tmp_path / "o", **fields))
    assert str(caught.value).startswith(message)
    assert not list(tmp_path.iterdir())


def interrupted(out, measured, **fields):
    """Settings of a search that was interrupted when its time was up and the finalists were to be timed."""
    settings = SearchSettings(out=out, size=SIZE, rounds=1, budget_minutes=0.05, **fields)
    with suppress(KeyboardInterrupt), out_folder(out, kept_with(settings)) as folder:
        roofline = Roofline(settings.engine, "1.0", 1, 100.0, 50.0, 10.0)
        (folder / ROOFLINE).write_text(json.dumps(asdict(roofline)))
        (folder / MEASURED).write_text(json.dumps([asdict(one) for one in measured]))
        raise KeyboardInterrupt
    return settings


def test_a_budget_that_none_keeps_names_the_fastest(tmp_path):
    names = [c.name for c in draw(2)]
    measured = [Measurement(names[0], 5.0, 5.0, 1e6), Measurement(names[1], 4.0, 5.0, 1e6)]
    settings = interrupted(
        tmp_path / "o", measured, budget_ms=3.5, engine="onnxruntime", precision="fp32", seed=0
    )
    with pytest.raises(InputError) as caught:
        main(settings)
    assert str(caught.value) == (
        f"--budget-ms 3.5: must be at least 4, the latency of {names[1]}, the fastest of 2 measured designs, "
        "got 3.5; allow more, or use a smaller --size or more --threads"
    )
    assert (tmp_path / "o.partial" / MEASURED).is_file()  # and a larger budget goes on from there


@pytest.mark.skipif(find_spec("onnxscript") is None, reason="onnxscript is not installed")
@pytest.mark.skipif(find_spec("onnxruntime") is None, reason="onnxruntime is not installed")
def test_exploring_keeps_what_it_measured(tmp_path):
    spec = spec_of(32)
    bench = Bench("onnxruntime", "fp32", 1, spec, 1, 0, draw_pictures(spec))
    few = [c for c in draw(10, size_px=32) if c.name in PRESETS][:1] or draw(1, size_px=32)
    settings = {"budget_ms": 1e3, "rounds": 1, "seconds": 0.0, "used": lambda: 0.0}
    measured = explore(few, bench, tmp_path, **settings)
    assert [one.name for one in measured] == [c.name for c in few]
    assert explore(few, bench, tmp_path, **settings) == measured
    ms = on_one_scale(measured)
    final = final_run([], few, ms, bench, tmp_path, budget_ms=1e3, rounds=1)
    assert set(final.ms) == {c.name for c in few}
    assert 0 < final.ms[few[0].name] < 1e3


@pytest.mark.skipif(find_spec("nncf") is None, reason="nncf is not installed")
@pytest.mark.skipif(find_spec("openvino") is None, reason="openvino is not installed")
def test_an_interrupted_search_ends_with_a_config_that_distill_takes(tmp_path, capsys):
    best = draw(1)[0]
    settings = interrupted(tmp_path / "o", [Measurement(best.name, 2.0, 2.0, 1e6)], budget_ms=1e4)
    main(settings)
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["chosen"] == best.name
    out = tmp_path / "o"
    assert {p.name for p in out.iterdir()} == {"search.csv", "search.png", "distill.yaml", "record.json"}
    config = yaml.safe_load((out / "distill.yaml").read_text())
    distill = DistillSettings(**config, data="phantom:cxr", out=tmp_path / "b")
    assert find_design(distill.design) == best.design
    assert distill.size == SIZE
    record = json.loads((out / "record.json").read_text())
    assert record["promised_ms"] == result["promised_ms"] > 0
    (line,) = csv.DictReader((out / "search.csv").open())
    assert float(line["share_of_peak"]) == pytest.approx(
        best.macs / float(line["latency_ms"]) / 1e6 / 100, rel=1e-2
    )


def test_a_twin_is_another_design_of_equal_cost():
    plain = draw(1)[0]
    twin = proxies([plain], {plain.name: 1.0}, 2.0, 2)[1]
    cost = cost_of(twin.name, twin.design, size_px=SIZE, channels=1, outputs=1)
    assert replace(cost, name=plain.name, design=plain.design) == plain
