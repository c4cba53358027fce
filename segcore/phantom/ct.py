"""Axial chest CT, lung window: mask = lesions; vessels inside the lung are as bright as many of them."""

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
    oval,
    smooth_noise,
    soften,
    stroke,
)

# Lesion radii in anatomy units; 0.01 is 1.3 px, about 5 px of area, in an image of 256 px.
_RADIUS = (0.0100, 0.30)
# Outline of one lung, x from the midline out: front, side, back, spine, hilum.
_LUNG = (
    (0.14, -0.44), (0.36, -0.45), (0.56, -0.30), (0.68, -0.05), (0.66, 0.20), (0.54, 0.40), (0.34, 0.47),
    (0.18, 0.38), (0.16, 0.22), (0.22, 0.06), (0.20, -0.12), (0.13, -0.28),
)  # fmt: skip


@dataclass(frozen=True)
class _Slice:
    """One patient's slice; `level` runs from 0 at the apex, small lungs, to 1 at the heart."""

    body: Points
    lungs: tuple[Points, Points]
    level: float
    depth: float


def draw_ct(
    patient: np.random.Generator, case: np.random.Generator, size_px: int, *, healthy: bool
) -> tuple[Bytes, Bytes]:
    """Draws image and mask (1 = lesion), both uint8 H×W, from the random streams of a patient and a case.

    A healthy patient's mask is empty.
    """
    pose = draw_pose(patient, case, size_px, scale=1.08, spread=0.7)
    anatomy = _draw_slice(patient)
    lungs = fill(pose, anatomy.lungs)
    wall = _draw_wall(pose, anatomy, patient)
    air = 0.15 + 0.06 * np.clip(pose.grid()[1], -0.5, 0.5) + 0.012 * smooth_noise(patient, size_px, 24)
    inside = np.maximum(air, _draw_vessels(pose, anatomy, patient))
    mask = np.zeros((size_px, size_px), dtype=np.uint8)
    if not healthy:
        opacity, mask = _draw_lesions(pose, anatomy, lungs, patient)
        inside = inside + opacity * np.maximum(0.72 - inside, 0.0)
    field = wall + lungs * (inside - wall)
    image = expose(np.asarray(field, dtype=np.float32), case, gamma=1.3, noise=0.045, blur=0.009)
    return image, mask


def _draw_slice(rng: np.random.Generator) -> _Slice:
    level, depth = rng.uniform(0.0, 1.0), rng.uniform(0.9, 1.15)
    grow = 0.72 + 0.28 * min(1.0, 2.0 * level)
    lungs = []
    for sign in (-1, 1):
        part = np.array(_LUNG) * [1.0, depth] + rng.normal(0.0, 0.017, (len(_LUNG), 2))
        if sign > 0:  # the heart pushes the left lung aside
            part[[0, 10, 11], 0] += level * rng.uniform(0.08, 0.24)
        part = (part - [0.4, 0.0]) * grow * rng.uniform(0.93, 1.04) + [0.4, 0.0]
        lungs.append(curve(part * [sign, 1.0]))
    turn = np.arange(16) * (2 * np.pi / 16)
    radius = 1.0 + rng.normal(0.0, 0.012, 16)
    wide, high = rng.uniform(0.80, 0.93), rng.uniform(0.60, 0.70) * depth
    body = curve(np.stack([wide * radius * np.cos(turn), high * radius * np.sin(turn)], axis=1))
    return _Slice(body, (lungs[0], lungs[1]), level, depth)


def _draw_wall(pose: Pose, anatomy: _Slice, rng: np.random.Generator) -> Field:
    """Everything around the lungs: table, fat, muscle, heart, great vessels, bones, windpipe."""
    deep = anatomy.depth
    body = soften(fill(pose, [anatomy.body]), 0.006)
    muscle = soften(fill(pose, [anatomy.body * rng.uniform(0.84, 0.94)]), 0.012)
    heart = oval(0.1, -0.12 * deep, 0.12 + 0.2 * anatomy.level, (0.14 + 0.14 * anatomy.level) * deep)
    aorta = [oval(0.13, 0.24 * deep, 0.07, 0.07), oval(-0.06, -0.1 * deep, 0.07, 0.08)]
    blood = soften(fill(pose, [heart, *aorta]), 0.01)
    tissue = 0.56 * body + 0.16 * muscle + 0.02 * smooth_noise(rng, pose.size_px, 40) * body
    tissue = tissue + rng.uniform(0.0, 0.12) * blood
    pipes = [oval(0.0, 0.06 * deep, 0.05, 0.05)] if anatomy.level < 0.4 else [
        oval(-0.09, 0.1 * deep, 0.04, 0.035), oval(0.09, 0.1 * deep, 0.04, 0.035)]  # fmt: skip
    tissue = tissue - 0.6 * fill(pose, pipes)
    table = curve([(-0.8, 0.86), (-0.4, 0.94), (0.4, 0.94), (0.8, 0.86)], closed=False)
    bones = np.maximum(
        soften(_draw_bones(pose, anatomy, rng), 0.008), 0.6 * stroke(pose, [table], [0.025]) * (1.0 - body)
    )
    return np.asarray(np.maximum(tissue, bones) + 0.03, dtype=np.float32)


