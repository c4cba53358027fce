"""The seam between training and the teachers: what a system is, the table of them, and how their bundles are opened.

A system's module in `teacher/systems` offers

    MEAN_STD                    normalisation of 1 and of 3 channels, where it has no encoder, which has its own
    build_system(settings, task) -> System           to train
    open_network(manifest) -> nn.Module              the plain form of its bundles, with random weights
    PROTOCOLS (optional)        further ways to test it, by name; `AUTOMATIC` is always there

Modules are imported when they are asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from segcore.bundle.folder import Bundle
from segcore.bundle.manifest import Manifest
from segcore.dataset.case import Case
from segcore.errors import reading
from segcore.learn.augment import Sample
from segcore.learn.evaluate import Validator
from segcore.learn.loader import TrainingSet
from segcore.learn.network import check_torch_bundle, load_weights
from segcore.picture.preprocess import InputSpec, OutputSpec
from segcore.picture.prompts import PromptSpec
from teacher.encoder import MeanStd, encoder_module
from teacher.settings import EncoderName, SystemName, TeacherSettings

SYSTEMS: dict[SystemName, str] = {
    "s2agscunet": "teacher.systems.s2agscunet",
    "sam2-unet": "teacher.systems.sam2_unet",
    "sam2-lora": "teacher.systems.sam2_lora",
    "sam2-adapter": "teacher.systems.sam2_adapter",
    "sam2-med2d": "teacher.systems.sam2_med2d",
    "sam2-points": "teacher.systems.sam2_points",
    "sam2-zeroshot": "teacher.systems.sam2_zeroshot",
    "sam2-memory": "teacher.systems.sam2_memory",
    "unet": "teacher.systems.unet",
    "lightunet": "teacher.systems.unet",
}
"""Name → module. A bundle's `Manifest.architecture` is such a name, too."""

AUTOMATIC = "automatic"
"""The protocol without help: a picture in, a mask out."""

Loss = Callable[[nn.Module, Tensor, Sample], Tensor]
Predictions = Iterator[tuple[Case, np.ndarray, np.ndarray]]
Protocol = Callable[[nn.Module, Validator], Predictions]
"""(network as a bundle holds it, validator) → (case, predicted mask, true mask) at the case's own size."""


@dataclass(frozen=True)
class Task:
    """What a system is built for.

    Attributes:
        classes: foreground classes.
        spec: the network's input.
        cases: the labelled training cases; nothing of validation or test may reach a system.
    """

    classes: tuple[str, ...]
    spec: InputSpec
    cases: Sequence[Case]


@dataclass(frozen=True)
class System:
    """A teacher as training sees it.

    Attributes:
        network: what is trained; exactly the parameters with `requires_grad` are, and each of them gets a gradient.
        output: of the deployed form.
        loss: (network, normalised images N×3×H×W, sample) → scalar; `sample` is a batch of `TrainingSet`. Its random
            numbers are torch's, which the loop seeds with (seed, epoch).
        view: the network as it is deployed, N×3×H×W → logits N×K×h×w at `output.stride`; shares the weights.
        plain: the same for a bundle: updates merged into the weights, in place. Its parameters' names are those of
            `open_network`.
        settings: enough for `open_network` to build it again.
        title: for tables: "SAM2-UNet tiny".
        pretrained: where the starting weights came from.
        encoder: the part of `network` that turns pictures N×3×H×W into maps, and all that the pictures go into; None
            where there is none. Where nothing of it is trained, its maps may be computed once (`teacher.features`).
        training_set: in the place of `TrainingSet`, for a system that learns from more than single pictures.
        validate: in the place of the automatic masks' mean Dice; higher is better.
        prompt: what a promptable bundle may be asked with; None for others.
        thresholds: lowest and highest that the calibration may choose.
        save_adapters: writes what was trained of the encoder into a new folder of the bundle, in a form of its own
            (peft's, where peft made it); None where there is nothing beside the weights.
    """

    network: nn.Module
    output: OutputSpec
    loss: Loss
    view: Callable[[nn.Module], nn.Module]
    plain: Callable[[nn.Module], nn.Module]
    settings: dict[str, Any]
    title: str
    pretrained: str
    encoder: nn.Module | None = None
    training_set: Callable[[int], TrainingSet] | None = None
    validate: Callable[[nn.Module, Validator], float] | None = None
    prompt: PromptSpec | None = None
    thresholds: tuple[float, float] = (0.05, 0.95)
    save_adapters: Callable[[Path], None] | None = field(default=None, repr=False)


def unchanged(network: nn.Module) -> nn.Module:
    """`System.view` and `System.plain` of a system that is deployed as it is trained."""
    return network


def system_module(name: str) -> ModuleType:
    """The module of a system, by a key of `SYSTEMS`."""
    return import_module(SYSTEMS[name])  # type: ignore[index]


def mean_std_of(settings: TeacherSettings) -> MeanStd:
    """Normalisation of 1 and of 3 channels, for `training_input`: the encoder's, or a system's without one."""
    if settings.has_encoder:
        found: MeanStd = encoder_module(settings.encoder_name).MEAN_STD
    else:
        found = system_module(settings.system).MEAN_STD
    return found


def protocols(name: str) -> dict[str, Protocol]:
    """Every way that a system can be tested, the automatic one first."""
    further: dict[str, Protocol] = getattr(system_module(name), "PROTOCOLS", {})
    return {AUTOMATIC: lambda network, validator: validator.predictions(network), **further}


class _ArchitectureSettings(BaseModel):
    """`Manifest.architecture_settings` of a teacher, as far as anything here reads them."""

    model_config = ConfigDict(strict=True)

    encoder: EncoderName | None = None
    base: int | None = Field(None, ge=1, le=256)
    slots: int | None = Field(None, ge=1, le=1000)
    adapter_kind: Literal["adapter", "adapter-parallel", "adapter-channel-space"] | None = None
    adapter_width: int | None = Field(None, ge=1, le=4096)
    decoder_adapter_width: int | None = Field(None, ge=1, le=4096)

    def check_complete(self, architecture: str) -> None:
        """Raises `ValueError` where what a system is built from is not there."""
        if architecture not in SYSTEMS:
            raise ValueError(f"{architecture} is none of {', '.join(SYSTEMS)}")
        plain = architecture in ("unet", "lightunet") and self.base is not None
        prompted = architecture in ("sam2-points", "sam2-zeroshot", "sam2-memory")
        if (self.encoder is None and not plain) or (self.slots is None and prompted):
            raise ValueError(f"{'slots' if self.encoder else 'encoder'} is missing")


def open_plain(manifest: Manifest) -> nn.Module:
    """The plain form of a teacher's bundle, with random weights.

    Raises:
        InputError: the manifest names no teacher that there is, or its settings make none.
    """
    with reading(
        f"bundle of a teacher {manifest.architecture}", "one whose architecture_settings make a teacher"
    ):
        settings = _ArchitectureSettings.model_validate(manifest.architecture_settings)
        settings.check_complete(manifest.architecture)
    network: nn.Module = system_module(manifest.architecture).open_network(manifest)
    return network


def load_teacher(bundle: Bundle) -> nn.Module:
    """Builds the network of a torch bundle and loads its weights; in eval mode, without peft.

    Called with a picture it gives logits; a promptable one (`Manifest.prompt`) also has `encode` and `decode`, see
    `teacher.sam2_model.Promptable`.

    Raises:
        InputError: not a teacher in torch format.
    """
    check_torch_bundle(bundle, "teacher")
    return load_weights(open_plain(bundle.manifest), bundle)
