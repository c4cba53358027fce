"""Bundles of the systems that answer prompts: whose masks they know, and every way to test them."""

import numpy as np
import pytest
import torch

pytest.importorskip("sam2")

from segcore.bundle.folder import open_bundle
from segcore.dataset.dataset import open_dataset
from segcore.errors import InputError
from segcore.learn.evaluate import Validator
from segcore.measure.metrics import dice_per_class
from segcore.picture.preprocess import InputSpec, output_spec
from teacher.checkpoint import CheckpointSettings
from teacher.checkpoint import main as write_checkpoint
from teacher.promptable import SLOTS
from teacher.prompts.mean_mask import automatic_prompts, mean_masks
from teacher.sam2_model import Sam2ImageModel, load_sam2_weights
from teacher.settings import TeacherSettings
from teacher.system import load_teacher, protocols
from teacher.train import main

SPEC = InputSpec(height_px=64, width_px=64, channels=1, mean=(0.45,) * 3, std=(0.23,) * 3)
DATA = "phantom:cxr:12"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Random weights of SAM 2.1 tiny, as Meta's file has them; how large the input is does not show in them."""
    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("weights") / "sam2.1_hiera_tiny.pt"
    torch.save({"model": Sam2ImageModel("tiny", 64).state_dict()}, path)
    return path


def settings(weights, system, **more):
    return TeacherSettings(system=system, data=DATA, out="unused", weights=str(weights), size=64, **more)


def test_only_training_masks_reach_the_prompts(weights, tmp_path):
    """The bundle's prompts are those of the training split; the decoder alone has changed."""
    out = tmp_path / "t"
    main(
        settings(weights, "sam2-points", epochs=1, batch_size=4, device="cpu").model_copy(update={"out": out})
    )
    bundle = open_bundle(out)
    manifest, network = bundle.manifest, load_teacher(bundle)
    dataset = open_dataset(DATA)
    train, every = (
        automatic_prompts(mean_masks(c, 1, (64, 64)), "points", 5, SLOTS)[0]
        for c in (dataset.split("train"), [c for s in ("train", "val", "test") for c in dataset.split(s)])
    )
    assert torch.equal(network.points, train)
    assert not torch.equal(network.points, every)
    before = torch.load(weights, weights_only=True)["model"]
    changed = {k.split(".")[0] for k, v in network.sam.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == {"sam_mask_decoder"}
    assert manifest.prompt.model_dump() == {
        "kinds": ("point", "box"), "slots": 10, "masks": 1, "mask_input": False, "single": True,
        "encoder_file": "", "decoder_file": "",
    }  # fmt: skip
    assert 0.5 <= manifest.output.threshold <= 0.7
    validator = Validator(dataset.split("val"), manifest.input, manifest.output, 1, batch=4)
    assert validator.dice(network) == pytest.approx(manifest.metric("dice_mean", "val"), abs=1e-6)

    # its SAM 2 comes out as a file like Meta's, to start another training with
    written, again = tmp_path / "sam2.pt", Sam2ImageModel("tiny", 64)
    write_checkpoint(CheckpointSettings(bundle=out, out=written))
    assert load_sam2_weights(again, str(written), "tiny") == "sam2.pt"  # nothing is missing
    assert all(torch.equal(v, network.sam.state_dict()[k]) for k, v in again.state_dict().items())
    with pytest.raises(InputError) as caught:
        write_checkpoint(CheckpointSettings(bundle=out, out=written))
    assert str(caught.value) == (
        f"--out {written}: must not exist yet, it does; add --overwrite to replace it"
    )


def test_zero_shot_trains_nothing_and_its_upper_bound_is_one(weights, tmp_path):
    out = tmp_path / "t"
    main(settings(weights, "sam2-zeroshot", device="cpu").model_copy(update={"out": out}))
    bundle = open_bundle(out)
    assert bundle.manifest.trained_parameters == 0
    assert bundle.manifest.output.threshold == 0.5
    assert not (out / "history.csv").exists()
    network = load_teacher(bundle)
    before = torch.load(weights, weights_only=True)["model"]
    assert all(torch.equal(v, before[k]) for k, v in network.sam.state_dict().items())
    assert network.points.shape == (1, 5, 2)  # no padding
    held = open_dataset(DATA).split("val")[:2]
    validator = Validator(held, bundle.manifest.input, output_spec(("lung",), 4), 1, batch=2)
    ways = protocols("sam2-zeroshot")
    assert list(ways) == ["automatic", "box", "1 point", "3 points", "5 points", "upper bound"]
    scores = {}
    for name, way in ways.items():
        masks = [(case.id, p, t) for case, p, t in way(network, validator)]
        assert [i for i, *_ in masks] == [case.id for case in held]
        assert all(p.shape == t.shape for _, p, t in masks)
        scores[name] = [dice_per_class(p, t, 1)[0] for _, p, t in masks]
        again = [p for _, p, _ in way(network, validator)]
        assert all(np.array_equal(p, q) for (_, p, _), q in zip(masks, again, strict=True))
    assert all(u >= a - 0.01 for u, a in zip(scores["upper bound"], scores["automatic"], strict=True))
    assert np.mean(scores["upper bound"]) > np.mean(scores["automatic"])
