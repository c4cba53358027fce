"""Receptive field block: a level's features through four branches that look ever further, into few channels.

Source: Liu et al., Receptive Field Block Net, ECCV 2018; with kernels of 3, 5 and 7 as in Fan et al., PraNet,
MICCAI 2020, which Xiong et al., SAM2-UNet, 2024, take over.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_REACHES = (3, 5, 7)


class ReceptiveField(nn.Module):
    """N×C×H×W → N×D×H×W."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        near = _conv_norm(inputs, outputs, 1)
        self.branches = nn.ModuleList([near, *(_far(inputs, outputs, reach) for reach in _REACHES)])
        self.merge = _conv_norm(len(self.branches) * outputs, outputs, 3)
        self.shortcut = _conv_norm(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        seen = torch.cat([branch(x) for branch in self.branches], dim=1)  # N 4D H W
        return F.relu(self.merge(seen) + self.shortcut(x))


def _far(inputs: int, outputs: int, reach: int) -> nn.Sequential:
    """A row, a column, then nine pixels `reach` apart. Linear between the norms, as published."""
    return nn.Sequential(
        _conv_norm(inputs, outputs, 1),
        _conv_norm(outputs, outputs, (1, reach)),
        _conv_norm(outputs, outputs, (reach, 1)),
        _conv_norm(outputs, outputs, 3, dilation=reach),
    )


def _conv_norm(
    inputs: int, outputs: int, kernel: int | tuple[int, int], *, dilation: int = 1
) -> nn.Sequential:
    """Size kept."""
    conv = nn.Conv2d(inputs, outputs, kernel, padding="same", dilation=dilation, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))
