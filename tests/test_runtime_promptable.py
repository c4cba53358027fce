"""Promptable bundles without torch: one look, many answers; the command, its words, and the proof on a device.

The bundle marks discs of 12 of its 64 pixels around points (tests/prompted_discs.py), so answers are known.
"""

import json
import subprocess
import sys
from contextlib import closing

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from runtime.engines.seam import installed
from runtime.engines.tensor_session import open_session
from runtime.parity import UNGATED, check_prompt_parity
from runtime.predict.__main__ import PredictSettings, main
from runtime.predict.files import PredictorOptions, open_predictor
from runtime.predictor import Predictor
from runtime.promptable import PromptPredictor, is_promptable
from runtime.verify import verify_bundle
from segcore.bundle.folder import open_bundle, seal_bundle
from segcore.bundle.golden import (
    GOLDEN_PROMPTS,
    Replies,
    ask,
    golden_inputs,
    golden_questions,
    save_golden,
    save_golden_prompts,
)
from segcore.errors import InputError
from segcore.phantom import phantom_case
from segcore.picture.prompts import Prompt

ENGINES = [
    pytest.param(name, marks=pytest.mark.skipif(not installed(name), reason=f"{name} is not installed"))
    for name in ("onnxruntime", "openvino")
]
PICTURE = phantom_case("cxr", 5, size_px=128)[0][:96]  # 96×128: both sides are scaled, each by its own factor
POINT = (90.0, 30.0)


@pytest.fixture(scope="module")
def discs(prompted_discs, tmp_path_factory):
    return prompted_discs.write_bundle(tmp_path_factory.mktemp("discs") / "bundle")


def centre(mask):
    """Column and row."""
    rows, columns = np.nonzero(mask)
    return columns.mean(), rows.mean()


@pytest.mark.parametrize("engine", ENGINES)
def test_the_mask_moves_with_the_point(discs, engine):
    with PromptPredictor.open(discs, engine=engine, threads=1) as predictor:
        encoded = predictor.look(PICTURE)
        for place in (POINT, (40.0, 60.0)):
            found = predictor.answer(encoded, Prompt(points=((*place, True),)))
            assert found.mask.shape == found.probability.shape[1:] == PICTURE.shape
            assert (found.mask.dtype, found.probability.dtype) == (np.uint8, np.float32)
            assert found.probability.shape[0] == 1
            assert centre(found.mask) == pytest.approx(place, abs=1.5)
            # An ellipse: 12 of the input's 64 pixels are 24 columns and 18 rows here.
            assert found.mask.sum() == pytest.approx(np.pi * 24 * 18, rel=0.1)
            assert np.array_equal(found.mask, found.probability[0] >= 0.5)
            assert found.logits.shape == (16, 16)
            assert np.abs(found.logits).max() <= 32


@pytest.mark.parametrize("engine", ENGINES)
def test_a_tensor_is_found_by_the_name_that_the_graph_gives_it(tmp_path, engine):
    """OpenVINO takes Identities out, and its `get_any_name` then gives the inner name."""
    from onnx import parser, save

    text = """<ir_version: 8, opset_import: ["" : 17]>
    graph (float[1,2] picture, float[1,2] mask) => (float[1,2] logits, float[1,2] iou) {
      given = Identity (picture)
      a_sum = Add (given, mask)
      a_difference = Sub (given, mask)
      logits = Identity (a_sum)
      iou = Identity (a_difference)
    }"""
    save(parser.parse_model(text), tmp_path / "model.onnx")
    with closing(open_session(engine, tmp_path / "model.onnx", threads=1)) as session:
        assert str(session.outputs["iou"]) == str(session.inputs["mask"]) == "float32 1×2"
        given = {"picture": np.array([[3, 4]], np.float32), "mask": np.array([[1, 2]], np.float32)}
        found = session.run(given)
    assert found["logits"].tolist() == [[4, 6]]
    assert found["iou"].tolist() == [[2, 2]]


