"""Soft labels of a whole volume by memory, without a human: one prompt, made of a first guess at all its slices."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from segcore.learn.deploy import normaliser
from segcore.manifest import Manifest
from teacher.memory.volume_model import VolumeSam2
from teacher.memory.volumes import volume_logits, volume_prompt

_SLICES_A_PASS = 8


@torch.no_grad()
def label_volume(network: VolumeSam2, manifest: Manifest, pictures: Tensor, masks: Tensor | None) -> Tensor:
    """Asks once a class, on the slice where a first guess is largest, with a point or the box that the guess gives.

    Args:
        network: from a bundle.
        manifest: the bundle's; a teacher that asks itself with boxes asks so here, else with a point.
        pictures: S×H×W×C uint8, all slices of one volume in their order, on the network's device.
        masks: the guess, S×H×W class indices; None for the masks of the automatic form, which knows no neighbours.

    Returns:
        Logits S×K'×h×w, as in the automatic form. A class that was guessed nowhere is nowhere.
    """
    x = normaliser(manifest.input, pictures.device)(pictures.permute(0, 3, 1, 2).float() / 255)
    if masks is None:
        masks = torch.cat([_guess(network, part) for part in x.split(_SLICES_A_PASS)])
    kind = "box" if manifest.settings.get("prompt") == "box" else "points"
    prompts = [volume_prompt((masks == k).float(), kind) for k in range(1, len(manifest.classes) + 1)]  # type: ignore[arg-type]
    return volume_logits(network, x, prompts)


def _guess(network: VolumeSam2, x: Tensor) -> Tensor:
    """Class indices N×H×W of the automatic form."""
    logits = F.interpolate(network(x), x.shape[2:], mode="bilinear", align_corners=False)
    return (logits[:, 0] > 0).long() if logits.shape[1] == 1 else logits.argmax(1)
