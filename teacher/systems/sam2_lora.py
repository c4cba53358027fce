"""SAM2-LoRA: low-rank updates of encoder and mask decoder, one mask a class, a learned prompt instead of a human's.

Queries and values alone are updated, in Hiera's fused qkv and in the decoder's attention; upscaling, tokens, prompt and
hypernetworks are trained as a whole. The neck is frozen, as the whole image encoder is in the paper, whose SAM has no
pyramid.

Source: Zhang and Liu, Customized Segment Anything Model for Medical Image Segmentation, 2023; ranks 1, 4 and 8 and the
loss as on FLARE22.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from torch import nn

from segcore.bundle.manifest import Manifest
from teacher.decoders.class_masks import class_mask_loss, open_class_masks, prepare_class_masks, train_head
from teacher.sam2_model import MEAN_STD as MEAN_STD
from teacher.settings import TeacherSettings
from teacher.system import System, Task, unchanged
from teacher.tuning.adapter_folder import save_adapters
from teacher.tuning.peft_kinds import PEFT_KINDS, add_peft, merge_peft, save_peft
from teacher.tuning.tune import MLP_OUT, Tuning, with_plain_encoder

_QUERIES_AND_VALUES = r".*\.(q_proj|v_proj)"
_KEYS_AND_VALUES = r".*\.(k_proj|v_proj)"
"""For ia3, as in `teacher.tuning.tune`."""


def build_system(settings: TeacherSettings, task: Task) -> System:
    """The teacher with its weights loaded and frozen as `--tune` says.

    The decoder's updates are of the encoder's kind where peft makes that, else LoRA; with `all` there are none.
    """
    network, tuning, output, pretrained = prepare_class_masks(settings, task)
    if tuning.kind != "all":
        train_head(network)
        network.decoder.transformer = _tune_transformer(network.decoder.transformer, tuning)
    return System(
        network=network,
        output=output,
        loss=class_mask_loss,
        view=unchanged,
        plain=partial(_merge_updates, tuning=tuning),
        settings={"encoder": settings.encoder_name, **tuning.adapter_settings},
        title=f"SAM2-LoRA {settings.encoder_name}",
        pretrained=pretrained,
        encoder=network.encoder,
        save_adapters=partial(_save_updates, network.encoder, network.decoder.transformer, tuning),
    )


def open_network(manifest: Manifest) -> nn.Module:
    """The plain form of a bundle, with random weights."""
    return open_class_masks(manifest)


def _tune_transformer(transformer: nn.Module, tuning: Tuning) -> nn.Module:
    if tuning.kind == "ia3":
        return add_peft(transformer, "ia3", rank=0, targets=_KEYS_AND_VALUES, feedforward=MLP_OUT)
    kind = tuning.kind if tuning.kind in PEFT_KINDS else "lora"
    return add_peft(transformer, kind, rank=tuning.rank, targets=_QUERIES_AND_VALUES)


def _merge_updates(network: nn.Module, tuning: Tuning) -> nn.Module:
    network = with_plain_encoder(network, tuning)
    decoder: nn.Module = network.decoder  # type: ignore[assignment]
    if tuning.kind != "all":
        decoder.transformer = merge_peft(decoder.transformer)  # type: ignore[arg-type]
    return network


def _save_updates(encoder: nn.Module, transformer: nn.Module, tuning: Tuning, folder: Path) -> None:
    """The encoder's updates into `folder`, the decoder's into a folder in it, both in peft's format."""
    save_adapters(encoder, tuning, folder)
    if tuning.kind != "all":
        save_peft(transformer, folder / "decoder")
