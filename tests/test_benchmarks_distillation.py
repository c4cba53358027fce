"""Whether distillation pays: its numbers in closed form, its plan, its refusals, its words."""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.children import Child, ChildFailure, run_children
from benchmarks.distillation.__main__ import LIST_FLAGS, LOCK, drop_stale, main, note_refusals
from benchmarks.distillation.job import Job, run_job
from benchmarks.distillation.page import render_html, render_markdown
from benchmarks.distillation.pictures import TRUTH, outline, pick_cases
from benchmarks.distillation.plan import Arm, make_plan, passes_for
from benchmarks.distillation.plots import draw_plots
from benchmarks.distillation.record import CaseScore, DistillationRecord, Problem, ScoreFile
from benchmarks.distillation.results import Outcome, choose_values, share_closed, summarise
from benchmarks.distillation.settings import DistillationSettings
from benchmarks.distillation.trainers import (
    DISTILL,
    TEACHER,
    check_child,
    check_labels,
    check_training,
    read_manifest,
    sealed_settings,
)
from segcore.bundle.manifest import Metric
from segcore.command import parse_settings, repeat_flags
from segcore.dataset.dataset import open_dataset
from segcore.dataset.soft_labels import LabelRecord
from segcore.errors import GateError, InputError
from segcore.measure.metrics import precision_recall_per_class
from segcore.stats import bootstrap_interval, percentile_interval, resampled_over_runs

DATA = "phantom:cxr:6"


def settings(**more):
    return DistillationSettings(**{"data": DATA, "out": "O", "systems": ("lightunet",), **more})


@pytest.fixture(scope="module")
def dataset():
    return open_dataset(DATA)


# Numbers.


def test_with_one_run_the_interval_is_that_of_the_patients():
    values, patients = [0.2, 0.4, 0.9, 0.5], ["a", "a", "b", "c"]
    drawn = resampled_over_runs(np.array([[values]]), patients)
    assert percentile_interval(drawn[0]) == pytest.approx(bootstrap_interval(values, patients))


def test_runs_are_drawn_with_replacement_beside_the_patients():
    # Patients are all alike, two runs are 0 and 1: a resample holds twice one, twice the other, or both.
    drawn = resampled_over_runs(np.array([[[0.0, 0.0], [1.0, 1.0]]]), ["a", "b"])[0]
    found, times = np.unique(drawn, return_counts=True)
    assert found.tolist() == [0, 0.5, 1]
    assert times / len(drawn) == pytest.approx([0.25, 0.5, 0.25], abs=0.04)


def test_what_is_drawn_is_the_same_for_all_systems():
    base = np.random.default_rng(0).uniform(size=(3, 5))
    drawn = resampled_over_runs(np.stack([base, base + 0.25]), list("aabcd"))
    assert drawn[1] - drawn[0] == pytest.approx(0.25)
    assert drawn[0].std() > 0.01


def gap_values(gap, gain, noise=0.1):
    """Teacher, student alone and distilled student: three seeds, eight images, differing alike."""
    alone = 0.5 + noise * np.random.default_rng(1).uniform(size=(3, 8))
    return np.stack([alone + gap, alone, alone + gain])


def test_a_student_halfway_to_its_teacher_closes_half_of_the_gap():
    closed = share_closed(gap_values(0.2, 0.1), [str(i) for i in range(8)])
    assert (closed.mean, closed.low, closed.high) == pytest.approx((0.5, 0.5, 0.5))


def test_the_share_of_the_gap_has_the_interval_of_its_draws():
    # One of two patients is where the teacher leads, and there the student follows wholly; of the other it has
    # half. A resample holds the first twice, both, or the second twice: 1, (0.2 + 0.1) / 0.4, and 0.5.
    values = np.array([[[0.2, 0.2]], [[0.0, 0.0]], [[0.2, 0.1]]])
    closed = share_closed(values, ["a", "b"])
    assert (closed.mean, closed.low, closed.high) == pytest.approx((0.75, 0.5, 1))


def test_a_gap_that_may_be_none_has_no_share():
    values = gap_values(0.0, 0.1)
    values[0, :, ::2] += 0.1
    values[0, :, 1::2] -= 0.1
    patients = [str(i) for i in range(8)]
    assert share_closed(values, patients) is None
    assert share_closed(gap_values(-0.1, 0.1), patients) is None
    assert share_closed(gap_values(0.1, 0.1), ["a"] * 8) is None


