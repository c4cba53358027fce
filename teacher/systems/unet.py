"""The controls: U-Net and LightUNet from random weights, without SAM 2; the student family's builder makes them.

Source: Ronneberger et al., U-Net, MICCAI 2015; Li et al., Entropy 26(12):1059, 2024, for LightUNet.
"""

from __future__ import annotations

from torch import Tensor, nn

from segcore.bundle.manifest import Manifest
from segcore.learn.augment import Sample
from segcore.learn.losses import cross_entropy, dice_loss
from segcore.picture.preprocess import output_spec
from teacher.sam2_model import NO_WEIGHTS
from teacher.settings import SystemName, TeacherSettings
from teacher.system import System, Task, unchanged

MEAN_STD = {1: ((0.5,), (0.25,)), 3: ((0.5,) * 3, (0.25,) * 3)}
"""The students', in `student.network`."""
_TITLES: dict[SystemName, str] = {"unet": "U-Net", "lightunet": "LightUNet"}
_BASES: dict[SystemName, int] = {"unet": 64, "lightunet": 8}


def build_system(settings: TeacherSettings, task: Task) -> System:
    """The control with random weights, all of them trained."""
    base = settings.unet_width or _BASES[settings.system]
    output = output_spec(task.classes, stride=1)
    return System(
        network=_build_unet(base, task.spec.channels, output.channels),
        output=output,
        loss=control_loss,
        view=unchanged,
        plain=unchanged,
        settings={"base": base},
        title=f"{_TITLES[settings.system]} {base}",
        pretrained=NO_WEIGHTS,
    )


def open_network(manifest: Manifest) -> nn.Module:
    """The network of a bundle, with random weights."""
    return _build_unet(
        manifest.architecture_settings["base"], manifest.input.channels, manifest.output.channels
    )


def control_loss(network: nn.Module, images: Tensor, sample: Sample) -> Tensor:
    """Cross-entropy + Dice, as a student's without a teacher: at stride 1 nothing is left to resize."""
    logits, target, labelled = network(images).float(), sample["mask"], sample["labelled"]
    return cross_entropy(logits, target, labelled) + dice_loss(logits, target, labelled)


def _build_unet(base: int, channels: int, outputs: int) -> nn.Module:
    from student.design import unet  # here: student imports teacher for its live teacher
    from student.network import build_student

    return build_student(unet(base), channels=channels, outputs=outputs)
