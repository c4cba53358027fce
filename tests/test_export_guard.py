"""The INT8 guard: its arithmetic on toy layers, then through OpenVINO on students that INT8 breaks."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest

from export.int8.guard import MAX_FLOAT_SHARE, Judgement, rank_layers, return_layers, try_layers
from export.job import Bounds
from segcore.bundle.guard_record import DiceScore


class Layers:
    """A graph that is nothing but its layers' costs; a model file that is nothing but the names of its INT8 layers."""

    def __init__(self, **costs: float) -> None:
        self.costs, self.layers, self.written = costs, tuple(costs), []

    def write(self, path: Path, *, in_float=()) -> None:
        assert set(in_float) <= set(self.layers)
        self.written.append(tuple(in_float))
        path.write_text("\n".join(name for name in self.layers if name not in in_float))

    def judge(self, path: Path) -> Judgement:
        lost = sum(self.costs[name] for name in path.read_text().split())
        return Judgement(
            DiceScore(mean=0.9 - lost / 100, p05=0.8 - 2 * lost / 100), lost, 2 * lost, lost / 10
        )


def guard(layers, path, *, drop=0.1, p05=0.5, steps=6):
    return return_layers(layers, layers.judge, Bounds(drop, p05, steps), path, log=lambda _: None)


def whole(layers, path, *, drop=0.1, p05=0.5):
    return try_layers(layers, layers.judge, Bounds(drop, p05, 0), path, what="all", log=lambda _: None)


def test_a_graph_that_keeps_its_dice_is_left_alone(tmp_path):
    layers = Layers(a=0.01, b=0.02, c=0.0)
    found = whole(layers, tmp_path / "m")
    assert found.step.passed
    assert found.step.float_layers == 0
    assert found.step.drop_points == pytest.approx(0.03)
    assert layers.written == [()]


def test_the_culprit_goes_back_to_float_and_nothing_else(tmp_path):
    layers = Layers(**{f"l{i}": 0.0 for i in range(10)}, bad=7.0)
    found = guard(layers, tmp_path / "m")
    assert found.trial.step.passed
    assert found.in_float == ("bad",)
    assert "bad" not in (tmp_path / "m").read_text().split()
    assert "7.00 points" in found.float_layers()[0].why
    assert [s.passed for s in found.steps] == [True]


def test_culprits_that_hide_each_other_are_both_found(tmp_path):
    """Returning either one alone shows nothing, because a model without a mask cannot get worse."""

    class Saturated(Layers):
        def judge(self, path):
            lost = min(sum(self.costs[name] for name in path.read_text().split()), 50.0)
            return Judgement(DiceScore(mean=0.9, p05=0.8), lost, lost, lost)

    found = guard(Saturated(**{f"l{i}": 0.0 for i in range(10)}, x=60.0, y=55.0, z=80.0), tmp_path / "m")
    assert found.trial.step.passed
    assert set(found.in_float) == {"x", "y", "z"}


@pytest.mark.parametrize("culprits", range(1, 11))
def test_the_fewest_layers_are_returned(tmp_path, culprits):
    costs = {f"l{i}": 1.0 + i if i < culprits else 0.0 for i in range(20)}
    found = guard(Layers(**costs), tmp_path / "m", steps=10)
    assert found.trial.step.passed
    assert len(found.in_float) == culprits
    left = set((tmp_path / "m").read_text().split())
    assert left == {name for name, cost in costs.items() if not cost}


def test_few_steps_return_more_than_needed_but_never_fail_a_model_that_passed(tmp_path):
    costs = {f"l{i}": 1.0 if i < 3 else 0.0 for i in range(20)}
    found = guard(Layers(**costs), tmp_path / "m", steps=3)  # 1, 2, 4
    assert found.trial.step.passed
    assert len(found.in_float) == 4
    assert [step.float_layers for step in found.steps] == [1, 2, 4]


def test_a_graph_that_must_be_mostly_float_is_refused(tmp_path):
    costs = {f"l{i}": 1.0 for i in range(20)}
    found = guard(Layers(**costs), tmp_path / "m", steps=20)
    assert not found.trial.step.passed
    assert max(step.float_layers for step in found.steps) == int(MAX_FLOAT_SHARE * 20)
    assert found.trial.judged.drop_points == pytest.approx(10.0)


