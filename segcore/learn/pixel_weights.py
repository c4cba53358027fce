"""What a pixel of a training mask weighs in the cross-entropy: by its class, and by the size of the part it lies in.

The weights are worked out once, when the masks are read. So that every augmentation moves them with the mask, exactly,
a mask is held as codes that stand for class and weight; `decode` takes them apart after the augmentation.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from segcore.command import log
from segcore.errors import InputError
from segcore.learn.settings import AUTO_WEIGHTS, BACKGROUND, Weighing
from segcore.measure.shapes import find_parts
from segcore.words import figures

_CODES, _LEAST_LEVELS = 256, 8


@dataclass(frozen=True)
class WeighedMasks:
    """Masks as codes, 0 for the background.

    Attributes:
        codes: N×H×W uint8.
        classes: code → class, 256 uint8.
        weights: code → what such a pixel weighs, 256 float32.
    """

    codes: np.ndarray
    classes: Tensor
    weights: Tensor

    def decode(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        """Codes H×W uint8 → the mask H×W uint8 and its pixels' weights H×W float32."""
        index = codes.long()
        return self.classes[index], self.weights[index]


def weigh_masks(
    masks: np.ndarray, labelled: Sequence[bool], classes: Sequence[str], asked: Weighing
) -> WeighedMasks:
    """Works out what each pixel weighs, and says so on stderr.

    A part (8-connected, of one class) smaller than its class's mean part weighs mean area / area, at most
    `asked.small_parts`; so the small ones together weigh as if all parts had the same size, and a speck does not weigh
    without bound. Larger parts and the background keep the class's weight.

    Args:
        masks: N×H×W uint8, class indices at the network's size.
        labelled: N; the others' masks are empty and do not count.
        classes: foreground classes.
        asked: the flags.

    Source: Shirokikh et al., Universal Loss Reweighting to Balance Lesion Size Inequality in 3D Medical Image
    Segmentation, MICCAI 2020: there a part weighs its picture's mean part / its own size, the background being a part,
    too. Here the mean is over the training masks, as many a picture has one part, and there is a bound. (Blob loss,
    Kofler et al., IPMI 2023, takes a Dice of each part alone instead, for which the parts are needed in every step.)

    Raises:
        InputError: more classes than codes can tell the parts of.
    """
    count = len(classes)
    of_classes = asked.of_classes
    if of_classes == AUTO_WEIGHTS:
        of_classes = _rarity_weights(masks[np.asarray(labelled, bool)], count)
        told = ", ".join(
            f"{name} {figures(weight)}"
            for name, weight in zip((BACKGROUND, *classes), of_classes, strict=True)
        )
        log(f"class weights: {told}")
    by_class = np.array(of_classes or (1.0,) * (count + 1), np.float64)
    if asked.small_parts == 1:
        of_code, weights = np.arange(_CODES) % (count + 1), by_class[np.arange(_CODES) % (count + 1)]
        return WeighedMasks(
            masks, torch.from_numpy(of_code.astype(np.uint8)), torch.from_numpy(weights).float()
        )
    # Code 1 + (class − 1)·levels + level: of class `class`, weighing 1 to `small_parts` in so many steps.
    levels = (_CODES - 1) // count
    if levels < _LEAST_LEVELS:
        raise InputError(
            f"--small-lesion-weight: must be for at most {(_CODES - 1) // _LEAST_LEVELS} classes, got {count}; omit it"
        )
    level, of_code = np.arange(levels) / max(1, levels - 1), np.zeros(_CODES, np.uint8)
    weights = np.full(_CODES, by_class[0])
    for c in range(count):
        mine = slice(1 + c * levels, 1 + (c + 1) * levels)
        of_code[mine], weights[mine] = c + 1, by_class[c + 1] * (1 + (asked.small_parts - 1) * level)
    codes = _code_parts(masks, classes, levels, asked.small_parts)
    return WeighedMasks(codes, torch.from_numpy(of_code), torch.from_numpy(weights).float())


def _rarity_weights(masks: np.ndarray, classes: int) -> tuple[float, ...]:
    """1/√(share of the pixels) of background and each class, in mean 1; a class that never occurs weighs 1.

    The root, because the share itself would make a class of a thousandth weigh a thousand times as much, and its
    borders with it.
    """
    pixels = np.bincount(masks.ravel(), minlength=classes + 1)[: classes + 1].astype(float)
    there = pixels > 0
    weights = np.ones(classes + 1)
    weights[there] = np.sqrt(pixels.sum() / pixels[there])
    weights[there] /= weights[there].mean()
    return tuple(float(w) for w in weights)


def _code_parts(masks: np.ndarray, classes: Sequence[str], levels: int, most: float) -> np.ndarray:
    codes = np.zeros_like(masks)
    for number, name in enumerate(classes, start=1):
        first = 1 + (number - 1) * levels

        # Found twice, for their mean and for their weights: held, the parts would take more memory than the masks.
        def sizes_of(mask: np.ndarray, number: int = number) -> np.ndarray:
            return find_parts([mask == number]).sizes

        with ThreadPoolExecutor() as pool:
            sizes = np.concatenate([np.zeros(0), *pool.map(sizes_of, masks)])
            if not len(sizes):
                continue
            mean = float(sizes.mean())

            def write_codes(
                mask: np.ndarray,
                code: np.ndarray,
                number: int = number,
                first: int = first,
                mean: float = mean,
            ) -> None:
                parts = find_parts([mask == number])
                weight = np.clip(mean / parts.sizes, 1, most)
                level = np.rint((weight - 1) / (most - 1) * (levels - 1)).astype(int)
                # Runs and pixels are both in reading order.
                code[mask == number] = first + np.repeat(level[parts.part], parts.length)

            list(pool.map(write_codes, masks, codes))
        log(
            f"{name}: {(sizes < mean).sum()} of {len(sizes)} parts are smaller than their mean of {figures(mean)} "
            f"pixels and weigh up to {figures(min(most, mean / sizes.min()))} times as much"
        )
    return codes
