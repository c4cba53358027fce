"""Hiera's fused layer of queries, keys and values as three layers, so that each can be trained or left alone.

Source: Hu et al., LoRA, ICLR 2022, section 4.2 adapts queries and values; Liu et al., IA³, NeurIPS 2022, keys and
values.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class QueriesKeysValues(nn.Module):
    """Three layers that compute what one fused layer did: … ×D → … ×3E, queries first, then keys, then values."""

    def __init__(self, fused: nn.Linear) -> None:
        super().__init__()
        # Hiera reads the fused output as 3 × heads × features, so its rows are queries, then keys, then values.
        self.query, self.key, self.value = (
            _frozen_linear(weight, bias)
            for weight, bias in zip(fused.weight.detach().chunk(3), fused.bias.detach().chunk(3), strict=True)
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.query(x), self.key(x), self.value(x)], dim=-1)


def split_queries_keys_values(encoder: nn.Module) -> nn.Module:
    """Takes the fused `qkv` of every attention apart; the encoder computes the same. In place.

    An adapter folder of `--lora-target q-v` or `--tune ia3` names the three layers: split the encoder before peft's
    `PeftModel.from_pretrained` opens the folder onto it.
    """
    for attention in _attentions_of(encoder, nn.Linear):
        attention.qkv = QueriesKeysValues(attention.qkv)  # type: ignore[arg-type]
    return encoder


def fuse_queries_keys_values(encoder: nn.Module) -> nn.Module:
    """Undoes `split_queries_keys_values`, bit for bit; in place."""
    for attention in _attentions_of(encoder, QueriesKeysValues):
        three: QueriesKeysValues = attention.qkv  # type: ignore[assignment]
        layers = (three.query, three.key, three.value)
        attention.qkv = _frozen_linear(
            torch.cat([layer.weight.detach() for layer in layers]),
            torch.cat([layer.bias.detach() for layer in layers]),
        )
    return encoder


def _attentions_of(encoder: nn.Module, kind: type[nn.Module]) -> list[nn.Module]:
    """The modules whose `qkv` is of a kind."""
    return [module for module in encoder.modules() if isinstance(getattr(module, "qkv", None), kind)]


def _frozen_linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    """A frozen layer of these numbers, on their device."""
    # On meta nothing is initialised: the numbers come below, and no random ones are used up.
    layer = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    layer.weight = nn.Parameter(weight.clone(), requires_grad=False)
    layer.bias = nn.Parameter(bias.clone(), requires_grad=False)
    return layer
