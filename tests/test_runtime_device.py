"""The device report: sensors on made trees, what shows throttling, INT8 proven or not, the command from end to end."""

import getpass
import json
import platform
from importlib.util import find_spec
from pathlib import Path

import pytest

from runtime.device import sensors as sensors
from runtime.device.__main__ import DeviceSettings, engine_folder, main
from runtime.device.plan_facts import engine_facts
from runtime.device.report import (
    Board,
    BundleFacts,
    ClockReading,
    DeviceReport,
    Percentiles,
    PowerMode,
    Snapshot,
    VerificationFacts,
    percentiles,
    read_report,
)
from runtime.device.sensors import SensorWatch, clocks_pinned, find_throttling, unread_sensors
from runtime.device.speed import check_baseline, check_comparing, device_pictures, gate_speed
from runtime.timing.latency import LatencySamples, speedups
from segcore.bundle.folder import Bundle, open_bundle, seal_bundle
from segcore.bundle.golden import GOLDEN_FILE, load_golden, save_golden
from segcore.bundle.guard_record import DiceScore, GuardRecord, SpeedRatio
from segcore.command import run_command
from segcore.errors import GateError, InputError
from segcore.picture.preprocess import InputSpec, prepare
from segcore.words import bounded_ratio

ORIN = {
    "proc/device-tree/model": "NVIDIA Jetson Orin Nano Developer Kit\0",
    "proc/meminfo": "MemTotal:        7802880 kB\nMemFree:    100 kB\nMemAvailable:    5242880 kB\n",
    "etc/nv_tegra_release": "# R36 (release), REVISION: 4.3, GCID: 1, BOARD: generic, EABI: aarch64, DATE: x\n",
    "var/lib/nvpmodel/status": "pmode:0002 fmode:quiet\n",
    "etc/nvpmodel.conf": "< POWER_MODEL ID=0 NAME=15W >\n< POWER_MODEL ID=2 NAME=MAXN_SUPER >\n",
    "sys/devices/virtual/thermal/thermal_zone0/type": "cpu-thermal\n",
    "sys/devices/virtual/thermal/thermal_zone0/temp": "48500\n",
    "sys/devices/virtual/thermal/thermal_zone1/type": "gpu-thermal\n",  # asleep: no temp to read
    "sys/devices/virtual/thermal/thermal_zone2/type": "PMIC-Die\n",
    "sys/devices/virtual/thermal/thermal_zone2/temp": "100000\n",
    "sys/devices/virtual/thermal/thermal_zone3/type": "cv0-thermal\n",
    "sys/devices/virtual/thermal/thermal_zone3/temp": "-256000\n",
    "sys/class/devfreq/17000000.gpu/device/of_node/name": "gpu\0",
    "sys/class/devfreq/17000000.gpu/cur_freq": "612000000\n",
    "sys/class/devfreq/17000000.gpu/min_freq": "306000000\n",
    "sys/class/devfreq/17000000.gpu/max_freq": "1020000000\n",
    "sys/class/devfreq/17000000.gpu/governor": "nvhost_podgov\n",
    "sys/class/devfreq/15340000.vic/device/of_node/name": "vic\0",
    "sys/class/devfreq/15340000.vic/cur_freq": "115200000\n",
    "sys/devices/system/cpu/cpufreq/policy0/scaling_cur_freq": "1510400\n",
    "sys/devices/system/cpu/cpufreq/policy0/scaling_min_freq": "729600\n",
    "sys/devices/system/cpu/cpufreq/policy0/scaling_max_freq": "1510400\n",
    "sys/devices/system/cpu/cpufreq/policy0/scaling_governor": "schedutil\n",
    "sys/bus/i2c/devices/1-0040/name": "ina3221\n",
    "sys/bus/i2c/devices/1-0040/hwmon/hwmon1/in1_label": "VDD_IN\n",
    "sys/bus/i2c/devices/1-0040/hwmon/hwmon1/in1_input": "5000\n",
    "sys/bus/i2c/devices/1-0040/hwmon/hwmon1/curr1_input": "1240\n",
    "sys/bus/i2c/devices/1-0040/hwmon/hwmon1/in2_label": "NC\n",
    "sys/bus/i2c/devices/1-0040/hwmon/hwmon1/in2_input": "5000\n",
    "sys/bus/i2c/devices/1-0040/hwmon/hwmon1/curr2_input": "8\n",
    "sys/bus/i2c/devices/1-0040/hwmon/hwmon1/in7_label": "Sum of shunt voltages\n",
    "sys/bus/i2c/devices/1-0040/hwmon/hwmon1/in7_input": "3\n",
    "sys/bus/i2c/devices/1-0040/hwmon/hwmon1/curr7_input": "3\n",
    "sys/bus/i2c/devices/1-0050/name": "24c02\n",
    "sys/class/hwmon/hwmon3/oc2_event_cnt": "15\n",
    "sys/class/thermal/cooling_device0/type": "pwm-fan\n",
    "sys/class/thermal/cooling_device0/cur_state": "2\n",
    "sys/class/thermal/cooling_device1/type": "gpu-throttle-alert\n",
    "sys/class/thermal/cooling_device1/cur_state": "0\n",
}


