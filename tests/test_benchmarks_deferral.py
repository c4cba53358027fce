"""The numbers can be done in one's head; the degradations do what they say; the command writes its folder."""

import csv
import json

import numpy as np
import pytest

from benchmarks.checks.deferral import CaseRow, condition_of, curve_of
from benchmarks.checks.degrade import DEGRADATIONS, Sample
from segcore.phantom import phantom_case
from segcore.stats import auroc, pearson, ranks, spearman


def row(case, quality, student, teacher=1.0, condition="clean", patient=None) -> CaseRow:
    return CaseRow(condition=condition, case=case, patient=patient or case, quality=quality, dice_student=student,
                   dice_teacher=teacher)  # fmt: skip


def test_ranks_share_ties():
    assert ranks(np.array([10, 30, 20, 20])).tolist() == [1, 4, 2.5, 2.5]


def test_correlations():
    a = np.array([1.0, 2, 3, 4])
    assert pearson(a, 5 - 2 * a) == pytest.approx(-1)
    assert spearman(a, np.exp(a)) == pytest.approx(1)
    assert pearson(a, np.exp(a)) < 0.95
    assert spearman(a, np.array([1.0, 2, 4, 3])) == pytest.approx(0.8)  # 1 − 6·2 / (4·15)
    assert pearson(a, np.ones(4)) is spearman(np.ones(4), a) is None


def test_auroc_counts_pairs():
    positive = np.array([True, True, False, False])
    assert auroc(np.array([4.0, 3, 2, 1]), positive) == 1
    assert auroc(np.array([4.0, 1, 2, 3]), positive) == 0.5
    assert auroc(np.array([1.0, 1, 1, 1]), positive) == 0.5
    assert auroc(np.ones(2), np.ones(2, bool)) is None


ROWS = [row("a", 0.9, 0.8), row("b", 0.5, 0.4), row("c", 0.7, 0.6, teacher=0.5), row("d", 0.95, 1.0)]


def test_curve_in_the_head():
    curve = curve_of(ROWS, below=0.8, student_ms=2.0, teacher_ms=10.0)
    assert (curve.least_sure[0], curve.least_sure[100]) == pytest.approx((0.7, 0.875))
    assert curve.least_sure[25] == pytest.approx(0.85)  # b gains 0.6 of 4 cases
    assert curve.least_sure[50] == pytest.approx(0.825)  # c loses 0.1
    assert curve.least_sure[75] == pytest.approx(0.875)  # a gains 0.2
    assert curve.oracle[50] == pytest.approx(0.9)  # b and a
    assert curve.random[50] == pytest.approx((0.7 + 0.875) / 2)
    assert curve.latency_ms[50] == pytest.approx(7.0)
    at = curve.at_threshold
    assert (at.sent, at.dice, at.latency_ms) == pytest.approx((0.5, 0.825, 7.0))
    assert (at.dice_kept, at.dice_sent, at.dice_sent_teacher) == pytest.approx((0.9, 0.5, 0.75))
    nothing = curve_of(ROWS, below=0.0, student_ms=2.0, teacher_ms=10.0).at_threshold
    assert (nothing.sent, nothing.dice, nothing.dice_sent) == (0.0, pytest.approx(0.7), None)


def test_condition_in_the_head():
    found = condition_of(ROWS, below=0.75)
    assert (found.cases, found.poor, found.flagged, found.auroc) == (4, 0.5, 0.5, 1.0)
    assert found.mae.value == pytest.approx(0.0875)
    assert found.spearman.value == 1
    assert found.mae.low <= found.mae.value <= found.mae.high
    alone = condition_of([row(c, q, 0.0, patient="p") for c, q in (("a", 0.1), ("b", 0.3))], below=0.5)
    assert (alone.spearman.value, alone.pearson.value, alone.auroc) == (None, None, None)
    assert (alone.mae.value, alone.mae.low) == (pytest.approx(0.2), None)