def test_precision_and_recall_of_each_class():
    truth = np.array([[1, 1, 0, 0], [2, 2, 0, 0]])
    mask = np.array([[1, 0, 0, 0], [2, 2, 2, 2]])
    precision, recall = precision_recall_per_class(mask, truth, 3)
    assert precision.tolist() == [1, 0.5, 1]  # nothing of the third is there or marked
    assert recall.tolist() == [0.5, 1, 1]
    empty = np.zeros_like(truth)
    assert [v.tolist() for v in precision_recall_per_class(empty, truth, 2)] == [[0, 0], [0, 0]]


# Settings and plan.


def test_lists_may_be_given_with_spaces_commas_or_again():
    words = [
        "--systems",
        "unet:tiny",
        "lightunet",
        "--labelled-share",
        "0.3,0.1",
        "--data",
        "D",
        "--out",
        "O",
    ]
    made = parse_settings(DistillationSettings, "distillation", repeat_flags(words, LIST_FLAGS))
    assert made.systems == ("unet:tiny", "lightunet")
    assert made.shares == (0.1, 0.3, 1.0)
    assert made.model_copy(update={"all_labels": False}).shares == (0.1, 0.3)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"systems": ("resnet",)}, "--system: must be "),
        (
            {"systems": ("unet:",)},
            "--systems unet:: must be SYSTEM or SYSTEM:ENCODER, such as unet:efficientnet-lite0",
        ),
        (
            {"systems": ("lightunet:tiny",)},
            "--encoder tiny: must be omitted for --system lightunet, which has none; use --system unet",
        ),
        ({"systems": ("sam2-unet",)}, "--weights: must be given for --system sam2-unet; "),
        ({"design": ("huge",)}, "--design "),
        ({"design": ("nano", "a/nano.yaml")}, "--design: must be different designs, got nano, a/nano.yaml"),
        ({"grid": ("lr",)}, "--grid lr: must be NAME=NUMBER,NUMBER…, such as lr=1e-4,1e-3"),
        (
            {"grid": ("speed=1",)},
            "--grid: speed must be a setting of student.distill, is none; see its --help",
        ),
        ({"grid": ("seed=1",)}, "--grid: seed must not be given here, the command sets it itself"),
        (
            {"own_settings": {"pupil": {}}},
            "own-settings pupil: must be one of teacher, lightunet, label, student, alone, distilled",
        ),
        (
            {"own_settings": {"teacher": {"alpha": 1}}},
            "own-settings teacher: alpha must be a setting of teacher.train, is none; see its --help",
        ),
        (
            {"own_settings": {"alone": {"labelled-share": 0.5}}},
            "own-settings alone: labelled-share must not be given here, the command sets it itself",
        ),
        ({"augment": "wild"}, "--augment: must be "),
    ],
)
def test_a_plan_is_refused_before_anything_runs(more, message):
    with pytest.raises(InputError) as caught:
        make_plan(settings(**more))
    assert str(caught.value).startswith(message)


def test_shares_are_refused_by_the_parser():
    words = ["--data", "D", "--out", "O", "--systems", "unet", "--labelled-share", "0.1,2"]
    with pytest.raises(InputError) as caught:
        parse_settings(DistillationSettings, "distillation", words)
    assert str(caught.value) == "--labelled-share: must be shares above 0 and up to 1, got [0.1, 2]"


def test_folders_say_share_seed_and_what_they_hold():
    plan = make_plan(settings(seeds=2, design=("nano",)))
    stages = plan.stages({})
    assert [stage.folder.relative_to("O").as_posix() for stage in stages[:6]] == [
        "share0.1/seed0/teacher-lightunet",
        "share0.1/seed0/alone-nano",
        "share0.1/seed0/alone-nano-int8",
        "share0.1/seed0/soft-lightunet",
        "share0.1/seed0/distilled-nano-lightunet",
        "share0.1/seed0/distilled-nano-lightunet-int8",
    ]
    assert [(stage.share, stage.seed) for stage in stages[::6]] == [(0.1, 0), (1, 0), (0.1, 1), (1, 1)]
    by_name = {stage.name: stage for stage in stages}
    assert len(by_name) == len(stages) == 24
    for place, stage in enumerate(stages):
        assert all(by_name[name] in stages[:place] for name in stage.after)
    distilled = by_name["share0.1-seed1-distilled-nano-lightunet"]
    assert "--soft=O/share0.1/seed1/soft-lightunet" in distilled.words
    assert "--labelled-share=0.1" in distilled.words
    assert distilled.line.endswith("--out=O/share0.1/seed1/distilled-nano-lightunet")


