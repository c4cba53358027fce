"""Tests of a promptable teacher with a reader's help: prompts that are simulated from the truth, and an upper bound.

The prompts of a case are always the same. A reader asks for what is in the picture: of a class that is not there, no
answer comes. Several classes' answers compete as in the automatic form: the highest logit, if it is over 0.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segcore.dataset.case import Case
from segcore.learn.evaluate import Validator
from segcore.learn.network import normalise_pictures
from segcore.picture.preprocess import mask_of_logits, resize_mask
from segcore.picture.prompts import BACKGROUND, FOREGROUND, MASK_CLIP, PADDING
from teacher.promptable import PromptedSam2, compete
from teacher.prompts.mean_mask import automatic_prompts, peaks
from teacher.sam2_model import AnyEmbedding, map_features
from teacher.system import Predictions, Protocol

GRID = 8
"""Points a side that the upper bound asks at."""
_ABSENT = -MASK_CLIP  # logit of what nobody asked for
_QUESTIONS = 16  # of the grid, a pass

SimulatedReader = Callable[[PromptedSam2, AnyEmbedding, Tensor], Tensor]
"""(network, features of one picture, true mask H×W bool) → logits h×w."""


def prompted(answer: SimulatedReader, network: nn.Module, validator: Validator) -> Predictions:
    """A protocol: asks for every class of every case with what `answer` makes of the truth."""
    assert isinstance(network, PromptedSam2)
    network.eval()
    for case, embedding, truth in _encode_cases(network, validator):
        seen = torch.tensor(resize_mask(truth, validator.spec.size_px), device=network.points.device)
        nothing = torch.full([side // network.sam.stride for side in seen.shape], _ABSENT, device=seen.device)
        with torch.inference_mode():
            logits = [
                answer(network, embedding, seen == k) if bool((seen == k).any()) else nothing
                for k in range(1, validator.classes + 1)
            ]
            one = compete(torch.stack(logits)[None])[0].float().cpu().numpy()
        yield case, mask_of_logits(one, validator.output, truth.shape), truth


@contextmanager
def kept_features(network: nn.Module) -> Iterator[None]:
    """While it lasts, a promptable network computes the features of a picture once, whoever asks for them.

    Every protocol looks at the same pictures, alone or in batches, and the encoder is most of the work. They are kept
    in memory, 4 MB a picture: open it anew for every few pictures.
    """
    if not isinstance(network, PromptedSam2):
        yield
        return
    compute, kept = network.encode, dict[bytes, AnyEmbedding]()

    def encode(x: Tensor) -> AnyEmbedding:
        keys = [hashlib.sha256(one.cpu().numpy().tobytes()).digest() for one in x]
        if missing := [i for i, key in enumerate(keys) if key not in kept]:
            found = compute(x[missing])
            for place, i in enumerate(missing):
                kept[keys[i]] = map_features(found, partial(torch.narrow, dim=0, start=place, length=1))
        kind: type[AnyEmbedding] = type(kept[keys[0]])
        return kind(*(torch.cat(maps) for maps in zip(*(kept[key] for key in keys), strict=True)))

    network.encode = encode  # type: ignore[method-assign]
    try:
        yield
    finally:
        del network.encode  # the class's again


def answer_to_box(network: PromptedSam2, embedding: AnyEmbedding, truth: Tensor) -> Tensor:
    """The answer to the truth's own box."""
    points, labels = automatic_prompts(truth[None].float().cpu(), "box", 0, network.slots)
    return network.answer(embedding, points.to(truth.device), labels.to(truth.device))[0]


def answer_to_clicks(network: PromptedSam2, embedding: AnyEmbedding, truth: Tensor, *, clicks: int) -> Tensor:
    """The answer after some clicks: the first deep inside the truth, each next one deep inside what is still wrong.

    The last answer's logits are part of the next question where the network was trained so.
    """
    slots = network.slots or clicks
    points = torch.zeros(1, slots, 2, device=truth.device)
    labels = torch.full((1, slots), float(PADDING), device=truth.device)
    region, logits, mask = truth, torch.zeros(0), None
    for i in range(clicks):
        x, y = peaks(region.float().cpu(), 1)[0].tolist()
        points[0, i] = points.new_tensor([x, y])
        labels[0, i] = FOREGROUND if truth[int(y), int(x)] else BACKGROUND
        used = slots if network.slots else i + 1
        logits = network.answer(embedding, points[:, :used], labels[:, :used], mask)[0]
        if network.mends:
            mask = logits.clamp(-MASK_CLIP, MASK_CLIP)[None, None]
        full = F.interpolate(logits[None, None], truth.shape, mode="bilinear", align_corners=False)[0, 0]
        wrong = (full > 0) != truth
        region = wrong if bool(wrong.any()) else truth
    return logits


def upper_bound(network: nn.Module, validator: Validator) -> Predictions:
    """A protocol, and no segmentation: for each class, of all candidates the one with the best Dice against the truth.

    Candidates are all answers to the prompts of the automatic form and, of a model that was trained with points, to
    `GRID`×`GRID` single points. What the truth chose says what the model could do if somebody knew the answer; the grid
    stands in for SAM's automatic mask generator.
    """
    return prompted(_best_by_truth, network, validator)


def _repeated(features: Tensor, times: int) -> Tensor:
    return features.expand(times, -1, -1, -1)


def _best_by_truth(network: PromptedSam2, embedding: AnyEmbedding, truth: Tensor) -> Tensor:
    height, width = truth.shape
    y, x = ((torch.arange(GRID, device=truth.device) + 0.5) * (side / GRID) - 0.5 for side in (height, width))
    points = torch.cartesian_prod(y, x).flip(1)[:, None]  # GRID² 1 2
    questions = [(network.points, network.labels)]
    if "point" in network.sam.prompts:
        questions += [(p, p.new_full(p.shape[:2], FOREGROUND)) for p in points.split(_QUESTIONS)]
    best, highest = torch.zeros(0), -1.0
    for places, labels in questions:
        many = map_features(embedding, partial(_repeated, times=len(places)))
        found = network.decode(many, places, labels).logits
        full = F.interpolate(found, (height, width), mode="bilinear", align_corners=False) > 0
        both, total = (full & truth).sum((2, 3)), full.sum((2, 3)) + truth.sum()
        dice = (2 * both / total).flatten()
        if float(dice.max()) > highest:
            highest, best = float(dice.max()), found.flatten(0, 1)[dice.argmax()]
    return best


def _encode_cases(
    network: PromptedSam2, validator: Validator
) -> Iterator[tuple[Case, AnyEmbedding, np.ndarray]]:
    """Each case with the features of its picture and its true mask."""
    for case, picture in zip(validator.cases, validator.pictures, strict=True):
        one = torch.tensor(picture, device=network.points.device)[None]  # 1 H W C
        with torch.inference_mode():
            embedding = network.encode(normalise_pictures(one, validator.spec))
        yield case, embedding, case.mask()


PROMPTED: dict[str, Protocol] = {
    "box": partial(prompted, answer_to_box),
    "1 point": partial(prompted, partial(answer_to_clicks, clicks=1)),
    "3 points": partial(prompted, partial(answer_to_clicks, clicks=3)),
    "5 points": partial(prompted, partial(answer_to_clicks, clicks=5)),
}
"""Those of SAM-Med2D's evaluation. Source: Cheng et al., SAM-Med2D, 2023."""
