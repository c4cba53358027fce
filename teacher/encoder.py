"""The seam between systems and pretrained encoders: what a pyramid encoder is, and the table of them.

An encoder's module offers

    MEAN_STD                                         normalisation of 1 and of 3 channels, for `training_input`
    build_encoder(name) -> nn.Module                 with random weights
    load_encoder_weights(encoder, weights, name) -> str
                                                     fills it from a path, a hub name, "package" or "none"; returns
                                                     where the weights came from, with their hash

A module whose encoder is part of a SAM offers all of that, too, for the systems that need its mask decoder:

    build_image_model(name, image_px) -> ImageModel  the whole model with random weights
    load_for_system(model, settings, frozen=) -> str
                                                     fills it; refuses weights that lack one of the parts `frozen`

What is built takes pictures N×3×H×W, normalised, H and W multiples of 32, and gives four maps, the finest first, at
strides 4, 8, 16 and 32. `channel_list` has their channels, the deepest map's first.

An encoder whose coarser maps follow from the finest one at hardly any cost has the methods of `OneMapEncoder`, too:
that one map is then what is kept of a picture where the encoder is frozen (`teacher.features`).

Modules are imported when they are asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import import_module
from types import ModuleType
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from teacher.sam2_model import ImageModel
from teacher.settings import EncoderName, TeacherSettings

ENCODERS: dict[EncoderName, str] = {
    "tiny": "teacher.sam2_model",
    "small": "teacher.sam2_model",
    "base+": "teacher.sam2_model",
    "large": "teacher.sam2_model",
    "litemedsam": "teacher.encoders.litemedsam",
    "efficientnet-lite0": "teacher.encoders.efficientnet_lite",
    "efficientnet-lite1": "teacher.encoders.efficientnet_lite",
    "efficientnet-lite2": "teacher.encoders.efficientnet_lite",
}
"""Name → module."""
STRIDE = 4
"""Of an encoder's finest map, and of the logits of what stands on it."""

MeanStd = Mapping[int, tuple[tuple[float, ...], tuple[float, ...]]]
"""Channels → mean and standard deviation of each."""


def encoder_module(name: EncoderName) -> ModuleType:
    """The module of an encoder, by a key of `ENCODERS`."""
    return import_module(ENCODERS[name])


def build_encoder(name: EncoderName) -> nn.Module:
    """The encoder with random weights; see the module.

    Raises:
        InputError: a package that it is made from is not installed.
    """
    encoder: nn.Module = encoder_module(name).build_encoder(name)
    return encoder


def load_encoder_weights(encoder: nn.Module, weights: str, name: EncoderName) -> str:
    """Fills an encoder from `build_encoder`; returns where its weights came from, for the manifest.

    Args:
        encoder: of that name.
        weights: as `--weights`.
        name: of the encoder.

    Raises:
        InputError: no such weights, or those of another model.
    """
    origin: str = encoder_module(name).load_encoder_weights(encoder, weights, name)
    return origin


def build_image_model(name: EncoderName, image_px: int) -> ImageModel:
    """The SAM that an encoder is part of, with random weights, for square pictures of `image_px`.

    Raises:
        InputError: a package that it is made from is not installed.
    """
    model: ImageModel = encoder_module(name).build_image_model(name, image_px)
    return model


def load_for_system(model: ImageModel, settings: TeacherSettings, *, frozen: Sequence[str]) -> str:
    """Fills a model from `build_image_model`; returns where its weights came from, for the manifest.

    Args:
        model: of the encoder that the flags name.
        settings: the flags.
        frozen: parts that the system leaves as they are, so that the weights must hold them.

    Raises:
        InputError: no such weights, those of another model, or without a part that stays frozen.
    """
    origin: str = encoder_module(settings.encoder_name).load_for_system(model, settings, frozen=frozen)
    return origin


@runtime_checkable
class OneMapEncoder(Protocol):
    """An encoder that computes one map, of which it makes the others."""

    def embed(self, x: Tensor) -> Tensor:
        """N×3×H×W normalised → the finest map, N×C×H/4×W/4."""
        ...

    @staticmethod
    def pyramid(finest: Tensor) -> list[Tensor]:
        """That map → all of them, the finest first."""
        ...


def costly_maps(encoder: nn.Module, x: Tensor) -> list[Tensor]:
    """The maps of which `pyramid_of` makes all that the encoder gives: N×3×H×W normalised → N×C×h×w each."""
    return [encoder.embed(x)] if isinstance(encoder, OneMapEncoder) else list(encoder(x))


def pyramid_of(encoder: nn.Module) -> Callable[[list[Tensor]], list[Tensor]]:
    """`costly_maps` → what the encoder gives. Holds nothing of the encoder."""
    if not isinstance(encoder, OneMapEncoder):
        return _all_maps
    return partial(_of_one_map, type(encoder).pyramid)


def _all_maps(maps: list[Tensor]) -> list[Tensor]:
    return maps


def _of_one_map(pyramid: Callable[[Tensor], list[Tensor]], maps: list[Tensor]) -> list[Tensor]:
    return pyramid(maps[0])
