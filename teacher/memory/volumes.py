"""Whole volumes: one prompt for each, their masks by memory, how those are scored, and soft labels made of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from segcore.bundle.manifest import Manifest
from segcore.dataset.case import Case, volumes_of
from segcore.errors import InputError
from segcore.learn.augment import OUTSIDE_LOGIT
from segcore.learn.evaluate import Validator
from segcore.learn.network import normalise_pictures
from segcore.picture.preprocess import mask_of_logits, resize_mask
from segcore.picture.prompts import BOX_BOTTOM_RIGHT, BOX_TOP_LEFT, FOREGROUND, PADDING
from teacher.memory.slice_memory import Slices, VolumeSam2
from teacher.promptable import SLOTS, compete
from teacher.prompts.mean_mask import core_box
from teacher.sam2_model import Embedding

VolumePromptKind = Literal["points", "box"]
"""One point or one box: the words of `--prompt`."""
_SLICES_A_PASS = 8  # of the encoder


class VolumePrompt(NamedTuple):
    """What is asked of a volume: one point or one box, on one slice.

    Attributes:
        place: number of the slice.
        points: P×2, (x, y) in the input's pixels.
        labels: P, as `segcore.picture.prompts` numbers them.
    """

    place: int
    points: Tensor
    labels: Tensor


def check_volumes(cases: Sequence[Case], data: str, *, limited: bool) -> None:
    """Checks that a memory has something to remember.

    Args:
        cases: the training cases.
        data: what the user called them.
        limited: whether --limit took some of them away.

    Raises:
        InputError: a volume of one slice, or pictures that are in no volume.
    """
    for places in volumes_of(cases):
        if len(places) < 2:
            todo = (
                "leave --limit away" if limited else "give scans of several slices, or use another --system"
            )
            raise InputError(
                f"--data {data}: must have volumes of at least 2 slices for --system sam2-memory, "
                f"case {cases[places[0]].id} has 1; {todo}"
            )


def volume_prompt(masks: Tensor, kind: VolumePromptKind) -> VolumePrompt | None:
    """A prompt on the slice where a mask is largest; None where it is empty everywhere.

    Args:
        masks: S×H×W, 0–1, of one class.
        kind: a point deep inside, or the box around it.
    """
    areas = masks.flatten(1).sum(1)
    place = int(areas.argmax())
    if areas[place] == 0:
        return None
    mask = masks[place].cpu() > 0.5 * masks[place].max().cpu()
    given = core_box(mask.float()).view(2, 2) if kind == "box" else inmost(mask)[None]
    of_kind = [BOX_TOP_LEFT, BOX_BOTTOM_RIGHT] if kind == "box" else [FOREGROUND]
    points, labels = torch.zeros(SLOTS, 2), torch.full((SLOTS,), float(PADDING))
    points[: len(given)], labels[: len(given)] = given, torch.tensor(of_kind, dtype=torch.float32)
    return VolumePrompt(place, points, labels)


def inmost(mask: Tensor) -> Tensor:
    """The pixel (x, y) of a mask H×W bool that is farthest from its border, as a careful hand clicks."""
    left = mask.float()
    while True:
        beyond = F.pad(1 - left, (1, 1, 1, 1), value=1.0)  # the picture's edge is a border, too
        smaller = 1 - F.max_pool2d(beyond[None], 3, stride=1)[0]
        if not smaller.any():
            break
        left = smaller
    places = left.nonzero().float()  # M 2, (y, x)
    middle = (places - places.mean(0)).square().sum(1).argmin()
    return places[middle].flip(0)


@torch.no_grad()
def volume_logits(
    network: VolumeSam2, pictures: Tensor, prompts: Sequence[VolumePrompt | None], *, remembering: bool = True
) -> Tensor:
    """Masks of a whole volume. The features of all its slices are held at a time (4 MB a slice at 512 px).

    Args:
        network: as a bundle holds it, in eval mode.
        pictures: S×3×H×W normalised, in the order of the slices.
        prompts: one a class; None where nobody asked, which then is nowhere.
        remembering: see `VolumeSam2.track`.

    Returns:
        Logits S×K'×H/4×W/4, as the automatic form gives them.
    """
    parts = [network.look(pictures[i : i + _SLICES_A_PASS]) for i in range(0, len(pictures), _SLICES_A_PASS)]
    slices = Slices(
        Embedding(*(torch.cat(f) for f in zip(*(p.seen for p in parts), strict=True))), parts[0].position
    )
    nowhere = slices.seen.fine.new_full(
        (len(pictures), *slices.seen.fine.shape[2:]), -OUTSIDE_LOGIT
    )  # S H/4 W/4
    answers = []
    for prompt in prompts:
        if prompt is None:
            answers.append(nowhere)
            continue
        points, labels = prompt.points[None].to(pictures.device), prompt.labels[None].to(pictures.device)
        answers.append(
            network.track(slices, points, labels, start=prompt.place, remembering=remembering)[0].float()
        )
    return compete(torch.stack(answers, 1))


def volume_predictions(
    network: VolumeSam2, validator: Validator, kind: VolumePromptKind, *, remembering: bool = True
) -> Iterator[tuple[Case, np.ndarray, np.ndarray]]:
    """(case, predicted mask, true mask) of every slice, volume by volume, with one prompt a class and volume.

    The prompt is on the slice where the truth is largest; where a volume has nothing of a class, none is given.
    """
    network.eval()
    device = next(network.parameters()).device
    size_px = validator.spec.size_px
    for places in volumes_of(validator.cases):
        cases = [validator.cases[i] for i in places]
        truths = [case.mask() for case in cases]
        small = torch.from_numpy(np.stack([resize_mask(truth, size_px) for truth in truths]))
        prompts = [volume_prompt((small == k).float(), kind) for k in range(1, validator.classes + 1)]
        stored = torch.from_numpy(np.stack([validator.pictures[i] for i in places])).to(device)
        pictures = normalise_pictures(stored, validator.spec)
        logits = volume_logits(network, pictures, prompts, remembering=remembering).cpu().numpy()
        for case, one, truth in zip(cases, logits, truths, strict=True):
            yield case, mask_of_logits(one, validator.output, truth.shape), truth


def volume_dice(predictions: Iterator[tuple[Case, np.ndarray, np.ndarray]], classes: int) -> dict[str, float]:
    """Dice of each volume by name: over all its slices at once, mean over the classes that it has.

    A volume without any class, of which nothing can be asked, has none.
    """
    counts: dict[str, np.ndarray] = {}  # 3×K: both, predicted, true
    for case, predicted, truth in predictions:
        of_classes = np.arange(1, classes + 1)[:, None, None]
        p, t = predicted == of_classes, truth == of_classes
        one = np.stack([(p & t).sum((1, 2)), p.sum((1, 2)), t.sum((1, 2))])
        name = case.volume if case.volume is not None else case.id
        counts[name] = counts.get(name, 0) + one
    scores = {}
    for name, (both, predicted, true) in counts.items():
        there = true > 0
        if there.any():
            scores[name] = float((2 * both[there] / (predicted + true)[there]).mean())
    return scores


@torch.no_grad()
def label_volume(network: VolumeSam2, manifest: Manifest, pictures: Tensor, masks: Tensor | None) -> Tensor:
    """Soft labels of a volume without a human: one prompt a class, made of a first guess at all its slices.

    It is a point or the box that the guess gives, on the slice where the guess is largest.

    Args:
        network: from a bundle.
        manifest: the bundle's; a teacher that asks itself with boxes asks so here, else with a point.
        pictures: S×H×W×C uint8, all slices of one volume in their order, on the network's device.
        masks: the guess, S×H×W class indices; None for the masks of the automatic form, which knows no neighbours.

    Returns:
        Logits S×K'×h×w, as in the automatic form. A class that was guessed nowhere is nowhere.
    """
    x = normalise_pictures(pictures, manifest.input)
    if masks is None:
        masks = torch.cat([_automatic_masks(network, part) for part in x.split(_SLICES_A_PASS)])
    kind = "box" if manifest.settings.get("prompt") == "box" else "points"
    prompts = [volume_prompt((masks == k).float(), kind) for k in range(1, len(manifest.classes) + 1)]  # type: ignore[arg-type]
    return volume_logits(network, x, prompts)


def _automatic_masks(network: VolumeSam2, x: Tensor) -> Tensor:
    """Class indices N×H×W of the automatic form."""
    logits = F.interpolate(network(x), x.shape[2:], mode="bilinear", align_corners=False)
    return (logits[:, 0] > 0).long() if logits.shape[1] == 1 else logits.argmax(1)