def test_an_ensemble_is_the_mean_of_all_seeds_teachers():
    plan = make_plan(settings(seeds=3, design=("nano",), ensemble=True, int8=False, all_labels=False))
    stages = plan.stages({})
    soft = [stage for stage in stages if stage.module == "teacher.label"]
    assert [stage.folder.as_posix() for stage in soft] == ["O/share0.1/seed0/soft-lightunet-of-3"]
    assert [word for word in soft[0].words if word.startswith("--bundle")] == [
        f"--bundle=O/share0.1/seed{seed}/teacher-lightunet" for seed in range(3)
    ]
    places = {stage.name: place for place, stage in enumerate(stages)}
    assert all(places[name] < places[stage.name] for stage in stages for name in stage.after)
    distilled = [stage.folder.name for stage in stages if stage.arm and stage.arm.kind == "distilled"]
    assert distilled == ["distilled-nano-lightunet-of-3"] * 3


def test_encoders_take_their_weights_from_where_they_are():
    systems = ("unet:efficientnet-lite0", "lightunet", "sam2-unet:tiny")
    plan = make_plan(settings(systems=systems, weights="w.pt"))
    weights = {
        stage.flags["system"]: stage.flags["weights"] for stage in plan.stages({}) if stage.module == TEACHER
    }
    assert weights == {"unet": "package", "lightunet": None, "sam2-unet": "w.pt"}


def test_own_settings_and_the_grid_come_after_the_common_ones():
    own = {"student": {"lr": 0.1, "ema": 0.5}, "alone": {"lr": 0.2}, "distilled": {"alpha": 0.75}}
    plan = make_plan(settings(own_settings=own, grid=("weight-decay=0,0.1",), lr=0.3))
    alone, other = plan.grid_stages()[:2]
    assert (alone.flags["lr"], alone.flags["ema"], alone.flags["weight_decay"]) == (0.2, 0.5, 0.0)
    assert (other.folder.name, other.values) == ("alone-small-weight-decay0.1", (("weight_decay", 0.1),))
    chosen = {(0.1, "small"): other.values}  # the share of all labels has chosen nothing: its grid failed
    stages = [stage for stage in plan.stages(chosen) if stage.module == DISTILL]
    assert [stage.folder.name for stage in stages if stage.arm.kind == "alone" and not stage.seed] == [
        "alone-small-weight-decay0.1"
    ]
    distilled = next(stage for stage in stages if stage.arm.kind == "distilled")
    assert (distilled.flags["lr"], distilled.flags["alpha"]) == (0.1, 0.75)
    assert "weight_decay" not in distilled.flags


def test_without_steps_few_labels_are_passed_over_more_often():
    def passes(**more):
        stages = make_plan(settings(**more)).stages({})
        return {
            stage.arm.kind: stage.flags["passes"]
            for stage in stages
            if stage.module in (TEACHER, DISTILL) and stage.share == 0.1
        }

    assert [passes_for(share) for share in (1.0, 0.3, 0.05)] == [1, 3, 20]
    assert passes(epochs=5) == {"teacher": 10, "alone": 10, "distilled": None}
    assert passes(steps=100, teacher_steps=100) == {"teacher": None, "alone": None, "distilled": None}
    assert passes() == {
        "teacher": 10,
        "alone": None,
        "distilled": None,
    }  # student.distill counts steps itself


# Folders that are there already.


@pytest.fixture
def found(tmp_path, manifest, dataset):
    """A plan in a folder, and a writer of finished bundles and labels there."""
    plan = make_plan(settings(out=tmp_path, design=("nano",), augment="film", labelled_share=(0.5,)))
    by_kind = {(s.arm and s.arm.kind, s.module): s for s in reversed(plan.stages({}))}

    def write(stage, **more):
        trained = {}
        if stage.module in (TEACHER, DISTILL):
            sealed = sealed_settings(stage.module, stage.words, 1)
            trained["settings"] = sealed.model_dump(mode="json")
            trained["data"] = manifest.data.model_copy(update={"sha256": dataset.sha256})
        stage.folder.mkdir(parents=True)
        one = manifest.model_copy(update=trained | more)
        (stage.folder / "manifest.json").write_text(one.model_dump_json())

    return by_kind, write


def test_a_bundle_of_the_same_settings_is_taken_up(found, dataset):
    stages, write = found
    for key in (("teacher", TEACHER), ("alone", DISTILL)):
        write(stages[key])
        check_training(stages[key].folder, key[1], stages[key].words, dataset.sha256)


