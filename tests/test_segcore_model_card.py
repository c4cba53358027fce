"""The model card: what it says follows from the manifest, and it travels with the bundle that it is about."""

import json
import re
import shlex

import pytest

from segcore.bundle.folder import MANIFEST, open_bundle, seal_bundle
from segcore.bundle.guard_record import DiceScore, FloatLayer, GuardRecord, SpeedRatio
from segcore.bundle.manifest import Manifest
from segcore.bundle.story import MODEL_CARD, limits, model_card
from segcore.command import parse_settings
from segcore.picture.quality import QualityModel

MADE = {
    "command": "python -m export --out `x`", "time": "2026-01-02T03:04:05+00:00", "commit": "1a211d7",
    "python": "3.11.7", "host": "ARM, 4 cores, Linux aarch64", "versions": {"numpy": "2.2.6", "a": "1"},
}  # fmt: skip
TRAINED = MADE | {"command": "python -m student.distill --seed 3", "time": "2026-01-01T00:00:00+00:00"}
FIELDS = {
    "name": "Small, INT8", "kind": "student", "format": "openvino", "precision": "int8", "architecture": "student",
    "architecture_settings": {}, "classes": ("left lung", "right lung"),
    "input": {"height_px": 256, "width_px": 320, "channels": 1, "depth": "float32", "window": (-1350.0, 150.0),
              "mean": (0.5,), "std": (0.25,)},
    "output": {"activation": "softmax", "channels": 3, "stride": 4},
    "parameters": 487_163, "trained_parameters": 487_163, "macs": 765_000_000,
    "pretrained": "SAM 2.1 tiny", "parent": "a" * 64,
    "data": {"name": "hospital", "sha256": "b" * 64, "split_sha256": "c" * 64,
             "counts": {"train": 651, "val": 219, "test": 203}, "calibration_cases": ("Ms-Example-1", "Mr-Example-2")},
    "gate": {"golden_cases": 12, "openvino_real_worst_share": 0.00189, "dice_openvino": 0.9458},
    "settings": {"seed": 3}, "made": MADE, "lineage": (TRAINED,), "model_file": "model.xml",
}  # fmt: skip
GUARD = GuardRecord(
    engine="openvino", engine_version="2026.4.1", cases=128, max_drop_points=0.1, max_p05_drop_points=0.5,
    min_speedup=1.05, fp32=DiceScore(mean=0.95, p05=0.9), int8=DiceScore(mean=0.9495, p05=0.897), steps=(),
    layers=23, float_layers=(FloatLayer(layer="head", why="asked for"),),
    speeds=(SpeedRatio(engine="openvino", engine_version="2026.4.1", threads=2, against="fp32", speedup=2.447,
                       low=2.4, high=3.4, rounds=5),),
)  # fmt: skip
QUALITY = QualityModel(
    weights=(0.5,) * 13, centre=(0.0,) * 6, spread=(1.0,) * 6, high=(1.5,) * 6, shape_centre=((0.0,) * 7,) * 2,
    shape_spread=((1.0,) * 7,) * 2, empty_right=(0.0,) * 2, cases=128, error=0.0156, error_degraded=0.0387,
)  # fmt: skip


def manifest(**changes: object) -> Manifest:
    files = {
        "model.xml": {"sha256": "0" * 64, "bytes": 181_082},
        "model.bin": {"sha256": "1" * 64, "bytes": 319_952},
    }
    return Manifest.model_validate({**FIELDS, "files": files, **changes})


def section(card: str, title: str) -> str:
    return re.split(r"^## ", card.split(f"\n## {title}\n")[1], maxsplit=1, flags=re.MULTILINE)[0]


def seal(folder, **changes: object) -> Manifest:
    folder.mkdir(exist_ok=True)
    (folder / "model.xml").write_bytes(b"graph")
    return seal_bundle(folder, **{**FIELDS, **changes})


def test_says_where_a_training_stopped():
    assert "Training" not in section(model_card(manifest()), "What it is")
    stopped = model_card(manifest(settings={"epochs": 50}, stopped_epoch=31))
    assert "**Training:** stopped after epoch 31 of 50, as the validation Dice no longer rose" in stopped


def test_says_what_it_takes_and_gives():
    text = section(model_card(manifest()), "What it takes and gives")
    assert "one picture, grey, float32, of any size" in text
    assert "-1350 and below is black, 150 and above white (the CT window “lung”, in Hounsfield units)" in text
    assert "256×320 px (height×width)" in text
    assert "a pixel gets the most probable class; 0 is background" in text
    assert "1 left lung, 2 right lung" in text
    plain = model_card(manifest(input=FIELDS["input"] | {"depth": "uint8", "window": (0.0, 255.0)}))
    assert "**Window:** none: 0 is black, 255 white" in plain
    own = model_card(manifest(input=FIELDS["input"] | {"window": (0.0, 80.0)}))
    assert "**Window:** 0 and below is black, 80 and above white\n" in own
    one = model_card(
        manifest(
            classes=("lung",), output={"activation": "sigmoid", "channels": 1, "stride": 4, "threshold": 0.4}
        )
    )
    assert "a pixel is marked from a probability of 0.4 on" in one


