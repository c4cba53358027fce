"""Turns a trained network into a torch bundle: weights, pictures, manifest, and what a student promises of itself.

A student's manifest holds a regression that estimates the Dice of each of its masks (`segcore.picture.quality` reads
it). It is fitted here, on the validation cases as they are and degraded: those of the training's own kind are nearly
all good, and contrast, noise and occlusion make bad masks too, so that the regression sees what bad looks like. Blur,
rotation and foreign pictures are left to test it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import yaml
from torch import nn

from segcore.bundle.folder import MANIFEST, open_bundle, seal_bundle
from segcore.bundle.manifest import DataRecord, Manifest, Metric
from segcore.command import log
from segcore.dataset.dataset import Dataset, split_counts
from segcore.host import Made, made_now
from segcore.learn.evaluate import Validator, calibrate, draw_curves, draw_examples, score_cases
from segcore.learn.loop import CHECKPOINT, HISTORY, STEPS
from segcore.learn.network import DeployGraph, check_finite, count_macs, save_weights
from segcore.learn.settings import TrainSettings
from segcore.measure.metrics import dice_per_class
from segcore.outfolder import write_text
from segcore.picture.preprocess import mask_of_logits, sigmoid
from segcore.picture.prompts import PromptSpec
from segcore.picture.quality import QualityModel, estimate, odd_shape, regressors, signs_of

WEIGHTS = "model.safetensors"
RECIPE = "train.yaml"
_EXAMPLES, _CURVES = "examples.png", "curves.png"
MIN_CASES, MAX_CASES = 20, 128
"""Validation cases that the estimate of quality needs, and uses."""
_CLEAN_WEIGHT = 6.0  # of an undegraded picture; each comes with three degraded ones, and is what is met most
_RIDGE = 3.0
_FOLDS = 5


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
    also: Collection[str] = (),
) -> Manifest:
    """Writes weights, pictures, `train.yaml` (for `--config`, to repeat the run) and the manifest into OUT.partial.

    `network` is a plain module in its final form (adapters merged) with one logits tensor out; `validator` scores it
    once more, so that the manifest's Dice is that of the weights beside it, and lends its cases to the student's
    estimate of its own quality. The threshold is chosen between `thresholds`. `also` names what the stage has written
    besides a training's files.
    """
    network = copy.deepcopy(network).cpu().eval()
    check_finite(network, "training", "it has diverged: lower --lr")
    save_weights(folder / WEIGHTS, network)
    repeatable = settings.model_dump(mode="json", exclude={"out", "overwrite"})
    write_text(folder / RECIPE, yaml.safe_dump(repeatable, sort_keys=False))
    answers = list(validator.logits(network))  # one pass for threshold, Dice and pictures
    output, calibration = calibrate(answers, validator.output, settings.calibrate, between=thresholds)
    validator = validator.with_output(output)
    scored = score_cases(validator, answers)
    dice = float(np.mean([score for score, *_ in scored]))
    draw_examples(scored, validator.spec, folder / _EXAMPLES)
    if (folder / HISTORY).exists():  # a teacher that needs no training has none
        draw_curves(folder / HISTORY, folder / _CURVES)
    # A teacher is who unsure cases are sent to; four more passes of it would cost minutes.
    quality = fit_quality(network, validator) if origin.kind == "student" else None
    return seal_bundle(
        folder,
        also=(RECIPE, HISTORY, STEPS, _EXAMPLES, _CURVES, *also),
        resumed_from=CHECKPOINT,
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
        stopped_epoch=_stopped_epoch(folder / HISTORY, settings),
        quality=quality,
        calibration=calibration,
        made=made_now(),
        model_file=WEIGHTS,
    )


def sealed_before(folder: Path) -> Manifest | None:
    """The manifest of a training that was sealed in OUT.partial, and killed before that had its name; else None."""
    if not (folder / MANIFEST).is_file():
        return None
    for name in CHECKPOINT:
        (folder / name).unlink(missing_ok=True)
    return open_bundle(folder).manifest


def _stopped_epoch(history_csv: Path, settings: TrainSettings) -> int | None:
    """The last epoch of a training that ended early, for `Manifest.stopped_epoch`."""
    if not history_csv.exists():
        return None
    epochs = len(history_csv.read_text().splitlines()) - 1  # one line is the heading
    return epochs if epochs < settings.epochs else None


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


def fit_quality(network: nn.Module, validator: Validator) -> QualityModel | None:
    """Fits the regression; four passes over at most 128 validation cases.

    Args:
        network: trained, plain, in its final form.
        validator: whose cases and prepared pictures are used; none of them was trained on.

    Returns:
        None, and a line on stderr, if there are fewer than 20 cases with something marked.
    """
    if len(validator.cases) < MIN_CASES:
        _log_too_few(len(validator.cases))
        return None
    seen = _observe(network, validator)
    usable = int(seen.marked[~seen.degraded].any(axis=1).sum())
    if usable < MIN_CASES:
        _log_too_few(usable)
        return None
    error, error_degraded = _cross_validate(seen)
    return _fit_model(seen, error=error, error_degraded=error_degraded)


def _log_too_few(usable: int) -> None:
    log(
        f"no quality estimate: it needs {MIN_CASES} validation cases in which something is marked, got {usable}; "
        "the bundle works without"
    )


@dataclass(frozen=True)
class _Observations:
    """What was seen of each picture and class, and how good the mask was. N pictures, C classes."""

    patient: np.ndarray  # N, number of the patient
    degraded: np.ndarray  # N booleans
    confidence: np.ndarray  # N×C×5
    shape: np.ndarray  # N×C×7
    marked: np.ndarray  # N×C booleans
    dice: np.ndarray  # N×C

    def pick(self, rows: np.ndarray) -> _Observations:
        return _Observations(*(getattr(self, name)[rows] for name in self.__dataclass_fields__))


def _observe(network: nn.Module, validator: Validator) -> _Observations:
    """Each picked case as it is and degraded; the picks are spread evenly over the cases."""
    device = next(network.parameters()).device
    graph = DeployGraph(network, validator.spec).to(device).eval()
    count = min(MAX_CASES, len(validator.cases))
    picks = [i * len(validator.cases) // count for i in range(count)] if count else []
    names = {name: k for k, name in enumerate(sorted({validator.cases[i].patient for i in picks}))}
    rows: list[tuple[int, bool, np.ndarray, np.ndarray, np.ndarray, np.ndarray]] = []
    for i in picks:
        case, truth = validator.cases[i], validator.cases[i].mask()
        batch = np.stack(_with_degraded(validator.pictures[i], seed=i))
        with torch.inference_mode():
            logits = graph(torch.from_numpy(batch).to(device)).float().cpu().numpy()
        for k, one in enumerate(logits):
            mask = mask_of_logits(one, validator.output, (truth.shape[0], truth.shape[1]))
            dice = dice_per_class(mask, truth, validator.classes)
            rows.append((names[case.patient], k > 0, *signs_of(one, validator.output), dice))
    return _Observations(*(np.array(column) for column in zip(*rows, strict=True)))


def _with_degraded(picture: np.ndarray, seed: int) -> list[np.ndarray]:
    """The picture H×W×C uint8 as it is, and under each degradation."""
    rng = np.random.default_rng(seed)
    return [picture, *(np.clip(np.round(d(picture, rng)), 0, 255).astype(np.uint8) for d in DEGRADATIONS)]


def lower_contrast(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Keeps 15 to 60 % of the contrast, somewhere between black and white."""
    share = rng.uniform(0.15, 0.6)
    return 255 * rng.uniform(0, 1 - share) + share * picture


