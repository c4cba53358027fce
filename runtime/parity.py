"""Whether two engines compute the same masks, and answer prompts alike: arithmetic and limits of every parity gate.

No torch here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from segcore.bundle.golden import Replies
from segcore.measure.metrics import disagreement
from segcore.picture.preprocess import OutputSpec, mask_of_logits
from segcore.picture.prompts import answer_spec
from segcore.words import fixed_percent

_LEAST_SPREAD = 1e-3
"""Share of the reference's spread; a collapsed network keeps less than its rounding noise."""
_MOST_IOU_CHANGE = 0.01
"""Change of an estimated IoU that may be: our own choice; candidates that differ by less are as good as each other."""


@dataclass(frozen=True)
class ParityLimits:
    """Shares of pixels, 0–1, whose mask may differ; None is not gated."""

    mean_share: float | None = None
    worst_share: float | None = None


# docs/architecture.md, section 5: fp32 and fp16 against torch; int8 against its own golden masks.
PARITY_LIMITS = {"fp32": ParityLimits(0.001), "fp16": ParityLimits(0.005), "int8": ParityLimits(0.005, 0.02)}
PROMPT_LIMITS = PARITY_LIMITS | {"int8": PARITY_LIMITS["fp32"]}
"""Precision of a bundle → limits of its answers against torch: encoder and decoder stay in float beside INT8."""
UNGATED = ParityLimits()


@dataclass(frozen=True)
class Parity:
    """How far an engine is from its reference.

    Attributes:
        mean_share: share of pixels whose mask differs, 0–1, mean over cases.
        worst_share: the same of the worst case.
        constant: the engine's output hardly varies over pixels, or hardly from case to case.
        finite: it holds neither NaN nor infinity.
    """

    mean_share: float
    worst_share: float
    constant: bool
    finite: bool = True

    def failures(self, limits: ParityLimits) -> list[str]:
        """What is wrong, one phrase each; empty if all is well."""
        found = []
        for what, share, limit in (
            ("on average", self.mean_share, limits.mean_share),
            ("in the worst case", self.worst_share, limits.worst_share),
        ):
            if limit is not None and share > limit:
                found.append(
                    f"{fixed_percent(share)} of pixels differ {what}, at most {fixed_percent(limit)} may"
                )
        if not self.finite:
            found.append("the output must be numbers, some are NaN or infinity")
        if self.constant:
            found.append("the output must vary with the picture, it is constant")
        return found


@dataclass(frozen=True)
class PromptParity:
    """How far an engine's answers are from the reference's.

    Attributes:
        parity: of the masks of all candidates.
        iou_change: largest change of an estimated IoU.
        deaf: the engine's answers hardly change with the prompt.
        answers: masks compared.
    """

    parity: Parity
    iou_change: float
    deaf: bool
    answers: int

    def failures(self, limits: ParityLimits) -> list[str]:
        """What is wrong, one phrase each; empty if all is well."""
        found = self.parity.failures(limits)
        if not self.iou_change <= _MOST_IOU_CHANGE:
            found.append(
                f"the estimated IoU changes by {self.iou_change:.3g}, by at most {_MOST_IOU_CHANGE:g} it may"
            )
        if self.deaf:
            found.append("the output must vary with the prompt, it does not")
        return found


def check_parity(
    logits: Sequence[np.ndarray] | np.ndarray,
    reference: Sequence[np.ndarray] | np.ndarray,
    spec: OutputSpec,
    sizes_px: Sequence[tuple[int, int]],
) -> Parity:
    """Compares masks at the pictures' own sizes, and notices an output that no longer depends on its input.

    Args:
        logits: of the engine, N × (K×h×w).
        reference: of torch, or the golden logits; the same shapes.
        spec: the model's output.
        sizes_px: N heights and widths of the masks.
    """
    shares = [
        disagreement(mask_of_logits(a, spec, size), mask_of_logits(b, spec, size))
        for a, b, size in zip(logits, reference, sizes_px, strict=True)
    ]
    if not np.isfinite(np.asarray(logits)).all():  # of which no spread can be told
        return Parity(float(np.mean(shares)), float(np.max(shares)), constant=False, finite=False)
    over_pixels, over_cases = _output_spreads(np.asarray(logits))
    expected_pixels, expected_cases = _output_spreads(np.asarray(reference))
    same_for_all = len(shares) > 1 and over_cases <= _LEAST_SPREAD * expected_cases
    constant = over_pixels <= _LEAST_SPREAD * expected_pixels or same_for_all
    return Parity(float(np.mean(shares)), float(np.max(shares)), constant)


def check_prompt_parity(
    replies: Replies, reference: Replies, output: OutputSpec, size_px: tuple[int, int]
) -> PromptParity:
    """Compares the masks of every candidate at the network's input size.

    Args:
        replies: of the engine.
        reference: of torch, or the golden ones; the same shapes.
        output: of the bundle.
        size_px: height and width of the masks.
    """
    if replies.logits.shape != reference.logits.shape:
        raise ValueError(f"logits must be {reference.logits.shape}, got {replies.logits.shape}")
    masks = replies.logits.reshape(-1, 1, *replies.logits.shape[-2:])
    expected = reference.logits.reshape(masks.shape)
    parity = check_parity(masks, expected, answer_spec(output), [size_px] * len(masks))
    # "not above" and not "at most": where the answers hold no numbers, their spread is NaN, and they are deaf.
    deaf = not _spread_over_prompts(replies) > _LEAST_SPREAD * _spread_over_prompts(reference)
    return PromptParity(
        parity=parity,
        iou_change=float(np.abs(replies.iou - reference.iou).max()),
        deaf=deaf,
        answers=len(masks),
    )


def _output_spreads(logits: np.ndarray) -> tuple[float, float]:
    """Largest standard deviation over pixels, and over cases."""
    return float(logits.std(axis=(2, 3)).max()), float(logits.std(axis=0).max())


def _spread_over_prompts(replies: Replies) -> float:
    """Largest standard deviation over the questions about one picture, of one candidate's pixel."""
    return float(replies.logits.std(axis=1).max())
