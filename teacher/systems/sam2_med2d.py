"""SAM-Med2D on SAM 2: adapters along channels and space, its decoder tuned by simulated interaction.

Source: Cheng et al., SAM-Med2D, 2023.
"""

from __future__ import annotations

from torch import nn

from segcore.bundle.manifest import Manifest
from teacher.promptable import (
    NECK,
    open_promptable,
    prepare_promptable,
    prompt_spec,
    promptable_system,
    train_decoder,
    train_prompt_encoder,
)
from teacher.prompts.protocols import PROMPTED
from teacher.prompts.training import InteractiveRounds, interactive_loss
from teacher.sam2_model import MEAN_STD as MEAN_STD
from teacher.settings import TeacherSettings
from teacher.system import Protocol, System, Task

PROTOCOLS: dict[str, Protocol] = PROMPTED


def build_system(settings: TeacherSettings, task: Task) -> System:
    """The teacher with its weights loaded and frozen as `--tune` says."""
    parts = prepare_promptable(settings, task, candidates="three", frozen=NECK)
    train_decoder(parts.network, candidates=True)
    train_prompt_encoder(parts.network, masks=settings.rounds > 1)
    return promptable_system(
        parts,
        settings,
        task,
        trained=InteractiveRounds(parts.network, settings.rounds),
        loss=interactive_loss(len(task.classes)),
        name="SAM2-Med2D",
        prompt=prompt_spec(("point", "box", "mask"), "three"),
    )


def open_network(manifest: Manifest) -> nn.Module:
    """The plain form of a bundle, with random weights."""
    return open_promptable(manifest, candidates="three")