@pytest.mark.parametrize("engine", ENGINES)
def test_a_box_and_a_point_beside(discs, engine):
    with PromptPredictor.open(discs, engine=engine, threads=1) as predictor:
        encoded = predictor.look(PICTURE)
        boxed = predictor.answer(encoded, Prompt(box=(20, 10, 60, 50))).mask
        rows, columns = np.nonzero(boxed)
        assert [columns.min(), rows.min(), columns.max(), rows.max()] == pytest.approx(
            [20, 10, 60, 50], abs=4
        )
        less = predictor.answer(encoded, Prompt(box=(20, 10, 60, 50), points=((30, 20, False),))).mask
        assert not less[20, 30]
        assert less[45, 55]
        assert 0 < less.sum() < boxed.sum()


def test_the_last_answer_is_part_of_the_question_where_the_model_takes_masks(prompted_discs, discs, tmp_path):
    prompt = Prompt(points=((*POINT, True),))
    deaf = prompted_discs.write_bundle(tmp_path / "deaf", mask_input=False)
    for bundle, more in ((discs, 0.1), (deaf, 0.0)):
        with PromptPredictor.open(bundle, threads=1) as predictor:
            encoded = predictor.look(PICTURE)
            first = predictor.answer(encoded, prompt)
            again = predictor.answer(encoded, prompt, before=first)
        assert again.estimated_iou - first.estimated_iou == pytest.approx(more, abs=1e-6)


def test_a_picture_is_looked_at_once(discs):
    with PromptPredictor.open(discs, threads=1) as predictor:
        seen = []
        encode = predictor.model.encode
        predictor.model.encode = lambda picture: seen.append(1) or encode(picture)
        encoded = predictor.look(PICTURE)
        for x in range(3):
            predictor.answer(encoded, Prompt(points=((x, 0, True),)))
        assert len(seen) == 1


def test_the_features_of_one_picture_outlive_the_next(discs):
    with PromptPredictor.open(discs, threads=1) as predictor:
        first = predictor.look(PICTURE)
        before = {name: array.copy() for name, array in first.features.items()}
        predictor.look(255 - PICTURE)
        assert all(np.array_equal(before[name], array) for name, array in first.features.items())


def test_the_automatic_model_of_such_a_bundle_opens_as_any(discs):
    assert is_promptable(open_bundle(discs).manifest)
    with Predictor.open(discs, threads=1) as predictor:
        assert [file.file for file in predictor.files] == ["model.onnx"]
        assert predictor.predict(PICTURE).mask.shape == PICTURE.shape


def resealed(folder, *, without="", **changes):
    manifest = dict(open_bundle(folder).manifest) | changes
    manifest.pop("files")
    if without:
        (folder / without).unlink()
    seal_bundle(folder, **manifest)
    return folder


def test_what_cannot_be_asked_says_so(prompted_discs, discs, tmp_path):
    silent = prompted_discs.write_bundle(tmp_path / "silent", promptable=False)
    with pytest.raises(InputError) as refused:
        PromptPredictor.open(silent)
    assert str(refused.value) == (
        f"bundle {silent}: must take prompts, discs takes none; leave --point and --box away, or use a bundle of a "
        "promptable teacher"
    )
    bare = prompted_discs.write_bundle(tmp_path / "bare")
    with pytest.raises(InputError) as refused:
        PromptPredictor.open(resealed(bare, without="encoder.onnx"))
    assert str(refused.value) == (
        f"bundle {bare}: must hold an encoder and a decoder to take prompts, onnx holds none; export the teacher with "
        "--to onnx or --to openvino"
    )
    torch_format = prompted_discs.write_bundle(tmp_path / "torch")
    with pytest.raises(InputError) as refused:
        PromptPredictor.open(resealed(torch_format, format="torch"))
    assert str(refused.value) == (
        f"bundle {torch_format}: must be exported first, got torch format; "
        f"run python -m export --bundle {torch_format} --to openvino --precision fp32 --out OUT"
    )
    with pytest.raises(InputError) as refused:
        open_session("tensorrt", discs / "decoder.onnx", threads=1)
    assert str(refused.value) == (
        "--engine tensorrt: must be openvino or onnxruntime for prompts, got tensorrt; leave --engine away"
    )