def test_a_bundle_of_other_settings_is_refused_with_what_differs(found, dataset):
    stages, write = found
    alone = stages["alone", DISTILL]
    write(alone)
    words = (*(word for word in alone.words if not word.startswith("--size")), "--size=64", "--ema=0.5")
    with pytest.raises(InputError) as caught:
        check_training(alone.folder, DISTILL, words, "another")
    assert str(caught.value) == (
        f"{alone.folder}: must be made with the settings of this command, was made with other ones (data; size 256, not "
        "64; ema 0.0, not 0.5); give those, or move it away"
    )
    words = (*(word for word in alone.words if not word.startswith("--augment")), "--augment=none")
    with pytest.raises(InputError, match=r"other ones \(augment "):
        check_training(alone.folder, DISTILL, words, dataset.sha256)


def test_a_damaged_folder_is_refused(tmp_path):
    with pytest.raises(InputError) as caught:
        check_training(tmp_path, DISTILL, (), "0")
    assert str(caught.value) == f"{tmp_path}: must be a bundle, has no readable manifest.json; move it away"
    with pytest.raises(InputError) as caught:
        check_labels(tmp_path, (), "none", "0")
    assert str(caught.value) == f"{tmp_path}: must be soft labels, has no readable labels.json; move it away"


def write_labels(stage, teacher, dataset, made, **more):
    stage.folder.mkdir(parents=True)
    record = LabelRecord(
        teacher=teacher, teacher_name="t", tta="flips", data_sha256=dataset.sha256, split_sha256="0", classes=("lung",),
        activation="sigmoid", height_px=64, width_px=64, shards={}, made=made,
    )  # fmt: skip
    (stage.folder / "labels.json").write_text(record.model_copy(update=more).model_dump_json())


def test_labels_and_students_must_come_from_what_lies_beside_them(found, dataset, manifest):
    stages, write = found
    teacher, soft = stages["teacher", TEACHER], stages[None, "teacher.label"]
    distilled = stages["distilled", DISTILL]
    write_labels(soft, "other", dataset, manifest.made)
    with pytest.raises(InputError) as caught:
        check_labels(soft.folder, soft.flags["bundles"], "flips", dataset.sha256)
    assert str(caught.value) == (
        f"{soft.folder}: must have its teacher beside it, {teacher.folder} is not there; move it away"
    )
    write(teacher)
    with pytest.raises(InputError) as caught:
        check_labels(soft.folder, soft.flags["bundles"], "flips", dataset.sha256)
    assert str(caught.value) == f"{soft.folder}: must be of the teacher beside it, is not; move it away"
    (soft.folder / "labels.json").unlink()
    soft.folder.rmdir()
    sha256 = read_manifest(teacher.folder)[1]
    write_labels(soft, sha256, dataset, manifest.made)
    check_labels(soft.folder, soft.flags["bundles"], "flips", dataset.sha256)
    for tta, data, what in (("none", dataset.sha256, "made with --tta none"), ("flips", "0", "of this data")):
        with pytest.raises(InputError) as caught:
            check_labels(soft.folder, soft.flags["bundles"], tta, data)
        assert str(caught.value) == f"{soft.folder}: must be {what}, is not; move it away"
    write(distilled, teacher="other")
    with pytest.raises(InputError) as caught:
        check_child(distilled.folder, soft.folder)
    assert str(caught.value) == (
        f"{distilled.folder}: must be distilled from soft-lightunet, is not; move it away"
    )
    exported = stages["alone", "export"]
    write(exported, parent="other")
    with pytest.raises(InputError) as caught:
        check_child(exported.folder, stages["alone", DISTILL].folder)
    assert str(caught.value) == f"{exported.folder}: must have alone-nano beside it, is alone; move it away"
    write(stages["alone", DISTILL])
    with pytest.raises(InputError) as caught:
        check_child(exported.folder, stages["alone", DISTILL].folder)
    assert str(caught.value) == f"{exported.folder}: must be an export of alone-nano, is not; move it away"


# Running.


def test_children_wait_for_what_they_read_and_fall_with_it(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "speaks.py").write_text(
        "import pathlib, sys\nout, status = sys.argv[1:3]\nprint(f'error: {out}')\n"
        "if status == '0': pathlib.Path(out).touch()\nsys.exit(int(status))\n"
    )

    def child(name, status, *after):
        words = ("speaks", str(tmp_path / name), str(status))
        return Child(name, name, words, tmp_path / name, after)

    children = [child("a", 3), child("b", 0), child("c", 0, "a"), child("d", 0, "b"), child("e", 0, "c")]
    failures = run_children(children, [{}, {}], tmp_path / "logs")
    assert [(f.name, f.reason, f.status, f.follows) for f in failures] == [
        ("a", str(tmp_path / "a"), 3, False),
        ("c", "needs a, which failed", 3, True),
        ("e", "needs c, which failed", 3, True),
    ]
    assert [one.name for one in children if one.done.exists()] == ["b", "d"]
    assert run_children([child("b", 1)], [{}], tmp_path / "logs") == []  # complete: not run again