def plant(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def clock(mhz: float, low: float = 306, high: float = 1020, name: str = "gpu") -> ClockReading:
    return ClockReading(name=name, mhz=mhz, min_mhz=low, max_mhz=high, governor=None)


def device_report(**changes: object) -> DeviceReport:
    """A report as an Orin Nano might send it."""
    fields: dict[str, object] = {
        "sam2edge": "0.1.0+abc", "time": "2026-01-02T03:04:05+00:00", "command": "python -m runtime.device",
        "python": "3.10.12", "host": "aarch64, 6 cores, Linux aarch64", "versions": {"numpy": "2.2.6"},
        "board": Board(model="Orin Nano", l4t="36.4.3", jetpack="6.2", memory_mib=7620.0),
        "power_mode": PowerMode(id=2, name="MAXN_SUPER"), "clocks_pinned": False, "throttling": (),
        "engine": "onnxruntime", "engine_version": "1.23.2", "threads": 6,
        "bundle": BundleFacts(
            name="small, INT8", sha256="b" * 64, parent="1" * 64, kind="student", format="onnx", precision="int8",
            height_px=64, width_px=64, channels=1, classes=("lung",), parameters=1, macs=1, model_bytes=1,
        ),
        "verification": VerificationFacts(
            cases=12, mean_share=0.001, worst_share=0.002, constant=False, failures=()
        ),
        "warm_up_s": 10.0, "latency_ms": Percentiles(p50=1.25, p90=1.5, p99=2.5, calls=1000),
        "end_to_end_ms": Percentiles(p50=3.75, p90=4.5, p99=5.5, calls=1000), "throughput_images_s": 321.0,
        "picture_px": (512, 512), "process_peak_mib": 456.0,
        "snapshots": (Snapshot(moment="start", at_s=0.0), Snapshot(moment="end", at_s=20.0)), "unread": {},
    }  # fmt: skip
    return DeviceReport.model_validate(fields | changes)


def guard_record(**changes: object) -> GuardRecord:
    score = DiceScore(mean=0.951, p05=0.907)
    fields: dict[str, object] = {
        "engine": "onnxruntime", "engine_version": "1.31", "cases": 40, "max_drop_points": 0.1,
        "max_p05_drop_points": 0.5, "min_speedup": 1.05, "fp32": score, "int8": score, "steps": (), "layers": 2,
    }  # fmt: skip
    return GuardRecord.model_validate(fields | changes)


# --- sensors ---


def test_board_of_a_jetson(tmp_path):
    board = sensors.read_board(plant(tmp_path, ORIN))
    assert board == Board(
        model="NVIDIA Jetson Orin Nano Developer Kit", l4t="36.4.3", jetpack="6.2", memory_mib=7620.0
    )


def test_board_of_a_pc(tmp_path):
    dmi = "sys/devices/virtual/dmi/id"
    plant(
        tmp_path,
        {f"{dmi}/sys_vendor": "ACME\n", f"{dmi}/product_name": "Box 1\n", f"{dmi}/product_serial": "S1"},
    )
    assert sensors.read_board(tmp_path) == Board(model="ACME Box 1", l4t=None, jetpack=None, memory_mib=None)


def test_first_release_of_a_jetson_linux_has_its_jetpack(tmp_path):
    plant(tmp_path, {"etc/nv_tegra_release": "# R36 (release), REVISION: 3.0, GCID: 1"})
    assert sensors.read_board(tmp_path).jetpack == "6.0"


def test_sensors_of_a_jetson(tmp_path):
    plant(tmp_path, ORIN)
    assert sensors.read_temperatures(tmp_path) == {"cpu-thermal": 48.5}
    assert sensors.read_gpu_clocks(tmp_path) == (
        ClockReading(name="17000000.gpu", mhz=612, min_mhz=306, max_mhz=1020, governor="nvhost_podgov"),
    )
    assert sensors.read_cpu_clocks(tmp_path) == (
        ClockReading(name="policy0", mhz=1510.4, min_mhz=729.6, max_mhz=1510.4, governor="schedutil"),
    )
    assert sensors.read_power(tmp_path) == {"VDD_IN": 6200.0}
    assert sensors.read_throttle_counts(tmp_path) == {"oc2_event_cnt": 15}
    assert sensors.read_cooling(tmp_path) == {}


def test_clocks_and_power_of_thor(tmp_path):
    gpu, chip = "sys/class/devfreq/gpu-gpc-0", "sys/bus/i2c/devices/2-0044"
    plant(tmp_path, {f"{gpu}/{name}_freq": "1575000000" for name in ("cur", "min", "max")})
    plant(tmp_path, {f"{chip}/name": "ina238", f"{chip}/hwmon/hwmon4/power1_input": "21500000",
                     f"{chip}/hwmon/hwmon4/in1_label": "VIN"})  # fmt: skip
    (found,) = sensors.read_gpu_clocks(tmp_path) or ()
    assert (found.name, found.mhz, found.min_mhz == found.max_mhz) == ("gpu-gpc-0", 1575.0, True)
    assert sensors.read_power(tmp_path) == {"VIN": 21500.0}


def test_throttle_counts_of_a_pc(tmp_path):
    where = "sys/devices/system/cpu/cpu{}/thermal_throttle/core_throttle_count"
    plant(tmp_path, {where.format(0): "3\n", where.format(1): "4\n"})
    assert sensors.read_throttle_counts(tmp_path) == {
        "cpu0 core_throttle_count": 3, "cpu1 core_throttle_count": 4,
    }  # fmt: skip


def nvpmodel(folder: Path, script: str) -> str:
    command = folder / "nvpmodel"
    command.write_text(f"#!/bin/sh\n{script}\n")
    command.chmod(0o755)
    return str(command)


def test_power_mode_as_nvpmodel_tells_it(tmp_path):
    says = "echo 'NVPM WARN: fan mode is not set!' >&2; echo 'NV Power Mode: MODE_25W'; echo 1"
    asked = sensors.read_power_mode(tmp_path, command=nvpmodel(tmp_path, says))
    assert asked == PowerMode(id=1, name="MODE_25W")
    assert sensors.parse_power_mode("NV Power Mode: 15W") == PowerMode(id=None, name="15W")


def test_power_mode_from_files_where_nvpmodel_may_not_tell(tmp_path):
    refuses = nvpmodel(tmp_path, "echo must be root >&2; exit 1")
    assert sensors.read_power_mode(tmp_path, command=refuses) is None
    plant(tmp_path, ORIN)
    assert sensors.read_power_mode(tmp_path, command=refuses) == PowerMode(id=2, name="MAXN_SUPER")
    assert sensors.read_power_mode(tmp_path, command=str(tmp_path / "none")).id == 2


def test_what_is_not_there_is_none_with_a_reason(tmp_path):
    watch = SensorWatch(tmp_path)
    watch.take_snapshot("start")
    (snapshot,) = watch.snapshots
    empty = {f for f in Snapshot.model_fields if f not in ("moment", "at_s") and getattr(snapshot, f) is None}
    assert {f"snapshots.{field}" for field in empty} == set(unread_sensors(watch.snapshots))
    assert len(empty) == 7
    assert clocks_pinned(snapshot) is None
    full = SensorWatch(plant(tmp_path, ORIN))
    full.take_snapshot("start")
    assert unread_sensors(full.snapshots) == {}
    assert clocks_pinned(full.snapshots[0]) is False


# --- throttling ---


def test_pinned_clocks_are_those_whose_bounds_are_equal():
    pinned, free = clock(1020, 1020, 1020), clock(1020)
    assert clocks_pinned(Snapshot(moment="start", at_s=0, gpu_clocks=(pinned,))) is True
    assert clocks_pinned(Snapshot(moment="start", at_s=0, gpu_clocks=(pinned,), cpu_clocks=(free,))) is False


def test_what_shows_throttling():
    start = Snapshot(moment="start", at_s=0, throttle_counts={"oc2": 15, "oc3": 4}, cooling={"x 0": 1})
    warm = Snapshot(moment="warm", at_s=10, gpu_clocks=(clock(1020),), cooling={})
    bad = Snapshot(
        moment="round", at_s=11, gpu_clocks=(clock(800),), cooling={"cpufreq 1": 2},
        cpu_clocks=(clock(900, 1500, 1500, "policy0"),),
    )  # fmt: skip
    end = Snapshot(moment="end", at_s=12, gpu_clocks=(clock(765),), throttle_counts={"oc2": 17, "oc3": 4})
    assert find_throttling([start, warm, bad, end]) == (
        "oc2 rose by 2",
        "cooling device cpufreq 1 was engaged",
        "GPU clock gpu fell from 1020 MHz to 765",
        "clock policy0 is pinned to 1500 MHz and ran at 900",
    )


def test_a_governor_at_work_is_no_throttling():
    def at(moment, mhz, cpu):
        return Snapshot(
            moment=moment, at_s=0, gpu_clocks=(clock(mhz),), cpu_clocks=(clock(cpu, 700, 1500, "policy0"),)
        )

    assert find_throttling([at("start", 306, 700), at("warm", 1000, 1500), at("end", 990, 800)]) == ()


# --- TensorRT's layers ---


def layer(name: str, kind: str = "Convolution", given: str = "Int8", weights: str = "Int8") -> dict:
    tensor = {"Format/Datatype": f"Thirty-two wide channel vectorized row major {given} format"}
    fields = {"Name": name, "LayerType": kind, "Inputs": [tensor], "Outputs": [tensor]}
    return fields | ({"Weights": {"Type": weights}} if kind == "Convolution" else {})


def facts(*layers: dict, precision: str = "int8", guard: GuardRecord | None = None, **times: float):
    return engine_facts(json.dumps({"Layers": layers}), times, precision=precision, guard=guard, build_s=1.0)


def test_int8_is_proven_where_every_layer_that_the_guard_quantised_is_int8():
    stem = layer("stem", given="FP32", weights="FP32")
    found = facts(
        layer("a"), layer("r", "Reformat"), stem, a=3.0, r=1.0,
        guard=guard_record(int8_nodes=("a",)),
    )  # fmt: skip
    assert found.int8_proven is True
    assert found.int8_why == "1 of 1 quantised convolutions and matrix products compute in INT8"
    assert (found.reformats, found.reformat_share) == (1, 0.25)
    assert found.layers_by_precision == {"INT8": 2, "FP32": 1}


def test_int8_is_not_proven_where_a_quantised_layer_computes_in_float():
    stem = layer("stem", given="FP32", weights="FP32")
    found = facts(layer("a"), stem, guard=guard_record(int8_nodes=("a", "stem", "gone")))
    assert found.int8_proven is False
    assert found.int8_why == (
        "1 of 3 quantised convolutions and matrix products compute in INT8; in float: stem; "
        "not named in the engine: gone"
    )


def test_without_a_guards_record_all_layers_must_be_int8():
    assert facts(layer("a"), layer("b")).int8_proven is True
    found = facts(layer("a"), layer("b", given="Half", weights="Half"))
    assert (found.int8_proven, found.int8_why) == (
        False,
        "1 of 2 convolutions compute in INT8; in float, and no guard's record says that they may be: b",
    )
    assert facts(layer("r", "Reformat")).int8_proven is False


def test_other_precisions_prove_nothing():
    found = facts(layer("a", given="Half", weights="Half"), precision="fp16")
    assert (found.int8_proven, found.int8_why) == (None, "fp16 was asked for")


# --- measuring ---


def test_percentiles_of_all_calls():
    assert percentiles([[0.0, 1.0], [2.0, 3.0, 4.0]]) == Percentiles(p50=2.0, p90=3.6, p99=3.96, calls=5)


@pytest.mark.parametrize(
    ("depth", "window"), [("uint8", (0, 255)), ("uint16", (100, 4195)), ("float32", (-1, 1))]
)
def test_pictures_fill_the_window_of_the_models_depth(depth, window):
    spec = InputSpec(
        height_px=64, width_px=64, channels=1, depth=depth, window=window, mean=(0.5,), std=(0.25,)
    )
    picture = device_pictures(spec)[0]
    assert picture.dtype.name == depth
    prepared = prepare(picture, spec)
    assert prepared.min() < 50
    assert prepared.max() > 150


def resealed(source: Path, folder: Path, *, wrong_masks: bool = False, **changes: object) -> Path:
    """A copy of a bundle with another manifest, or with golden masks that no engine computes."""
    bundle = open_bundle(source)
    folder.mkdir()
    for name in bundle.manifest.files:
        (folder / name).write_bytes(bundle.path(name).read_bytes())
    if wrong_masks:
        assert GOLDEN_FILE in bundle.manifest.files
        inputs, logits = load_golden(folder)
        save_golden(folder, inputs, -logits)
    kept = {k: v for k, v in bundle.manifest if k not in ("files", "schema_version")}
    seal_bundle(folder, **(kept | changes))
    return folder


def run(bundle: Path, out: Path, **more: object) -> DeviceReport:
    quick = {"engine": "onnxruntime", "warm_up_s": 0.0, "rounds": 2, "burst_s": 0.01, "threads": 1}
    main(DeviceSettings.model_validate({"bundle": bundle, "out": out} | quick | more))
    return read_report(out)


def test_from_bundle_to_report(exported, tmp_path, capsys):
    bundle = exported("onnx", "fp32")
    report = run(bundle, tmp_path / "device-report.json")
    assert report.verification.passed
    assert report.verification.cases == 12
    assert [s.moment for s in report.snapshots] == ["start", "warm", "round", "round", "end"]
    assert report.latency_ms.calls >= 6
    assert report.end_to_end_ms.p50 > 0
    assert report.throughput_images_s > 0
    assert report.latency_no_copies_ms is None
    assert report.unread["speed"] == "no baseline was given"
    assert report.unread["latency_no_copies_ms"] == "onnxruntime computes in the CPU's own memory"
    assert report.process_peak_mib > 20
    assert report.bundle.parent == json.loads((bundle / "manifest.json").read_text())["parent"]
    assert report.bundle.model_bytes == (bundle / "model.onnx").stat().st_size
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["passed"] is True


def test_a_report_names_neither_user_nor_machine_nor_folder(exported, tmp_path):
    run(exported("onnx", "fp32"), tmp_path / "device-report.json")
    text = (tmp_path / "device-report.json").read_text()
    assert str(tmp_path) not in text
    assert str(Path.home()) not in text
    words = {word for value in json.loads(text).values() if isinstance(value, str) for word in value.split()}
    assert not words & {platform.node(), getpass.getuser()}


def test_wrong_masks_are_reported_and_fail(exported, tmp_path):
    bundle = resealed(exported("onnx", "fp32"), tmp_path / "bundle", wrong_masks=True)
    with pytest.raises(GateError, match="of pixels differ on average"):
        run(bundle, tmp_path / "report.json")
    assert not read_report(tmp_path / "report.json").verification.passed


def error_of(bundle: Path, out: Path, **more: object) -> str:
    with pytest.raises(InputError) as error:
        run(bundle, out, **more)
    return str(error.value)


def test_a_report_that_is_there_is_kept(exported, tmp_path):
    out = tmp_path / "r.json"
    out.write_text("mine")
    bundle = exported("onnx", "fp32")
    assert (
        error_of(bundle, out) == f"--out {out}: must not exist yet, it does; move it away, or add --overwrite"
    )
    assert out.read_text() == "mine"
    assert error_of(bundle, tmp_path / "no/r.json").startswith(
        f"--out {tmp_path / 'no/r.json'}: must lie in a folder"
    )
    assert run(bundle, out, overwrite=True).engine == "onnxruntime"


def test_a_folder_of_the_user_is_never_taken_for_an_engine(tmp_path):
    out, folder = tmp_path / "r.json", tmp_path / "r-engine"
    assert engine_folder(out) == folder
    folder.mkdir()
    with pytest.raises(InputError) as error:
        engine_folder(out)
    assert str(error.value) == f"--out {out}: {folder} must be free for the engine, is not; move it away"
    (folder / "manifest.json").touch()
    assert engine_folder(out) == folder
    assert engine_folder(out, of="baseline") == tmp_path / "r-baseline-engine"


def test_an_engine_that_cannot_run_the_bundle(torch_bundle, exported, tmp_path):
    out = tmp_path / "r.json"
    assert error_of(torch_bundle, out).startswith(
        f"bundle {torch_bundle}: must be exported first, got torch format"
    )
    assert error_of(exported("openvino", "fp32"), out, engine="onnxruntime").startswith(
        "--engine onnxruntime: must be"
    )
    assert error_of(exported("openvino", "fp32"), out, engine="tensorrt").startswith(
        "--engine tensorrt: must be able"
    )
    assert not out.exists()


@pytest.mark.skipif(find_spec("tensorrt") is not None, reason="TensorRT is installed here")
def test_tensorrt_is_asked_to_build_and_says_what_is_missing(exported, tmp_path):
    message = error_of(exported("onnx", "fp32"), tmp_path / "r.json", engine="tensorrt")
    assert message.startswith("tensorrt: must be installed, is not")
    assert list(tmp_path.iterdir()) == []


# --- speed against a baseline ---


def ratio(speedup: float = 0.9375, **changes: object) -> SpeedRatio:
    fields: dict[str, object] = {
        "engine": "tensorrt", "engine_version": "10.3.0", "threads": 6, "against": "fp16", "speedup": speedup,
        "low": speedup - 0.125, "high": speedup + 0.125, "rounds": 10,
    }  # fmt: skip
    return SpeedRatio.model_validate(fields | changes)


def test_speedups_are_of_medians_over_all_calls_and_by_round():
    fast, slow = LatencySamples(((1.0, 2.0, 9.0), (4.0,)), ()), LatencySamples(((6.0,), (6.0, 8.0, 10.0)), ())
    # Medians: fast 2 and 4 by round, 3 over all; slow 6 and 8, 7 over all.
    assert speedups(fast, slow) == (7 / 3, 2.0, 3.0)


def test_int8_that_is_not_faster_on_this_device_is_refused():
    with pytest.raises(GateError) as error:
        gate_speed(device_report(speed=ratio()))
    assert str(error.value) == (
        "int8: must be at least 1.05 times as fast as fp16 on this device, is 0.93 times (TensorRT 10.3.0); "
        "use the fp16 bundle"
    )
    with pytest.raises(
        GateError, match=r"at least 1\.05 times .* is 1\.04 times"
    ):  # not rounded to the bound
        gate_speed(device_report(speed=ratio(1.0499)))
    gate_speed(device_report(speed=ratio(1.05)))
    gate_speed(device_report())


def test_times_are_rounded_down():
    assert [bounded_ratio(x) for x in (1.0499, 1.05, 1.15, 0.999, 12.0)] == [
        "1.04", "1.05", "1.15", "0.99", "12.00",
    ]  # fmt: skip


def test_the_guards_bound_goes_before_the_usual_one():
    lenient, strict = guard_record(min_speedup=0.5), guard_record(min_speedup=2.0)
    assert device_report(speed=ratio(0.9), guard=lenient).fast_enough is True
    assert device_report(speed=ratio(1.9), guard=strict).fast_enough is False
    assert device_report(guard=strict).fast_enough is None
    fp16 = device_report().bundle.model_copy(update={"precision": "fp16"})
    gate_speed(device_report(speed=ratio(0.9, against="fp32"), bundle=fp16))  # only int8 has to be faster


def test_int8_against_fp32(exported, tmp_path, capsys):
    out = tmp_path / "r.json"
    report = run(
        exported("openvino", "int8"), out, engine="openvino", baseline=exported("openvino", "fp32"), rounds=3
    )
    speed = report.speed
    assert speed is not None
    assert (speed.engine, speed.engine_version, speed.threads) == ("openvino", report.engine_version, 1)
    assert (speed.against, speed.rounds) == ("fp32", 3)
    assert 0 < speed.low <= speed.high
    assert "speed" not in report.unread
    assert report.fast_enough is True  # the fixture's guard asks for nothing
    *lines, last = capsys.readouterr().out.splitlines()
    assert lines[-1].split(maxsplit=1) == [
        "speed",
        f"int8 is {bounded_ratio(speed.speedup)} times as fast as fp32 "
        f"({bounded_ratio(speed.low)} to {bounded_ratio(speed.high)} over 3 rounds)",
    ]
    result = json.loads(last)
    assert (result["speedup"], result["against"], result["fast_enough"]) == (speed.speedup, "fp32", True)


def test_an_int8_that_is_not_faster_ends_with_exit_status_3(exported, tmp_path, capsys):
    strict = open_bundle(exported("openvino", "int8")).manifest.guard.model_copy(update={"min_speedup": 1000})
    bundle, out = resealed(exported("openvino", "int8"), tmp_path / "b", guard=strict), tmp_path / "r.json"
    words = f"--bundle {bundle} --baseline {exported('openvino', 'fp32')} --engine openvino --out {out}"
    words += " --threads 1 --warm-up-s 0 --rounds 1 --burst-s 0.01"
    with pytest.raises(SystemExit) as end:
        run_command(main, DeviceSettings, "x", words.split())
    assert end.value.code == 3
    report, printed = read_report(out), capsys.readouterr()
    assert report.speed is not None
    assert report.fast_enough is False
    said = printed.err.splitlines()[-1]
    assert said.startswith(
        "gate failed: int8: must be at least 1000 times as fast as fp32 on this device, is "
    )
    assert said.endswith(f" times (OpenVINO {report.engine_version}); use the fp32 bundle")
    assert json.loads(printed.out.splitlines()[-1])["fast_enough"] is False


def test_a_baseline_with_wrong_masks_is_not_timed(exported, tmp_path):
    wrong = resealed(exported("openvino", "fp32"), tmp_path / "wrong", wrong_masks=True)
    out = tmp_path / "r.json"
    with pytest.raises(GateError) as error:
        run(exported("openvino", "int8"), out, engine="openvino", baseline=wrong)
    assert str(error.value).startswith(f"--baseline {wrong} with openvino ")
    assert str(error.value).endswith("; its speed was not compared")
    report = read_report(out)  # of the bundle itself, which was measured before
    assert report.verification.passed
    assert (report.speed, report.unread["speed"]) == (None, "the comparison with the baseline did not end")


def test_a_bundle_with_wrong_masks_is_not_compared(exported, tmp_path):
    wrong = resealed(exported("openvino", "int8"), tmp_path / "wrong", wrong_masks=True)
    out = tmp_path / "r.json"
    with pytest.raises(GateError, match=f"^bundle {wrong} with openvino"):
        run(wrong, out, engine="openvino", baseline=exported("openvino", "fp32"))
    assert read_report(out).unread["speed"] == "the masks are not the bundle's"


def test_baselines_that_cannot_be_compared(torch_bundle, exported, tmp_path):
    int8, fp32, out = exported("openvino", "int8"), exported("openvino", "fp32"), tmp_path / "r.json"
    parent = open_bundle(int8).manifest.parent

    def error(baseline: Path, bundle: Path = int8, engine: str = "openvino") -> str:
        message = error_of(bundle, out, engine=engine, baseline=baseline)
        assert not out.exists()
        return message

    other = resealed(fp32, tmp_path / "other", parent="2" * 64)
    assert error(other) == (
        f"--baseline {other}: must be of the same network as --bundle {int8} (made from {parent[:12]}), "
        "was made from 222222222222; export both from one trained bundle"
    )
    assert error(int8) == (
        f"--baseline {int8}: must have a higher precision than int8, got int8; "
        "export one with --precision fp16 or fp32"
    )
    assert error(int8, bundle=fp32).startswith(f"--baseline {int8}: must have a higher precision than fp32")
    spec = open_bundle(fp32).manifest.input.model_copy(update={"height_px": 32})
    small = resealed(fp32, tmp_path / "small", input=spec)
    assert error(small) == (
        f"--baseline {small}: must take pictures of 64×64 px as --bundle {int8} does, got 32×64; "
        "export both at one size"
    )
    assert error(torch_bundle).startswith(f"bundle {torch_bundle}: must be exported first, got torch format")
    onnx = exported("onnx", "fp32")
    assert error(onnx, engine="onnxruntime") == (
        f"--engine onnxruntime: must be openvino to be compared with --baseline {onnx}, got onnxruntime; "
        "leave --baseline out, or use --engine openvino"
    )


def test_tensorrts_files_are_compared_in_tensorrt_alone(exported):
    fp32 = open_bundle(exported("onnx", "fp32"))

    def like(**changes: object) -> Bundle:
        return fp32.model_copy(update={"manifest": fp32.manifest.model_copy(update=changes)})

    int8 = like(format="tensorrt-onnx", precision="int8")
    for form in ("tensorrt-onnx", "onnx"):
        assert check_baseline(int8, like(format=form, precision="fp16")) == ("tensorrt",)
    with pytest.raises(InputError, match="--engine onnxruntime: must be tensorrt to be compared"):
        check_comparing("onnxruntime", ("tensorrt",), fp32)
    with pytest.raises(InputError, match=r"of a format that tensorrt runs, as --bundle .*, got openvino"):
        check_baseline(int8, like(format="openvino"))
    with pytest.raises(InputError, match="is a built one; give the tensorrt-onnx bundles of both"):
        check_baseline(int8, like(format="tensorrt"))
    # Quantised for CPUs: TensorRT, which could run the other, must not.
    assert check_baseline(like(precision="int8"), fp32) == ("openvino", "onnxruntime")
    assert "tensorrt" in check_baseline(like(precision="fp16"), fp32)


# --- reading a report ---


def test_a_report_is_read_as_it_was_written(tmp_path):
    report = device_report()
    path = tmp_path / "r.json"
    path.write_text(report.model_dump_json())
    assert read_report(path) == report
    assert report.device == "Orin Nano"
    older = json.loads(report.model_dump_json())
    del older["speed"]  # of before there was a baseline
    path.write_text(json.dumps(older))
    assert read_report(path) == report
    nameless = report.board.model_copy(update={"model": None})
    assert report.model_copy(update={"board": nameless}).device == report.host


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "{",
            "must be JSON, is damaged (Expecting property name enclosed in double quotes: line 1 column 2 (char 1)); "
            "have it sent again",
        ),
        (
            "\udcff",
            "must be JSON, is damaged ('utf-8' codec can't decode byte 0xff in position 0: invalid start byte); "
            "have it sent again",
        ),
        ('{"schema_version": 2}', "schema must be 1, got 2; install a newer sam2edge"),
        ("[]", "the whole: input should be an object; have it made again with this version of sam2edge"),
        (
            '{"schema_version": 1}',
            "sam2edge: field required; have it made again with this version of sam2edge",
        ),
    ],
)
def test_a_damaged_or_newer_report_is_refused_in_one_line(tmp_path, text, says):
    path = tmp_path / "r.json"
    path.write_text(text, errors="surrogateescape")
    with pytest.raises(InputError) as error:
        read_report(path)
    assert str(error.value) == f"device report {path}: {says}"


def test_a_report_with_a_word_for_a_number_is_refused(tmp_path):
    path = tmp_path / "r.json"
    path.write_text(json.dumps(json.loads(device_report().model_dump_json()) | {"threads": "six"}))
    with pytest.raises(InputError, match=r"threads: input should be a valid integer"):
        read_report(path)


def test_no_report(tmp_path):
    with pytest.raises(InputError, match=r"must be a file, there is none; name a device-report\.json"):
        read_report(tmp_path / "r.json")