def test_no_step_ranks_nothing(tmp_path):
    layers = Layers(a=5.0, b=0.0)
    assert guard(layers, tmp_path / "m", steps=0) is None
    assert layers.written == []


def test_the_5th_percentile_counts_too(tmp_path):
    layers = Layers(a=0.09, b=0.0)
    assert whole(layers, tmp_path / "m", p05=0.2).step.passed
    assert not whole(layers, tmp_path / "m", p05=0.1).step.passed


def test_layers_are_ranked_by_what_each_costs_alone(tmp_path):
    found = rank_layers(layers := Layers(a=0.5, b=3.0, c=0.0), layers.judge, tmp_path / "m")
    assert [one.layer for one in found] == ["b", "a", "c"]
    assert [one.drop_points for one in found] == [3.0, 0.5, 0.0]


# Through OpenVINO.

DATA = "phantom:cxr:24"


@pytest.fixture(scope="module")
def calibrated(torch_bundle, tmp_path_factory):
    pytest.importorskip("nncf")
    from export.model_file import calibrate, write_model
    from export.pipeline import open_graph
    from segcore.bundle.folder import open_bundle
    from segcore.dataset.dataset import open_dataset

    folder = tmp_path_factory.mktemp("calibrated")
    source, cases = open_bundle(torch_bundle), open_dataset(DATA)
    spec, output = source.manifest.input, source.manifest.output
    write_model(open_graph(source), spec, output, folder / "fp32.onnx", to="onnx", precision="fp32")
    write_model(open_graph(source), spec, output, folder / "fp32.xml", to="openvino", precision="fp32")
    found = calibrate(folder / "fp32.onnx", to="openvino", cases=cases.split("train", limit=8), spec=spec)
    return source.manifest, cases, folder, found


@pytest.fixture(scope="module")
def judge(calibrated):
    from export.int8.guard import Judge
    from runtime.engines.seam import open_engine

    manifest, cases, folder, _ = calibrated
    opener = partial(open_engine, "openvino", precision="int8", threads=1)
    return Judge(cases.split("val"), manifest, folder / "fp32.xml", opener)


def test_every_layer_in_float_is_fp32_again(calibrated, judge, tmp_path):
    found = calibrated[3]
    assert len(found.layers) == len(set(found.layers)) > 10
    found.write(tmp_path / "float.xml", in_float=found.layers)
    back = judge.judge(tmp_path / "float.xml")
    assert back.error < 1e-5
    assert back.drop_points == 0
    found.write(tmp_path / "int8.xml")
    assert judge.judge(tmp_path / "int8.xml").error > 1e-3
    assert 2.5 < (tmp_path / "float.bin").stat().st_size / (tmp_path / "int8.bin").stat().st_size < 4.1


def test_one_layer_in_int8_errs_less_than_all(calibrated, judge, tmp_path):
    found = calibrated[3]
    found.write(tmp_path / "one.xml", in_float=found.layers[1:])
    found.write(tmp_path / "all.xml")
    one, all_ = judge.judge(tmp_path / "one.xml"), judge.judge(tmp_path / "all.xml")
    assert 0 < one.error < all_.error


def test_unknown_layers_are_refused(calibrated, tmp_path):
    with pytest.raises(ValueError, match="must be of this graph's layers, got nowhere"):
        calibrated[3].write(tmp_path / "m.xml", in_float=["nowhere"])


def test_judge_measures_what_metrics_measure(calibrated, judge):
    from segcore.measure.metrics import dice_per_class
    from segcore.picture.preprocess import mask_of_logits

    manifest, cases, folder, _ = calibrated
    from runtime.engines.seam import open_engine

    engine = open_engine("openvino", folder / "fp32.xml", precision="fp32", threads=1)
    dice = []
    for case, picture in zip(cases.split("val"), judge.inputs, strict=True):
        mask = mask_of_logits(engine.run(picture)[0], manifest.output, case.mask().shape)
        dice.append(dice_per_class(mask, case.mask(), len(manifest.classes)).mean())
    engine.close()
    assert judge.fp32.mean == pytest.approx(np.mean(dice))
    assert judge.fp32.p05 == pytest.approx(np.percentile(dice, 5))
    itself = judge.judge(folder / "fp32.xml")
    assert (itself.drop_points, itself.p05_drop_points, itself.error) == (0, 0, 0)
