"""A U-decoder with a supervised head on every level: its loss, and its deployed form, which keeps the finest head."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segcore.learn.augment import Sample
from teacher.system import Loss
from teacher.tuning.tune import Tuning, plain_encoder

HeadLoss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(logits N×K×H×W, target N×H×W, labelled N) → scalar, as those of `segcore.learn.losses`."""


class FinestHead(nn.Module):
    """The trained network as it is deployed: N×3×H×W → logits N×K×H/4×W/4. The other heads fall out of the graph."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)[-1]  # type: ignore[no-any-return]


def deep_supervision(head_loss: HeadLoss) -> Loss:
    """The loss of each head, upsampled to the mask, summed."""

    def loss(network: nn.Module, images: Tensor, sample: Sample) -> Tensor:
        target = sample["mask"]
        total = torch.zeros((), device=images.device)
        for logits in network(images):
            full = F.interpolate(logits.float(), target.shape[1:], mode="bilinear", align_corners=False)
            total = total + head_loss(full, target, sample["labelled"])
        return total

    return loss


def with_plain_encoder(network: nn.Module, tuning: Tuning) -> nn.Module:
    """A network whose `encoder` was tuned, with it in plain form; in place."""
    network.encoder = plain_encoder(network.encoder, tuning)  # type: ignore[arg-type]
    return network
