import shutil
import subprocess
import sys

import numpy as np
import pytest

from export.__main__ import ExportSettings, export_bundle
from runtime.parity import ParityLimits
from segcore.bundle.folder import open_bundle, seal_bundle
from segcore.bundle.golden import golden_inputs, load_golden
from segcore.errors import GateError, InputError

DATA = "phantom:cxr:24"


def test_int8_bundle_holds_what_its_user_must_know(exported, torch_bundle):
    parent, bundle = open_bundle(torch_bundle), open_bundle(exported("openvino", "int8"))
    manifest = bundle.manifest
    assert manifest.name == "lightunet-8, INT8"
    assert (manifest.format, manifest.precision, manifest.kind) == ("openvino", "int8", "student")
    assert manifest.parent == parent.sha256
    assert manifest.lineage == (parent.manifest.made,)
    assert (manifest.settings, manifest.parameters) == (parent.manifest.settings, parent.manifest.parameters)
    assert set(manifest.files) == {"model.xml", "model.bin", "golden.npz", "MODEL_CARD.md"}
    assert manifest.metrics == ()
    assert len(manifest.data.calibration_cases) == 8
    assert all(case.startswith("cxr-") for case in manifest.data.calibration_cases)
    assert (bundle.folder / "model.bin").stat().st_size < 0.3 * parent.model_path.stat().st_size


def test_gate_figures_are_recorded(exported):
    gate = open_bundle(exported("openvino", "int8")).manifest.gate
    assert gate["golden_cases"] == 12
    assert gate["real_cases"] == 6
    assert 0.2 < gate["dice_torch"] < 1
    assert abs(gate["dice_change_points"]) < 2
    assert gate["dice_change_points"] == pytest.approx((gate["dice_openvino"] - gate["dice_torch"]) / 0.01)
    assert 0 < gate["openvino_real_mean_share"] <= gate["openvino_real_worst_share"] < 0.1
    assert {"onnxruntime_golden_mean_share", "openvino_golden_mean_share"} <= set(
        open_bundle(exported("onnx", "fp32")).manifest.gate
    )


def test_golden_logits_are_torchs_for_fp_and_the_engines_own_for_int8(exported, torch_bundle):
    torch = pytest.importorskip("torch")
    from export.pipeline import open_graph

    source = open_bundle(torch_bundle)
    inputs, fp32 = load_golden(exported("onnx", "fp32"))
    np.testing.assert_array_equal(inputs, golden_inputs(source.manifest.input))
    with torch.inference_mode():
        expected = open_graph(source)(torch.from_numpy(inputs)).numpy()
    np.testing.assert_allclose(fp32, expected, atol=1e-4)
    np.testing.assert_array_equal(load_golden(exported("openvino", "fp16"))[1], fp32)
    assert np.abs(load_golden(exported("openvino", "int8"))[1] - fp32).max() > 1e-3


def test_quantised_layers_are_8_bit(exported):
    text = (exported("openvino", "int8") / "model.xml").read_text()
    assert text.count('type="FakeQuantize"') >= 20
    assert 'element_type="i8"' in text


def test_failing_gate_leaves_nothing(torch_bundle, tmp_path):
    settings = ExportSettings(bundle=torch_bundle, to="openvino", out=tmp_path / "out")
    with pytest.raises(GateError) as error:
        export_bundle(settings, limits=ParityLimits(mean_share=-1.0))
    assert str(error.value) == (
        "openvino against torch on golden cases: 0.000 % of pixels differ on average, at most -100.000 % may"
    )
    assert list(tmp_path.iterdir()) == []