@pytest.mark.parametrize("engine", ENGINES)
def test_a_damaged_graph_is_the_users_to_mend(tmp_path, engine):
    path = tmp_path / "decoder.onnx"
    path.write_bytes(b"no graph")
    with pytest.raises(
        InputError, match=rf"^model {path}: must open in {engine} \S+, does not \(.*export it again$"
    ):
        open_session(engine, path, threads=1)


def predict(bundle, image, out, *words):
    command = [
        sys.executable,
        "-m",
        "runtime.predict",
        "--bundle",
        bundle,
        "--image",
        image,
        "--out",
        out,
        *words,
    ]
    return subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "chest.png"
    Image.fromarray(PICTURE).save(path)
    return path


def test_the_command_writes_an_answer_as_any_other(discs, image, tmp_path):
    out = tmp_path / "out"
    words = ("--point", "90,30", "--point", "30,70", "--background", "5,5", "--to", "png", "--to", "json")
    done = predict(discs, image, out, *words)
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert record["bundle_sha256"] == open_bundle(discs).sha256
    assert f"bundle {discs}: discs (sha256 {record['bundle_sha256']})\n" in done.stderr
    mask = np.asarray(Image.open(record["mask"])) == 255
    assert mask.shape == PICTURE.shape
    assert mask[30, 90]
    assert mask[70, 30]
    assert not mask[5, 5]
    assert record["area_px"] == {"lung": int(mask.sum())}
    assert record["prompt"] == {
        "class": "lung", "points": [[90, 30, True], [30, 70, True], [5, 5, False]], "box": None,
    }  # fmt: skip
    assert 0 < record["estimated_iou"] < 1
    assert record["quality"] is None
    assert (out / record["overlay"].removeprefix(f"{out}/")).is_file()
    assert json.loads((out / "masks/chest.json").read_text())["details"]["prompt"] == record["prompt"]


def test_the_command_opens_the_expected_bundle_only(discs, image, tmp_path):
    settings = PredictSettings(bundle=discs, image=image, out=tmp_path / "out", verify=False)
    main(settings.model_copy(update={"expect": (open_bundle(discs).sha256[:12],)}))
    with pytest.raises(InputError, match=r"must have the sha256 0{64} \(--expect\), has "):
        main(settings.model_copy(update={"expect": ("0" * 64,), "out": tmp_path / "other"}))
    assert not (tmp_path / "other").exists()
    with pytest.raises(
        InputError, match=r"--expect"
    ):  # in a process of its own, the folder changed meanwhile
        open_predictor(PredictorOptions(discs, expect=("0" * 64,)))


def test_a_class_of_several_is_named(prompted_discs, image, tmp_path):
    bundle = prompted_discs.write_bundle(tmp_path / "two", ("heart", "lung"))
    settings = PredictSettings(bundle=bundle, image=image, out=tmp_path / "out", box=(20, 10, 60, 50))
    with pytest.raises(InputError) as refused:
        main(settings)
    assert str(refused.value) == "--prompt-class: must be one of heart, lung, got none; say what is asked for"
    with pytest.raises(InputError) as refused:
        main(settings.model_copy(update={"prompt_class": "liver"}))
    assert str(refused.value) == "--prompt-class: must be one of heart, lung, got liver"
    main(settings.model_copy(update={"prompt_class": "lung"}))
    assert set(np.unique(np.asarray(Image.open(tmp_path / "out/masks/chest.png")))) == {0, 2}


def test_a_place_outside_the_picture_is_one_line(discs, image, tmp_path):
    done = predict(discs, image, tmp_path / "out", "--point", "128,30")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.endswith(
        "error: point: must lie in the picture, x 0 to 127 and y 0 to 95, got 128,30\n"
    )
    assert not (tmp_path / "out.partial").exists()


