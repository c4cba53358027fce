"""Benchmarks: the command from bundles to a report, and its error messages."""

import json
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import save_file  # noqa: E402

from benchmarks.measuring import read_lines  # noqa: E402
from benchmarks.report.record import CaseRecord, Record  # noqa: E402
from benchmarks.report.run import main  # noqa: E402
from benchmarks.report.settings import (  # noqa: E402
    LIST_FLAGS,
    BenchmarkSettings,
)
from benchmarks.report.subject import choose_reference, engines_of, name_subjects, open_bundles  # noqa: E402
from runtime.timing.latency import MAX_CALLS, MIN_CALLS  # noqa: E402
from segcore.bundle.folder import seal_bundle  # noqa: E402
from segcore.bundle.manifest import DataRecord  # noqa: E402
from segcore.command import parse_settings, repeat_flags  # noqa: E402
from segcore.dataset.dataset import open_dataset  # noqa: E402
from segcore.errors import InputError  # noqa: E402
from segcore.host import made_now  # noqa: E402
from segcore.picture.preprocess import InputSpec, output_spec  # noqa: E402
from student.design import unet  # noqa: E402
from student.network import build_student  # noqa: E402

DATA = "phantom:cxr:12"


def make_bundle(
    folder: Path, name: str, base: int, *, classes: tuple[str, ...] | None = None, **data: object
) -> Path:
    dataset = open_dataset(DATA)
    classes = classes or dataset.classes
    torch.manual_seed(base)
    output = output_spec(classes, 1)
    network = build_student(unet(base), channels=1, outputs=output.channels)
    folder.mkdir(parents=True)
    save_file(network.state_dict(), folder / "model.safetensors")
    record = DataRecord(name=DATA, sha256=dataset.sha256, split_sha256=dataset.split_sha256)
    seal_bundle(
        folder, name=name, kind="student", format="torch", precision="fp32", architecture="student",
        architecture_settings=unet(base).model_dump(mode="json"), classes=classes, output=output,
        input=InputSpec(height_px=32, width_px=32, channels=1, mean=(0.5,), std=(0.25,)),
        parameters=sum(p.numel() for p in network.parameters()), trained_parameters=1, macs=1_000_000,
        pretrained="no pretrained weights", data=record.model_copy(update=data), made=made_now("a test"),
        model_file="model.safetensors",
    )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def bundles(tmp_path_factory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("bundles")
    return make_bundle(folder / "big", "U-Net 4", 4), make_bundle(folder / "small", "U-Net 2", 2)


def settings(*bundle: Path, out: Path, **more: object) -> BenchmarkSettings:
    return BenchmarkSettings.model_validate({"bundle": bundle, "data": DATA, "out": out} | more)


def test_from_bundles_to_report(bundles, tmp_path, capsys):
    main(settings(*bundles, out=tmp_path / "report", rounds=1, threads=(1,), limit=2))
    records = read_lines(tmp_path / "report/records.jsonl", Record)
    big, small = records
    assert [r.name for r in records] == ["U-Net 4", "U-Net 2"]
    assert big.is_reference
    assert big.dice_difference is None
    assert small.times_fewer_parameters == pytest.approx(big.parameters / small.parameters)
    assert small.times_faster == pytest.approx(big.end_to_end_ms_p50 / small.end_to_end_ms_p50)
    assert small.end_to_end_ms_p50 > small.latency_ms_p50 * 0.5 > 0
    assert small.cold_start_ms > 0
    assert 20 < small.peak_memory_mib < 2000
    assert small.size_bytes == (bundles[1] / "model.safetensors").stat().st_size

    cases = read_lines(tmp_path / "report/cases.jsonl", CaseRecord)
    mine = [c.dice_mean for c in cases if c.name == "U-Net 2"]
    assert len(mine) == small.cases == 2
    assert small.dice_mean == pytest.approx(sum(mine) / 2)
    far = [c.hd95_mean for c in cases if c.name == "U-Net 2"]
    assert (small.hd95_mean, small.hd95_unit) == (pytest.approx(sum(far) / 2), "px")
    assert small.share_of_peak is None
    # A burst is of as many calls as fill its time: on a busy machine fewer of the engine alone than of the whole.
    assert MIN_CALLS <= small.samples <= len(small.end_to_end_ms_sorted) <= MAX_CALLS
    assert small.end_to_end_ms_p50 == pytest.approx(np.median(small.end_to_end_ms_sorted), rel=1e-3)
    assert small.reliability.of == "foreground"
    assert sum(small.reliability.pixels) == 2 * open_dataset(DATA).split("test")[0].mask().size
    assert all(c.true_area_by_class["lung"] > 0 and c.area_unit == "px" for c in cases)

    page = (tmp_path / "report/report.html").read_text()
    assert "No pretrained weights: all models here started" in page
    assert "Bland–Altman plot of area of lung, U-Net 2 minus U-Net 4" in page
    assert (tmp_path / "report/report.md").read_text().startswith("# U-Net 2 has ")
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last["reference"] == "U-Net 4"
    assert last["headline"]["name"] == "U-Net 2"


def test_accuracy_only(bundles, tmp_path, capsys):
    main(settings(*bundles, out=tmp_path / "report", skip_latency=True, limit=1, reference="small"))
    records = read_lines(tmp_path / "report/records.jsonl", Record)
    assert [r.reference for r in records] == ["U-Net 2"] * 2
    assert all(r.threads is None and r.latency_ms_p50 is None and r.peak_memory_mib is None for r in records)
    assert records[0].dice_difference_low is None  # one patient


def error_of(*bundle: Path, out: Path, **more: object) -> str:
    with pytest.raises(InputError) as error:
        main(settings(*bundle, out=out / "never", **more))
    assert not (out / "never").exists()
    assert not (out / "never.partial").exists()
    return str(error.value)


def test_no_bundle(tmp_path):
    assert error_of(out=tmp_path) == "--bundle: must be given at least once, got none; add --bundle FOLDER"


def test_bundle_twice(bundles, tmp_path):
    big = bundles[0]
    assert error_of(big, big, out=tmp_path) == (
        f"--bundle {big}: must be given once, is the same bundle as {big}; remove one"
    )


def test_engine_that_opens_nothing(bundles, tmp_path):
    assert error_of(*bundles, out=tmp_path, engine=("onnxruntime",)) == (
        "--engine onnxruntime: must open one of the bundles, opens none; these bundles open with torch"
    )


def test_unknown_reference(bundles, tmp_path):
    assert error_of(*bundles, out=tmp_path, reference="teacher") == (
        "--reference teacher: must name one bundle or be 1 to 2, got 0 of that name; "
        "the bundles are U-Net 4, U-Net 2"
    )
    assert choose_reference(open_bundles(bundles), "2").manifest.name == "U-Net 2"


def test_other_classes(tmp_path):
    bundle = make_bundle(tmp_path / "b", "x", 2, classes=("heart",))
    assert error_of(bundle, out=tmp_path) == (
        f"--bundle {bundle}: must segment lung as phantom:cxr:12 does, got heart; "
        "use the data it was made for, or name the classes alike in classes.txt"
    )


def test_other_split_of_the_same_data(tmp_path):
    bundle = make_bundle(tmp_path / "b", "x", 2, split_sha256="other")
    assert error_of(bundle, out=tmp_path) == (
        f"--bundle {bundle}: must be made with the split of phantom:cxr:12, got another split of the same "
        "data, so test images may have been trained on; use the split it was made with, or train it again"
    )


def test_calibrated_on_a_test_case(tmp_path):
    case = open_dataset(DATA).split("test")[0].id
    bundle = make_bundle(tmp_path / "b", "x", 2, calibration_cases=(case,))
    assert error_of(bundle, out=tmp_path) == (
        f"--bundle {bundle}: must be calibrated on other cases than it is scored on, "
        f"got 1 of both ({case}); export it again"
    )


def test_threads_below_one(bundles, tmp_path):
    assert error_of(*bundles, out=tmp_path, threads=(0,)) == "--threads: must be at least 1, got 0"


def test_names_are_unique(tmp_path):
    folders = [make_bundle(tmp_path / n, "same", base) for n, base in (("a", 2), ("b", 3))]
    opened = open_bundles(folders)
    pairs = [(opened[0], "onnxruntime"), (opened[0], "openvino"), (opened[1], "torch")]
    assert [s.name for s in name_subjects(pairs)] == [
        "same (a) · onnxruntime",
        "same (a) · openvino",
        "same (b)",
    ]


def test_torch_bundles_are_always_measured(bundles):
    opened = open_bundles(bundles)
    assert set(engines_of(opened, ()).values()) == {("torch",)}


def test_unknown_base_of_ratios(bundles, tmp_path):
    assert error_of(*bundles, out=tmp_path, ratio_to=("small", "x")).startswith(
        "--ratio-to x: must name one bundle or be 1 to 2, got 0 of that name;"
    )


def test_threads_may_be_given_in_one_breath():
    words = repeat_flags(["--data", "d", "--out", "o", "--threads", "1", "2", "--rounds", "3"], LIST_FLAGS)
    parsed = parse_settings(BenchmarkSettings, "x", words)
    assert parsed.threads == (1, 2)
    again = ["--data", "d", "--out", "o", "--threads", "1", "--threads", "2"]
    assert parse_settings(BenchmarkSettings, "x", repeat_flags(again, LIST_FLAGS)).threads == (1, 2)
    assert parsed.rounds == 3
