"""Updates that the peft library makes, on any module's Linear layers. The only file that imports peft.

Source: Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, ICLR 2022; Liu et al., DoRA: Weight-Decomposed
Low-Rank Adaptation, ICML 2024; Kalajdzievski, A Rank Stabilization Scaling Factor for Fine-Tuning with LoRA, 2023;
Liu et al., Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context Learning (IA³), NeurIPS 2022.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

from torch import nn

from segcore.errors import InputError, need, reading
from teacher.settings import Tune

PEFT_KINDS: tuple[Tune, ...] = ("lora", "dora", "rslora", "ia3")
_SCALE = 2
"""alpha/rank, of lora and dora; the same for every rank, so that the learning rate need not follow the rank."""
_RSLORA_ALPHA = 4
"""Of alpha/√rank, rslora's scale: the same as lora's at the default rank of 4."""


def add_peft(
    module: nn.Module, kind: Tune, *, rank: int, targets: str, feedforward: str | None = None
) -> nn.Module:
    """Wraps a module so that updates of some of its Linear layers are trained and **all else in it is frozen**.

    It computes at first what the module did. In place: the module given is inside of what comes back, which passes
    on its attributes. What else is to be trained in it is unfrozen afterwards.

    Args:
        module: any with Linear layers.
        kind: one of `PEFT_KINDS`.
        rank: of lora, dora and rslora.
        targets: regular expression that has to match all of a layer's name in `module.named_modules()`.
        feedforward: the same for ia3's layers whose inputs are scaled, not their outputs; they need not match
            `targets`, too.

    Raises:
        InputError: peft is not installed.
    """
    peft = _import_peft()
    if kind == "ia3":
        every = f"{targets}|{feedforward}" if feedforward else targets
        config = peft.IA3Config(target_modules=every, feedforward_modules=feedforward or [])
    else:
        alpha = _RSLORA_ALPHA if kind == "rslora" else _SCALE * rank
        config = peft.LoraConfig(
            r=rank,
            lora_alpha=alpha,
            target_modules=targets,
            lora_dropout=0.0,
            bias="none",
            use_dora=kind == "dora",
            use_rslora=kind == "rslora",
        )
    wrapped: nn.Module = peft.get_peft_model(module, config)
    return wrapped


def merge_peft(module: nn.Module) -> nn.Module:
    """Folds the updates into the weights and gives back the plain module that `add_peft` was given; in place."""
    return module.merge_and_unload()  # type: ignore[operator,no-any-return]


def save_peft(module: nn.Module, folder: Path) -> None:
    """Writes the updates as peft does (safetensors and a configuration), for `PeftModel.from_pretrained`."""
    module.save_pretrained(str(folder))  # type: ignore[operator]
    (folder / "README.md").unlink(missing_ok=True)  # peft's empty form of a model card


def load_peft(module: nn.Module, folder: Path) -> nn.Module:
    """Puts updates from `save_peft` onto a module as `add_peft` was given it; they are frozen, and not yet merged.

    Raises:
        InputError: peft is not installed, or the folder's updates are damaged or not those of this module's layers.
    """
    peft = _import_peft()
    with reading(str(folder), "updates of this encoder in peft's format"):
        wrapped: nn.Module = peft.get_peft_model(module, peft.PeftConfig.from_pretrained(str(folder)))
        wanted = peft.get_peft_model_state_dict(wrapped)
        found = peft.utils.load_peft_weights(str(folder), device="cpu")
        if {name: tensor.shape for name, tensor in wanted.items()} != {
            name: tensor.shape for name, tensor in found.items()
        }:
            raise other_encoder(folder)
        peft.set_peft_model_state_dict(wrapped, found)
    return wrapped


def other_encoder(folder: Path) -> InputError:
    """The error for a folder of updates that do not fit."""
    return InputError(
        f"{folder}: must be for an encoder of this size, got tensors of another; build the encoder that the bundle's "
        "manifest names"
    )


def _import_peft() -> ModuleType:
    try:
        import peft
    except ModuleNotFoundError as error:
        if error.name != "peft":
            raise
        raise need("peft", "teacher") from None
    return peft
