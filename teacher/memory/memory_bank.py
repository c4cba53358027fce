"""The self-sorting memory bank: which slices are remembered, and which of them a slice is shown. Order plays no part.

Source: Zhu et al., Medical SAM 2: Segment Medical Images as Video via Segment Anything Model 2, 2024: memories enter by
confidence and stay by dissimilarity, and a slice sees those that resemble it. Where the paper samples memories by their
similarity, the most similar are taken here: the same volume gets the same masks each time. That the less confident of
the two most similar memories goes is ours, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

CAPACITY = 16
"""Memories of a volume. Source: the default of the paper's code."""
CONFIDENT = 0.5
"""Least estimated IoU of a mask that is worth remembering; ours, the paper gives none."""
SHOWN = 7
"""Memories that a slice is shown, the prompted one among them. Source: SAM 2's own number."""


@dataclass(frozen=True)
class Memory:
    """What is remembered of one slice.

    Attributes:
        features: 1×64×h×w, of picture and mask together.
        pointer: 1×256, the mask in one vector.
        picture: features of the picture alone, of any shape; tells slices that resemble each other.
        confidence: estimated IoU of the mask, 0–1.
        place: number of the slice.
        prompted: the mask was asked for by a prompt; such a memory always stays, and is always shown.
    """

    features: Tensor
    pointer: Tensor
    picture: Tensor
    confidence: float
    place: int
    prompted: bool = False


Bank = tuple[Memory, ...]


def remember(bank: Bank, memory: Memory, *, capacity: int = CAPACITY, confident: float = CONFIDENT) -> Bank:
    """The bank with one more memory, if it is confident; past its capacity without the most dispensable one.

    That is, of the two memories that resemble each other most, the less confident one; a prompted one never.
    """
    if not (memory.prompted or memory.confidence >= confident):
        return bank
    grown = (*bank, memory)
    if len(grown) <= capacity:
        return grown
    out = _dispensable(grown)
    return tuple(one for i, one in enumerate(grown) if i != out)


def shown(bank: Bank, picture: Tensor, *, most: int = SHOWN) -> Bank:
    """What a slice attends to: every prompted memory, then those whose pictures resemble it most, best first.

    Args:
        bank: at least one memory.
        picture: of the slice, as `Memory.picture`.
        most: how many.
    """
    prompted = [m for m in bank if m.prompted]
    others = [m for m in bank if not m.prompted]
    if not others:
        return tuple(prompted)
    likeness = (_unit([m.picture for m in others]) @ _unit([picture])[0]).tolist()
    order = sorted(range(len(others)), key=lambda i: -likeness[i])  # stable: of equals the earlier first
    return (*prompted, *(others[i] for i in order[: max(0, most - len(prompted))]))


def _dispensable(bank: Bank) -> int:
    vectors = _unit([m.features for m in bank])
    likeness = vectors @ vectors.T
    likeness.fill_diagonal_(-torch.inf)
    fixed = torch.tensor([m.prompted for m in bank], device=likeness.device)
    likeness[fixed[:, None] & fixed] = -torch.inf  # neither of two prompted ones can go
    pair = divmod(int(likeness.argmax()), len(bank))
    return min((i for i in pair if not bank[i].prompted), key=lambda i: bank[i].confidence)


def _unit(vectors: Sequence[Tensor]) -> Tensor:
    """One row of length 1 each, as data: what is kept has no gradient."""
    return F.normalize(torch.stack([v.detach().float().flatten() for v in vectors]), dim=1)
