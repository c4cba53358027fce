"""Frontal chest radiograph: mask = both lungs, also where disease or a device hides their border."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from segcore.phantom.texture import (
    Bytes,
    Field,
    Points,
    Pose,
    blob,
    curve,
    draw_pose,
    expose,
    fill,
    letter,
    oval,
    smooth_noise,
    soften,
    stroke,
)

# Lung outlines as (part of the width from the midline out, part of the height from the apex down).
# The left side of the image is the patient's right.
_RIGHT = (
    (0.34, 0.0), (0.62, 0.08), (0.82, 0.28), (0.94, 0.54), (1.0, 0.80), (1.0, 1.04),
    (0.90, 0.98), (0.70, 0.90), (0.42, 0.87), (0.18, 0.93), (0.08, 0.95), (0.09, 0.72),
    (0.12, 0.50), (0.04, 0.38), (0.02, 0.22), (0.12, 0.06),
)  # fmt: skip
_LEFT = (
    (0.34, 0.0), (0.62, 0.08), (0.82, 0.28), (0.94, 0.54), (1.0, 0.80), (1.0, 1.04),
    (0.90, 1.0), (0.72, 0.95), (0.56, 0.94), (0.46, 0.97), (0.44, 0.80), (0.34, 0.62),
    (0.20, 0.50), (0.10, 0.40), (0.14, 0.28), (0.10, 0.07),
)  # fmt: skip


@dataclass(frozen=True)
class _Chest:
    """The anatomy of one patient, shared by the patient's cases."""

    lungs: tuple[Points, Points]
    top: float
    bottom: float
    width: float
    body_width: float
    heart: float


def draw_cxr(patient: np.random.Generator, case: np.random.Generator, size_px: int) -> tuple[Bytes, Bytes]:
    """Draws image and mask (1 = lung), both uint8 H×W, from the random streams of a patient and a case."""
    pose = draw_pose(patient, case, size_px, scale=1.1, spread=1.0)
    chest = _draw_chest(patient)
    lungs = fill(pose, chest.lungs)
    body = _soft_tissue(pose, chest, patient)
    film = body - (0.40 + 0.06 * smooth_noise(patient, size_px, 4)) * soften(lungs, 0.010) * body / 0.62
    film = film + _draw_vessels(pose, chest, patient) * lungs
    film = film + _draw_bones(pose, chest, patient) * np.clip(2.0 * body, 0.0, 1.0)
    film = film - _draw_gas(pose, chest, patient)
    # Wider than the lungs: an opacity that stopped at the border would draw it instead of hiding it.
    film = film + (0.72 - film) * _draw_disease(pose, chest, case) * np.clip(
        2.5 * soften(lungs, 0.03), 0.0, 1.0
    )
    film = np.maximum(film, _draw_devices(pose, chest, case))
    image = expose(np.asarray(film, dtype=np.float32), case, gamma=1.5, noise=0.05, blur=0.012)
    return image, np.asarray(lungs >= 0.5, dtype=np.uint8)


def _draw_chest(rng: np.random.Generator) -> _Chest:
    top, bottom, width = rng.uniform(-0.78, -0.58), rng.uniform(0.22, 0.62), rng.uniform(0.55, 0.76)
    heart = rng.uniform(0.6, 1.5)
    sides = []
    for sign, outline in ((-1, _RIGHT), (1, _LEFT)):
        part = np.array(outline) + rng.normal(0.0, 0.018, (len(outline), 2))
        if sign > 0:
            part[9:13, 0] *= heart
        side_width, drop = width * rng.uniform(0.9, 1.06), rng.uniform(-0.05, 0.07)
        middle = rng.uniform(0.09, 0.15)
        x = sign * (middle + part[:, 0] * (side_width - middle))
        y = top + part[:, 1] * (bottom + drop - top)
        sides.append(curve(np.stack([x, y], axis=1)))
    return _Chest((sides[0], sides[1]), top, bottom, width, width + rng.uniform(0.14, 0.4), heart)


