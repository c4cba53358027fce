import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from runtime.predict.__main__ import PredictSettings
from runtime.predict.__main__ import main as predict
from runtime.predictor import Predictor
from runtime.verify import VerifySettings, main, prove, verify_bundle
from segcore.bundle.folder import open_bundle, seal_bundle
from segcore.bundle.golden import load_golden, load_whole_way, save_golden
from segcore.errors import GateError, InputError


@pytest.mark.parametrize(
    ("to", "precision", "engine"),
    [
        ("onnx", "fp32", "onnxruntime"),
        ("onnx", "fp32", "openvino"),
        ("onnx", "fp16", "onnxruntime"),
        ("openvino", "fp16", "openvino"),
        ("openvino", "int8", "openvino"),
    ],
)
def test_exported_bundles_verify(exported, to, precision, engine):
    found = verify_bundle(open_bundle(exported(to, precision)), engine=engine, threads=1)
    assert found.failures == ()
    assert (found.engine, found.cases, found.parity.constant) == (engine, 12, False)


def reseal(folder, **changes):
    manifest = dict(open_bundle(folder).manifest) | changes
    manifest.pop("files")
    seal_bundle(folder, **manifest)


def altered(source, folder, change):
    """A copy of a bundle whose golden logits are another model's: what a wrong engine looks like."""
    manifest = dict(open_bundle(source).manifest)
    manifest.pop("files")
    shutil.copytree(source, folder)
    inputs, logits = load_golden(folder)
    save_golden(folder, inputs, change(logits))
    seal_bundle(folder, **manifest)
    return folder


def test_other_masks_fail_the_gate(exported, tmp_path, capsys):
    bundle = altered(exported("onnx", "fp32"), tmp_path / "b", lambda logits: -logits)
    with pytest.raises(
        GateError,
        match=r"^bundle .* with openvino \S+: \S+ % of pixels differ on average, at most 0.100 % may$",
    ):
        main(VerifySettings(bundle=bundle))
    lines = capsys.readouterr().out.splitlines()
    assert "FAIL" in lines
    assert json.loads(lines[-1])["passed"] is False


def test_pass_is_printed_with_its_figures(exported, capsys):
    main(VerifySettings(bundle=exported("openvino", "int8"), threads=1))
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2] == "PASS"
    result = json.loads(lines[-1])
    assert result["passed"] is True
    assert result["mean_share"] <= 0.005
    assert any(
        line.startswith("pixels that differ, worst") and line.endswith("at most 2.000 %") for line in lines
    )


def test_constant_output_fails_the_gate(exported, tmp_path):
    # A reference a million times livelier: to it, this engine's output is as good as constant.
    bundle = altered(exported("onnx", "fp32"), tmp_path / "b", lambda logits: logits * np.float32(1e6))
    with pytest.raises(GateError, match=r"the output must vary with the picture, it is constant$"):
        main(VerifySettings(bundle=bundle))


def test_bundle_without_golden_cases_is_refused(exported, tmp_path):
    source = exported("onnx", "fp32")
    bundle = tmp_path / "b"
    shutil.copytree(source, bundle)
    manifest = dict(open_bundle(bundle).manifest)
    manifest.pop("files")
    (bundle / "golden.npz").unlink()
    seal_bundle(bundle, **manifest)
    with pytest.raises(InputError, match=r"^bundle .*: must hold golden\.npz, has none; export it again$"):
        main(VerifySettings(bundle=bundle))


def test_golden_cases_are_run_once_a_machine_before_the_first_mask(exported, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    told = "checking the golden cases of"

    def proved(bundle):
        with Predictor.open(bundle, threads=1) as predictor:
            prove(predictor)
        return told in capsys.readouterr().err

    bundle = exported("openvino", "fp32")
    assert [proved(bundle), proved(bundle)] == [True, False]
    monkeypatch.setattr("runtime.verify.describe_host", lambda: "another processor")
    assert [proved(bundle), proved(bundle)] == [True, False]
    assert proved(exported("openvino", "fp16"))  # another bundle
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))  # a cache that cannot be written is no error
    assert [proved(bundle), proved(bundle)] == [True, True]


