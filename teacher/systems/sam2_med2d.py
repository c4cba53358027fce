"""SAM-Med2D on SAM 2: adapters along channels and space, its decoder tuned by simulated interaction.

Source: Cheng et al., SAM-Med2D, 2023.
"""

from __future__ import annotations

from functools import partial

from torch import nn

from segcore.bundle.manifest import Manifest
from segcore.picture.preprocess import output_spec
from teacher.promptable import (
    NECK,
    automatic_form,
    open_promptable,
    plain_promptable,
    prepare_promptable,
    prompt_spec,
    train_decoder,
    train_prompt_encoder,
)
from teacher.prompts.protocols import PROMPTED
from teacher.prompts.training import InteractiveRounds, interactive_loss
from teacher.sam2_model import SAM2_MEAN_STD, STRIDE
from teacher.settings import TeacherSettings
from teacher.system import Protocol, System, Task
from teacher.tuning.adapter_folder import save_adapters

MEAN_STD = SAM2_MEAN_STD
PROTOCOLS: dict[str, Protocol] = PROMPTED


def build_system(settings: TeacherSettings, task: Task) -> System:
    """The teacher with its weights loaded and frozen as `--tune` says."""
    prepared = prepare_promptable(settings, task, candidates="three", frozen=NECK)
    network, tuning = prepared.network, prepared.tuning
    train_decoder(network, candidates=True)
    train_prompt_encoder(network, masks=settings.rounds > 1)
    return System(
        network=InteractiveRounds(network, settings.rounds),
        output=output_spec(task.classes, stride=STRIDE),
        loss=interactive_loss(len(task.classes)),
        view=automatic_form,
        plain=partial(plain_promptable, tuning=tuning),
        settings=prepared.settings,
        title=f"SAM2-Med2D {settings.encoder}",
        pretrained=prepared.pretrained,
        prompt=prompt_spec(("point", "box", "mask"), "three"),
        save_adapters=partial(save_adapters, network.sam.image_encoder.trunk, tuning),
    )


def open_network(manifest: Manifest) -> nn.Module:
    """The plain form of a bundle, with random weights."""
    return open_promptable(manifest, candidates="three")