def _soft_tissue(pose: Pose, chest: _Chest, rng: np.random.Generator) -> Field:
    wide, up = chest.body_width, chest.top - 0.12
    half = [(0.26, -2.0), (0.26, up - 0.08), (0.5, up), (wide, up + 0.14), (wide + 0.1, up + 0.5)]
    half += [(wide, up + 0.8), (wide - 0.03, chest.bottom), (wide + 0.02, 2.0)]
    body = soften(fill(pose, [curve([*half, *((-x, y) for x, y in reversed(half))])]), 0.012)
    arm = wide + rng.uniform(0.06, 0.2)
    edge = np.array([(arm, up + 0.45), (arm + 0.5, up), (arm + 0.5, 2.0), (arm, 2.0)])
    arms = fill(pose, [edge, edge * [-1.0, 1.0]]) * np.float32(rng.random() < 0.5)
    middle = fill(pose, [np.array([(-0.14, -2.0), (0.13, -2.0), (0.17, 2.0), (-0.17, 2.0)])])
    heart = fill(pose, [oval(0.1 * chest.heart, chest.bottom - 0.22, 0.28 * chest.heart, 0.27)])
    belly = np.clip((pose.grid()[1] - chest.bottom + 0.1) / 0.5, 0.0, 1.0)
    breast = fill(pose, [oval(s * 0.42, chest.bottom - 0.12, 0.3, 0.28) for s in (-1, 1)])
    inner = 0.60 + 0.12 * belly + 0.10 * soften(middle, 0.03) + 0.08 * soften(heart, 0.03)
    inner = inner + rng.choice([0.0, 0.09]) * soften(breast, 0.03)
    return np.asarray(0.03 + np.maximum(body * inner, 0.5 * soften(arms, 0.012)), dtype=np.float32)


def _draw_bones(pose: Pose, chest: _Chest, rng: np.random.Generator) -> Field:
    lines, widths, levels = [], [], []
    step, slope = (chest.bottom + 0.25 - chest.top) / 10, rng.uniform(0.12, 0.3)
    for rib in range(11):
        y, reach = chest.top + 0.02 + rib * step, chest.width * min(1.06, 0.62 + 0.12 * rib)
        for sign in (-1, 1):
            back = [
                (sign * f * reach, y + g) for f, g in ((0.12, 0.0), (0.45, -0.03), (0.8, 0.06), (1.0, slope))
            ]
            front = [
                (sign * f * reach, y + g) for f, g in ((1.0, slope), (0.85, slope + 0.14), (0.5, slope + 0.2))
            ]
            for knots, level in ((back, 1.0), (front, 0.5)):
                lines.append(curve(knots, closed=False))
                widths.append(rng.uniform(0.045, 0.065))
                levels.append(level)
    hollow = stroke(pose, lines, [0.5 * width for width in widths], levels)
    neck = chest.top + rng.uniform(0.02, 0.16)
    lines += [
        curve([(s * 0.1, neck), (s * 0.35, neck - 0.03), (s * 0.72, neck - 0.16)], closed=False)
        for s in (-1, 1)
    ]
    cage = stroke(pose, lines, [*widths, 0.06, 0.06], [*levels, 1.0, 1.0])
    levels_y = np.arange(-1.2, 1.4, 0.13)
    spine = [np.array([(-0.08, y), (0.08, y), (0.08, y + 0.105), (-0.08, y + 0.105)]) for y in levels_y]
    # Below the diaphragm the belly outshines the ribs.
    shade = np.clip(1.2 - 1.6 * (pose.grid()[1] - chest.bottom), 0.3, 1.2) * rng.uniform(0.7, 1.3)
    bone = 0.11 * shade * soften(cage - 0.45 * hollow, 0.006) + 0.06 * soften(fill(pose, spine), 0.012)
    return np.asarray(bone, dtype=np.float32)


def _draw_vessels(pose: Pose, chest: _Chest, rng: np.random.Generator) -> Field:
    lines, widths = [], []
    for sign in (-1, 1):
        root = np.array([sign * 0.16, 0.55 * chest.top + 0.45 * chest.bottom])
        for _ in range(14):
            turn, reach = rng.uniform(-1.4, 1.3), rng.uniform(0.2, 0.6)
            tip = root + reach * np.array([sign * np.cos(turn), np.sin(turn) * 1.3])
            lines.append(curve([root, (root + tip) / 2 + rng.normal(0.0, 0.03, 2), tip], closed=False))
            widths.append(rng.uniform(0.008, 0.03))
    hilum = fill(pose, [oval(s * 0.2, 0.55 * chest.top + 0.45 * chest.bottom, 0.09, 0.15) for s in (-1, 1)])
    return 0.10 * soften(stroke(pose, lines, widths), 0.008) + 0.12 * soften(hilum, 0.04)


