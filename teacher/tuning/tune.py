"""What of an encoder is trained, and how: freezes it, makes some of its parameters trainable, and undoes that.

peft's updates and the adapters come from modules beside this one; here is which of them `--tune` means, and where they
go. `recompute_blocks` saves the memory of the activations while an encoder trains.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from teacher.settings import TeacherSettings, Tune
from teacher.tuning.adapters import ADAPTERS, add_adapters
from teacher.tuning.peft_kinds import PEFT_KINDS, add_peft, merge_peft
from teacher.tuning.qkv_split import fuse_queries_keys_values, split_queries_keys_values

MLP_OUT = r".*\.mlp\.(layers\.1|fc2)"
"""The MLP's second layer, by its name in Hiera and SAM, or in TinyViT; ia3 scales its inputs.

Source: the paper, which scales keys, values and these.
"""
_ATTENTION = r".*\.attn\.(qkv|proj)"
_QUERIES_AND_VALUES = r".*\.attn\.qkv\.(query|value)"
_KEYS_AND_VALUES = r".*\.attn\.qkv\.(key|value)"


@dataclass(frozen=True)
class Tuning:
    """What is trained of an encoder.

    Attributes:
        kind: the way.
        rank: of lora, dora and rslora.
        target: what those update of each attention; ia3 always scales keys, values and the MLP's inner activations.
        width: of the adapters' bottleneck.
    """

    kind: Tune
    rank: int = 4
    target: Literal["attention", "q-v"] = "attention"
    width: int = 32

    @property
    def splits(self) -> bool:
        """Whether the queries, keys and values of the encoder are layers of their own while it is trained."""
        return self.kind == "ia3" or (self.kind in PEFT_KINDS and self.target == "q-v")

    @property
    def adapter_settings(self) -> dict[str, Any]:
        """What `adapted_encoder` needs, for a manifest's `architecture_settings`."""
        adapted = self.kind in ADAPTERS
        return {
            "adapter_kind": self.kind if adapted else None,
            "adapter_width": self.width if adapted else None,
        }


def tuning_of(settings: TeacherSettings) -> Tuning:
    """The tuning that the flags ask for."""
    target = settings.lora_target or ("q-v" if settings.system == "sam2-lora" else "attention")
    return Tuning(settings.tuned, settings.lora_rank, target, settings.adapter_width)


def tune_encoder(encoder: nn.Module, tuning: Tuning) -> nn.Module:
    """The encoder with exactly what `tuning` says trainable; computes at first what the encoder did. In place.

    Args:
        encoder: from `teacher.encoder.build_encoder`, with its weights loaded.
        tuning: the way.

    Raises:
        InputError: peft is not installed.
    """
    encoder.requires_grad_(tuning.kind == "all")
    if tuning.kind not in ("all", "bitfit"):
        hold_statistics(encoder)
    if tuning.splits:
        split_queries_keys_values(encoder)
    if tuning.kind == "ia3":
        return add_peft(encoder, "ia3", rank=tuning.rank, targets=_KEYS_AND_VALUES, feedforward=MLP_OUT)
    if tuning.kind in PEFT_KINDS:
        targets = _QUERIES_AND_VALUES if tuning.splits else _ATTENTION
        return add_peft(encoder, tuning.kind, rank=tuning.rank, targets=targets)
    if tuning.kind in ADAPTERS:
        return add_adapters(encoder, tuning.kind, tuning.width)
    return train_biases(encoder) if tuning.kind == "bitfit" else encoder


def plain_encoder(encoder: nn.Module, tuning: Tuning) -> nn.Module:
    """A tuned encoder with peft's updates merged into its weights; adapters stay. In place.

    Its parameters have the names of `adapted_encoder`'s.
    """
    return fuse_queries_keys_values(merge_peft(encoder)) if tuning.kind in PEFT_KINDS else encoder


def with_plain_encoder(network: nn.Module, tuning: Tuning) -> nn.Module:
    """A network whose `encoder` was tuned, with it in plain form; in place."""
    network.encoder = plain_encoder(network.encoder, tuning)  # type: ignore[arg-type]
    return network


def adapted_encoder(encoder: nn.Module, settings: dict[str, Any]) -> nn.Module:
    """An encoder with the adapters, of random weights, that a bundle's `architecture_settings` name. In place."""
    width = settings.get("adapter_width")
    # Bundles of version 0.5 and before name a width alone.
    return add_adapters(encoder, settings.get("adapter_kind") or "adapter", width) if width else encoder


class HeldNorm(nn.BatchNorm2d):
    """A batch norm that normalises with the statistics that it came with, while the network around it trains, too."""

    def train(self, mode: bool = True) -> HeldNorm:
        return super().train(False)


def hold_statistics(encoder: nn.Module) -> None:
    """Lets a frozen encoder's batch norms compute as they will once deployed; in place.

    Otherwise each batch would be normalised by its own statistics, and move the running ones: the encoder would
    change although none of its weights is trained.
    """
    for module in encoder.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = HeldNorm
            module.eval()


def train_biases(encoder: nn.Module) -> nn.Module:
    """Freezes all but the biases, of which norms have one, too; in place.

    Source: Ben Zaken et al., BitFit: Simple Parameter-Efficient Fine-Tuning for Transformer-Based Masked
    Language-Models, ACL 2022.
    """
    for name, parameter in encoder.named_parameters():
        parameter.requires_grad_(name.endswith("bias"))
    return encoder


def recompute_blocks(network: nn.Module) -> None:
    """Lets every block of every encoder in a network be recomputed in the backward pass; in place.

    Less memory for about a third more time; the gradients are the same.

    Source: Chen et al., Training Deep Nets with Sublinear Memory Cost, 2016.
    """
    for module in network.modules():
        blocks = module._modules.get("blocks")  # not getattr: peft's wrapper would give them again
        if isinstance(blocks, nn.ModuleList):
            for block in blocks:
                block.forward = partial(_recompute_block, block, block.forward)  # type: ignore[method-assign,assignment]


def _recompute_block(block: nn.Module, forward: object, x: Tensor) -> Tensor:
    if not block.training:
        return forward(x)  # type: ignore[operator,no-any-return]
    return checkpoint(forward, x, use_reentrant=False)  # type: ignore[no-any-return,arg-type]