# Results, words, report: made-up networks.

KIND_DICE = {"teacher": 0.8, "alone": 0.6, "distilled": 0.75}


def outcome_of(stage, manifest, base, *, val=None):
    """A bundle whose images have `base` + up to 0.03, half of them small, with Dice 0.1 lower."""
    scores = {}
    for k in range(30):
        small = k % 2
        dice = base + 0.001 * k - 0.1 * small
        scores[f"case {k}"] = CaseScore(
            case=f"case {k}", patient=f"p{k // 2}", dice=dice, iou=dice - 0.1, precision=0.9,
            recall=0.7, true_share=0.01 if small else 0.2,
        )  # fmt: skip
    metric = Metric(name="dice_mean", split="val", value=base if val is None else val, cases=3)
    return Outcome(stage, manifest.model_copy(update={"metrics": (metric,)}), scores)


def made_record(dataset, manifest, dice=None, *, drop=(), failures=(), **more):
    """By kind of network what it reaches with the few labels; all labels give 0.1 more, INT8 0.01 less."""
    made = settings(**{"design": ("nano",), "seeds": 3, **more})
    plan = make_plan(made)
    stages = plan.stages({})
    dice = dice or KIND_DICE
    finished = []
    for stage in stages:
        if stage.arm and stage.name not in drop:
            base = dice[stage.arm.kind] + 0.1 * (stage.share == 1) + 0.001 * stage.seed
            finished.append(outcome_of(stage, manifest, base - 0.01 * (stage.engine == "openvino")))
    return summarise(plan, dataset, stages, finished, [], failures, [])


def test_rows_differences_and_the_gap_by_hand(dataset, manifest):
    record = made_record(dataset, manifest)
    assert [row.label for row in record.rows[:3]] == [
        "teacher lightunet, 10 % labelled",
        "nano alone, 10 % labelled",
        "nano from lightunet, 10 % labelled",
    ]
    alone = record.rows[1]
    # 0.6 + images' 0.0145 + seeds' 0.001 − 0.05 for the small half
    assert alone.dice.mean == pytest.approx(0.5655)
    assert alone.dice.by_seed == pytest.approx((0.5645, 0.5655, 0.5665))
    assert alone.dice.low < alone.dice.mean < alone.dice.high
    assert (alone.cases, alone.patients, alone.seeds, alone.missing) == (30, 15, 3, 0)
    assert alone.int8.mean == pytest.approx(0.5555)
    assert (alone.iou.mean, alone.precision.mean, alone.recall.mean) == pytest.approx((0.4655, 0.9, 0.7))
    assert (alone.small.mean, alone.large.mean) == pytest.approx(
        (0.6 + 0.001 + 0.015 - 0.1, 0.6 + 0.001 + 0.014)
    )
    assert (record.small_share, record.small_cases) == (pytest.approx(0.105), 15)
    found = {(c.question, c.share): c for c in record.comparisons}
    gap = found["teacher − alone", 0.1]
    assert (gap.mean, gap.low, gap.high) == pytest.approx((0.2, 0.2, 0.2))
    assert (gap.above, gap.small.mean) == (3, pytest.approx(0.2))
    assert found["INT8: distilled − teacher", 0.1].mean == pytest.approx(-0.06)
    assert found["INT8: distilled − teacher", 0.1].first == "nano from lightunet, 10 % labelled, INT8"
    assert found["distilled − alone with all labels", 0.1].mean == pytest.approx(0.05)
    assert ("distilled − alone with all labels", 1.0) not in found
    closed = {(g.share, g.precision): g.closed for g in record.gaps}
    assert closed[0.1, "fp32"].mean == pytest.approx(0.75)
    assert closed[0.1, "int8"].mean == pytest.approx(0.15 / 0.21)
    assert record.headline == (
        "At 10 % of the labels the teacher is +20.0 points (95 % interval +20.0 to +20.0) above the student alone; distilling closes "
        "75 % (75 to 75 %) of that gap and gains the student +15.0 points (+15.0 to +15.0)."
    )
    assert record.answers == (
        "With those labels the distilled student is +5.0 points (+5.0 to +5.0) from the student alone that had all "
        "labels.",
        "In INT8 it is −6.0 points (−6.0 to −6.0) from its teacher, and +5.0 points (+5.0 to +5.0) from the INT8 "
        "student alone that had all labels.",
        "With all labels the teacher is +20.0 points (95 % interval +20.0 to +20.0) above the student alone; distilling closes "
        "75 % (75 to 75 %) of that gap and gains the student +15.0 points (+15.0 to +15.0).",
        "In INT8 it is −6.0 points (−6.0 to −6.0) from its teacher.",
    )


