"""Low-rank adaptation of the encoder through peft. The only file that imports peft.

Source: Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, ICLR 2022.
"""

from __future__ import annotations

from torch import nn

from segcore.errors import need

_ATTENTION = r".*attn\.(qkv|proj)"  # Hiera's q, k and v are one fused layer


def add_lora(encoder: nn.Module, rank: int) -> nn.Module:
    """Freezes the encoder and adds trainable rank-`rank` updates to every attention's qkv and output projection.

    The scale alpha/rank is 2, so that the learning rate need not follow the rank.

    Raises:
        InputError: peft is not installed.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ModuleNotFoundError as error:
        if error.name != "peft":
            raise
        raise need("peft", "teacher") from None
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=_ATTENTION, lora_dropout=0.0, bias="none")
    return get_peft_model(encoder, config)


def merge_lora(encoder: nn.Module) -> nn.Module:
    """Folds the updates into the weights and gives back a plain module; in place."""
    return encoder.merge_and_unload()  # type: ignore[operator,no-any-return]