def _draw_bones(pose: Pose, anatomy: _Slice, rng: np.random.Generator) -> Field:
    deep = anatomy.depth
    back = 0.40 * deep
    spine = [
        oval(0.0, back, 0.11, 0.1),
        oval(0.0, back + 0.14, 0.05, 0.045),
        oval(0.0, back + 0.13, 0.028, 0.025),
    ]
    lines = [np.array([(s * 0.05, back + 0.1), (s * 0.2, back + 0.17)]) for s in (-1, 1)]
    lines += [
        np.array([(0.0, back + 0.16), (0.0, back + 0.25)]),
        np.array([(-0.08, -0.54 * deep), (0.08, -0.54 * deep)]),
    ]
    widths = [0.045, 0.045, 0.04, 0.06]
    for sign in (-1, 1):
        for turn in np.linspace(-1.2, 1.2, 6) + rng.normal(0.0, 0.08, 6):
            span = turn + np.array([-0.5, 0.0, 0.5]) * rng.uniform(0.08, 0.35)
            lines.append(np.stack([sign * 0.75 * np.cos(span), 0.555 * deep * np.sin(span)], axis=1))
            widths.append(rng.uniform(0.03, 0.05))
    levels = [0.9, 0.9, 0.45]
    bones = np.maximum(fill(pose, spine, levels), 0.95 * stroke(pose, lines, widths))
    return np.asarray(bones, dtype=np.float32)


def _draw_vessels(pose: Pose, anatomy: _Slice, rng: np.random.Generator) -> Field:
    """Branches from the hilum outward, thinner as they go, and vessels cut across: dots of every size."""
    lines, widths, dots, levels = [], [], [], []
    for sign in (-1, 1):
        for _ in range(9):
            turn, at, width = rng.uniform(-1.5, 1.5), np.array([sign * 0.2, 0.04]), rng.uniform(0.02, 0.045)
            for _ in range(4):
                turn, reach = turn + rng.normal(0.0, 0.3), rng.uniform(0.06, 0.16)
                step = at + reach * np.array([sign * np.cos(turn), np.sin(turn)])
                lines.append(np.stack([at, step]))
                widths.append(width)
                at, width = step, 0.62 * width
        for _ in range(rng.integers(20, 40)):
            x, y = rng.uniform(0.15, 0.66), rng.uniform(-0.42, 0.45)
            # Vessels thin out towards the pleura: there a thick dot gives itself away as a lesion.
            radius = 0.006 + 0.024 * rng.random() ** 2 * max(0.1, 1.0 - np.hypot(x - 0.2, y) / 0.42)
            dots.append(oval(sign * x, y, radius, radius * rng.uniform(1.0, 1.8)))
            levels.append(rng.uniform(0.45, 0.8))
    tree = stroke(pose, lines, widths, [min(0.75, 0.3 + 14 * width) for width in widths])
    return np.maximum(soften(tree, 0.004), fill(pose, dots, levels))


def _draw_lesions(pose: Pose, anatomy: _Slice, lungs: Field, rng: np.random.Generator) -> tuple[Field, Bytes]:
    """Returns opacity 0..1 (ground glass to consolidation) and the mask, cut at the border of the lungs."""
    opacity = np.zeros_like(lungs)
    mask = np.zeros(lungs.shape, dtype=np.uint8)
    coarse, fine = smooth_noise(rng, pose.size_px, 14), smooth_noise(rng, pose.size_px, 40)
    grainy = np.clip(1.0 + 0.18 * fine, 0.6, 1.4)
    # Evenly in the logarithm, tilted towards the large: a case of nothing but specks teaches little.
    least, most = np.log(1.1 * _RADIUS[0]), np.log(_RADIUS[1])
    largest = least + (most - least) * rng.random() ** 0.75
    for x, y in _lesion_sites(anatomy, int(rng.choice([1, 2, 3, 5, 8])), rng):
        radius = np.exp(rng.uniform(max(np.log(_RADIUS[0]), largest - 1.2), largest))
        rough = min(1.0, radius / 0.06)  # a nodule of a few pixels has no room for a ragged edge
        depth = blob(
            pose, x, y, radius, radius * rng.uniform(0.7, 1.3), rough * (0.22 * coarse + 0.13 * fine)
        )
        inside = (depth > 0.0) & (lungs >= 0.5)
        mask[inside] = 1
        edge = np.clip(0.75 + depth / rng.uniform(0.15, 0.9), 0.0, 1.0) * (depth > 0.0)
        density = rng.uniform(0.22, 0.5) if rng.random() < 0.6 else rng.uniform(0.6, 1.0)
        opacity = np.maximum(opacity, np.asarray(density * edge * grainy, dtype=np.float32))
    return np.clip(opacity, 0.0, 1.0), mask


def _lesion_sites(anatomy: _Slice, count: int, rng: np.random.Generator) -> Points:
    """Draws `count` places inside the lungs, the same for every pose and image size."""
    inside = np.argwhere(fill(Pose(size_px=64), anatomy.lungs) > 0.95)
    rows = inside[rng.integers(0, len(inside), count)]
    return np.asarray((rows[:, ::-1] + 0.5) / 32.0 - 1.0, dtype=np.float64)
