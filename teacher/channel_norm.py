"""LayerNorm over the channels of a map as one operator, in the place of SAM 2's, which is made of seven.

In pieces it squares its input outside any normalisation, which 16 bits do not hold (NVIDIA/TensorRT#3657, #4723).
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn


class ChannelNorm(nn.Module):
    """N×C×H×W, normalised over C at each pixel. Shares the parameters of the `LayerNorm2d` that it replaces."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps

    def forward(self, x: Tensor) -> Tensor:
        last = x.permute(0, 2, 3, 1)  # N H W C
        return F.layer_norm(last, last.shape[-1:], self.weight, self.bias, self.eps).permute(0, 3, 1, 2)


def join_channel_norms(network: nn.Module) -> None:
    """Replaces, in place, every `LayerNorm2d` of sam2; the names of its parameters stay."""
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if type(child).__name__ == "LayerNorm2d":
                setattr(module, name, ChannelNorm(child))