def test_flags_that_do_not_go_with_a_prompt(prompted_discs, discs, image, tmp_path):
    settings = PredictSettings(bundle=discs, image=image, out=tmp_path / "out", point=(5, 5))
    Image.fromarray(PICTURE).save(tmp_path / "other.png")
    silent = prompted_discs.write_bundle(tmp_path / "silent", promptable=False)
    (tmp_path / "list.txt").write_text("chest.png\nother.png\n")
    for changes, message in (
        ({"workers": 2}, "--workers: must be left away with --point and --box, which are for one picture"),
        (
            {"image": tmp_path / "list.txt"},
            "--image: must be one picture with --point or --box, got 2; a prompt is a place in one",
        ),
        (
            {"point": (), "prompt_class": "lung"},
            "--prompt-class lung: must come with --point or --box, got neither; say where it is",
        ),
        (
            {"bundle": silent},
            f"bundle {silent}: must take prompts, discs takes none; leave --point and --box away, or use a bundle of "
            "a promptable teacher",
        ),
    ):
        with pytest.raises(InputError) as refused:
            main(settings.model_copy(update=changes))
        assert str(refused.value) == message


def with_golden(prompted_discs, folder, change=lambda replies: replies):
    """The discs with golden cases and prompts of their own, or of another model."""
    bundle = prompted_discs.write_bundle(folder)
    manifest = open_bundle(bundle).manifest
    inputs = golden_inputs(manifest.input)
    questions = golden_questions(manifest.input, manifest.prompt)
    with Predictor.open(bundle, engine="onnxruntime", threads=1) as predictor:
        save_golden(bundle, inputs, predictor.run(inputs))
    with PromptPredictor.open(bundle, engine="onnxruntime", threads=1) as predictor:
        replies = ask(questions, predictor.model.encode, predictor.model.decode)
    save_golden_prompts(bundle, questions, change(replies))
    return resealed(bundle)


@pytest.mark.parametrize("engine", ENGINES)
def test_golden_prompts_prove_the_decoder(prompted_discs, tmp_path, engine):
    bundle = open_bundle(with_golden(prompted_discs, tmp_path / "good"))
    found = verify_bundle(bundle, engine=engine, threads=1)
    assert found.failures == ()
    assert found.prompts.answers == 3 * 3  # a point, a box and a point once more, on a phantom of each kind
    other = with_golden(
        prompted_discs, tmp_path / "other", lambda replies: Replies(-replies.logits, replies.iou + 0.5)
    )
    masks, iou = verify_bundle(open_bundle(other), engine=engine, threads=1).failures
    assert masks.startswith("prompts: ")
    assert masks.endswith(" % of pixels differ on average, at most 0.100 % may")
    assert iou == "prompts: the estimated IoU changes by 0.5, by at most 0.01 it may"


def test_golden_prompts_that_are_missing(prompted_discs, tmp_path):
    bundle = resealed(with_golden(prompted_discs, tmp_path / "bundle"), without=GOLDEN_PROMPTS)
    with pytest.raises(InputError) as refused:
        verify_bundle(open_bundle(bundle), threads=1)
    assert str(refused.value) == f"bundle {bundle}: must hold {GOLDEN_PROMPTS}, has none; export it again"


def test_a_decoder_that_is_deaf_or_gives_no_numbers_fails(discs):
    output = open_bundle(discs).manifest.output
    logits = np.random.default_rng(0).normal(size=(3, 2, 4, 16, 16)).astype(np.float32)
    reference = Replies(logits, np.full((3, 2, 4), 0.5, np.float32))

    def failures(logits):
        found = check_prompt_parity(Replies(logits, reference.iou), reference, output, (64, 64))
        return found.failures(UNGATED)

    assert failures(logits) == []
    deaf = np.repeat(logits[:, :1], 2, axis=1)
    assert failures(deaf) == ["the output must vary with the prompt, it does not"]
    assert "the output must be numbers, some are NaN or infinity" in failures(logits * np.nan)
