"""The stopwatch with a clock of our own, and a short measurement for real."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from benchmarks.checks.training import PARTS, Stopwatch, TrainingSettings, main
from segcore.errors import InputError


def test_a_part_inside_another_stops_the_outer_ones_clock():
    now = [0.0]
    watch = Stopwatch(lambda: now[0])

    def inner(seconds):
        now[0] += seconds
        return seconds

    timed = watch.around("inner", inner)
    now[0] = 100.0  # before the first part: nobody's
    with watch.part("outer"):
        now[0] += 1
        assert timed(10) == 10
        now[0] += 2
        timed(20)
    now[0] += 1000  # between parts: nobody's
    watch.start("later")
    now[0] += 4
    watch.stop()
    assert watch.lap() == {"outer": 3, "inner": 30, "later": 4}
    assert watch.lap() == {}


def test_a_part_that_fails_ends():
    now = [0.0]
    watch = Stopwatch(lambda: now[0])
    with pytest.raises(ZeroDivisionError), watch.part("outer"):
        watch.around("inner", lambda: 1 / 0)()
    now[0] = 5.0
    with watch.part("next"):
        now[0] = 6.0
    assert watch.lap() == {"outer": 0, "inner": 0, "next": 1}


@pytest.mark.parametrize("workers", [0, 1])
def test_every_part_of_a_real_step_is_timed(tmp_path, workers):
    # In a process of its own: see tests/test_segcore_loader.py.
    words = [
        "--data",
        "phantom:cxr:20",
        "--design",
        "nano",
        "--size",
        "32",
        "--batch-size",
        "4",
        "--steps",
        "2",
    ]
    command = [
        sys.executable,
        "-m",
        "benchmarks.checks.training",
        *words,
        "--workers",
        str(workers),
        "--out",
        "o",
    ]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, check=True
    )
    printed = done.stdout.splitlines()
    cost = json.loads(printed[-1])
    assert cost == json.loads((tmp_path / "o" / "training.json").read_text())
    assert tuple(cost["ms"]) == PARTS
    in_other_process = {"augmentation"} if workers else set()
    assert {part for part, ms in cost["ms"].items() if ms == 0} == in_other_process
    assert sum(cost["ms"].values()) == pytest.approx(1e3 / cost["images_s"], rel=0.5)
    assert (cost["images"], cost["validation_images"], cost["precision"]) == (12, 4, "fp32")
    assert (cost["threads"], cost["workers"]) == (1, workers)
    assert 0 < cost["validation_share"] < 1
    assert cost["reading_s"] > 0
    assert cost["versions"]["torch"]
    assert printed[0].startswith("nano at 32 px, fp32, batches of 4, 1 thread(s)")
    with Image.open(tmp_path / "o" / "training.png") as picture:
        assert picture.width > 600


def test_a_size_that_the_design_cannot_take(tmp_path):
    (tmp_path / "deep.yaml").write_text(
        "stem: strided\nstem_stride: 4\nwidths: [8, 8, 8, 8, 8]\ndepths: [0, 1, 1, 1, 1]\nup_depths: [1, 1, 1, 1]\n"
    )
    with pytest.raises(InputError) as caught:
        main(TrainingSettings(data="phantom:cxr:20", design=str(tmp_path / "deep.yaml"), size=96))
    assert str(caught.value) == "--size 96: must be divisible by 64, the stride of --design, is not; use 128"
