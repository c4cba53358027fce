"""The tab "how was this model made": a story that its manifest bears out, and no more."""

import json
import re

import pytest

from demo.page.html_pieces import model_section
from demo.session.model_story import (
    guard_words,
    input_words,
    known_limits,
    measured_figures,
    short_limits,
    story_of,
)
from segcore.bundle.guard_record import DiceScore, FloatLayer, GuardRecord, SpeedRatio
from segcore.bundle.manifest import Manifest
from segcore.bundle.story import data_name, short_command
from segcore.picture.preprocess import InputSpec
from segcore.picture.quality import QualityModel

STEP = '{"command": "COMMAND", "time": "t", "commit": "c", "python": "3", "host": "h", "versions": {"numpy": "2"}}'
MANIFEST = Manifest.model_validate(
    json.loads(
        """{
  "name": "net <8>", "kind": "student", "format": "torch", "precision": "fp32", "architecture": "unet",
  "architecture_settings": {}, "classes": ["lung"], "parameters": 487145, "trained_parameters": 487145, "macs": 1,
  "input": {"height_px": 64, "width_px": 96, "channels": 1, "mean": [0.5], "std": [0.5]},
  "output": {"activation": "sigmoid", "channels": 1, "stride": 1},
  "pretrained": "no pretrained weights",
  "data": {"name": "/home/erika/archive/cxr", "sha256": "a", "split_sha256": "b",
           "counts": {"train": 300, "val": 100, "test": 90}},
  "metrics": [{"name": "dice_mean", "split": "val", "value": 0.91234, "cases": 100}],
  "settings": {"seed": 0, "limit": null, "labelled_share": 1.0},
  "made": MADE, "model_file": "model.safetensors", "files": {"model.safetensors": {"sha256": "HASH", "bytes": 4}}
}""".replace("MADE", STEP.replace("COMMAND", "python -m student.distill --data /home/erika/archive/cxr --out runs/a"))
        .replace("HASH", "0" * 64)
    )
)  # fmt: skip
GUARD = GuardRecord(
    engine="openvino", engine_version="1", cases=40, max_drop_points=0.1, max_p05_drop_points=0.5, min_speedup=1.05,
    fp32=DiceScore(mean=0.95, p05=0.9), int8=DiceScore(mean=0.9494, p05=0.89), steps=(), layers=20,
    speeds=(SpeedRatio(engine="openvino", engine_version="1", threads=2, against="fp32", speedup=2.44, low=2.0, high=3.0, rounds=5),),
)  # fmt: skip
QUALITY = QualityModel(
    weights=(0.0,) * 13, centre=(0.0,) * 6, spread=(1.0,) * 6, high=(1.0,) * 6, shape_centre=((0.0,) * 7,),
    shape_spread=((1.0,) * 7,), empty_right=(0.0,), cases=44, error=0.0163, error_degraded=0.0511,
)  # fmt: skip
INT8 = {"precision": "int8", "format": "openvino", "parent": "f" * 64, "metrics": (), "guard": GUARD}


def variant(**changes) -> Manifest:
    return MANIFEST.model_copy(update=changes)


def told(**changes) -> Manifest:
    return variant(settings=MANIFEST.settings | changes)


def data(**changes) -> Manifest:
    return variant(data=MANIFEST.data.model_copy(update=changes))


def test_story_of_a_student_that_learned_alone():
    assert story_of(MANIFEST) == [
        "It learned to mark lung from 300 pictures of the data set cxr; 100 chose the best weights and 90 were kept apart "
        "for tests. The groups are split by patient, as far as the data names them. It started from random weights, so it "
        "learned from nothing but these pictures.",
        "No larger model taught it: it learned from the reference masks alone.",
    ]


def test_story_does_not_claim_pictures_or_masks_that_were_not_used():
    assert "from 64 pictures of" in story_of(told(limit=64))[0]
    assert "chose the best weights" not in story_of(told(limit=64))[0]  # how many did is not in the counts
    assert (
        "from the masks of 10 % of the patients behind 300 pictures of"
        in story_of(told(labelled_share=0.1))[0]
    )
    assert story_of(data(counts={}))[0].startswith(
        "It learned to mark lung from the data set cxr. It started"
    )


def test_story_of_a_pupil_and_of_a_teacher():
    assert "its teacher, took part" in story_of(variant(teacher="e" * 64))[1]
    teacher = variant(kind="teacher", pretrained="SAM 2.1 tiny, Meta", settings={"tune": "lora"})
    assert story_of(teacher)[0].endswith(
        "It started from SAM 2.1 tiny, Meta. Of the starting weights, small additions (LoRA) and the decoder were trained."
    )
    assert len(story_of(teacher)) == 1


def test_guard_in_one_sentence():
    words = (
        "A guard compared it with its full-precision form on 40 validation cases: mean overlap (Dice) is 0.949 against "
        "0.950 (0.06 points lost; it may lose at most 0.1; a point is 0.01), and it is 2.44 times as fast as FP32."
    )
    assert guard_words(GUARD) == words
    assert story_of(variant(**INT8))[-1] == (
        f"It was then converted to OpenVINO with numbers in INT8 (8-bit whole numbers). {words}"
    )
    gained = GUARD.model_copy(update={"int8": DiceScore(mean=0.9512, p05=0.9), "speeds": ()})
    assert "(0.12 points gained;" in guard_words(gained)
    assert guard_words(gained).endswith("its speed was not measured there.")
    mixed = GUARD.model_copy(update={"float_layers": (FloatLayer(layer="a", why="b"),), "qat_epochs": 2})
    assert (
        "with 1 of 20 layers left in full precision, after 2 epochs of fine-tuning, and it is"
        in guard_words(mixed)
    )


