"""A study's numbers in closed form, its plan, its words, and one small study: killed, refused, hindered, finished."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.children import Child, TrainingMemory, last_line, run_children, slots_of
from benchmarks.study.__main__ import LIST_FLAGS, main
from benchmarks.study.job import Job
from benchmarks.study.page import render_html, render_markdown, terms
from benchmarks.study.plan import Arm, Plan, Run, Split, flags_of, make_plan
from benchmarks.study.plots import draw_plots, floor_of
from benchmarks.study.record import CaseScore, Failure, RunRecord, StudyRecord
from benchmarks.study.results import (
    RunOutcome,
    choose_reference_row,
    choose_values,
    read_outcome,
    summarise_study,
)
from benchmarks.study.settings import StudySettings, parse_grid, words_of
from benchmarks.study.teachers import AUTOMATIC, SYSTEMS, EffectiveTuning, check_other, thinned
from benchmarks.study.words import is_told_apart
from segcore.bundle.manifest import Manifest
from segcore.command import parse_settings, repeat_flags
from segcore.dataset.dataset import open_dataset
from segcore.errors import GateError, InputError
from segcore.stats import (
    FLIPS,
    corrected_t_p,
    differences,
    drop_between,
    holm,
    mean_by_case,
    mean_sd,
    places,
    sd_within,
    sign_flip_test,
    student_t_p,
)

DATA = "phantom:cxr:30"


def settings(**more):
    return StudySettings(**{"data": DATA, "out": "unused", **more})


# Numbers.


def test_means_and_deviations():
    assert mean_sd([1, 2, 3]) == (2, 1)
    assert mean_sd([5]) == (5, None)
    assert mean_by_case([{"a": 1.0, "b": 2.0}, {"a": 3.0}]) == {"a": 2, "b": 2}
    # Within splits the seeds differ by 2 each time: the splits' own distance of 10 does not count.
    assert sd_within([1, 3, 11, 13], ["A", "A", "B", "B"]) == pytest.approx(np.sqrt(2))
    assert sd_within([1, 2], ["A", "B"]) is None


def test_differences_are_of_the_cases_that_both_runs_have():
    pairs = [({"a": 3.0, "b": 1.0}, {"a": 1.0}), ({"a": 1.0}, {"a": 1.0, "c": 0.0})]
    assert differences(pairs) == {"a": 1}


def test_sign_flips_are_counted_exactly_for_few_patients():
    # Five patients all better: of 32 sign patterns two are as far from 0. Two cases of a patient flip together.
    values, patients = [1.0, 1.0, 2.0, 3.0, 1.0, 2.0], ["a", "a", "b", "c", "d", "e"]
    assert sign_flip_test(values, patients) == (2 / 32, 32)
    assert sign_flip_test([1.0, -1.0], ["a", "b"]).p == 1
    assert sign_flip_test([0.0, 0.0, 0.0], ["a", "b", "c"]).p == 1


def test_sign_flips_of_many_patients_are_drawn_and_never_give_0():
    patients = [str(i) for i in range(40)]
    assert sign_flip_test([1.0] * 40, patients) == (1 / (1 + FLIPS), FLIPS)
    noise = np.random.default_rng(3).normal(size=40)
    # Near what the normal approximation says of these numbers.
    z = abs(noise.sum()) / np.sqrt((noise**2).sum())
    from math import erfc

    assert sign_flip_test(noise.tolist(), patients).p == pytest.approx(erfc(z / np.sqrt(2)), abs=0.02)


def test_holm_multiplies_the_smallest_by_all_and_never_falls():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1, 1]
    assert holm([]) == []


@pytest.mark.parametrize(
    ("t", "freedom", "p"),
    [
        (1, 1, 0.5),
        (12.7062, 1, 0.05),
        (4.30265, 2, 0.05),
        (3.18245, 3, 0.05),
        (2.77645, 4, 0.05),
        (2.04227, 30, 0.05),
    ],
)
def test_student_t_by_its_table(t, freedom, p):
    assert student_t_p(t, freedom) == pytest.approx(p, abs=1e-5)
    assert student_t_p(-t, freedom) == student_t_p(t, freedom)


def test_the_corrected_t_test_trusts_splits_less_than_the_plain_one():
    by_split = [1.0, 2.0, 3.0]  # mean 2, sd 1: plainly t = 2·√3
    assert corrected_t_p(by_split, 0) == pytest.approx(student_t_p(2 * np.sqrt(3), 2))
    assert corrected_t_p(by_split, 1 / 3) == pytest.approx(student_t_p(2 / np.sqrt(1 / 3 + 1 / 3), 2))
    assert corrected_t_p([1.0, 2.0], 0.3) is None
    assert (corrected_t_p([1.0] * 3, 0.3), corrected_t_p([0.0] * 3, 0.3)) == (0, 1)


def test_places_follow_the_means_and_their_range_the_patients():
    patients = ["a", "b", "c", "d"]
    clear = np.array([[1.0, 1, 1, 1], [3, 3, 3, 3], [2, 2, 2, 2]])
    assert places(clear, patients) == [(3, 3, 3), (1, 1, 1), (2, 2, 2)]
    unsure = np.array([[9.0, 0, 0, 0], [0, 1, 1, 1]])
    assert places(unsure, patients) == [(1, 1, 2), (2, 1, 2)]
    assert places(np.ones((2, 4)), patients) == [(1, 1, 1), (1, 1, 1)]


def test_a_drop_on_other_data_is_not_paired():
    own, far = {"a": 0.9, "b": 0.9}, {"x": 0.7, "y": 0.8, "z": 0.6}
    drop = drop_between(own, {"a": "1", "b": "2"}, far, {"x": "1", "y": "2", "z": "3"})
    assert drop.mean == pytest.approx(-0.2)
    assert drop.low == pytest.approx(-0.3) or drop.low > -0.3
    assert -0.3 - 1e-9 <= drop.low < drop.high <= -0.1 + 1e-9
    assert drop_between(own, {"a": "1", "b": "1"}, far, dict.fromkeys(far, "1")).low is None


# Settings and plan.

SPLITS = (Split("1/3"), Split("2/3"), Split("3/3"))


def test_lists_may_be_given_with_spaces_commas_or_again():
    words = [
        "--systems",
        "unet",
        "lightunet",
        "--grid",
        "lr=1e-4,1e-3",
        "--grid",
        "weight-decay=0,0.1",
        "--data",
        "D",
    ]
    made = parse_settings(
        StudySettings,
        "study",
        [*repeat_flags(words, LIST_FLAGS), "--out", "O", "--rank", "8,1", "--rank", "4"],
    )
    assert made.systems == ("unet", "lightunet")
    assert made.rank == (1, 4, 8)
    assert parse_grid(made.grid) == {"lr": (1e-4, 1e-3), "weight_decay": (0, 0.1)}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--folds", "2"],
            "--folds: must be 1 or at least 3 (one fold tests, one validates, the others train), got '2'",
        ),
        (
            ["--labelled-share", "0.1,2"],
            "--labelled-share: must be shares above 0 and up to 1, got [0.1, 2]",
        ),
        (["--rank", "0"], "--rank: must be ranks of at least 1, got [0]"),
    ],
)
def test_values_that_are_none_of_a_study(words, message):
    with pytest.raises(InputError) as caught:
        parse_settings(StudySettings, "study", ["--data", "D", "--out", "O", *words])
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"grid": ("lr",)}, "--grid lr: must be NAME=NUMBER,NUMBER…, such as lr=1e-4,1e-3"),
        ({"grid": ("lr=fast",)}, "--grid lr=fast: must be NAME=NUMBER,NUMBER…, such as lr=1e-4,1e-3"),
        (
            {"grid": ("epochs=1,2",)},
            "--grid: epochs must be the same for every system; give the study's own setting",
        ),
        ({"grid": ("speed=1",)}, "--grid: speed must be a setting of teacher.train, is none; see its --help"),
        ({"systems": ("resnet",)}, f"--systems resnet: must be all or some of {', '.join(SYSTEMS)}"),
        (
            {"systems": ("sam2-memory",), "weights": "w.pt"},
            f"--systems sam2-memory: must have scans of several slices, {DATA} has single pictures; leave it away",
        ),
        ({"systems": ("unet",), "rank": (1,)}, "--rank: must have a system that LoRA tunes, got unet"),
        (
            {"own_settings": {"unet": {"limit": 5}}},
            "own-settings unet: limit must be the same for every system; give the study's own setting",
        ),
        (
            {"systems": ("unet",), "tune": ("dora",)},
            "--tune dora: must have a system with an encoder of SAM 2, got unet",
        ),
        (
            {"systems": ("s2agscunet",), "weights": "w.pt", "tune": ("lora", "full")},
            "--tune full: must be some of lora, dora, rslora, ia3, adapter, adapter-parallel, adapter-channel-space, "
            "bitfit, decoder, all",
        ),
        ({"own_settings": {"vnet": {}}}, f"own-settings vnet: must be all or one of {', '.join(SYSTEMS)}"),
        (
            {"systems": ("s2agscunet",)},
            "--weights: must be given for --system s2agscunet; give SAM 2.1's weights, or none with --tune all",
        ),
    ],
)
def test_a_plan_is_refused_before_anything_runs(more, message):
    with pytest.raises(InputError) as caught:
        make_plan(settings(**more), open_dataset(DATA))
    assert str(caught.value) == message


def test_without_weights_the_controls_are_planned_and_the_others_named():
    plan = make_plan(settings(seeds=2, repeats=2), open_dataset(DATA))
    assert [arm.label for arm in plan.main] == ["unet", "lightunet"]
    assert plan.skipped[0].startswith("s2agscunet, sam2-unet")
    runs = plan.runs({})
    assert [run.name for run in runs[:3]] == [
        "unet-split0-seed0",
        "lightunet-split0-seed0",
        "unet-split0-seed1",
    ]
    assert len({run.name for run in runs}) == len(runs) == 2 * 2 * 2


def test_ablations_leave_out_what_the_system_is_anyway():
    more = {"systems": ("s2agscunet", "unet"), "weights": "w.pt", "folds": 3, "seeds": 1}
    plan = make_plan(
        settings(**more, rank=(1, 4), tune=("lora", "dora"), labelled_share=(0.1, 1.0)), open_dataset(DATA)
    )
    labels = [arm.label for arm in plan.ablations]
    assert labels == [
        "s2agscunet, dora",
        "s2agscunet, rank 1",
        "s2agscunet, 10 % labelled",
        "unet, 10 % labelled",
        "s2agscunet, dora, 10 % labelled",
    ]
    assert [split.fold for split in plan.splits] == ["1/3", "2/3", "3/3"]
    flags = flags_of(settings(**more), plan.ablations[0])
    assert (flags["tune"], flags["weights"]) == ("dora", "w.pt")
    assert "weights" not in flags_of(settings(**more), plan.main[1])


def test_own_settings_and_the_grid_come_after_the_common_ones():
    own = {"all": {"flip": False, "lr": 2e-3}, "unet": {"lr": 3e-3, "unet-width": 4}}
    flags = flags_of(settings(own_settings=own), Arm("unet"), (("weight_decay", 0.5),))
    assert (flags["flip"], flags["lr"], flags["unet_width"], flags["weight_decay"]) == (False, 3e-3, 4, 0.5)
    assert flags_of(settings(own_settings=own), Arm("lightunet"))["lr"] == 2e-3
    assert words_of({"flip": False, "limit": None, "unet_width": 4}) == ["--no-flip", "--unet-width=4"]


def test_runs_may_be_added_to_a_study_but_not_changed():
    assert settings(seeds=1).recipe() == settings(seeds=5, systems=("unet",), folds=3, parallel=2).recipe()
    assert settings(epochs=1).recipe() != settings(epochs=2).recipe()


@pytest.mark.parametrize(("share", "passes"), [(1.0, 1), (0.6, 2), (0.5, 2), (0.1, 10), (0.05, 20)])
def test_fewer_labels_are_passed_over_more_often(share, passes):
    flags = flags_of(settings(), Arm("unet", share=share))
    assert (flags["labelled_share"], flags["passes"]) == (share, passes)
    assert f"--passes={passes}" in words_of(flags)


def test_what_is_not_trained_runs_once_a_split_whatever_the_seeds_and_the_grid():
    still, unet = Arm("sam2-zeroshot"), Arm("unet")
    plan = Plan((unet, still), (), SPLITS[:2], (0, 1, 2), {"lr": (1e-4, 1e-3)})
    assert {run.arm for run in plan.grid_runs()} == {unet}
    runs = plan.runs({("unet", SPLITS[0]): (("lr", 1e-3),)})
    assert [run.name for run in runs if run.arm == still] == [
        "sam2-zeroshot-fold1of3-split0-seed0",
        "sam2-zeroshot-fold2of3-split0-seed0",
    ]
    assert len([run for run in runs if run.arm == unet]) == 3  # the other split's grid has chosen nothing


def test_other_data_must_have_the_classes_and_other_images(tmp_path):
    data = open_dataset(DATA)
    with pytest.raises(InputError) as caught:
        check_other(open_dataset("phantom:dental:6"), data)
    assert str(caught.value).startswith(
        f"--also-test phantom:dental:6: must have the classes of {DATA} (lung), got "
    )
    with pytest.raises(InputError) as caught:
        check_other(open_dataset("phantom:cxr:6"), data)
    assert str(caught.value) == (
        f"--also-test phantom:cxr:6: must hold other images than {DATA}, 6 are in both (cxr-0000); take them out"
    )
    check_other(open_dataset("phantom:cxr:6", seed=1), data)


def test_fewer_test_cases_are_spread_and_scans_stay_whole():
    pictures = open_dataset(DATA).cases
    assert [case.id for case in thinned(pictures, 3)] == ["cxr-0000", "cxr-0010", "cxr-0020"]
    assert thinned(pictures, None) == thinned(pictures, 30) == pictures
    slices = [
        replace(case, volume="abc"[i // 10]) for i, case in enumerate(pictures)
    ]  # three scans of ten slices
    assert thinned(slices, 29) == (*slices[:10], *slices[10:20])
    assert thinned(slices, 19) == thinned(slices, 4) == tuple(slices[:10])


# Results, words, report: made-up runs.

PATIENTS = {split: [f"{split.fold[0]}-{i}" for i in range(6)] for split in SPLITS}


def finished(run, base, *, protocol=AUTOMATIC, trained=1000, val=0.0):
    """A run whose cases have `base` + a hundredth for each patient."""
    scores = [
        CaseScore(
            run=run.name, protocol=protocol, data=DATA, case=f"case {p}", patient=p, dice=base + 0.01 * i, iou=base,
            hd95=3.0, hd95_unit="px", dice_by_class={"lung": base + 0.01 * i},
        )
        for i, p in enumerate(PATIENTS[run.split])
    ]  # fmt: skip
    # Other data may use the same case names for other patients, and must not get in the way.
    scores += [s.model_copy(update={"data": "far", "patient": "x", "dice": s.dice - 0.1}) for s in scores]
    record = RunRecord(
        name=run.name, arm=run.arm.label, fold=run.split.fold, split_seed=0, seed=run.seed, values=dict(run.values),
        title=run.arm.system, trained_parameters=trained, parameters=2000, macs=3000, dice_val=val, seconds_epoch=1.0,
        images_s=2.0, memory=TrainingMemory(peak_memory_mib=100), train_cases=6, test_cases=6,
        dice_by_protocol={protocol: base}, commit="made up",
    )  # fmt: skip
    return RunOutcome(run, record, scores)


def made_study(bases, *, ablations=(), seeds=(0, 1, 2), drop=(), more=(), failures=()) -> StudyRecord:
    """Systems by what their runs reach: {system: Dice of seed 0 on split 1}; a seed adds 0.001, a split 0.002."""
    main_arms = tuple(Arm(name, resolved=EffectiveTuning("own")) for name in bases)
    plan = Plan(main_arms, tuple(ablations), SPLITS, tuple(seeds), {})
    runs = plan.runs({})
    done = [
        finished(r, bases[r.arm.system] * r.arm.share**0.1 + 0.001 * r.seed + 0.002 * SPLITS.index(r.split))
        for r in runs
        if r.name not in drop
    ]
    made = settings(folds=3, seeds=len(seeds), also_test="far")
    return summarise_study(made, plan, open_dataset(DATA), runs, [*done, *more], [], failures)


def test_rows_differences_and_places_by_hand():
    record = made_study({"unet": 0.6, "lightunet": 0.5, "sam2-unet": 0.7})
    assert [row.label for row in record.of("main")] == ["sam2-unet", "unet", "lightunet"]
    best, reference, worst = record.of("main")
    assert record.reference == "unet"
    assert reference.versus is None
    # 0.7 + patients' 0.025 + seeds' 0.001 + splits' 0.002
    assert best.dice.mean == pytest.approx(0.728)
    assert best.dice.sd == pytest.approx(
        np.std([0.001 * s + 0.002 * k for s in range(3) for k in range(3)], ddof=1)
    )
    assert best.dice.sd_seeds == pytest.approx(0.001)
    assert (best.runs, best.cases, best.patients, best.missing_runs) == (9, 18, 18, 0)
    assert best.versus.mean == pytest.approx(0.1)
    assert best.versus.low == pytest.approx(best.versus.high)
    assert (best.versus.above, worst.versus.above, best.versus.runs) == (9, 0, 9)
    # 18 patients, each with the same sign: no random pattern is as far.
    assert best.versus.p == pytest.approx(1 / (1 + FLIPS))
    assert best.versus.patients == 18
    assert (record.drops[0].label, record.drops[0].drop.mean) == ("sam2-unet", pytest.approx(-0.1))
    assert best.versus.p_holm == pytest.approx(2 / (1 + FLIPS))
    assert [row.place.place for row in record.of("main")] == [1, 2, 3]
    assert record.headline == "sam2-unet leads 2 others with a Dice of 0.728, +10.00 points over unet"


def test_the_reference_may_be_named_and_leads_only_with_reason():
    record = made_study({"sam2-unet": 0.6, "unet": 0.6})
    assert choose_reference_row(record.of("main"), "sam2-unet").label == "sam2-unet"
    assert choose_reference_row(record.of("main"), None).label == "unet"
    equal = next(row for row in record.of("main") if row.versus)
    assert equal.versus.p == 1
    assert not is_told_apart(equal)
    assert "not told apart from" in record.headline


def test_what_is_not_trained_is_paired_with_every_seed():
    still = Arm("sam2-zeroshot")
    runs = [finished(Run(still, split, 0), 0.4, trained=0) for split in SPLITS]
    record = made_study({"unet": 0.6, "sam2-zeroshot": 0.4}, drop=[f.run.name for f in runs], more=runs)
    row = record.of("main")[1]
    assert (row.label, row.runs, row.missing_runs) == ("sam2-zeroshot", 3, 0)
    assert (row.versus.runs, row.versus.above) == (9, 0)
    # seeds 0.001 and splits 0.002 are unet's alone
    assert row.versus.mean == pytest.approx(-0.2 - 0.001 - 0.002)
    assert any(doubt.startswith("sam2-zeroshot: nothing is trained") for doubt in record.doubts)


def test_the_report_says_what_was_not_equal():
    arms = (Arm("unet"), Arm("lightunet"))
    plan = Plan(arms, (), SPLITS, (0,), {})
    done = [finished(run, 0.5) for run in plan.runs({})]
    old = done[0].record.model_copy(update={"commit": "abc123"})
    own = settings(folds=3, seeds=1, limit=40, own_settings={"unet": {"lr": 0.002}})
    record = summarise_study(
        own, plan, open_dataset(DATA), plan.runs({}), [replace(done[0], record=old), *done[1:]], [], []
    )
    assert "50 epochs of at most 40 training images in batches of 8 for every system" in terms(record)
    assert terms(record).endswith(" Settings of their own: unet: lr 0.002.")
    assert record.doubts[0].startswith("The runs were trained by 2 versions of sam2edge (abc123, made up):")


def test_a_missing_run_leaves_pairs_of_the_others():
    gone = "lightunet-fold2of3-split0-seed1"
    failure = Failure(run=gone, reason="killed")
    record = made_study({"unet": 0.6, "lightunet": 0.5}, drop=(gone,), failures=(failure,))
    row = record.of("main")[1]
    assert (row.runs, row.missing_runs, row.versus.runs) == (8, 1, 8)
    assert row.versus.mean == pytest.approx(-0.1)
    assert record.doubts[0].startswith("1 run failed:")
    assert f"Failed: {gone}: killed" in render_markdown(record)
    assert "| 8 of 9 |" in render_markdown(record)


def test_nothing_to_report_is_no_report():
    names = [f"unet-fold{k}of3-split0-seed0" for k in (1, 2, 3)]
    with pytest.raises(GateError, match="no run of the compared systems is complete"):
        made_study({"unet": 0.5}, seeds=(0,), drop=names)


def test_who_was_told_the_truth_is_never_ranked():
    run = Run(Arm("unet"), SPLITS[0], 0)
    own, box = finished(run, 0.6), finished(run, 0.95, protocol="box")
    both = RunOutcome(run, own.record, [*own.scores, *box.scores])
    record = made_study({"unet": 0.6, "lightunet": 0.5}, drop=[run.name], more=[both])
    assert [row.protocol for row in record.of("main")] == [AUTOMATIC, AUTOMATIC]
    (upper,) = record.of("main", told=True)
    assert (upper.protocol, upper.place, upper.versus) == ("box", None, None)
    assert record.headline.startswith("unet leads lightunet")
    assert "Told by the truth (not ranked)" in render_markdown(record)


def test_doubts_say_what_few_seeds_do_not_allow():
    said = " ".join(made_study({"unet": 0.6, "lightunet": 0.5}, seeds=(0,)).doubts)
    assert "Each system was trained once a split." in said
    assert "with fewer than 3 seeds it may not be concluded that a system is better" in said
    assert "Bengio and Grandvalet" in said
    assert "There are 18 test patients" in said
    assert "Holm for the 1 comparison" in said
    three = " ".join(made_study({"unet": 0.6, "lightunet": 0.5}).doubts)
    assert "fewer than 3 seeds" not in three


def test_the_grid_chooses_by_validation_alone_split_by_split():
    arm, other = Arm("unet"), Arm("lightunet")
    low, high = (("lr", 1e-4),), (("lr", 1e-3),)
    plan = Plan((arm, other), (), SPLITS[:2], (0, 1), {"lr": (1e-4, 1e-3)})
    assert [run.values for run in plan.grid_runs()[:2]] == [low, high]
    val = {(SPLITS[0], low): 0.8, (SPLITS[0], high): 0.9, (SPLITS[1], low): 0.7, (SPLITS[1], high): 0.6}
    done = [finished(r, 0.5, val=val[r.split, r.values]) for r in plan.grid_runs() if r.arm == arm]
    cells, chosen = choose_values(done, plan)
    assert chosen == {("unet", SPLITS[0]): high, ("unet", SPLITS[1]): low}
    assert [(c.values, c.dice_val, c.chosen, c.splits) for c in cells] == [
        ({"lr": 1e-4}, pytest.approx(0.75), 1, 2),
        ({"lr": 1e-3}, pytest.approx(0.75), 1, 2),
    ]
    # The other system's grid failed: it is left out. A chosen run is the grid's own.
    assert [run.name for run in plan.runs(chosen)] == [
        "unet-lr0.001-fold1of3-split0-seed0",
        "unet-lr0.001-fold1of3-split0-seed1",
        "unet-lr0.0001-fold2of3-split0-seed0",
        "unet-lr0.0001-fold2of3-split0-seed1",
    ]


def test_a_page_with_every_plot_names_no_address():
    own = EffectiveTuning("lora", 4)
    lora = Arm("sam2-lora", resolved=own)
    ablations = (
        Arm("sam2-lora", "dora", resolved=EffectiveTuning("dora", 4)),
        Arm("sam2-lora", None, 8, resolved=EffectiveTuning("lora", 8)),
        lora.with_share(0.1),
    )
    record = made_study({"unet": 0.6, "sam2-lora": 0.65}, ablations=ablations)
    plots = draw_plots(record)
    assert list(plots) == ["systems", "parameters", "shares", "ranks", "drops"]
    html = render_html(record, [{"svg": "<svg></svg>", "caption": "c", "name": "n"}], [])
    assert "http" not in html.replace("http-equiv", "")
    assert "Share of the labels" in html
    assert [row.versus.reference for row in record.of("tune", "rank")] == ["sam2-lora", "sam2-lora"]
    assert record.of("tune")[0].versus.p_holm is None


def test_an_axis_leaves_out_what_fails():
    assert floor_of([0.95, 0.94, 0.93, 0.2]) == pytest.approx(0.935 - 3 * 0.015)
    assert floor_of([0.9, 0.5]) == 0.5


# Running.


def job(tmp_path, name, *words):
    return Job(
        name=name, words=words, bundle=tmp_path / name, memory=tmp_path / f"{name}.json", scores=tmp_path / f"{name}.jsonl",
        masks=None, data=DATA, data_sha256="0", also_test=None, test_limit=1, device="cpu", drop_weights=False,
    )  # fmt: skip


def test_a_run_that_fails_leaves_its_last_line_and_the_next_one_runs(tmp_path):
    jobs = [job(tmp_path, "a", "--system=unet"), job(tmp_path, "b", "--system=unet", "--data=phantom:cxr:3")]
    children = [
        Child(one.name, one.name, ("benchmarks.study.job", one.model_dump_json()), one.scores) for one in jobs
    ]
    slots = slots_of(2, "cpu") if (os.cpu_count() or 1) > 1 else [{}]
    failures = run_children(children, slots, tmp_path / "logs")
    assert [(f.name, f.reason, f.status) for f in failures] == [
        ("a", "--data: must be given", 2),
        ("b", "phantom:cxr:3: must have at least 6 cases, a patient for each split; got 3", 2),
    ]


def test_the_last_line_is_what_a_reader_would_see():
    assert last_line(b"epoch 1\r  50%\rerror: --lr 9: must be less\n\n") == "--lr 9: must be less"
    assert last_line(b"") == "ended without a word"


def test_each_gpu_takes_a_run_and_cores_are_shared(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    assert slots_of(None, "auto") == [{"CUDA_VISIBLE_DEVICES": "2"}, {"CUDA_VISIBLE_DEVICES": "5"}]
    assert slots_of(3, "auto")[2] == {"CUDA_VISIBLE_DEVICES": "2"}
    assert slots_of(None, "cpu") == [{}]
    with pytest.raises(InputError, match="--parallel 1000: must be at most"):
        slots_of(1000, "cpu")


def write_data(folder):
    """A dozen small films of their own patients."""
    (folder / "images").mkdir(parents=True)
    (folder / "masks").mkdir()
    for case in open_dataset("phantom:cxr:12").cases:
        for kind, pixels in (("images", case.image()), ("masks", case.mask() * 255)):
            Image.fromarray(pixels[::4, ::4]).save(folder / kind / f"{case.id}.png")


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Two tiny systems; killed during the second training. Returns its settings."""
    root = tmp_path_factory.mktemp("study")
    write_data(root / "D")
    config = root / "study.yaml"
    config.write_text(
        "systems: [lightunet, unet]\nown-settings: {all: {unet-width: 2, lr: 0.01}}\nsize: 64\nepochs: 1\nseeds: 1\n"
        "limit: 3\nbatch-size: 3\ntest-limit: 2\ndevice: cpu\n"
    )
    words = ["--config", str(config), "--data", str(root / "D"), "--out", str(root / "S")]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-m", "benchmarks.study", *words]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    second = root / "S.partial" / "logs" / "unet-split0-seed0.log"
    deadline = time.monotonic() + 240
    while not second.exists():
        assert process.poll() is None, "ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    children = Path(f"/proc/{process.pid}/task")
    running = [int(p) for c in children.glob("*/children") for p in c.read_text().split()]
    process.send_signal(signal.SIGKILL)
    process.wait()
    return parse_settings(StudySettings, "study", words), running


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_the_splits_test_counts_what_was_really_trained_and_tested_on(study):
    made, _ = study
    folder = made.out.with_name("S.partial") / "runs" / "lightunet-split0-seed0"
    manifest = Manifest.model_validate_json((folder / "manifest.json").read_text())
    scores = folder.parents[1] / "tests" / "lightunet-split0-seed0.jsonl"
    one = read_outcome(Run(Arm("lightunet"), Split(), 0), folder, folder / "none", scores)
    assert (one.record.train_cases, one.record.test_cases) == (made.limit, made.test_limit) == (3, 2)
    assert manifest.data.counts["train"] > 3
    assert one.record.commit == manifest.made.commit


