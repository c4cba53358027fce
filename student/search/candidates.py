"""The designs that `student.search` chooses among, and what each costs on paper.

The space is far too large to list (10⁵ shapes), so designs are drawn from it; equal seeds draw equal lists, and a
longer list begins with the shorter one. Shapes are those that suit silicon: widths in multiples of 16, a stem that
shrinks the picture at once, one or two convolutions a level. Each design has at most one of the options that cost
time for little arithmetic (concatenation, transposed and shuffled ways up, a finer head, residual blocks), so that
the table shows what each of them costs.
The presets go first. `reparam` is not drawn: once sealed it is a plain block, and costs the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import ValidationError

from student.design import PRESETS, Design

_STEMS = (("strided", 4, 4), ("strided", 2, 2), ("unshuffle", 4, 1), ("unshuffle", 2, 1), ("none", 1, 1))
"""Stem, its stride, and how often it is drawn, relative to the others."""
_OPTIONS: tuple[dict[str, Any], ...] = (
    {}, {}, {}, {},
    {"up": "transposed"}, {"up": "shuffle"}, {"up": "bilinear"}, {"skip": "concat"}, {"block": "residual"},
    {"head_upscale": 2}, {"head_upscale": 4},
)  # fmt: skip
_WIDEST = (64, 96, 128, 160)
_CODES = {
    "stem": {"none": "n", "strided": "s", "unshuffle": "u"},
    "up": {"nearest": "", "transposed": "-transposed", "shuffle": "-shuffle", "bilinear": "-bilinear"},
    "skip": {"add": "", "concat": "-concat"},
    "down": {"strided": "", "pool": "-pool"},
    "block": {"plain": ""},
    "activation": {"relu": ""},
}


@dataclass(frozen=True)
class Candidate:
    """A design with its cost for one picture of the search's size.

    Attributes:
        name: short and unique, fit for a folder.
        parameters: of the sealed network.
        macs: multiply-accumulates.
        activations: numbers that its convolutions write.
        layers: its convolutions.
    """

    name: str
    design: Design
    parameters: int
    macs: int
    activations: int
    layers: int

    @property
    def capacity(self) -> float:
        """√(MACs · parameters): what stands in for accuracy as long as nothing is trained.

        Either alone is easily fooled: parameters by deep levels that see a few pixels, MACs by a wide first level.
        """
        return float(np.sqrt(float(self.macs) * self.parameters))

    @property
    def kind(self) -> tuple[object, ...]:
        """What it is besides its widths and depths; candidates of one kind differ in size alone."""
        d = self.design
        return d.stem, d.stem_stride, d.block, d.skip, d.up, d.head_upscale


def draw_candidates(
    *,
    size_px: int,
    channels: int,
    outputs: int,
    max_parameters: int,
    seed: int,
    count: int,
    progress: Callable[[], object] = lambda: None,
) -> list[Candidate]:
    """The presets that are small enough, then designs drawn at random; the same list for equal arguments.

    Args:
        size_px: height and width of the network's input; designs whose stride does not divide it are left out.
        channels: of the input.
        outputs: logits a pixel.
        max_parameters: candidates have at most so many.
        seed: of the drawing.
        count: candidates in all, or fewer where so few fit; the list of a smaller count is the beginning of it.
        progress: called for each.
    """
    found: list[Candidate] = []
    seen: set[Design] = set()
    for name, design in _all_designs(seed, tries=20 * count):
        if len(found) >= count:
            break
        if design in seen or size_px % design.stride:
            continue
        seen.add(design)
        candidate = cost_of(name, design, size_px=size_px, channels=channels, outputs=outputs)
        if candidate.parameters <= max_parameters:
            found.append(candidate)
            progress()
    return found


def cost_of(name: str, design: Design, *, size_px: int, channels: int, outputs: int) -> Candidate:
    """Counts parameters, MACs, activations and layers of the sealed network.

    It runs on the smallest picture that the design takes: all but the parameters grow with the picture's area. The
    MACs are those of `segcore.learn.network.count_macs`, counted a few times faster: there are many candidates.
    """
    import torch
    from torch import Tensor, nn

    from student.network import build_student, sealed_form

    with torch.device("meta"):  # weights without memory: nothing is initialised
        network = build_student(design, channels=channels, outputs=outputs)
    network = sealed_form(network.to_empty(device="cpu").eval())
    macs: list[int] = []
    written: list[int] = []

    def count(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        assert isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)
        transposed = isinstance(layer, nn.ConvTranspose2d)
        # Each weight takes part once a pixel: of the output, or of the input that a transposed one spreads.
        places = (
            inputs[0].numel() // layer.in_channels if transposed else output.numel() // layer.out_channels
        )
        macs.append(places * layer.weight.numel())
        written.append(output.numel())

    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            module.register_forward_hook(count)
    with torch.no_grad():
        network(torch.zeros(1, channels, design.stride, design.stride))
    area = (size_px // design.stride) ** 2
    return Candidate(
        name=name,
        design=design,
        parameters=sum(p.numel() for p in network.parameters()),
        macs=sum(macs) * area,
        activations=sum(written) * area,
        layers=len(written),
    )


def name_of(design: Design) -> str:
    """`s4-32.64.96-d001-u01-concat`: stem and stride, widths, depths, depths on the way up, what is not usual."""
    codes = _CODES
    depths, up_depths = ("".join(map(str, d)) for d in (design.depths, design.up_depths))
    fields = ((field, getattr(design, field)) for field in ("block", "down", "up", "skip", "activation"))
    unusual = "".join(codes[field].get(value, f"-{value}") for field, value in fields)
    head = f"-head{design.head_upscale}" if design.head_upscale > 1 else ""
    widths = ".".join(map(str, design.widths))
    return f"{codes['stem'][design.stem]}{design.stem_stride}-{widths}-d{depths}-u{up_depths}{unusual}{head}"


def _all_designs(seed: int, *, tries: int) -> Iterator[tuple[str, Design]]:
    yield from PRESETS.items()
    rng = np.random.default_rng(seed)
    for _ in range(tries):
        try:
            design = _draw_design(rng)
        except ValidationError:
            continue  # parts that do not go together
        yield name_of(design), design


def _draw_design(rng: np.random.Generator) -> Design:
    weights = np.array([weight for *_, weight in _STEMS], float)
    stem, stride, _ = _STEMS[rng.choice(len(_STEMS), p=weights / weights.sum())]
    levels = int(rng.integers(3, 6))
    first = int(rng.choice((16, 32, 48, 64) if stride == 4 else (16, 32)))
    growth, widest = rng.choice((1.0, 1.5, 2.0)), rng.choice(_WIDEST)
    widths = tuple(int(16 * round(min(first * growth**level, widest) / 16)) for level in range(levels))
    option = _OPTIONS[rng.integers(len(_OPTIONS))]
    # Level 0 costs most and is often best left to the stem; only the stems without a convolution need a block there.
    finest = int(stem != "strided" or rng.integers(0, 2))
    middle, deepest = int(rng.integers(0, 2)), int(rng.integers(1, 4))
    depths = (finest, *(middle,) * (levels - 2), deepest)
    last_up = int(rng.integers(1 if "skip" in option else 0, 2))
    up_depths = (last_up, *(int(rng.integers(1, 3)),) * (levels - 2))
    fields: dict[str, Any] = {"stem": stem, "stem_stride": stride, **option}
    return Design(widths=widths, depths=depths, up_depths=up_depths, **fields)