def test_a_killed_run_leaves_nothing_in_the_next_ones_bundle(torch_bundle, exported, tmp_path):
    out = tmp_path / "out"
    words = ["--bundle", str(torch_bundle), "--to", "openvino", "--out", str(out)]
    code = (
        "import os, sys, export.graph.openvino_export as it\n"
        "it.write_ir = lambda *_, **__: os._exit(9)  # the ONNX file on the way is there, the model is not\n"
        "from export.__main__ import ExportSettings, main\nfrom segcore.command import run_command\n"
        "run_command(main, ExportSettings, 'python -m export')"
    )
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 9, done.stderr
    left = {path.relative_to(tmp_path).parts[0] for path in tmp_path.rglob("*.onnx")}
    assert left == {"out.partial-scratch"}
    kept = {"out.partial", "out.partial-scratch", "out.partial-lock"}
    assert {path.name for path in tmp_path.iterdir()} == kept
    (out.with_name("out.partial") / "model.bin").write_bytes(b"of the run that was killed")
    export_bundle(ExportSettings(bundle=torch_bundle, to="openvino", out=out))
    assert list(tmp_path.iterdir()) == [out]
    files = open_bundle(exported("openvino", "fp32")).manifest.files
    assert {path.name for path in out.iterdir()} == {*files, "manifest.json"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"precision": "int8"},
            "--data: must be given for --precision int8, got none; its train split calibrates the ranges",
        ),
        (
            {"data": "phantom:dental:12"},
            "--data phantom:dental:12: classes must be lung as in the bundle, "
            "got tooth, filling, caries, implant; name the data the model was made for",
        ),
    ],
)
def test_settings_that_do_not_go_together(torch_bundle, tmp_path, changes, message):
    with pytest.raises(InputError) as error:
        export_bundle(
            ExportSettings(**{"bundle": torch_bundle, "to": "openvino", "out": tmp_path / "out", **changes})
        )
    assert str(error.value) == message
    assert list(tmp_path.iterdir()) == []


def resealed(source, folder, **changes):
    shutil.copytree(source, folder)
    manifest = dict(open_bundle(folder).manifest) | changes
    manifest.pop("files")
    seal_bundle(folder, **manifest)
    return folder


def test_the_training_data_with_another_split_is_refused(torch_bundle, tmp_path):
    data = open_bundle(torch_bundle).manifest.data.model_copy(update={"split_sha256": "0" * 64})
    bundle = resealed(torch_bundle, tmp_path / "b", data=data)
    with pytest.raises(InputError) as error:
        export_bundle(ExportSettings(bundle=bundle, to="onnx", data=DATA, out=tmp_path / "out"))
    assert str(error.value) == (
        f"--data {DATA}: must be split as the model was trained (split seed 0), got another split (seed 0); "
        "leave --split-seed out"
    )


def test_other_data_with_the_same_classes_may_calibrate(torch_bundle):
    from export.job import open_export_data

    manifest = open_bundle(torch_bundle).manifest
    found = open_export_data("phantom:cxr:12", manifest, calibration_cases=4, guard_cases=2)
    assert found.record.sha256 == manifest.data.sha256
    assert len(found.record.calibration_cases) == 4
    assert all(name.startswith("phantom:cxr:12/cxr-") for name in found.record.calibration_cases)
    assert len(found.guard) == 2
    assert {case.split for case in found.guard} == {"val"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"calibration_cases": 1},
            f"--data {DATA}: must have at least 2 labelled images in its train split to calibrate int8, got 1; "
            "add images, or export fp32",
        ),
        ({"guard_cases": 0}, None),
    ],
)
def test_one_picture_does_not_calibrate(torch_bundle, tmp_path, changes, message):
    settings = {
        "bundle": torch_bundle,
        "to": "openvino",
        "precision": "int8",
        "data": DATA,
        "out": tmp_path / "out",
    }
    if message is None:
        with pytest.raises(ValueError, match="greater than 0"):
            ExportSettings(**settings, **changes)
        return
    with pytest.raises(InputError) as error:
        export_bundle(ExportSettings(**settings, **changes))
    assert str(error.value) == message
    assert list(tmp_path.iterdir()) == []


