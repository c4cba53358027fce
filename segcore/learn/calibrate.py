"""Chooses a trained network's threshold, and its temperature where that is asked for, on the validation cases."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from segcore.calibration import (
    THRESHOLDS,
    Calibration,
    choose_threshold,
    dice_at,
    expected_calibration_error,
    fit_temperature,
    reliability_rows,
)
from segcore.case import Case
from segcore.command import log
from segcore.preprocess import OutputSpec, activate, probabilities, resize_logits

Calibrate = Literal["none", "threshold", "temperature"]
_PIXELS = 2000  # of each case, for the temperature and the ECE


def calibrate(
    answers: Sequence[tuple[Case, np.ndarray]],
    output: OutputSpec,
    how: Calibrate,
    *,
    between: tuple[float, float] = (0.05, 0.95),
) -> tuple[OutputSpec, Calibration | None]:
    """The output spec with what was chosen, and how.

    A temperature changes probabilities and no mask; the threshold is chosen after it.

    Args:
        answers: (case, logits) from `Validator.logits`, of cases that were not trained on.
        output: the network's, so far.
        how: none, the threshold (models of one class), or temperature and threshold.
        between: lowest and highest threshold to choose.
    """
    binary = output.activation == "sigmoid"
    if how == "none":
        return output, None
    pixels, wanted = _sampled(answers)
    temperature = fit_temperature(pixels, wanted) if how == "temperature" else 1.0
    output = output.model_copy(update={"temperature": temperature})
    tried = [t for t in THRESHOLDS if between[0] <= t <= between[1]] if binary else []
    dice = np.zeros(len(tried))
    for case, logits in answers if binary else ():
        truth = case.mask()
        probability = probabilities(logits, output, (truth.shape[0], truth.shape[1]))
        dice += dice_at(probability[0], truth, tried) / len(answers)
    if binary:
        output = output.model_copy(update={"threshold": choose_threshold(tried, dice.tolist())})
        log(f"threshold {output.threshold:g}, chosen on {len(answers)} validation cases")
    return output, Calibration(
        thresholds=tuple(tried),
        dice=tuple(float(f"{d:.6f}") for d in dice),
        temperature=temperature,
        ece_before=_ece(pixels, wanted, output.model_copy(update={"temperature": 1.0})),
        ece=_ece(pixels, wanted, output),
        cases=len(answers),
    )


def _sampled(answers: Sequence[tuple[Case, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Logits n×K and true class of some pixels of every case, at the case's own size."""
    random, logits, truths = np.random.default_rng(0), [], []
    for case, one in answers:
        truth = case.mask()
        picked = random.integers(0, truth.size, _PIXELS)
        full = resize_logits(one, (truth.shape[0], truth.shape[1]))
        logits.append(full.reshape(len(one), -1)[:, picked].T)
        truths.append(truth.ravel()[picked])
    return np.concatenate(logits), np.concatenate(truths)


def _ece(logits: np.ndarray, truth: np.ndarray, output: OutputSpec) -> float:
    """Of sampled pixels: logits n×K, truth n."""
    p = activate(logits.T[:, :, None], output)[:, :, 0]  # K n
    if output.activation == "sigmoid":
        return expected_calibration_error(reliability_rows(p[0], truth == 1))
    return expected_calibration_error(reliability_rows(p.max(0), p.argmax(0) == truth))