def test_data_are_names_and_numbers_and_no_case():
    card = model_card(manifest())
    text = section(card, "What it was trained on")
    assert "**Name:** hospital\n" in text
    assert "651 train, 219 val, 203 test" in text
    assert (
        "**Split:** by patient, as far as the data names them, seed 0; test cases were kept out of training"
        in text
    )
    assert "2 train cases" in text
    assert "b" * 64 in text
    assert "Example" not in card


def test_no_path_of_the_maker_s_machine_travels_with_the_card():
    data = FIELDS["data"] | {"name": "/home/erika/archive/cxr"}
    made = MADE | {"command": "python -m export --data /home/erika/archive/cxr --out=runs/b"}
    card = model_card(manifest(data=data, made=made))
    assert "**Name:** cxr\n" in section(card, "What it was trained on")
    assert "`python -m export --data cxr --out=b`" in section(card, "How it was made")
    assert "erika" not in card


def test_figures_of_the_guard_and_of_the_quality_estimate():
    card = model_card(manifest(guard=GUARD, quality=QUALITY))
    text = section(card, "What INT8 was allowed to lose")
    assert "0.9500 in FP32, 0.9495 in INT8: 0.05 points lost, at most 0.1 may be lost" in text
    assert "0.9000 in FP32, 0.8970 in INT8: 0.30 points lost, at most 0.5 may be lost" in text
    assert "2.44 times as fast as FP32 (2.40–3.40 over 5 rounds) in openvino 2026.4.1, 2 threads" in text
    assert "22 of 23 are in INT8, 1 stayed in float" in text
    assert "wrong by 0.016 on average, and by 0.039 on degraded pictures" in card
    gained = GUARD.model_copy(update={"int8": DiceScore(mean=0.9512, p05=0.9)})
    text = section(model_card(manifest(guard=gained)), "What INT8 was allowed to lose")
    assert "0.9500 in FP32, 0.9512 in INT8: 0.12 points gained, at most 0.1 may be lost" in text
    assert "0.9000 in FP32, 0.9000 in INT8: 0.00 points lost" in text
    without = model_card(manifest())
    assert "What INT8 was allowed" not in without
    assert "It has none: it does not say when a mask is doubtful." in without


def test_measured_figures_say_on_what():
    metric = {"name": "dice_mean", "split": "val", "value": 0.94395, "cases": 219}
    text = section(model_card(manifest(metrics=(metric,))), "What was measured")
    assert "| Dice, mean over cases | 0.9439 | 219 cases, val split |" in text
    assert "Training was steered by the validation cases" in text
    assert "* share of pixels that differ, worst of the real cases, in openvino: 0.00189" in text
    assert "* Dice in openvino: 0.9458" in text
    tested = section(model_card(manifest(metrics=(metric | {"split": "test"},))), "What was measured")
    assert "steered" not in tested
    assert "is not in its manifest" in model_card(manifest())


def test_limits_follow_from_the_manifest():
    everything = manifest(
        pretrained="no pretrained weights", teacher="d" * 64, settings={"seed": 7, "labelled_share": 0.1},
        data={"name": "phantom:cxr:24", "sha256": "b", "split_sha256": "c", "counts": {"train": 14}},
        metrics=({"name": "dice_mean", "split": "val", "value": 0.9, "cases": 5},),
    )  # fmt: skip
    text = "\n".join(limits(everything))
    assert text.startswith("Trained on procedural phantoms")
    for words in (
        "No pretrained weights: training started from random weights.",
        "Only the masks of 10 % of the training patients were used.",
        "Few cases: 14 to train on.",
        "Trained once, with seed 7.",
        "from the teacher's mistakes",
        "Measured on few cases (5)",
        "No figure above is of test cases",
        "Never run, as far as this bundle knows, on another machine than ARM, 4 cores, Linux aarch64",
    ):
        assert words in text
    metric = {"name": "dice_mean", "split": "test", "value": 0.9, "cases": 203}
    few = "\n".join(limits(manifest(metrics=(metric,))))
    assert not re.search("phantom|pretrained|Only the masks|Few cases|teacher|on few|No figure", few)


def test_limits_say_where_it_has_run():
    target = {
        "tensorrt": "10.3.0", "gpu": "Orin", "compute_capability": "8.7", "platform": "Linux aarch64",
        "onnx": "model.onnx", "onnx_sha256": "0" * 64,
    }  # fmt: skip
    assert limits(manifest(format="tensorrt", engine_target=target))[-1] == (
        "Runs only on Orin (compute capability 8.7) with TensorRT 10.3.0."
    )
    assert "Never run on the device it is meant for" in limits(manifest(format="tensorrt-onnx"))[-1]
    assert limits(manifest(format="torch"))[-1].startswith("Run with PyTorch only, on ARM")


