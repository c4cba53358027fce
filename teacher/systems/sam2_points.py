"""SAM 2 with its mask decoder tuned for prompts from the mean training mask: nobody is asked, in training or later.

Decoder-only tuning and DiceFocal loss as on chest X-rays with SAM, where points of the mean mask beat boxes, and the
threshold was chosen on validation between 0.50 and 0.70 (docs/teachers.md).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segcore.bundle.manifest import Manifest
from segcore.learn.augment import Sample
from teacher.promptable import (
    NECK,
    SLOTS,
    PromptedSam2,
    open_promptable,
    prepare_promptable,
    prompt_spec,
    promptable_system,
    train_decoder,
    train_prompt_encoder,
)
from teacher.prompts.protocols import PROMPTED
from teacher.prompts.training import dice_focal, drawn_prompts
from teacher.sam2_model import MEAN_STD as MEAN_STD
from teacher.sam2_model import PromptKind
from teacher.settings import AutomaticPrompt, TeacherSettings
from teacher.system import Protocol, System, Task

PROTOCOLS: dict[str, Protocol] = PROMPTED
THRESHOLDS = (0.5, 0.7)
"""Where the threshold may lie. Source: facts of SAM on chest X-rays, docs/teachers.md."""
_TRAINED: dict[AutomaticPrompt, tuple[PromptKind, ...]] = {
    "points": ("point",),
    "box": ("box",),
    "both": ("point", "box"),
}


class DrawnPrompts(nn.Module):
    """A promptable network in training: N×3×H×W → every class's answer N×K×H/4×W/4, to prompts drawn anew."""

    means: Tensor

    def __init__(self, model: PromptedSam2, means: Tensor, kind: AutomaticPrompt, count: int) -> None:
        super().__init__()
        self.model, self.kind, self.count = model, kind, count
        self.register_buffer("means", means, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        points, labels = drawn_prompts(
            self.means, self.kind, self.count, len(x), SLOTS
        )  # N K slots 2, N K slots
        return self.model.answers(self.model.encode(x), points, labels)


def drawn_loss(network: nn.Module, images: Tensor, sample: Sample) -> Tensor:
    """DiceFocal of each class's answer on its own, a class that is not in the picture too; mean over the labelled."""
    answers, mask = network(images).float(), sample["mask"]
    classes: int = answers.shape[1]
    logits = F.interpolate(answers, mask.shape[1:], mode="bilinear", align_corners=False)
    truth = mask[:, None] == torch.arange(1, classes + 1, device=mask.device)[:, None, None]
    weight = sample["labelled"].float()
    return (dice_focal(logits, truth).mean(1) * weight).sum() / weight.sum().clamp(min=1)


def build_system(settings: TeacherSettings, task: Task) -> System:
    """The teacher with its weights loaded and frozen as `--tune` says."""
    parts = prepare_promptable(settings, task, candidates="single", frozen=(*NECK, "sam_prompt_encoder"))
    train_decoder(parts.network, candidates=False)
    if parts.tuning.kind == "all":
        train_prompt_encoder(parts.network, masks=False)
    return promptable_system(
        parts,
        settings,
        task,
        trained=DrawnPrompts(parts.network, parts.means, settings.automatic_prompt, settings.points),
        loss=drawn_loss,
        name="SAM2-points",
        prompt=prompt_spec(_kinds(parts.network.sam.prompts, settings.automatic_prompt), "single"),
        thresholds=THRESHOLDS,
    )


def open_network(manifest: Manifest) -> nn.Module:
    """The plain form of a bundle, with random weights."""
    return open_promptable(manifest, candidates="single")


def _kinds(pretrained: tuple[PromptKind, ...], prompt: AutomaticPrompt) -> tuple[PromptKind, ...]:
    """What it answers: prompts that it was pretrained with, and those of this training; masks are left alone."""
    known = {*pretrained, *_TRAINED[prompt]}
    return tuple(kind for kind in _TRAINED["both"] if kind in known)
