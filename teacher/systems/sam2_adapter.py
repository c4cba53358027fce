"""SAM2-Adapter: bottleneck adapters in encoder and mask decoder, one mask a class, a learned prompt.

The encoder has two in each block by default (`--tune adapter-parallel`), and so have the decoder's two-way
blocks, on the tokens: one after the self-attention, one beside the MLP. The decoder's upscaling, tokens,
prompt and hypernetworks are trained as a whole. The neck is frozen.

Source: SAM-Adapter on FLARE22, after Wu et al., Medical SAM Adapter, 2023.
"""

from __future__ import annotations

from functools import partial

from torch import nn

from segcore.bundle.manifest import Manifest
from teacher.decoders.class_masks import class_mask_loss, open_class_masks, prepare_class_masks, train_head
from teacher.sam2_model import MEAN_STD as MEAN_STD
from teacher.settings import TeacherSettings
from teacher.system import System, Task, unchanged
from teacher.tuning.adapter_folder import save_adapters
from teacher.tuning.adapters import PARALLEL_SCALE, AdapterAfter, AdapterBeside, Bottleneck
from teacher.tuning.tune import with_plain_encoder


def build_system(settings: TeacherSettings, task: Task) -> System:
    """The teacher with its weights loaded and frozen as `--tune` says; with `all` the decoder has no adapters."""
    network, tuning, output, pretrained = prepare_class_masks(settings, task)
    width = None if tuning.kind == "all" else tuning.width
    if width:
        train_head(network)
        add_token_adapters(network.decoder.transformer, width)
    return System(
        network=network,
        output=output,
        loss=class_mask_loss,
        view=unchanged,
        plain=partial(with_plain_encoder, tuning=tuning),
        settings={
            "encoder": settings.encoder_name,
            **tuning.adapter_settings,
            "decoder_adapter_width": width,
        },
        title=f"SAM2-Adapter {settings.encoder_name}",
        pretrained=pretrained,
        encoder=network.encoder,
        save_adapters=partial(save_adapters, network.encoder, tuning),
    )


def open_network(manifest: Manifest) -> nn.Module:
    """The plain form of a bundle, with random weights."""
    settings = manifest.architecture_settings
    network = open_class_masks(manifest)
    if width := settings.get("decoder_adapter_width"):
        add_token_adapters(network.decoder.transformer, width)
    return network


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
