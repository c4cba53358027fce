"""A teacher that runs beside the student in every step and sees each augmented image itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segcore.bundle import Bundle
from segcore.learn.deploy import normaliser
from student.network import Student, load_student
from teacher.network import FinestHead, S2AgScUNet, load_teacher

if TYPE_CHECKING:
    from segcore.preprocess import InputSpec

LiveTeacher = Callable[[Tensor], tuple[Tensor, Tensor]]


def open_live_teacher(bundle: Bundle, device: torch.device) -> LiveTeacher:
    """A function from images N×C×H×W, 0–1, to the teacher's logits at their size and its deepest features N×D×h×w.

    Args:
        bundle: in torch format; what teacher.train wrote, or a large student.
        device: where it runs.

    Raises:
        InputError: an exported bundle.
    """
    spec: InputSpec = bundle.manifest.input
    network: nn.Module = load_student(bundle) if bundle.manifest.kind == "student" else load_teacher(bundle)
    network.to(device)
    normalised = normaliser(spec, device)

    def ask(image: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            resized = F.interpolate(image, spec.size_px, mode="bilinear", antialias=True, align_corners=False)
            logits, deepest = logits_and_features(network, normalised(resized))
            full = F.interpolate(logits.float(), image.shape[2:], mode="bilinear", align_corners=False)
            return full, deepest.float()

    return ask


def feature_width(teacher: LiveTeacher, channels: int, size_px: tuple[int, int], device: torch.device) -> int:
    """Channels of the teacher's deepest features, for pictures of these channels and size."""
    return teacher(torch.zeros(1, channels, *size_px, device=device))[1].shape[1]


class WithFeatures(nn.Module):
    """A student and a 1×1 projection of its deepest features to a teacher's width; the student alone is kept.

    N×C×H×W normalised → (logits, projected features).
    """

    def __init__(self, student: Student, teacher_width: int) -> None:
        super().__init__()
        self.student = student
        self.project = nn.Conv2d(student.design.widths[-1], teacher_width, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        levels = self.student.encode(x)
        return self.student.decode(levels), self.project(levels[-1])


def logits_and_features(network: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """A teacher's logits and its encoder's deepest features, in one pass over N×C×H×W normalised."""
    if isinstance(network, Student):
        levels = network.encode(x)
        return network.decode(levels), levels[-1]
    whole = cast(S2AgScUNet, cast(FinestHead, network).network)
    seen: list[list[Tensor]] = []
    hook = whole.encoder.register_forward_hook(lambda _module, _inputs, levels: seen.append(levels))
    try:
        return network(x), seen[0][-1]
    finally:
        hook.remove()
