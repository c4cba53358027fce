import shutil
import subprocess
import sys

import numpy as np
import pytest

from export.command import ExportSettings, export_bundle
from runtime.parity import Limits
from segcore.bundle import open_bundle, seal_bundle
from segcore.errors import GateError, InputError
from segcore.golden import golden_inputs, load_golden

DATA = "phantom:cxr:24"


def test_int8_bundle_holds_what_its_user_must_know(exported, torch_bundle):
    parent, bundle = open_bundle(torch_bundle), open_bundle(exported("openvino", "int8"))
    manifest = bundle.manifest
    assert manifest.name == "lightunet-8, INT8"
    assert (manifest.format, manifest.precision, manifest.kind) == ("openvino", "int8", "student")
    assert manifest.parent == parent.sha256
    assert manifest.lineage == (parent.manifest.made,)
    assert (manifest.settings, manifest.parameters) == (parent.manifest.settings, parent.manifest.parameters)
    assert set(manifest.files) == {"model.xml", "model.bin", "golden.npz"}
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
    from export.source import open_graph

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
        export_bundle(settings, limits=Limits(mean_share=-1.0))
    assert str(error.value) == (
        "openvino against torch on golden cases: 0.000 % of pixels differ on average, at most -100.000 % may"
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"precision": "int8"},
            "--data: must be given for --precision int8, got none; its train split calibrates the ranges",
        ),
        (
            {"precision": "int8", "to": "onnx", "data": DATA},
            "--precision int8: must be fp32 or fp16 with --to onnx, got int8 (it comes in a later version); "
            "use --to openvino",
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


def test_teacher_int8_comes_later(torch_bundle, tmp_path):
    teacher = resealed(torch_bundle, tmp_path / "teacher", kind="teacher")
    with pytest.raises(InputError) as error:
        export_bundle(
            ExportSettings(bundle=teacher, to="openvino", precision="int8", data=DATA, out=tmp_path / "out")
        )
    assert str(error.value) == (
        "--precision int8: must be fp32 or fp16 for a teacher, got int8 (it comes in a later version); "
        "distil a student and quantise that"
    )


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
    from export.data import open_export_data

    manifest = open_bundle(torch_bundle).manifest
    found = open_export_data("phantom:cxr:12", manifest, calibration_cases=4)
    assert found.record.sha256 == manifest.data.sha256
    assert len(found.record.calibration_cases) == 4
    assert all(name.startswith("phantom:cxr:12/cxr-") for name in found.record.calibration_cases)


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
