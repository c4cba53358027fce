"""What the models say of a picture, in words: computed without gradio."""

import json
from dataclasses import replace

import numpy as np
import pytest

from demo.page.html_pieces import problem_line
from demo.session.answers import (
    ModelAnswer,
    Times,
    apart_words,
    have_same_classes,
    model_title,
    size_mib,
    speed_rows,
    speed_words,
)
from segcore.bundle.manifest import Manifest

MANIFEST = Manifest.model_validate(
    json.loads(
        """{
  "name": "unet <8>", "kind": "student", "format": "onnx", "precision": "int8", "architecture": "unet",
  "architecture_settings": {}, "classes": ["lung"], "parameters": 487145, "trained_parameters": 487145, "macs": 1,
  "input": {"height_px": 8, "width_px": 8, "channels": 1, "mean": [0.5], "std": [0.5]},
  "output": {"activation": "sigmoid", "channels": 1, "stride": 1},
  "pretrained": "no pretrained weights", "parent": "abcdefabcdefabcdef",
  "data": {"name": "phantom:cxr", "sha256": "a", "split_sha256": "b", "counts": {"train": 3, "val": 1}},
  "metrics": [{"name": "dice_mean", "split": "val", "value": 0.91234, "cases": 7}],
  "gate": {"golden_mean_share": 0.0012, "golden_cases": 12.0},
  "made": {"command": "python -m export", "time": "t2", "commit": "c", "python": "3", "host": "h", "versions": {}},
  "lineage": [{"command": "python -m train", "time": "t1", "commit": "c", "python": "3", "host": "h", "versions": {}}],
  "model_file": "model.xml",
  "files": {"model.xml": {"sha256": "HASH", "bytes": 524288}, "model.bin": {"sha256": "HASH", "bytes": 1048576},
            "golden.npz": {"sha256": "HASH", "bytes": 99999999}}
}""".replace("HASH", "0" * 64)
    )
)
HALF = np.repeat([[0, 0, 1, 1]], 4, 0).astype(np.uint8)


def answer(mask=HALF, total_ms=10.0, **changes) -> ModelAnswer:
    manifest = MANIFEST.model_copy(update=changes)
    times = Times(pre_ms=1.0, engine_ms=total_ms - 3.0, post_ms=2.0, total_ms=total_ms, runs=5)
    return ModelAnswer(manifest, "openvino 1.2", mask, mask[None].astype(np.float32), times)


@pytest.mark.parametrize(
    ("reference_ms", "ms", "expected"),
    [
        (10, 2.5, "4.0 times faster"),
        (10, 20, "2.0 times slower"),
        (10, 10.2, "as fast"),
        (10, 9.8, "as fast"),
    ],
)
def test_speed_words(reference_ms, ms, expected):
    assert speed_words(reference_ms, ms) == expected


def test_apart_words():
    assert apart_words(answer(), answer()) == "The two masks are the same in every pixel."
    other = HALF.copy()
    other[0, 2] = 0  # 1 of 16 pixels; 8 and 7 marked, 7 shared
    assert (
        apart_words(answer(), answer(other))
        == "The two masks differ in 6.2 % of the pixels (overlap, Dice: 0.933)."
    )


def test_title_says_the_part_once():
    assert model_title(MANIFEST) == "Student: unet <8>"
    assert model_title(MANIFEST.model_copy(update={"name": "Student base, INT8"})) == "Student base, INT8"


def test_size_counts_the_model_alone():
    assert size_mib(MANIFEST) == 1.5


def test_speed_rows():
    rows = {row[0].strip(): row[1:] for row in speed_rows(["A", "B"], [answer(), answer(total_ms=40.0)])}
    assert rows[""] == ["A", "B"]
    assert rows["Time for this picture"] == ["10.0 ms", "40.0 ms"]
    assert rows["the network"] == ["7.0 ms", "37.0 ms"]
    assert rows["Parameters"] == ["487,145"] * 2
    assert rows["Size on disk"] == ["1.5 MiB"] * 2
    assert rows["Precision"] == ["INT8 (8-bit whole numbers)"] * 2


def test_mask_at_another_threshold():
    p = np.array([[[0.2, 0.6], [0.4, 0.9]]], np.float32)
    one = replace(answer(), foreground=p, mask=(p[0] >= 0.5).astype(np.uint8))
    assert one.at(0.3).mask.tolist() == [[0, 1], [1, 1]]
    assert one.at(0.95).mask.sum() == 0
    output = one.manifest.output.model_copy(update={"activation": "softmax"})
    several = replace(one, manifest=one.manifest.model_copy(update={"output": output}))
    assert several.at(0.95) is several


def test_models_that_look_for_different_things_are_not_comparable():
    assert not have_same_classes(answer(), answer(classes=("tooth",)))
    assert have_same_classes(answer(), answer())


def test_problem_is_one_escaped_line():
    assert problem_line("a <b>") == (
        '<p class="problem" role="alert"><strong>This cannot be shown.</strong> a &lt;b&gt;</p>'
    )