def add_noise(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Adds Gaussian noise of 10 to 100 grey values."""
    return picture + rng.normal(0, np.exp(rng.uniform(np.log(10), np.log(100))), picture.shape)


def cover_parts(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Covers one to three rectangles with one grey each."""
    covered = picture.astype(float)
    height, width = picture.shape[:2]
    for _ in range(rng.integers(1, 4)):
        h, w = (max(1, int(side * rng.uniform(0.2, 0.6))) for side in (height, width))
        top, left = rng.integers(0, height - h + 1), rng.integers(0, width - w + 1)
        covered[top : top + h, left : left + w] = (
            rng.uniform(0, 255) if rng.random() < 0.5 else picture.mean()
        )
    return covered


Degradation = Callable[[np.ndarray, np.random.Generator], np.ndarray]
DEGRADATIONS: tuple[Degradation, ...] = (lower_contrast, add_noise, cover_parts)


def _cross_validate(seen: _Observations) -> tuple[float, float]:
    """Mean absolute error of the cases' Dice, undegraded and degraded, each predicted without its own patient."""
    errors = np.zeros(len(seen.dice))
    fold = np.random.default_rng(0).permutation(seen.patient.max() + 1)[seen.patient] % _FOLDS
    for k in range(_FOLDS):
        held = fold == k
        if not held.any() or held.all():
            continue
        model = _fit_model(seen.pick(~held), error=0.0, error_degraded=0.0)
        rest = seen.pick(held)
        promised = estimate(rest.confidence, rest.shape, rest.marked, model)
        errors[held] = np.abs(promised - rest.dice.mean(axis=1))
    return float(errors[~seen.degraded].mean()), float(errors[seen.degraded].mean())


def _fit_model(seen: _Observations, *, error: float, error_degraded: float) -> QualityModel:
    clean = ~seen.degraded[:, None] & seen.marked  # N×C
    shapes = [_moments(seen.shape[clean[:, c], c]) for c in range(clean.shape[1])]
    shape_centre, shape_spread = np.array([s[0] for s in shapes]), np.array([s[1] for s in shapes])
    odd = odd_shape(seen.shape, shape_centre, shape_spread)
    signs = np.concatenate([seen.confidence, odd[..., None]], axis=2)  # N×C×6
    centre, spread = _moments(signs[clean])
    high = np.percentile((signs[clean] - centre) / spread, 95, axis=0)
    weight = np.where(seen.degraded, 1.0, _CLEAN_WEIGHT)[:, None].repeat(clean.shape[1], axis=1)
    rows = seen.marked
    weights = _logistic_ridge(regressors(signs[rows], centre, spread, high), seen.dice[rows], weight[rows])
    return QualityModel(
        weights=_six_digits(weights),
        centre=_six_digits(centre),
        spread=_six_digits(spread),
        high=_six_digits(high),
        shape_centre=tuple(_six_digits(row) for row in shape_centre),
        shape_spread=tuple(_six_digits(row) for row in shape_spread),
        empty_right=_six_digits(_empty_right(seen)),
        cases=int((~seen.degraded).sum()),
        error=error,
        error_degraded=error_degraded,
    )


def _moments(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of the columns; 0 and 1 of nothing, and never a spread of 0."""
    if not len(values):
        return np.zeros(values.shape[1]), np.ones(values.shape[1])
    return values.mean(axis=0), np.maximum(values.std(axis=0), 1e-3)


def _empty_right(seen: _Observations) -> np.ndarray:
    """How often an empty mask was right in undegraded cases; one imagined wrong one, so that 0 where none was seen."""
    empty = ~seen.degraded[:, None] & ~seen.marked
    return np.asarray((seen.dice * empty).sum(axis=0) / (empty.sum(axis=0) + 1.0))


def _logistic_ridge(x: np.ndarray, y: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Weights of a regression of shares y, 0–1, on x N×D, whose first column is 1 and is not shrunk.

    Newton's method on the cross-entropy. Source: Papke and Wooldridge, Econometric Methods for Fractional Response
    Variables, J. Applied Econometrics 11, 1996.
    """
    ridge = np.full(x.shape[1], _RIDGE)
    ridge[0] = 1e-6
    beta = np.zeros(x.shape[1])
    for _ in range(100):
        p = sigmoid(x @ beta)
        gradient = x.T @ (weight * (y - p)) - ridge * beta
        curvature = (x * (weight * np.maximum(p * (1 - p), 1e-4))[:, None]).T @ x + np.diag(ridge)
        step = np.clip(np.linalg.solve(curvature, gradient), -1.0, 1.0)
        beta = beta + step
        if np.abs(step).max() < 1e-6:
            break
    return np.asarray(beta)


def _six_digits(values: Sequence[float] | np.ndarray) -> tuple[float, ...]:
    """Six digits: enough for every estimate, and a manifest one can read."""
    return tuple(float(f"{value:.6g}") for value in values)