def test_with_few_seeds_nothing_is_claimed(dataset, manifest):
    record = made_record(dataset, manifest, seeds=2, all_labels=False, int8=False)
    assert record.headline.endswith("(+15.0 to +15.0). Nothing is claimed: 2 seeds of at least 3.")
    assert record.doubts[0] == (
        "Everything was trained with 2 seeds: the intervals speak of other patients and hardly of another training. "
        "Nothing is claimed with fewer than 3."
    )
    assert any("There are 15 test patients" in doubt for doubt in record.doubts)


def test_where_the_teacher_does_not_lead_there_is_no_gap_to_close(dataset, manifest):
    equal = made_record(
        dataset, manifest, {"teacher": 0.6, "alone": 0.6, "distilled": 0.6}, all_labels=False, int8=False
    )
    assert equal.headline == (
        "At 10 % of the labels the teacher is not told apart from the student alone, 0.0 points (95 % interval 0.0 to 0.0), so there "
        "is no gap to close; distilling changes the student by 0.0 points (0.0 to 0.0), which is not told from nothing."
    )
    assert equal.gaps[0].closed is None
    behind = made_record(
        dataset, manifest, {"teacher": 0.5, "alone": 0.6, "distilled": 0.55}, all_labels=False, int8=False
    )
    assert behind.headline == (
        "At 10 % of the labels the teacher is −10.0 points (95 % interval −10.0 to −10.0) behind the student alone; distilling costs "
        "the student −5.0 points (−5.0 to −5.0)."
    )


def test_a_seed_that_failed_leaves_pairs_of_the_others(dataset, manifest):
    gone = "share0.1-seed1-distilled-nano-lightunet"
    record = made_record(
        dataset, manifest, drop=(gone,), failures=(Problem(name=gone, reason="killed"),), int8=False
    )
    row = record.rows[2]
    assert (row.seeds, row.missing) == (2, 1)
    gain = next(c for c in record.comparisons if c.question == "distilled − alone")
    assert (len(gain.by_seed), gain.mean) == (2, pytest.approx(0.15))
    assert record.doubts[0].startswith("1 stage failed:")
    text = render_markdown(record)
    assert f"Failed: {gone}: killed" in text
    assert "| 2 of 3 |" in text


def test_nothing_to_report_is_no_report(dataset):
    plan = make_plan(settings())
    with pytest.raises(GateError, match="no network is complete, there is nothing to report"):
        summarise(plan, dataset, plan.stages({}), [], [], [], [])


def test_the_best_teacher_is_chosen_on_validation(dataset, manifest):
    plan = make_plan(settings(systems=("unet", "lightunet"), seeds=1, all_labels=False, int8=False))
    stages = plan.stages({})
    finished = [
        outcome_of(stage, manifest, 0.9 if stage.arm.teacher == "unet" else 0.5, val=0.1 if stage.arm.teacher == "unet" else 0.7)
        for stage in stages
        if stage.arm
    ]  # fmt: skip
    record = summarise(plan, dataset, stages, finished, [], [], [])
    assert "the teacher lightunet is not told apart" in record.headline  # test images do not choose


def test_the_grid_chooses_by_validation_alone(manifest):
    plan = make_plan(settings(grid=("lr=1e-4,1e-3",), all_labels=False))
    low, high = plan.grid_stages()
    done = [outcome_of(low, manifest, 0.9, val=0.5), outcome_of(high, manifest, 0.4, val=0.6)]
    cells, chosen = choose_values(done)
    assert chosen == {(0.1, "small"): (("lr", 1e-3),)}
    assert [(cell.values, cell.dice_val, cell.chosen) for cell in cells] == [
        ({"lr": 1e-4}, 0.5, False),
        ({"lr": 1e-3}, 0.6, True),
    ]


def test_the_page_has_every_plot_and_names_no_address(dataset, manifest):
    record = made_record(dataset, manifest)
    curves = tuple(run.model_copy(update={"curve": (0.1, 0.5)}) for run in record.runs)
    record = record.model_copy(update={"runs": curves})
    assert list(draw_plots(record)) == ["shares", "networks", "curves"]
    html = render_html(record, [{"svg": "<svg></svg>", "caption": "c", "name": "n"}], [])
    assert "http" not in html
    assert "Share of the gap closed" in html
    assert "python -m teacher.train --data=phantom:cxr:6" in html
    text = render_markdown(record)
    assert text.startswith(f"# {record.headline}")
    assert (
        "| nano, lightunet | 10 % labelled | FP32 | +20.0 (+20.0 to +20.0) | +15.0 (+15.0 to +15.0) |" in text
    )


