"""SAM 2 with its memory attention over the slices of a volume, and a self-sorting memory bank: one prompt per volume.

Trained beside the encoder's updates: memory encoder, memory attention and mask decoder, all of them. What a bundle
exports is the automatic form, slice by slice and **without memory**; the memory runs in torch
(`teacher.memory.volumes`).

Source: Zhu et al., Medical SAM 2, 2024; Ravi et al., SAM 2, 2024.
"""

from __future__ import annotations

from functools import partial
from typing import cast

import numpy as np
from torch import nn

from segcore.bundle.manifest import Manifest
from segcore.learn.evaluate import Validator
from segcore.learn.loader import TrainingSet
from segcore.picture.preprocess import output_spec
from teacher.memory.clips import ClipSet, clip_loss
from teacher.memory.slice_memory import ClipTracker, SliceMemory, VolumeSam2
from teacher.memory.volumes import VolumePromptKind, check_volumes, volume_dice, volume_predictions
from teacher.promptable import (
    NECK,
    open_promptable,
    prepare_promptable,
    prompt_spec,
    train_decoder,
    train_prompt_encoder,
)
from teacher.sam2_model import MEAN_STD as MEAN_STD
from teacher.sam2_model import STRIDE, load_sam2_weights
from teacher.settings import TeacherSettings
from teacher.system import Predictions, Protocol, System, Task
from teacher.tuning.adapter_folder import save_adapters
from teacher.tuning.tune import Tuning, plain_encoder


def build_system(settings: TeacherSettings, task: Task) -> System:
    """The teacher with its weights loaded and frozen as `--tune` says.

    Raises:
        InputError: the data has no volumes, or one of a single slice.
    """
    check_volumes(task.cases, settings.data, limited=settings.limit is not None)
    parts = prepare_promptable(settings, task, candidates="single", frozen=(*NECK, "sam_prompt_encoder"))
    pictures, tuning, pretrained = parts.network, parts.tuning, parts.pretrained
    memory = SliceMemory(task.spec.height_px)
    of_memory = load_sam2_weights(memory, str(settings.weights), settings.encoder_name)
    train_decoder(pictures, candidates=False)
    pictures.sam.sam_mask_decoder.iou_prediction_head.requires_grad_(True)  # decides what is remembered
    if tuning.kind == "all":
        train_prompt_encoder(pictures, masks=False)

    def clips(seed: int) -> TrainingSet:
        data = ClipSet(
            task.cases,
            task.spec,
            classes=len(task.classes),
            seed=seed,
            length=settings.clip_slices,
            transforms=settings.transforms(task.spec.channels),
        )
        return cast(TrainingSet, data)  # what `fit` needs of one: a length, and items by (epoch, index)

    return System(
        network=ClipTracker(VolumeSam2(pictures, memory)),
        output=output_spec(task.classes, stride=STRIDE),
        loss=clip_loss,
        view=lambda trained: cast(ClipTracker, trained).model,
        plain=lambda trained: _plain_form(trained, tuning),
        settings=parts.settings,
        title=f"SAM2-Memory {settings.encoder_name}",
        pretrained=pretrained if of_memory == pretrained else f"{pretrained}; memory: {of_memory}",
        training_set=clips,
        validate=_validate_volumes,
        prompt=prompt_spec(("point", "box"), "single"),
        save_adapters=partial(save_adapters, pictures.sam.image_encoder.trunk, tuning),
    )


def open_network(manifest: Manifest) -> nn.Module:
    """The plain form of a bundle, with random weights."""
    return VolumeSam2(open_promptable(manifest, candidates="single"), SliceMemory(manifest.input.height_px))


def _plain_form(trained: nn.Module, tuning: Tuning) -> nn.Module:
    model = cast(ClipTracker, trained).model
    encoder = model.pictures.sam.image_encoder
    encoder.trunk = plain_encoder(encoder.trunk, tuning)
    return model


def _validate_volumes(trained: nn.Module, validator: Validator) -> float:
    """Mean Dice over volumes with one point each; 0 where no volume has anything to ask for."""
    model = cast(ClipTracker, trained).model
    scores = volume_dice(volume_predictions(model, validator, "points"), validator.classes)
    return float(np.mean(list(scores.values()))) if scores else 0.0


def _by_volume(kind: VolumePromptKind) -> Protocol:
    def predictions(network: nn.Module, validator: Validator) -> Predictions:
        return volume_predictions(cast(VolumeSam2, network), validator, kind)

    return predictions


PROTOCOLS: dict[str, Protocol] = {
    "one point a volume": _by_volume("points"),
    "one box a volume": _by_volume("box"),
}
