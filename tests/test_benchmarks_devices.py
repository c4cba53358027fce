"""Benchmarks: reports that devices sent back, beside this machine's rows and in no ratio."""

import importlib.util
import json
import shlex
from pathlib import Path
from types import ModuleType

import pytest

from benchmarks.report.devices import device_remarks, device_tables, read_reports
from benchmarks.report.page import render_html, render_markdown
from benchmarks.report.settings import LIST_FLAGS, BenchmarkSettings
from runtime.device.report import DeviceReport, PowerMode, Snapshot, TensorRTFacts, VerificationFacts
from segcore.command import parse_settings, repeat_flags
from segcore.errors import InputError


def neighbour(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_reports, _device = neighbour("test_benchmarks_report"), neighbour("test_runtime_device")
record, timed, make_report = _reports.record, _reports.timed, _reports.make_report
device_report, guard_record, ratio = _device.device_report, _device.guard_record, _device.ratio

RECORDS = [record("big", **timed(100)), record(parent="1" * 64, **timed(4, faster=25.0))]


def cells(devices: list[DeviceReport], row: int) -> dict[str, str]:
    found = {}
    for table in device_tables(RECORDS, devices):
        heads = [f"{column.header} {column.unit}".strip() for column in table.columns]
        found |= dict(zip(heads, table.rows[row], strict=True))
    return found


def with_devices(*devices: DeviceReport):
    report = make_report(RECORDS)
    return type(report)(**{**vars(report), "devices": devices})


def test_a_devices_row_stands_beside_this_machines():
    here, there = cells([device_report()], 1), cells([device_report()], 2)
    assert (here["device"], here["engine"]) == ("this machine", "openvino, 2 threads")
    assert there == {
        "model": "small, INT8", "device": "Orin Nano", "engine": "onnxruntime 1.23.2, 6 threads", "precision": "int8",
        "engine ms p50": "1.25", "engine ms p90": "1.50", "engine ms p99": "2.50", "no copies ms p50": "–",
        "end to end ms p50": "3.75", "throughput images/s": "321", "memory peak MiB": "456",
        "power mode": "MAXN_SUPER", "speed against a higher precision": "not measured", "masks golden pixels that differ": "0.100 %", "Dice the guard's cases": "–",
        "Dice p05 the guard's cases": "–",
    }  # fmt: skip


def test_a_device_is_in_no_ratio_and_changes_no_other_table():
    slow = device_report(end_to_end_ms={"p50": 9e5, "p90": 9e5, "p99": 9e5, "calls": 1000})
    report, alone = with_devices(slow), make_report(RECORDS)
    assert report.headline == alone.headline
    assert [t.rows for t in report.tables[:-2]] == [t.rows for t in alone.tables]
    assert [t.title for t in report.tables[-2:]] == [
        "On devices, each measured by itself, beside this machine", "On devices: masks, memory and power",
    ]  # fmt: skip
    assert [row.name for row in report.tables[-1].records] == ["big", "small", ""]
    assert device_tables(RECORDS, []) == []


def test_long_names_of_boards_are_shortened_in_the_table_alone():
    name = "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super"
    report = device_report(board={"model": name, "l4t": None, "jetpack": None, "memory_mib": None})
    assert cells([report], 2)["device"] == "Jetson Orin Nano Super"
    assert device_remarks([report])[0].startswith(f"{name}, onnxruntime")


def test_dice_is_the_guards_and_only_of_a_network_that_is_measured_here():
    same, other = device_report(guard=guard_record()), device_report(guard=guard_record())
    other = other.model_copy(update={"bundle": other.bundle.model_copy(update={"parent": "2" * 64})})
    found = [cells([same, other], row) for row in (2, 3)]
    assert [row["Dice the guard's cases"] for row in found] == ["0.951", "–"]
    assert [row["Dice p05 the guard's cases"] for row in found] == ["0.907", "–"]


def test_p99_needs_calls_and_a_mode_may_be_unknown():
    few = device_report(power_mode=None, latency_ms={"p50": 1.0, "p90": 2.0, "p99": 3.0, "calls": 30})
    assert (cells([few], 2)["engine ms p99"], cells([few], 2)["power mode"]) == ("–", "–")
    assert cells([device_report(power_mode=PowerMode(id=3, name=None))], 2)["power mode"] == "3"


def test_remarks_say_what_a_reader_must_know():
    failed = VerificationFacts(
        cases=12, mean_share=0.2, worst_share=0.3, constant=False, failures=("20 % differ",)
    )
    facts = TensorRTFacts(
        build_s=90.0, layers_by_precision={"INT8": 9, "FP16": 2}, reformats=2, reformat_share=0.125,
        int8_proven=False, int8_why="8 layers compute in INT8, 9 were quantised; in float: stem",
    )  # fmt: skip
    report = device_report(
        engine="tensorrt", engine_version="10.3.0", verification=failed, throttling=("oc2 rose by 2",),
        other_load_share=0.4, tensorrt=facts, clocks_pinned=True, device_memory_mib=31.4,
        snapshots=(
            Snapshot(moment="start", at_s=0, temperatures_c={"gpu": 48.5}),
            Snapshot(moment="end", at_s=9, temperatures_c={"gpu": 61.0, "cpu": 63.2}),
        ),
    )  # fmt: skip
    assert device_remarks([report]) == [
        "Orin Nano, tensorrt 10.3.0, small, INT8: measured 2026-01-02, JetPack 6.2 L4T 36.4.3; clocks pinned, 48 °C at "
        "the start and 63 °C at the end. Its masks of the golden cases are not the bundle's (20 % differ). Do not use "
        "this engine. Speed against a higher precision: not measured. It held itself back while it was measured (oc2 rose by 2). Other programs took 40 % of its "
        "processor time. TensorRT's layers: 9 INT8, 2 FP16; 2 only change a layout or type, which take 12.5 % of the "
        "time. The engine holds 31 MiB of the GPU's memory. INT8 is not proven: 8 layers compute in INT8, 9 were quantised; in float: stem."
    ]
    assert cells([report], 2)["masks golden pixels that differ"] == "20.0 % FAIL"
    assert device_remarks([device_report()]) == [
        "Orin Nano, onnxruntime 1.23.2, small, INT8: measured 2026-01-02, JetPack 6.2 L4T 36.4.3; clocks not pinned. "
        "Speed against a higher precision: not measured."
    ]


SPEED_CELL = "speed against a higher precision"


def test_speed_against_a_higher_precision_and_the_verdict_on_it():
    slow, fast = device_report(speed=ratio()), device_report(speed=ratio(1.625, against="fp32", rounds=1))
    assert [cells([slow, fast], row)[SPEED_CELL] for row in (1, 2, 3)] == [
        "–", "0.93× fp16 FAIL", "1.62× fp32 PASS",
    ]  # fmt: skip
    assert device_remarks([slow])[0].endswith(
        "clocks not pinned. INT8 is 0.93 times as fast as FP16 in the same engine (0.81–1.06 over 10 rounds): FAIL, at "
        "least 1.05 is asked for. Use FP16 on this device."
    )
    assert device_remarks([fast])[0].endswith(
        "INT8 is 1.62 times as fast as FP32 in the same engine (1.50–1.75 over 1 round): PASS, at least 1.05 is asked for."
    )


def test_only_int8_has_to_be_faster_and_fp32_has_nothing_above_it():
    def at(precision: str, **changes: object) -> DeviceReport:
        bundle = device_report().bundle.model_copy(update={"precision": precision})
        return device_report(bundle=bundle, **changes)

    devices = [at("fp16", speed=ratio(1.5, against="fp32")), at("fp16"), at("fp32")]
    assert [cells(devices, row)[SPEED_CELL] for row in (2, 3, 4)] == ["1.50× fp32", "not measured", "–"]
    timed_fp16, untimed_fp16, fp32 = device_remarks(devices)
    assert timed_fp16.endswith(
        "FP16 is 1.50 times as fast as FP32 in the same engine (1.37–1.62 over 10 rounds)."
    )
    assert untimed_fp16.endswith("Speed against a higher precision: not measured.")
    assert fp32.endswith("clocks not pinned.")


def test_page_and_markdown_show_the_device_and_escape_it():
    bundle = device_report().bundle.model_copy(update={"name": "<u>x</u>"})
    report = with_devices(device_report(bundle=bundle))
    page, text = render_html(report), render_markdown(report)
    assert "<h3>On devices, each measured by itself, beside this machine</h3>" in page
    assert "&lt;u&gt;x" in page
    assert "<u>x" not in page
    assert "<b>On devices</b>" in page
    assert "**On devices, each measured by itself, beside this machine**" in text
    assert "| Orin Nano | onnxruntime 1.23.2, 6 threads |" in text
    assert "clocks not pinned." in text
    plain = report.tables[-1].plain()
    assert "Orin Nano" in plain
    assert "On devices" not in render_html(make_report(RECORDS))


def write(path: Path, report: DeviceReport) -> Path:
    path.write_text(report.model_dump_json())
    return path


def test_reports_are_read_and_refused_in_one_line(tmp_path):
    good = write(tmp_path / "a.json", device_report())
    assert read_reports([good]) == [device_report()]
    twice = write(tmp_path / "b.json", device_report())
    with pytest.raises(InputError) as error:
        read_reports([good, twice])
    assert str(error.value) == f"--records {twice}: must be given once, was given before; remove one"
    newer = tmp_path / "c.json"
    newer.write_text(json.dumps({"schema_version": 9}))
    with pytest.raises(InputError, match="schema must be 1, got 9; install a newer sam2edge"):
        read_reports([good, newer])


def test_records_may_be_given_in_one_breath():
    words = shlex.split("--data d --records a.json c.json --out o --records d.json --threads 1 2")
    parsed = parse_settings(BenchmarkSettings, "x", repeat_flags(words, LIST_FLAGS))
    assert [str(path) for path in parsed.records] == ["a.json", "c.json", "d.json"]
    assert parsed.threads == (1, 2)
    assert str(parsed.out) == "o"


def test_from_bundle_and_device_report_to_page(exported, tmp_path, capsys):
    """The whole way: a report measured here is merged as a device's would be."""
    pytest.importorskip("matplotlib")
    from benchmarks.report.run import main
    from runtime.device.__main__ import DeviceSettings, measure_device
    from segcore.bundle.folder import open_bundle

    bundle, report = exported("onnx", "fp32"), tmp_path / "device-report.json"
    quick = {"warm_up_s": 0.0, "rounds": 1, "burst_s": 0.01, "threads": 1}
    settings = DeviceSettings(bundle=bundle, engine="onnxruntime", out=report, **quick)
    write(report, measure_device(settings, open_bundle(bundle))[0])
    main(
        BenchmarkSettings(
            bundle=(bundle,), data="phantom:cxr:12", out=tmp_path / "report", engine=("onnxruntime",), threads=(1,),
            rounds=1, limit=2, records=(report,),
        )
    )  # fmt: skip
    printed = capsys.readouterr().out
    assert "On devices, each measured by itself, beside this machine" in printed
    lines = (tmp_path / "report/devices.jsonl").read_text().splitlines()
    assert [DeviceReport.model_validate_json(line).engine for line in lines] == ["onnxruntime"]
    assert "this machine" in (tmp_path / "report/report.md").read_text()


def test_a_damaged_report_stops_the_benchmark_before_it_measures(exported, tmp_path):
    from benchmarks.report.run import main

    bad = tmp_path / "bad.json"
    bad.write_text("{")
    out = tmp_path / "report"
    with pytest.raises(InputError, match=r"bad\.json: must be JSON, is damaged \(.*\); have it sent again"):
        main(
            BenchmarkSettings(
                bundle=(exported("onnx", "fp32"),), data="phantom:cxr:12", out=out, records=(bad,)
            )
        )
    assert not out.exists()