def test_predict_refuses_a_machine_that_computes_other_masks(exported, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    bundle = altered(exported("openvino", "fp32"), tmp_path / "b", lambda logits: -logits)
    Image.fromarray(np.full((64, 64), 90, np.uint8)).save(tmp_path / "a.png")
    settings = PredictSettings(bundle=bundle, image=tmp_path / "a.png", out=tmp_path / "out", threads=1)
    for _ in range(2):  # a failure is not remembered as a pass
        with pytest.raises(
            GateError, match=r"must compute the masks of its golden cases on this machine, does not \("
        ):
            predict(settings)
        assert not list(tmp_path.glob("out*"))
    with pytest.raises(GateError, match="golden cases"):
        predict(settings.model_copy(update={"workers": 2}))
    predict(settings.model_copy(update={"verify": False}))
    assert (tmp_path / "out/masks/a.png").is_file()


def test_the_speed_of_int8_is_said_to_be_unmeasured_on_another_architecture(exported, monkeypatch, capsys):
    with Predictor.open(exported("openvino", "int8"), threads=1) as predictor:
        prove(predictor)
        assert "unmeasured" not in capsys.readouterr().err
        monkeypatch.setattr("platform.machine", lambda: "riscv64")
        prove(predictor)
    assert "on riscv64 it is unmeasured: python -m runtime.device --baseline" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("output", {"threshold": 0.501}),
        ("output", {"temperature": 1.2}),
        ("input", {"window": (0.0, 250.0)}),
        ("input", {"resize_filter": "area"}),
        ("input", {"mean": (0.4,)}),
        ("classes", ("other",)),
        ("precision", "fp16"),
    ],
)
def test_an_edit_that_changes_masks_fails_however_few_pixels_it_moves(exported, tmp_path, part, change):
    """What was edited is hashed anew: only what was kept at export can tell."""
    source, folder = exported("onnx", "fp32"), tmp_path / "b"
    shutil.copytree(source, folder)
    manifest = open_bundle(folder).manifest
    value = change if part in ("classes", "precision") else getattr(manifest, part).model_copy(update=change)
    reseal(folder, **{part: value})
    with pytest.raises(
        GateError, match=r"input, output, classes, precision, quality, prompt or sizes are not those"
    ):
        main(VerifySettings(bundle=folder))
    with Predictor.open(folder, threads=1) as predictor, pytest.raises(GateError, match="are not those"):
        prove(predictor)


def test_from_picture_to_mask_is_proved_and_older_bundles_are_told_apart(exported, tmp_path, capsys):
    source, folder = exported("onnx", "fp32"), tmp_path / "b"
    main(VerifySettings(bundle=source))
    told = capsys.readouterr().out
    assert "from picture to mask          0.000 %" in told
    manifest = dict(open_bundle(source).manifest)
    manifest.pop("files")
    shutil.copytree(source, folder)
    save_golden(folder, *load_golden(folder))
    seal_bundle(folder, **manifest)
    main(VerifySettings(bundle=folder))
    told = capsys.readouterr().out
    assert "from picture to mask          not verified: exported before it was kept" in told
    whole = load_whole_way(source)
    save_golden(folder, *load_golden(folder), whole=replace(whole, masks=1 - whole.masks))
    seal_bundle(folder, **manifest)
    with pytest.raises(
        GateError, match=r"from picture to mask 100\.000 % of pixels differ, at most 0\.100 % may"
    ):
        main(VerifySettings(bundle=folder))


@pytest.mark.parametrize("to", ["onnx", "openvino"])
def test_another_weight_fails_however_few_pixels_it_moves(exported, tmp_path, to):
    """The last bit of one weight: no picture shows it, and what was edited is hashed anew."""
    folder = tmp_path / "b"
    shutil.copytree(exported(to, "fp32"), folder)
    manifest = {name: value for name, value in open_bundle(folder).manifest if name != "files"}
    if to == "onnx":
        onnx = pytest.importorskip("onnx")
        model = onnx.load(folder / "model.onnx")
        weights = max(model.graph.initializer, key=lambda one: len(one.raw_data))
        weights.raw_data = bytes([weights.raw_data[0] ^ 1]) + weights.raw_data[1:]
        onnx.save(model, folder / "model.onnx")
    else:
        content = bytearray((folder / "model.bin").read_bytes())
        content[-4] ^= 1
        (folder / "model.bin").write_bytes(content)
    seal_bundle(folder, **manifest)
    with pytest.raises(GateError, match="the graph or its weights are not those that it was exported with"):
        main(VerifySettings(bundle=folder))
