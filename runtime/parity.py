"""Whether two engines compute the same masks: arithmetic and limits of every parity gate. No torch here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from segcore.metrics import disagreement
from segcore.preprocess import OutputSpec, mask_of_logits

_ALIVE = 1e-3  # of the reference's spread; a collapsed network keeps less than its rounding noise


@dataclass(frozen=True)
class Limits:
    """Shares of pixels, 0–1, whose mask may differ; None is not gated."""

    mean_share: float | None = None
    worst_share: float | None = None


# docs/architecture.md, section 5: fp32 and fp16 against torch; int8 against its own golden masks.
LIMITS = {"fp32": Limits(0.001), "fp16": Limits(0.005), "int8": Limits(0.005, 0.02)}
UNGATED = Limits()


@dataclass(frozen=True)
class Parity:
    """How far an engine is from its reference.

    Attributes:
        mean_share: share of pixels whose mask differs, 0–1, mean over cases.
        worst_share: the same of the worst case.
        constant: the engine's output hardly varies over pixels, or hardly from case to case.
    """

    mean_share: float
    worst_share: float
    constant: bool

    def failures(self, limits: Limits) -> list[str]:
        """What is wrong, one phrase each; empty if all is well."""
        found = []
        for what, share, limit in (
            ("on average", self.mean_share, limits.mean_share),
            ("in the worst case", self.worst_share, limits.worst_share),
        ):
            if limit is not None and share > limit:
                found.append(f"{percent(share)} of pixels differ {what}, at most {percent(limit)} may")
        if self.constant:
            found.append("the output must vary with the picture, it is constant")
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
    over_pixels, over_cases = _spreads(np.asarray(logits))
    expected_pixels, expected_cases = _spreads(np.asarray(reference))
    finite = bool(np.isfinite(over_pixels) and np.isfinite(over_cases))
    same_for_all = len(shares) > 1 and over_cases <= _ALIVE * expected_cases
    constant = not finite or over_pixels <= _ALIVE * expected_pixels or same_for_all
    return Parity(float(np.mean(shares)), float(np.max(shares)), constant)


def percent(share: float) -> str:
    """A share 0–1 in per cent, with three decimals."""
    return f"{100 * share:.3f} %"


def _spreads(logits: np.ndarray) -> tuple[float, float]:
    """Largest standard deviation over pixels, and over cases."""
    return float(logits.std(axis=(2, 3)).max()), float(logits.std(axis=0).max())
