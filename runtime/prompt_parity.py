"""Whether two engines answer prompts alike: arithmetic and limits of the gate of promptable bundles."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from runtime.parity import LIMITS, Limits, Parity, check_parity
from segcore.golden_prompts import Replies
from segcore.preprocess import OutputSpec
from segcore.prompts import answer_spec

PROMPT_LIMITS = LIMITS | {"int8": LIMITS["fp32"]}
"""Precision of a bundle → limits of its answers against torch: encoder and decoder stay in float beside INT8."""
_ALIVE = 1e-3  # of the reference's spread, as in runtime.parity
_MOST_IOU = 0.01
"""Change of an estimated IoU that may be: our own choice; candidates that differ by less are as good as each other."""


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

    def failures(self, limits: Limits) -> list[str]:
        """What is wrong, one phrase each; empty if all is well."""
        found = self.parity.failures(limits)
        if not self.iou_change <= _MOST_IOU:
            found.append(
                f"the estimated IoU changes by {self.iou_change:.3g}, by at most {_MOST_IOU:g} it may"
            )
        if self.deaf:
            found.append("the output must vary with the prompt, it does not")
        return found


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
    return PromptParity(
        parity=parity,
        iou_change=float(np.abs(replies.iou - reference.iou).max()),
        deaf=not _over_prompts(replies) > _ALIVE * _over_prompts(reference),
        answers=len(masks),
    )


def _over_prompts(replies: Replies) -> float:
    """Largest standard deviation over the questions about one picture, of one candidate's pixel."""
    return float(replies.logits.std(axis=1).max())