@pytest.mark.parametrize("name", DEGRADATIONS)
@pytest.mark.parametrize("kind", ["uint8", "uint16", "rgb"])
def test_degradations_keep_form_and_follow_the_seed(name, kind):
    image, mask = phantom_case("cxr", 3, size_px=96)
    image = {"uint8": image, "uint16": image.astype(np.uint16) * 16, "rgb": np.stack([image] * 3, -1)}[kind]
    sample = Sample(image, mask)
    one, same = (DEGRADATIONS[name](sample, np.random.default_rng(5)) for _ in range(2))
    assert (one.image.shape, one.image.dtype, one.mask.dtype) == (image.shape, image.dtype, mask.dtype)
    np.testing.assert_array_equal(one.image, same.image)
    assert (one.image != image).mean() > 0.05
    assert (one.mask != mask).any() == (name == "rotation")


def test_a_missing_lung_is_grey_and_the_other_is_left():
    image, mask = phantom_case("cxr", 3, size_px=128)
    hidden = DEGRADATIONS["missing lung"](Sample(image, mask), np.random.default_rng(0)).image
    changed = np.abs(hidden.astype(int) - image)
    middle = int(np.flatnonzero(mask.any(0)).mean())
    sides = [changed[:, part][mask[:, part] > 0].mean() for part in (slice(0, middle), slice(middle, None))]
    assert max(sides) > 10 * min(sides)
    empty = Sample(image, mask * 0)
    assert DEGRADATIONS["missing lung"](empty, np.random.default_rng(0)) is empty


def test_the_command_writes_its_folder(exported, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    from benchmarks.checks.deferral import DeferralSettings, main
    from segcore.bundle.folder import open_bundle, seal_bundle
    from segcore.errors import InputError
    from segcore.picture.quality import QualityModel

    plain = exported("openvino", "fp32")
    bundle, student = open_bundle(plain), tmp_path / "student"
    student.mkdir()
    for name in bundle.manifest.files:
        (student / name).write_bytes(bundle.path(name).read_bytes())
    quality = QualityModel(
        weights=(1.0, -1.0) + (0.0,) * 11, centre=(-1.0,) + (0.0,) * 5, spread=(1.0,) * 6, high=(1.0,) * 6,
        shape_centre=((0.0,) * 7,), shape_spread=((1.0,) * 7,), empty_right=(0.0,), cases=20, error=0.1,
        error_degraded=0.1,
    )  # fmt: skip
    fields = {k: v for k, v in bundle.manifest if k not in ("files", "schema_version")}
    seal_bundle(student, **{**fields, "quality": quality})
    words = {
        "defer_to": exported("onnx", "fp32"),
        "data": "phantom:cxr:24",
        "out": tmp_path / "out",
        "limit": 2,
    }
    main(DeferralSettings(**words, bundle=student, also_test="phantom:dental:24", rounds=1))
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    record = json.loads((tmp_path / "out" / "record.json").read_text())
    with (tmp_path / "out" / "cases.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["condition", "case", "patient", "quality", "dice_student", "dice_teacher"]
    names = ["clean", "exposure", "noise", "blur", "rotation", "missing lung", "foreign: phantom:dental:24"]
    assert (
        list(dict.fromkeys(r["condition"] for r in rows))
        == [c["condition"] for c in record["conditions"]]
        == names
    )
    assert len(rows) == 2 * len(names)
    # the same network in two engines: passing a case on changes next to nothing
    assert all(abs(float(r["dice_student"]) - float(r["dice_teacher"])) < 0.02 for r in rows)
    assert [curve["cases"] for curve in record["curves"]] == [2, 12]
    assert list(last["mae"]) == names
    assert (tmp_path / "out" / "deferral.png").stat().st_size > 20_000
    with pytest.raises(InputError, match=r"must estimate its quality to go with --defer-to, does not"):
        main(DeferralSettings(**words, bundle=plain, overwrite=True))
