"""A teacher that runs beside the student in every step and sees each augmented image itself."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from segcore.bundle.folder import Bundle
from segcore.learn.network import normaliser
from student.network import load_student
from teacher.system import load_teacher


def open_live_teacher(bundle: Bundle, device: torch.device) -> Callable[[Tensor], Tensor]:
    """A function from images N×C×H×W, 0–1, to the teacher's logits N×K×H×W at their size.

    Args:
        bundle: in torch format; what teacher.train wrote, or a large student.
        device: where it runs.

    Raises:
        InputError: an exported bundle.
    """
    spec = bundle.manifest.input
    load = load_student if bundle.manifest.kind == "student" else load_teacher
    network = load(bundle).to(device)
    normalised = normaliser(spec, device)

    def ask(image: Tensor) -> Tensor:
        with torch.no_grad():
            resized = F.interpolate(image, spec.size_px, mode="bilinear", antialias=True, align_corners=False)
            logits = network(normalised(resized)).float()
            return F.interpolate(logits, image.shape[2:], mode="bilinear", align_corners=False)

    return ask