def test_test_images_do_not_calibrate_under_another_name(torch_bundle, tmp_path):
    """A folder of other name and split that holds a picture of the model's test split."""
    from PIL import Image

    from segcore.dataset.dataset import open_dataset

    folder = tmp_path / "site"
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True)
    for case in open_dataset(DATA).cases[:12]:
        Image.fromarray(case.image()).save(folder / "images" / f"{case.id}.png")
        Image.fromarray(case.mask() * np.uint8(255)).save(folder / "masks" / f"{case.id}.png")
    (folder / "classes.txt").write_text("\n".join(open_bundle(torch_bundle).manifest.classes))
    site = open_dataset(str(folder))
    stolen = site.split("train")[0]
    data = open_bundle(torch_bundle).manifest.data.model_copy(
        update={"test_images": (stolen.source.image_fingerprint(),)}
    )
    bundle = resealed(torch_bundle, tmp_path / "b", data=data)
    with pytest.raises(InputError) as error:
        export_bundle(
            ExportSettings(
                bundle=bundle, to="openvino", precision="int8", data=str(folder), out=tmp_path / "out"
            )
        )
    assert str(error.value) == (
        f"--data {folder}: must calibrate on other images than the model is tested on, got 1 of them ({stolen.id}); "
        "name data without the test images"
    )


def broken(fragile_student, source, folder, **how):
    """A bundle of equal function that INT8 breaks."""
    from student.network import load_student

    network = fragile_student.make_hopeless(load_student(open_bundle(source)), **how)
    fragile_student.write_bundle(source, network, folder, "broken")
    return folder


def int8(bundle, out, **changes):
    settings = {
        "bundle": bundle,
        "to": "openvino",
        "precision": "int8",
        "data": DATA,
        "out": out,
        "min_speedup": 0,
    }
    return ExportSettings(**settings | {"calibration_cases": 4, "guard_cases": 3, **changes})


def test_an_int8_that_cannot_be_saved_leaves_nothing(plain_bundle, fragile_student, tmp_path):
    bundle = broken(fragile_student, plain_bundle, tmp_path / "broken", cancelling=1000.0)
    with pytest.raises(
        GateError,
        match=r"^int8: must lose at most 0.1 points of fp32's Dice 0\.\d{4} \(0.5 of the 5th percentile 0\.\d{4}\), lost "
        r"\d+\.\d\d \(\d+\.\d\d\) with \d of \d layers in float(, channels levelled)?; add --qat, raise "
        r"--max-drop-points, or export --precision fp16$",
    ):
        export_bundle(int8(bundle, tmp_path / "out"))
    assert [path.name for path in tmp_path.iterdir()] == ["broken"]


@pytest.mark.parametrize("to", ["openvino", "onnx"])
def test_the_layers_at_fault_go_back_to_float(plain_bundle, fragile_student, tmp_path, to, request):
    if to == "onnx":
        request.getfixturevalue("exact_int8")
    bundle = broken(
        fragile_student, plain_bundle, tmp_path / "broken", cancelling=1000.0, layers=["merge.0.0"]
    )
    export_bundle(int8(bundle, tmp_path / "out", to=to))
    guard = open_bundle(tmp_path / "out").manifest.guard
    assert guard.steps[0].drop_points > 5
    assert guard.steps[-1].passed
    assert guard.fp32.mean - guard.int8.mean < 0.001
    assert "merge.0.0" in {one.layer for one in guard.float_layers}
    assert len(guard.float_layers) <= guard.layers // 2
    assert guard.sensitivity[0].drop_points > 5
    assert {one.layer for one in guard.sensitivity} >= {"stem.0", "merge.0.0"}


