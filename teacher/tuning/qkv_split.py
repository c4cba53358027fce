"""A fused layer of queries, keys and values as three layers, so that each can be trained or left alone.

Source: Hu et al., LoRA, ICLR 2022, section 4.2 adapts queries and values; Liu et al., IA³, NeurIPS 2022, keys and
values.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class QueriesKeysValues(nn.Module):
    """Three layers that compute what one fused layer did: … ×D → … ×3E, in the fused layer's order.

    Args:
        fused: the layer.
        groups: how its rows are ordered. 1: all queries, then all keys, then all values, as in Hiera, which reads its
            output as 3 × heads × features. The number of heads: those three head by head, as in TinyViT.
    """

    def __init__(self, fused: nn.Linear, groups: int = 1) -> None:
        super().__init__()
        self.groups = groups
        weights = fused.weight.detach().unflatten(0, (groups, 3, -1))  # G 3 E/G D
        biases = fused.bias.detach().unflatten(0, (groups, 3, -1))
        self.query, self.key, self.value = (
            _frozen_linear(weights[:, i].flatten(0, 1), biases[:, i].flatten()) for i in range(3)
        )

    def forward(self, x: Tensor) -> Tensor:
        three = [layer(x).unflatten(-1, (self.groups, -1)) for layer in (self.query, self.key, self.value)]
        return torch.cat(three, dim=-1).flatten(-2)  # … G 3E/G → … 3E

    def fuse(self) -> nn.Linear:
        """The one layer again."""
        layers = (self.query, self.key, self.value)
        weights = [layer.weight.detach().unflatten(0, (self.groups, -1)) for layer in layers]  # G E/G D each
        biases = [layer.bias.detach().unflatten(0, (self.groups, -1)) for layer in layers]
        return _frozen_linear(torch.cat(weights, 1).flatten(0, 1), torch.cat(biases, 1).flatten())


def split_queries_keys_values(encoder: nn.Module) -> nn.Module:
    """Takes the fused `qkv` of every attention apart; the encoder computes the same. In place.

    An adapter folder of `--lora-target q-v` or `--tune ia3` names the three layers: split the encoder before peft's
    `PeftModel.from_pretrained` opens the folder onto it.
    """
    for attention in _attentions_of(encoder, nn.Linear):
        groups: int = getattr(attention, "qkv_groups", 1)
        attention.qkv = QueriesKeysValues(attention.qkv, groups)  # type: ignore[arg-type]
    return encoder


def fuse_queries_keys_values(encoder: nn.Module) -> nn.Module:
    """Undoes `split_queries_keys_values`, bit for bit; in place."""
    for attention in _attentions_of(encoder, QueriesKeysValues):
        attention.qkv = attention.qkv.fuse()  # type: ignore[operator,union-attr]
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