def test_a_killed_study_takes_its_training_along_and_goes_on(study, capsys):
    made, running = study
    partial = made.out.with_name("S.partial")
    deadline = time.monotonic() + 60
    while any(map(is_running, running)):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    first = partial / "runs" / "lightunet-split0-seed0" / "manifest.json"
    trained = first.stat().st_mtime_ns

    # Data that changed is refused in its own name.
    mask = next((Path(made.data) / "masks").iterdir())
    kept = mask.read_bytes()
    Image.fromarray(np.zeros_like(np.asarray(Image.open(mask)))).save(mask)
    with pytest.raises(InputError) as caught:
        main(made)
    assert str(caught.value) == (
        f"--data {made.data}: must be as it was when {partial} was begun, has changed since; restore it, or remove "
        f"{partial} to begin anew"
    )
    mask.write_bytes(kept)

    # A run that fails does not keep the report of the others back, and is tried again.
    hindrance = partial / "runs" / "unet-split0-seed0"
    hindrance.write_text("in the way")
    with pytest.raises(GateError) as gate:
        main(made)
    assert str(gate.value).startswith(
        f"1 of 2 runs failed, first unet-split0-seed0: bundle {hindrance}: must be a folder with manifest.json, got none"
    )
    assert json.loads((partial / "study.json").read_text())["rows"][0]["label"] == "lightunet"
    hindrance.unlink()

    capsys.readouterr()
    main(made)
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (made.out / "runs" / "lightunet-split0-seed0" / "manifest.json").stat().st_mtime_ns == trained
    assert not partial.exists()
    assert printed["runs"] == 2
    assert set(printed["dice"]) == {"lightunet", "unet"}
    record = StudyRecord.model_validate_json((made.out / "study.json").read_text())
    assert (record.splits, record.seeds, record.size_px, record.epochs) == (1, 1, 64, 1)
    row = record.of("main")[0]
    assert (row.runs, row.cases) == (1, 2)
    assert row.trained_parameters == row.parameters > 1000
    assert row.peak_memory_mib > 50
    assert row.seconds_epoch > 0
    lines = [
        CaseScore.model_validate_json(line) for line in (made.out / "cases.jsonl").read_text().splitlines()
    ]
    by_system = {name: [s.dice for s in lines if s.run.startswith(name)] for name in ("unet", "lightunet")}
    assert printed["dice"] == {name: pytest.approx(np.mean(dice)) for name, dice in by_system.items()}
    page = (made.out / "report.html").read_text()
    assert "Worst case of" in page
    assert page.count('class="case"') == 2  # of two cases
    assert {p.stem for p in (made.out / "plots").iterdir()} == {"systems", "parameters"}
    with pytest.raises(InputError, match="must not exist yet"):
        main(made)
