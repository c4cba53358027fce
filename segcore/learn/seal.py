"""Turns a trained network into a torch bundle: weights, pictures, manifest."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml
from torch import nn

from segcore.bundle.folder import seal_bundle
from segcore.bundle.manifest import DataRecord, Manifest, Metric
from segcore.dataset.dataset import Dataset, split_counts
from segcore.host import Made, made_now
from segcore.learn.evaluate import Validator, calibrate, draw_curves, draw_examples, score_cases
from segcore.learn.loop import HISTORY, drop_checkpoint
from segcore.learn.network import count_macs
from segcore.learn.quality_fit import fit_quality
from segcore.learn.settings import TrainSettings
from segcore.learn.weights import save_weights
from segcore.outfolder import write_text
from segcore.picture.prompts import PromptSpec

WEIGHTS = "model.safetensors"
RECIPE = "train.yaml"


def data_record(dataset: Dataset, split_seed: int, fold: str = "") -> DataRecord:
    """Names and hashes of the data a bundle was trained on."""
    return DataRecord(
        name=dataset.name,
        sha256=dataset.sha256,
        split_sha256=dataset.split_sha256,
        split_seed=split_seed,
        fold=fold,
        counts=split_counts(dataset),
        test_images=tuple(sorted(case.source.image_fingerprint() for case in dataset.split("test"))),
    )


@dataclass(frozen=True)
class Origin:
    """What a trained network is and where it comes from; the fields of `Manifest` of the same names.

    Attributes:
        teacher: of a student, the hash of the bundle that it was distilled from.
        lineage: how its ancestors were made.
        prompt: of a promptable model.
    """

    name: str
    kind: Literal["teacher", "student"]
    architecture: str
    architecture_settings: dict[str, Any]
    pretrained: str
    trained_parameters: int
    teacher: str | None = None
    lineage: tuple[Made, ...] = ()
    prompt: PromptSpec | None = None


def seal_trained(
    folder: Path,
    network: nn.Module,
    origin: Origin,
    *,
    dataset: Dataset,
    validator: Validator,
    settings: TrainSettings,
    thresholds: tuple[float, float] = (0.05, 0.95),
) -> Manifest:
    """Writes weights, pictures, `train.yaml` (for `--config`, to repeat the run) and the manifest into OUT.partial.

    `network` is a plain module in its final form (adapters merged) with one logits tensor out; `validator` scores it
    once more, so that the manifest's Dice is that of the weights beside it, and lends its cases to the student's
    estimate of its own quality. The threshold is chosen between `thresholds`.
    """
    network = copy.deepcopy(network).cpu().eval()
    save_weights(folder / WEIGHTS, network)
    repeatable = settings.model_dump(mode="json", exclude={"out", "overwrite"})
    write_text(folder / RECIPE, yaml.safe_dump(repeatable, sort_keys=False))
    answers = list(validator.logits(network))  # one pass for threshold, Dice and pictures
    output, calibration = calibrate(answers, validator.output, settings.calibrate, between=thresholds)
    validator = validator.with_output(output)
    scored = score_cases(validator, answers)
    dice = float(np.mean([score for score, *_ in scored]))
    draw_examples(scored, validator.spec, folder / "examples.png")
    if (folder / HISTORY).exists():  # a teacher that needs no training has none
        draw_curves(folder / HISTORY, folder / "curves.png")
    # A teacher is who unsure cases are sent to; four more passes of it would cost minutes.
    quality = fit_quality(network, validator) if origin.kind == "student" else None
    drop_checkpoint(folder)
    return seal_bundle(
        folder,
        **vars(origin),
        format="torch",
        precision="fp32",
        classes=dataset.classes,
        input=validator.spec,
        output=validator.output,
        parameters=sum(p.numel() for p in network.parameters()),
        macs=count_macs(network, validator.spec),
        data=data_record(dataset, settings.split_seed, settings.fold),
        metrics=(Metric(name="dice_mean", split="val", value=dice, cases=len(validator.cases)),),
        settings=settings.model_dump(mode="json"),
        quality=quality,
        calibration=calibration,
        made=made_now(),
        model_file=WEIGHTS,
    )
