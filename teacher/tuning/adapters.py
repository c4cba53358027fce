"""Where Hiera's adapters go: before every block, or two within it, or beside its MLP."""

from __future__ import annotations

from typing import Any

from torch import nn

from teacher.settings import Tune
from teacher.tuning.bottleneck import AdaptedBlock, AdapterAfter, AdapterBeside, Bottleneck
from teacher.tuning.channel_space import ChannelSpaceAdapter

ADAPTERS: tuple[Tune, ...] = ("adapter", "adapter-parallel", "adapter-channel-space")
"""Modules that stay in the network that a bundle holds; peft's updates are merged into the weights."""
PARALLEL_SCALE = 0.5
"""Of the bottleneck beside an MLP. Source: SAM-Adapter on FLARE22, after Wu et al., Medical SAM Adapter, 2023."""


def add_adapters(encoder: nn.Module, kind: Tune, width: int) -> nn.Module:
    """Freezes the encoder and puts trainable adapters into every block; in place.

    Args:
        encoder: Hiera.
        kind: one of `ADAPTERS`.
        width: of their bottleneck.
    """
    encoder.requires_grad_(False)
    blocks: nn.ModuleList = encoder.blocks  # type: ignore[assignment]
    encoder.blocks = nn.ModuleList(_adapted(block, kind, width) for block in blocks)
    return encoder


def _adapted(block: Any, kind: Tune, width: int) -> nn.Module:
    if kind == "adapter":
        return AdaptedBlock(block, block.dim, width)
    features = block.dim_out  # attention widens the features where a stage begins
    if kind == "adapter-parallel":
        # Within windows, padding and all: a bottleneck works on single places, so that it makes no difference.
        block.attn = AdapterAfter(block.attn, Bottleneck(features, width))
        block.mlp = AdapterBeside(block.mlp, Bottleneck(features, width), PARALLEL_SCALE)
    else:
        # The MLP, unlike the attention, gets the map of the whole picture, normalised.
        block.mlp = AdapterBeside(block.mlp, ChannelSpaceAdapter(features, width))
    return block  # type: ignore[no-any-return]