def _draw_gas(pose: Pose, chest: _Chest, rng: np.random.Generator) -> Field:
    """Dark places that are not lung: windpipe, stomach bubble under the left diaphragm, bowel."""
    fork = chest.top + 0.42
    pipe = fill(pose, [np.array([(-0.04, -2.0), (0.04, -2.0), (0.05, fork), (-0.03, fork)])])
    bubbles = []
    if rng.random() < 0.75:
        x, y = 0.38 + rng.normal(0, 0.06), chest.bottom + rng.uniform(0.14, 0.22)
        bubbles.append(oval(x, y, rng.uniform(0.08, 0.24), rng.uniform(0.05, 0.12)))
    for _ in range(rng.integers(0, 4)):
        x, y = rng.uniform(-0.6, 0.6), chest.bottom + rng.uniform(0.3, 0.6)
        bubbles.append(oval(x, y, rng.uniform(0.05, 0.18), rng.uniform(0.04, 0.1)))
    return 0.16 * soften(pipe, 0.012) + rng.uniform(0.25, 0.45) * soften(fill(pose, bubbles), 0.014)


def _draw_disease(pose: Pose, chest: _Chest, rng: np.random.Generator) -> Field:
    """Opacity 0..1, from haze to a lung half white: consolidations anywhere, fluid from the diaphragm up."""
    white = np.zeros((pose.size_px, pose.size_px), dtype=np.float32)
    ragged = 0.3 * smooth_noise(rng, pose.size_px, 9)
    for _ in range(rng.choice([0, 1, 2, 4], p=[0.4, 0.25, 0.2, 0.15])):
        x, y = rng.choice([-1, 1]) * rng.uniform(0.2, 0.65), rng.uniform(chest.top + 0.15, chest.bottom)
        patch = blob(pose, x, y, rng.uniform(0.1, 0.35), rng.uniform(0.1, 0.35), ragged)
        white = np.maximum(white, rng.uniform(0.35, 0.95) * np.clip(2.0 * patch, 0.0, 1.0))
    if rng.random() < 0.22:
        sign, level = rng.choice([-1, 1]), chest.bottom - rng.uniform(0.05, 0.4)
        grid_x, grid_y = pose.grid()
        fluid = np.clip((grid_y - level + 0.25 * np.abs(grid_x) - 0.1) / 0.12, 0.0, 1.0) * (grid_x * sign > 0)
        white = np.maximum(white, np.asarray(0.95 * fluid, dtype=np.float32))
    return white


def _draw_devices(pose: Pose, chest: _Chest, rng: np.random.Generator) -> Field:
    """Lead marker, wires with electrodes, pacemaker: bright, sharp, mostly across the lungs."""
    lines, widths = [], []
    if rng.random() < 0.7:
        name, x = (("R", -0.95), ("L", 0.82))[rng.integers(2)]
        lines += letter(name, x, rng.uniform(-0.9, -0.6), 0.11)
        widths += [0.022] * len(lines)
    plates = []
    for _ in range(rng.choice([0, 2, 4], p=[0.6, 0.25, 0.15])):
        start = (rng.uniform(-0.6, 0.6), rng.uniform(chest.top, chest.bottom))
        middle = (start[0] + rng.normal(0, 0.2), rng.uniform(-0.2, 0.4))
        lines.append(curve([start, middle, (rng.uniform(-1.0, 1.0), 1.4)], closed=False))
        widths.append(0.012)
        plates.append(oval(*start, 0.03, 0.03))
    if rng.random() < 0.12:
        x, y = 0.45, chest.top + 0.2
        plates.append(oval(x, y, 0.1, 0.085))
        lead = [(x, y), (0.15, y - 0.1), (0.0, y + 0.3), (0.15, chest.bottom - 0.15)]
        lines.append(curve(lead, closed=False))
        widths.append(0.014)
    return np.asarray(0.9 * np.maximum(stroke(pose, lines, widths), fill(pose, plates)), dtype=np.float32)
