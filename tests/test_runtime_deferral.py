"""Pictures that the student is unsure of go to the second model, which is opened when the first of them comes."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from runtime.buckets import model_files
from runtime.deferral import DeferringPredictor
from runtime.predict.__main__ import PredictSettings, main
from runtime.predictor import Predictor
from segcore.bundle.folder import open_bundle, seal_bundle
from segcore.bundle.golden import load_golden, load_whole_way, mask_digest, save_golden
from segcore.errors import InputError
from segcore.phantom import phantom_case
from segcore.picture.quality import QualityModel, quality_of


def resealed(source, folder, **changes):
    """A copy of an exported bundle with some fields of its manifest changed."""
    folder.mkdir()
    bundle = open_bundle(source)
    for name in bundle.manifest.files:
        (folder / name).write_bytes(bundle.path(name).read_bytes())
    fields = {k: v for k, v in bundle.manifest if k not in ("files", "schema_version")}
    fields |= changes
    sealed = seal_bundle(folder, **fields)
    digest = mask_digest(sealed, (file.size_px for file in model_files(sealed)))
    save_golden(folder, *load_golden(folder), whole=replace(load_whole_way(folder), digest=digest))
    seal_bundle(folder, **fields)
    return folder


def judging(doubt: float) -> QualityModel:
    """Expects less the less sure the model is: weight `doubt` on the first sign."""
    return QualityModel(
        weights=(0.0, doubt) + (0.0,) * 11, centre=(-1.0,) + (0.0,) * 5, spread=(1.0,) * 6, high=(1.0,) * 6,
        shape_centre=((0.0,) * 7,), shape_spread=((1.0,) * 7,), empty_right=(0.0,), cases=20,
        error=0.1, error_degraded=0.1,
    )  # fmt: skip


@pytest.fixture(scope="module")
def student(exported, tmp_path_factory):
    folder = tmp_path_factory.mktemp("judging") / "student"
    return resealed(exported("openvino", "fp32"), folder, quality=judging(-1.0), name="student")


@pytest.fixture(scope="module")
def teacher(exported, tmp_path_factory):
    return resealed(exported("onnx", "fp32"), tmp_path_factory.mktemp("second") / "teacher", name="teacher")


PICTURES = [phantom_case("cxr", i, size_px=96)[0] for i in (40, 41)]


def test_prediction_carries_the_estimate_of_its_logits(student, exported):
    with Predictor.open(student, threads=1) as predictor:
        picture = phantom_case("cxr", 40, size_px=64)[0]
        manifest = predictor.manifest
        expected = quality_of(predictor.run(picture[None, ..., None])[0], manifest.output, manifest.quality)
        prediction = predictor.predict(picture)
    assert prediction.quality == expected
    assert 0 < expected < 1
    assert prediction.first_quality is None
    with Predictor.open(exported("openvino", "fp32"), threads=1) as predictor:
        assert predictor.predict(picture).quality is None


def test_only_unsure_pictures_are_passed_on(student, teacher):
    with Predictor.open(student, threads=1) as alone:
        sure, unsure = sorted((alone.predict(p).quality, i) for i, p in enumerate(PICTURES))[::-1]
    assert sure[0] > unsure[0]
    with DeferringPredictor.open(student, teacher, below=unsure[0], threads=1) as pair:
        assert all(pair.predict(p).first_quality is None for p in PICTURES)  # equal is not below
        assert pair._opened is None
    with DeferringPredictor.open(student, teacher, below=(sure[0] + unsure[0]) / 2, threads=1) as pair:
        kept = pair.predict(PICTURES[sure[1]])
        assert (kept.first_quality, kept.quality, pair._opened) == (None, sure[0], None)
        assert pair.maker_of(kept) is pair.first
        passed = pair.predict(PICTURES[unsure[1]])
        assert (passed.first_quality, passed.quality) == (unsure[0], None)
        second = pair.open_second()
        assert pair.maker_of(passed) is second is pair.open_second()
        assert second.bundle.folder == teacher
        np.testing.assert_array_equal(passed.mask, second.predict(PICTURES[unsure[1]]).mask)


def message(*words, **settings) -> str:
    with pytest.raises(InputError) as caught:
        DeferringPredictor.open(*words, **settings)
    return str(caught.value)


def test_models_that_do_not_go_together(student, exported, torch_bundle, tmp_path):
    plain = exported("openvino", "fp32")
    assert message(plain, student) == (
        f"--bundle {plain}: must estimate its quality to go with --defer-to, does not; train the student with this "
        "version and at least 20 validation cases, and export it again"
    )
    hearts = resealed(plain, tmp_path / "hearts", classes=("heart",))
    assert message(student, hearts) == (
        f"--defer-to {hearts}: must mark lung as {student} does, got heart; use two models for the same classes"
    )
    assert message(student, torch_bundle).startswith(
        f"bundle {torch_bundle}: must be exported first, got torch format"
    )


def test_command_says_who_answered(student, teacher, tmp_path, capsys):
    folder = tmp_path / "images"
    folder.mkdir()
    for i, picture in enumerate(PICTURES):
        Image.fromarray(picture).save(folder / f"p{i}.png")

    def records(below, name):
        settings = {"bundle": student, "image": folder, "out": tmp_path / name, "threads": 1}
        main(PredictSettings(**settings, defer_to=teacher, below=below))
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    kept, passed = records(0.0, "kept"), records(1.0, "passed")
    assert [(r["model"], r["deferred"], r["first_quality"]) for r in kept] == [("student", False, None)] * 2
    assert [(r["model"], r["deferred"], r["quality"]) for r in passed] == [("teacher", True, None)] * 2
    assert [r["first_quality"] for r in passed] == [r["quality"] for r in kept]
    assert all(0 < r["quality"] < 1 for r in kept)
    assert all(r["engine"].startswith("openvino") for r in kept + passed)
    main(PredictSettings(bundle=student, image=folder / "p0.png", out=tmp_path / "alone", threads=1))
    alone = json.loads(capsys.readouterr().out)
    assert (alone["quality"], alone["deferred"], alone["model"]) == (kept[0]["quality"], False, "student")


def test_out_must_be_apart_from_the_second_bundle(student, teacher, tmp_path):
    with pytest.raises(InputError, match=r"must be apart from --defer-to .*, is not; choose another folder$"):
        main(PredictSettings(bundle=student, image=tmp_path, out=teacher, defer_to=teacher, overwrite=True))
    assert (teacher / "manifest.json").exists()
