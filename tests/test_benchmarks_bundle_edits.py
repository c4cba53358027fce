"""No edit of a manifest, and no NaN in a graph, changes a mask without a word."""

import json

import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from benchmarks.checks.bundle_edits import BundleEditsSettings, EditVerdict, field_edits, main
from runtime.predictor import Predictor
from segcore.bundle.folder import open_bundle, seal_bundle
from segcore.bundle.golden import (
    WholeWay,
    golden_inputs,
    golden_masks,
    golden_pictures,
    graphs_digest,
    mask_digest,
    save_golden,
)


def test_every_field_is_edited_once():
    fields = {"a": 1, "b": {"c": [0.5, True], "d": None}, "settings": {"x": 1}, "e": [], "kind": "student"}
    assert [(".".join(map(str, path)), other) for path, _, other in field_edits(fields)] == [
        ("a", 2), ("b.c.0", 0.45), ("b.c.1", False), ("b.d", "x"), ("settings", {"x": 1, "more": 1}), ("e", ["more"]),
        ("kind", "teacher"),
    ]  # fmt: skip


def test_what_escapes_is_told():
    verdict = EditVerdict(what="a", edit="", opened="opens", verified="PASS", predicted="", changed=0.1)
    assert verdict.escaped
    for fine in ({"changed": 0.0}, {"changed": None}, {"verified": "no"}, {"opened": "no"}):
        assert not verdict.model_copy(update=fine).escaped


def test_no_edit_changes_a_mask_unnoticed(prompted_discs, tmp_path, capsys):
    folder = prompted_discs.write_bundle(tmp_path / "bare", promptable=False)
    manifest = open_bundle(folder).manifest
    spec, output = manifest.input, manifest.output
    with Predictor.open(folder, engine="onnxruntime", threads=1) as predictor:
        inputs, pictures = golden_inputs(spec), golden_pictures(spec)
        masks = golden_masks(pictures, predictor.run, spec, output)
        logits = predictor.run(inputs)
    assert 0 < masks.mean() < 1
    whole = WholeWay(pictures, masks, mask_digest(manifest, [spec.size_px]), graphs_digest(manifest.files))
    save_golden(folder, inputs, logits, whole=whole)
    sealed = {name: value for name, value in manifest if name != "files"}
    seal_bundle(folder, **sealed)
    out = tmp_path / "out"
    main(BundleEditsSettings(bundle=folder, engine="onnxruntime", out=out))
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["escaped"] == []
    record = json.loads((out / "bundle_edits.json").read_text())
    by_name = {one["what"]: one for one in (*record["fields"], *record["layers"])}
    assert by_name["output.threshold"]["changed"] > 0
    assert "are not those that it was exported with" in by_name["output.threshold"]["verified"]
    assert "are not those that it was exported with" in by_name["output.temperature"]["verified"]
    assert by_name["name"]["verified"] == "PASS"
    assert by_name["half"]["verified"].startswith("the model gives NaN or infinity")
    assert "the model gave NaN" in by_name["half"]["predicted"]