def test_equal_manifests_give_equal_bytes(tmp_path):
    sealed = seal(tmp_path / "a")
    assert model_card(sealed) == model_card(open_bundle(tmp_path / "a").manifest)
    assert (tmp_path / "a" / MODEL_CARD).read_bytes() == model_card(sealed).encode()
    seal(tmp_path / "b")
    assert (tmp_path / "a" / MANIFEST).read_bytes() == (tmp_path / "b" / MANIFEST).read_bytes()
    seal(tmp_path / "a")  # once more over its own card
    assert (tmp_path / "a" / MANIFEST).read_bytes() == (tmp_path / "b" / MANIFEST).read_bytes()


def test_a_child_has_its_own_card(tmp_path):
    seal(tmp_path / "parent")
    parent = open_bundle(tmp_path / "parent")
    child = tmp_path / "child"
    child.mkdir()
    (child / MODEL_CARD).write_text(parent.path(MODEL_CARD).read_text())  # as if it had been copied along
    (child / "model.xml").write_bytes(b"graph")
    seal_bundle(child, **{**parent.child_fields(), "name": "Child", "made": MADE})
    card = open_bundle(child).path(MODEL_CARD).read_text()
    assert card.startswith("# Child\n")
    assert f"**Parent:** bundle `{parent.sha256[:12]}…`" in card
    assert card.count("\n3. ") == 1


def test_a_bundle_without_a_card_still_opens(tmp_path):
    seal(tmp_path / "old")
    (tmp_path / "old" / MODEL_CARD).unlink()
    fields = json.loads((tmp_path / "old" / MANIFEST).read_text())
    del fields["files"][MODEL_CARD]
    (tmp_path / "old" / MANIFEST).write_text(json.dumps(fields))
    assert open_bundle(tmp_path / "old").manifest.name == "Small, INT8"


def test_words_of_users_are_no_markup():
    output = {"activation": "softmax", "channels": 3, "stride": 1}
    card = model_card(manifest(name="<b>x</b> # y | z", classes=("*a*", "[b](c)"), output=output))
    assert card.splitlines()[0] == r"# \<b\>x\</b\> \# y \| z"
    assert r"1 \*a\*, 2 \[b\](c)" in card
    assert "   `` python -m export --out `x` ``" in card


def test_it_says_that_it_is_for_research_and_invents_no_licence():
    card = model_card(manifest())
    assert card.splitlines()[2] == "**Research use only. Not a medical device.**"
    assert "is what the training data and the pretrained weights allow; state it" in section(card, "Licence")
    assert re.findall(r"^## (.+)$", card, re.MULTILINE) == [
        "What it is", "What it is for", "What it takes and gives", "What it was trained on", "What was measured",
        "Its own estimate of its masks", "Known limits", "How to use it", "How it was made", "Licence",
    ]  # fmt: skip


@pytest.mark.parametrize("form", ["torch", "onnx", "openvino", "tensorrt-onnx", "tensorrt"])
def test_its_commands_are_taken(form, settings_of):
    commands = section(model_card(manifest(format=form)), "How to use it").strip().splitlines()[1:-1]
    assert commands
    for command in commands:
        _, _, module, *words = shlex.split(command)
        if module == "demo":
            continue  # tested with its own page
        assert "THIS_FOLDER" in str(parse_settings(settings_of(module), command, words))


def test_few_cases_are_those_that_training_took():
    def few(**settings: object) -> list[str]:
        found = limits(manifest(settings=settings))
        return [limit for limit in found if limit.startswith("Few cases")]

    assert few(limit=None) == few(limit=1000) == []
    assert few(limit=64) == ["Few cases: 64 to train on. What is rare among patients is missing among them."]


@pytest.mark.parametrize(
    ("pretrained", "random"),
    [
        ("no pretrained weights", True),
        ("SAM 2.1 tiny", False),
        ("a.pt; memory: no pretrained weights", False),
    ],
)
def test_random_weights_are_told_where_the_whole_network_started_from_them(pretrained, random):
    said = "No pretrained weights: training started from random weights."
    assert (said in limits(manifest(pretrained=pretrained))) == random


def test_a_ct_window_is_named_where_values_are_hounsfield_units():
    lung = FIELDS["input"] | {"window": (0.0, 150.0)}
    assert "(the CT window “lung”, in Hounsfield units)" in model_card(manifest())
    assert "Hounsfield" not in model_card(manifest(input=lung))
    assert "Hounsfield" not in model_card(manifest(input=FIELDS["input"] | {"depth": "uint16"}))
