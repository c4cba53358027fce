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
from segcore.picture.preprocess import output_spec
from teacher.decoders.class_masks import (
    STRIDE,
    build_class_masks,
    class_mask_loss,
    load_class_masks,
    train_head,
)
from teacher.decoders.supervised_heads import with_plain_encoder
from teacher.sam2_model import SAM2_MEAN_STD
from teacher.settings import TeacherSettings
from teacher.system import System, Task
from teacher.tuning.adapter_folder import save_adapters
from teacher.tuning.adapters import PARALLEL_SCALE, AdapterAfter, AdapterBeside, Bottleneck
from teacher.tuning.tune import adapted_encoder, tune_encoder, tuning_of


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


MEAN_STD = SAM2_MEAN_STD


def build_system(settings: TeacherSettings, task: Task) -> System:
    """The teacher with its weights loaded and frozen as `--tune` says; with `all` the decoder has no adapters."""
    output, tuning = output_spec(task.classes, stride=STRIDE), tuning_of(settings)
    network, pretrained = load_class_masks(settings, output.channels, task.spec.height_px)
    network.encoder = tune_encoder(network.encoder, tuning)
    width = None if tuning.kind == "all" else tuning.width
    if width:
        train_head(network)
        add_token_adapters(network.decoder.transformer, width)
    return System(
        network=network,
        output=output,
        loss=class_mask_loss,
        view=lambda trained: trained,
        plain=partial(with_plain_encoder, tuning=tuning),
        settings={"encoder": settings.encoder, **tuning.adapter_settings, "decoder_adapter_width": width},
        title=f"SAM2-Adapter {settings.encoder}",
        pretrained=pretrained,
        save_adapters=partial(save_adapters, network.encoder, tuning),
    )


def open_network(manifest: Manifest) -> nn.Module:
    """The plain form of a bundle, with random weights."""
    settings = manifest.architecture_settings
    network = build_class_masks(
        encoder=settings["encoder"], outputs=manifest.output.channels, image_px=manifest.input.height_px
    )
    network.encoder = adapted_encoder(network.encoder, settings)
    if settings["decoder_adapter_width"]:
        add_token_adapters(network.decoder.transformer, settings["decoder_adapter_width"])
    return network