def test_pictures_are_of_the_worst_the_middle_and_the_best():
    many = [str(k) for k in range(21)]
    assert [name for _, name in pick_cases(many)] == ["0", "1", "2", "8", "9", "10", "11", "18", "19", "20"]
    assert [name for _, name in pick_cases(many[:4])] == ["0", "1", "2", "3"]


def test_the_truths_line_lies_inside_its_edge_and_widens_with_the_picture():
    picture, truth = np.zeros((9, 9, 3), np.uint8), np.zeros((9, 9), int)
    truth[2:7, 2:7] = 1
    marked = (outline(picture, truth) == TRUTH).all(axis=2)
    assert marked[2:7, 2:7].sum() == marked.sum() == 16
    assert not picture.any()
    wide = (outline(np.zeros((270, 270, 3), np.uint8), np.ones((270, 270), int)) == TRUTH).all(axis=2)
    assert wide.sum() == 0  # its edge is the picture's
    halves = np.repeat([[0, 1]], 270, axis=0).repeat(135, axis=1)
    assert (outline(np.zeros((270, 270, 3), np.uint8), halves) == TRUTH).all(axis=2).sum() == 2 * 270


def test_an_arm_is_called_by_what_it_is():
    assert Arm("distilled", 0.1, "unet:tiny", "runs/fast.yaml").label == "fast from unet:tiny, 10 % labelled"


def test_a_refusal_of_the_guard_is_no_failure_and_is_kept(tmp_path):
    stages = make_plan(settings(out=tmp_path, design=("nano",))).stages({})
    alone, int8 = stages[1:3]
    int8.refused.parent.mkdir(parents=True)
    failures = [
        ChildFailure(alone.name, "no memory", 3),
        ChildFailure(int8.name, "int8 loses 1.2 points", 3),
        ChildFailure(stages[5].name, "needs another, which failed", 3, follows=True),
    ]
    assert note_refusals(stages, failures) == [failures[0], failures[2]]
    assert int8.refused.read_text() == "int8 loses 1.2 points"
    # It holds for the student that was refused, and not for one that was trained since.
    alone.folder.mkdir(parents=True)
    (alone.folder / "manifest.json").touch()
    os.utime(alone.folder / "manifest.json", (0, 0))
    drop_stale(int8, "0", None)
    assert int8.refused.exists()
    later = int8.refused.stat().st_mtime + 1
    os.utime(alone.folder / "manifest.json", (later, later))
    drop_stale(int8, "0", None)
    assert not int8.refused.exists()


# One small comparison, in earnest.


def job_for(folder, engine, tmp_path):
    return Job(
        module="none", words=(), folder=folder, usage=tmp_path / "u", scores=tmp_path / f"{engine}.json", masks=None,
        engine=engine, data="phantom:cxr:24", test_limit=3,
    )  # fmt: skip


def test_a_student_is_tested_in_pytorch_and_its_int8_in_openvino(torch_bundle, exported, tmp_path):
    found = []
    for folder, engine in ((torch_bundle, "torch"), (exported("openvino", "int8"), "openvino")):
        job = job_for(folder, engine, tmp_path)
        run_job(job)
        found.append(ScoreFile.model_validate_json(job.scores.read_text()))
    plain, int8 = ({score.case: score for score in file.cases} for file in found)
    assert list(plain) == list(int8)
    assert len(plain) == 3
    assert found[0].bundle_sha256 != found[1].bundle_sha256
    for case, score in plain.items():
        assert score.dice > 0.1
        assert 2 * score.precision * score.recall / (score.precision + score.recall) == pytest.approx(
            score.dice
        )
        assert int8[case].dice == pytest.approx(score.dice, abs=0.1)
        assert int8[case].true_share == score.true_share > 0.01


