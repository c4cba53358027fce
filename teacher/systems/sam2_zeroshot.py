"""SAM 2, or LiteMedSAM, as it is: nothing is trained. Its automatic form shows where the untuned model stands.

Source: Ravi et al., SAM 2: Segment Anything in Images and Videos, 2024.
"""

from __future__ import annotations

from torch import Tensor, nn

from segcore.bundle.manifest import Manifest
from segcore.learn.augment import Sample
from segcore.picture.preprocess import output_spec
from teacher.promptable import NECK, SLOTS, open_promptable, prepare_promptable, prompt_spec
from teacher.prompts.protocols import PROMPTED, upper_bound
from teacher.sam2_model import MEAN_STD as MEAN_STD
from teacher.settings import TeacherSettings
from teacher.system import Protocol, System, Task, unchanged

PROTOCOLS: dict[str, Protocol] = {**PROMPTED, "upper bound": upper_bound}
_BOX_SLOTS = 2
"""Of a model that was trained with boxes alone. Empty slots are no points to it: with eight of them beside a box,
LiteMedSAM's Dice falls from 0.86 to 0.64 on the left ventricle (20 slices)."""


def build_system(settings: TeacherSettings, task: Task) -> System:
    """The teacher with its weights loaded."""
    frozen = (*NECK, "sam_prompt_encoder", "sam_mask_decoder")
    parts = prepare_promptable(settings, task, candidates="all", frozen=frozen)
    kinds = parts.network.sam.prompts
    return System(
        network=parts.network,
        output=output_spec(task.classes, stride=parts.network.sam.stride),
        loss=_no_loss,
        view=unchanged,
        plain=unchanged,
        settings=parts.settings,
        title=f"{parts.network.sam.title}, zero-shot",
        pretrained=parts.pretrained,
        prompt=prompt_spec(kinds, "all", slots=SLOTS if "point" in kinds else _BOX_SLOTS),
        thresholds=(0.5, 0.5),  # SAM 2's own: not even that is fitted
    )


def open_network(manifest: Manifest) -> nn.Module:
    """The plain form of a bundle, with random weights."""
    return open_promptable(manifest, candidates="all")


def _no_loss(network: nn.Module, images: Tensor, sample: Sample) -> Tensor:
    raise AssertionError("nothing of sam2-zeroshot is trained")
