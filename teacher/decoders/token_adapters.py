"""Bottleneck adapters in the mask decoder's two-way blocks, on the tokens.

In each block one after the self-attention and one beside the MLP, where SAM-Adapter has them in the encoder's blocks.

Source: Wu et al., Medical SAM Adapter, 2023.
"""

from __future__ import annotations

from torch import nn

from teacher.tuning.adapters import PARALLEL_SCALE
from teacher.tuning.bottleneck import AdapterAfter, AdapterBeside, Bottleneck


def add_token_adapters(transformer: nn.Module, width: int) -> nn.Module:
    """Freezes SAM's two-way transformer and puts trainable adapters into its blocks; in place.

    It computes at first what it did.
    """
    transformer.requires_grad_(False)
    features: int = transformer.embedding_dim  # type: ignore[assignment]
    for block in transformer.layers:  # type: ignore[union-attr]
        block.self_attn = AdapterAfter(block.self_attn, Bottleneck(features, width))  # type: ignore[arg-type]
        block.mlp = AdapterBeside(block.mlp, Bottleneck(features, width), PARALLEL_SCALE)  # type: ignore[arg-type]
    return transformer