def test_figures_say_what_they_were_measured_on():
    assert measured_figures(MANIFEST) == [("Overlap (Dice), mean", "100 validation cases", "0.912")]
    assert measured_figures(variant(**INT8)) == [
        ("Overlap (Dice), mean", "40 validation cases", "0.949"),
        ("Overlap (Dice), 5th percentile: one case in twenty is worse", "40 validation cases", "0.890"),
        ("Speed against FP32, same computer", "openvino 1, 2 threads", "2.44 times (2.00 to 3.00)"),
    ]


def test_a_converted_form_is_told_by_its_own_gate_and_not_by_its_parents_dice():
    gate = {
        "real_cases": 32.0,
        "dice_torch": 0.5,
        "dice_openvino": 0.91,
        "dice_change_points": 41.0,
        "openvino_real_worst_share": 0.0012,
    }
    rows = measured_figures(variant(metrics=(), gate=gate, quality=QUALITY))
    assert rows == [
        ("Overlap (Dice), mean", "32 validation cases", "0.910"),
        ("Pixels that conversion changed, worst case", "32 validation cases", "0.12 %"),
        ("Error of its own estimate of Dice", "44 validation cases, left out of its fit", "±0.016"),
    ]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "It does not judge its own mask, so there is no traffic light."),
        ({}, "A pixel is marked from a probability of 0.5 on."),
        ({}, "It sees every picture at 96 × 64 pixels, in 8-bit grey values: what is finer is lost."),
        ({"classes": ("foreground",)}, "Its data does not say what is marked; the name is only “foreground”."),
        ({"precision": "int8"}, "It computes in 8 bits, and no guard judged what that cost."),
    ],
)  # fmt: skip
def test_limits_of_the_page(changes, expected):
    assert expected in known_limits(variant(**changes))


def test_a_limit_that_does_not_hold_is_not_told():
    found = " ".join(known_limits(variant(quality=QUALITY, **INT8)))
    assert "no guard" not in found
    assert "traffic light" not in found
    assert "does not say what is marked" not in found


def test_short_limits():
    assert short_limits(MANIFEST) == (
        "Started from random weights; its own figures are of validation cases, which flatter; one data set only (cxr); "
        "sees pictures at 96 × 64 pixels."
    )
    assert short_limits(data(name="phantom:ct:600")).startswith(
        "Trained on drawn phantoms, never on a patient; "
    )
    tested = MANIFEST.metrics[0].model_copy(update={"split": "test"})
    assert "flatter" not in short_limits(variant(metrics=(tested,)))


@pytest.mark.parametrize(
    ("depth", "window", "expected"),
    [
        ("uint8", (0.0, 255.0), "8-bit grey values"),
        ("float32", (-1350.0, 150.0), "the lung window (-1350 to 150 Hounsfield units)"),
        ("float32", (-160.0, 240.0), "the soft tissue window (-160 to 240 Hounsfield units)"),
        ("uint16", (-160.0, 240.0), "16-bit values from -160 (black) to 240 (white)"),
        ("uint16", (100.0, 4000.0), "16-bit values from 100 (black) to 4000 (white)"),
    ],
)
def test_window_by_name(depth, window, expected):
    spec = InputSpec(height_px=1, width_px=1, channels=1, depth=depth, window=window, mean=(0,), std=(1,))
    assert input_words(spec) == expected


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("python -m a --data /home/erika/x --out=/tmp/y z", "python -m a --data x --out=y z"),
        ("python -m a --data '/home/erika muster/x y'", "python -m a --data x y"),
        ("python -m a --data ../.. --lr 1e-3", "python -m a --data .. --lr 1e-3"),
        ("it's /home/erika/x", "it's x"),
    ],
)
def test_paths_of_a_command_keep_their_last_part(command, expected):
    assert short_command(command) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("/home/erika muster/cxr", "cxr"),
        ("../shared/cxr/", "cxr"),
        (r"C:\Users\erika\cxr", "cxr"),
        ("phantom:ct:600", "phantom:ct:600"),
    ],
)
def test_data_is_called_by_its_own_name(name, expected):
    assert data_name(data(name=name)) == expected


def test_html_holds_no_path_and_takes_no_name_for_markup():
    html = model_section(variant(teacher="e" * 64, quality=QUALITY, **INT8))
    assert "erika" not in html
    assert "archive" not in html
    assert "Student: net &lt;8&gt;" in html
    assert html.index("<details><summary>Technical details</summary>") > html.index("What it cannot promise")
    assert "python -m student.distill --data cxr --out a" in html
    assert "teacher eeeeeeeeeeee<" in html
    assert "bundle ffffffffffff<" in html


def test_html_is_balanced_and_its_headings_have_scopes():
    html = model_section(variant(quality=QUALITY, **INT8))
    for tag in (
        "section",
        "table",
        "thead",
        "tbody",
        "tr",
        "th",
        "td",
        "ul",
        "ol",
        "li",
        "details",
        "p",
        "code",
    ):
        assert len(re.findall(f"<{tag}[ >]", html)) == html.count(f"</{tag}>"), tag
    assert len(re.findall("<th[ >]", html)) == html.count("scope=")
