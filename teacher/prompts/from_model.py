"""Prompts from masks that another model predicted: a promptable teacher that labels after an earlier student."""

from __future__ import annotations

from torch import Tensor, nn

from segcore.learn.deploy import normaliser
from segcore.manifest import Manifest
from teacher.promptable import PromptedSam2
from teacher.prompts.mean_mask import automatic_prompts
from teacher.settings import AutomaticPrompt


def ask_with_masks(network: nn.Module, manifest: Manifest, pictures: Tensor, masks: Tensor) -> Tensor:
    """Asks a promptable teacher for every class, with points or a box of a mask of each picture.

    The prompts are of the kind that the teacher was trained to ask itself with. A class that a mask does not hold is
    asked for as in the automatic form, with the prompts of the mean training mask: the model may have missed it.

    Args:
        network: a `PromptedSam2` from a bundle.
        manifest: the bundle's.
        pictures: N×H×W×C uint8, on the network's device.
        masks: N×H×W class indices.

    Returns:
        Logits N×K'×h×w, as in the automatic form.
    """
    assert isinstance(network, PromptedSam2)
    points, labels = mask_prompts(network, masks, manifest.settings["prompt"], manifest.settings["points"])
    x = pictures.permute(0, 3, 1, 2).float() / 255
    normalised = normaliser(manifest.input, pictures.device)
    return network.ask(normalised(x), points, labels)


def mask_prompts(
    network: PromptedSam2, masks: Tensor, kind: AutomaticPrompt, count: int
) -> tuple[Tensor, Tensor]:
    """Prompts N×K×P×2 and their labels N×K×P for N masks of class indices; see `ask_with_masks`."""
    classes = len(network.points)
    points = network.points.repeat(len(masks), 1, 1, 1)
    labels = network.labels.repeat(len(masks), 1, 1)
    for n, mask in enumerate(masks):
        for k in range(classes):
            found = mask == k + 1
            if bool(found.any()):
                of_one = automatic_prompts(found[None].float(), kind, count, points.shape[2])
                points[n, k], labels[n, k] = of_one[0][0], of_one[1][0]
    return points, labels