def test_a_layer_that_needs_32_bits_gets_no_graph_of_16(plain_bundle, fragile_student, tmp_path):
    """What was returned to float is 16-bit in TensorRT's typed graph, and 1000 − 999.9 is lost there too."""
    bundle = broken(
        fragile_student, plain_bundle, tmp_path / "broken", cancelling=1000.0, layers=["merge.0.0"]
    )
    with pytest.raises(
        GateError, match=r"^16-bit tensors against 32-bit ones in onnxruntime: \d+\.\d+ % of pixels differ"
    ):
        export_bundle(int8(bundle, tmp_path / "out", to="tensorrt"))
    assert [path.name for path in tmp_path.iterdir()] == ["broken"]


def test_an_int8_that_is_not_faster_leaves_nothing(torch_bundle, tmp_path):
    with pytest.raises(
        GateError,
        match=r"^int8: must be at least 1000 times as fast as fp32, got \d+\.\d\d in openvino [\d.]+; export --precision "
        r"fp32, or lower --min-speedup$",
    ):
        export_bundle(
            int8(
                torch_bundle, tmp_path / "out", max_drop_points=100, max_p05_drop_points=100, min_speedup=1000
            )
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": (100,)}, "--size: must be a multiple of 32, got 100"),
        ({"batch": (0,)}, "--batch: must be at least 1, got 0"),
        ({"qat": True}, "--qat: must be for a student in int8, got fp32; leave it out"),
    ],
)
def test_settings_that_ask_for_what_cannot_be(torch_bundle, tmp_path, changes, message):
    with pytest.raises(InputError) as error:
        export_bundle(ExportSettings(bundle=torch_bundle, to="openvino", out=tmp_path / "out", **changes))
    assert str(error.value) == message


def test_the_guards_record_travels(exported):
    guard = open_bundle(exported("openvino", "int8")).manifest.guard
    assert (guard.engine, guard.calibration_batch, guard.cases) == ("openvino", 1, 6)
    assert guard.layers > 20
    assert guard.steps[0].int8 == guard.int8
    assert guard.steps[0].drop_points == pytest.approx((guard.fp32.mean - guard.int8.mean) / 0.01)
    assert [speed.engine for speed in guard.speeds] == ["openvino"]
    assert guard.speeds[0].speedup > 0
    assert open_bundle(exported("openvino", "fp32")).manifest.guard is None


def test_an_exported_bundle_is_not_exported_again(exported, tmp_path):
    source = exported("onnx", "fp32")
    with pytest.raises(InputError) as error:
        export_bundle(ExportSettings(bundle=source, to="openvino", out=tmp_path / "out"))
    assert str(error.value) == (
        f"bundle {source}: must be in torch format, got onnx; export the bundle that it was made from"
    )
    assert list(tmp_path.iterdir()) == []


def test_out_must_be_new_and_apart(torch_bundle, exported):
    there = exported("onnx", "fp32")
    with pytest.raises(
        InputError, match=f"^--out {there}: must not exist yet, it does; add --overwrite to replace it$"
    ):
        export_bundle(ExportSettings(bundle=torch_bundle, to="onnx", out=there))
    with pytest.raises(
        InputError, match=f"^--out {torch_bundle}: must be apart from --bundle {torch_bundle}, is not"
    ):
        export_bundle(ExportSettings(bundle=torch_bundle, to="onnx", out=torch_bundle, overwrite=True))


def test_an_absent_library_names_its_extra(torch_bundle, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "nncf", None)
    with pytest.raises(InputError) as error:
        export_bundle(ExportSettings(bundle=torch_bundle, to="openvino", out=tmp_path / "out"))
    assert str(error.value) == "nncf: must be installed, is not; run: pip install 'sam2edge[export]'"


def test_help_needs_no_heavy_import():
    code = (
        "import sys; sys.argv = ['export', '--help']; import runpy\n"
        "try: runpy.run_module('export', run_name='__main__')\n"
        "except SystemExit as end: assert not end.code\n"
        "assert not {'torch', 'onnx', 'openvino', 'nncf', 'onnxruntime'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--calibration-cases" in done.stdout