def write_data(folder):
    """A dozen small films of their own patients."""
    (folder / "images").mkdir(parents=True)
    (folder / "masks").mkdir()
    for case in open_dataset("phantom:cxr:12").cases:
        for kind, pixels in (("images", case.image()), ("masks", case.mask() * 255)):
            Image.fromarray(pixels[::4, ::4]).save(folder / kind / f"{case.id}.png")


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """A comparison with tiny networks, killed while the student alone was trained. Returns its words, and its children."""
    root = tmp_path_factory.mktemp("distillation")
    write_data(root / "D")
    config = root / "own.yaml"
    config.write_text(
        "systems: [lightunet]\ndesign: [nano]\nlabelled-share: [0.5]\nall-labels: false\nint8: false\nseeds: 1\nsize: 64\n"
        "epochs: 1\nsteps: 2\nbatch-size: 2\nteacher-epochs: 1\nlimit: 4\ndevice: cpu\n"
        "own-settings: {teacher: {unet-width: 2, lr: 0.01, batch-size: 2}}\n"
    )
    words = ["--config", str(config), "--data", str(root / "D"), "--out", str(root / "O")]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-m", "benchmarks.distillation", *words]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    second = root / "O" / "logs" / "share0.5-seed0-alone-nano.log"
    deadline = time.monotonic() + 240
    while not second.exists():
        assert process.poll() is None, "ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    children = Path(f"/proc/{process.pid}/task")
    running = [int(p) for c in children.glob("*/children") for p in c.read_text().split()]
    process.send_signal(signal.SIGKILL)
    process.wait()
    return words, running


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# Five processes that import PyTorch: less would not show that a killed comparison goes on where it was.
def test_a_killed_comparison_takes_its_stage_along_and_goes_on(killed, capsys):
    words, running = killed
    made = parse_settings(DistillationSettings, "distillation", words)
    deadline = time.monotonic() + 60
    while any(map(is_running, running)):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    folder = made.out / "share0.5" / "seed0"
    first = [folder / "teacher-lightunet" / "manifest.json", folder / "tests" / "teacher-lightunet.json"]
    before = [file.stat().st_mtime_ns for file in first]

    # Other settings are refused before anything runs.
    with pytest.raises(InputError) as caught:
        main(made.model_copy(update={"size": 96}))
    assert str(caught.value) == (
        f"{folder / 'teacher-lightunet'}: must be made with the settings of this command, was made with other ones "
        "(size 64, not 96); give those, or move it away"
    )

    # Nor may two of them write one folder.
    with (made.out / LOCK).open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(InputError) as caught:
            main(made)
    assert str(caught.value) == (
        f"--out {made.out}: must not be in use, another run of this command writes there; wait for it"
    )

    # A stage that fails does not keep the report of the others back, and is tried again.
    hindrance = folder / "distilled-nano-lightunet.partial"
    hindrance.mkdir()
    (hindrance / "settings.json").write_text("{}")
    with pytest.raises(GateError) as gate:
        main(made)
    assert str(gate.value).startswith(
        f"1 of 4 stages failed, first share0.5-seed0-distilled-nano-lightunet: --out {folder}/distilled-nano-lightunet: "
        f"{hindrance} was made with other settings"
    )
    record = DistillationRecord.model_validate_json((made.out / "results.json").read_text())
    assert [row.what for row in record.rows] == ["teacher lightunet", "nano alone"]
    assert record.headline == "Teacher, student alone and distilled student are not all there yet: no answer."
    shutil.rmtree(hindrance)

    capsys.readouterr()
    main(made)
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [file.stat().st_mtime_ns for file in first] == before  # nothing twice
    assert printed["runs"] == 3
    record = DistillationRecord.model_validate_json((made.out / "results.json").read_text())
    assert {row.what: row.dice.mean for row in record.rows} == {
        label.removesuffix(", 50 % labelled"): dice for label, dice in printed["dice"].items()
    }
    assert (record.rows[0].cases, record.rows[0].seeds, record.failures) == (3, 1, ())
    costs = {cost.stage: cost for cost in record.costs}
    assert list(costs) == [
        "teacher lightunet, 50 % labelled",
        "nano alone, 50 % labelled",
        "soft labels of lightunet, 50 % labelled",
        "nano from lightunet, 50 % labelled",
    ]
    assert all(cost.seconds > 0 and cost.peak_memory_mib > 50 for cost in costs.values())
    page = (made.out / "report.html").read_text()
    assert page.count('class="case"') == 3
    assert "http" not in page
    assert {p.name for p in (made.out / "plots").iterdir()} == {"networks.png", "cases.png"}

    # A bundle that was made anew is tested anew; all else stays.
    stage = next(s for s in make_plan(made).stages({}) if s.folder.name == "alone-nano")
    known = json.loads(stage.scores.read_text())
    stage.scores.write_text(json.dumps(known | {"bundle_sha256": "of another"}))
    drop_stale(stage, record.data_sha256, made.test_limit)
    assert not stage.scores.exists()
