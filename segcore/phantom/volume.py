"""Axial abdominal CT, slice by slice: mask = one organ, which drifts and changes its shape from slice to slice.

Beside it lie look-alikes of the same brightness, texture and outline, nearly as large: a single slice says little about
which of them is meant, its neighbours say it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from segcore.phantom.texture import (
    Bytes,
    Field,
    Points,
    Pose,
    curve,
    draw_pose,
    expose,
    fill,
    oval,
    smooth_noise,
    soften,
    stroke,
    to_bytes,
)

SLICES = 12
"""Of one volume; each volume is one patient."""
_ORGAN_AT = ((0.30, 0.10), (-0.06, 0.10))  # mean and spread of its middle's x and y: a habit, no certainty
_LOOK_ALIKES = (4, 6)
_WAVES = 3  # of an outline


@dataclass(frozen=True)
class _Body:
    """A bent, lumpy ellipsoid; z runs from -1, the first slice, to 1, the last.

    Attributes:
        middle: (x, y) at its thickest.
        z: of the thickest place.
        reach: half of its length.
        radius: at its thickest.
        drift: change of (x, y) by z.
        bend: change by z².
        lumps: `_WAVES`×3: height, phase and turn by z of each wave around the outline.
    """

    middle: Points
    z: float
    reach: float
    radius: float
    drift: Points
    bend: Points
    lumps: Points

    def outline(self, z: float) -> Points | None:
        """Its cross-section at z; None beyond its ends, and where it is thinner than a fifth."""
        along = (z - self.z) / self.reach
        thickness = np.sqrt(max(0.0, 1.0 - along * along))
        if thickness < 0.2:
            return None
        turn = np.arange(20) * (2 * np.pi / 20)
        radius = np.ones_like(turn)
        for number, (height, phase, spin) in enumerate(self.lumps):
            radius += height * np.cos((number + 1) * turn + phase + spin * z)
        away = z - self.z
        middle = self.middle + away * self.drift + away * away * self.bend
        ray = (self.radius * thickness) * radius
        return curve(np.stack([middle[0] + ray * np.cos(turn), middle[1] + ray * np.sin(turn)], axis=1))


def draw_volume(
    patient: np.random.Generator, case: np.random.Generator, size_px: int, *, level: float
) -> tuple[Bytes, Bytes]:
    """Draws one slice and its mask (1 = organ), both uint8 H×W, from the random streams of a patient and a slice.

    Args:
        patient: new for every slice, so that all of them show one body.
        case: of the slice: its grain.
        size_px: side of the square image.
        level: place of the slice, 0 the first, 1 the last.
    """
    z = 2.0 * level - 1.0
    pose = draw_pose(patient, patient, size_px, scale=1.05, spread=0.6)
    organ = _draw_body(patient, _points_near(_ORGAN_AT, patient), (0.17, 0.25), (0.6, 0.95))
    others = _draw_look_alikes(patient, organ)
    tissue, inside = _draw_tissue(pose, z, patient)
    grey = patient.uniform(0.60, 0.68)
    # One texture for all, which turns from one field into another along z.
    fields = [smooth_noise(patient, size_px, 26) for _ in range(2)]
    texture = 0.03 * (np.cos(1.2 * z) * fields[0] + np.sin(1.2 * z) * fields[1])
    shades = [grey + patient.uniform(-0.025, 0.025) for _ in others]
    outlines = [(body.outline(z), shade) for body, shade in zip(others, shades, strict=True)]
    shape = organ.outline(z)
    for polygon, shade in [*outlines, (shape, grey)]:
        if polygon is not None:
            cover = soften(fill(pose, [polygon]), 0.004) * inside
            tissue = tissue + cover * (shade + texture - tissue)
    mask = np.zeros((size_px, size_px), dtype=np.uint8)
    if shape is not None:
        mask[fill(pose, [shape]) * inside >= 0.5] = 1
    # The scanner's contrast is the patient's; the grain is the slice's.
    seen = expose(np.asarray(tissue, dtype=np.float32), patient, gamma=1.25, noise=0.0, blur=0.008)
    grain = case.standard_normal((size_px, size_px), dtype=np.float32) * np.float32(0.035)
    return to_bytes(np.asarray(seen, dtype=np.float32) / np.float32(255) + grain), mask


def _draw_body(
    rng: np.random.Generator, middle: Points, radius: tuple[float, float], reach: tuple[float, float]
) -> _Body:
    lumps = np.stack(
        [
            rng.uniform(0.02, 0.16, _WAVES),
            rng.uniform(0.0, 2 * np.pi, _WAVES),
            rng.uniform(-1.5, 1.5, _WAVES),
        ],
        axis=1,
    )
    return _Body(
        middle=middle,
        z=rng.uniform(-0.35, 0.35),
        reach=rng.uniform(*reach),
        radius=rng.uniform(*radius),
        drift=rng.normal(0.0, 0.12, 2),
        bend=rng.normal(0.0, 0.05, 2),
        lumps=lumps,
    )


def _points_near(at: tuple[tuple[float, float], tuple[float, float]], rng: np.random.Generator) -> Points:
    return np.array([rng.normal(mean, spread) for mean, spread in at])


def _draw_look_alikes(rng: np.random.Generator, organ: _Body) -> list[_Body]:
    """Bodies apart from the organ and from each other where they are thickest."""
    placed = [organ]
    for _ in range(int(rng.integers(*_LOOK_ALIKES, endpoint=True))):
        tries = np.stack([rng.uniform(-0.55, 0.55, 24), rng.uniform(-0.36, 0.26, 24)], axis=1)
        apart = [min(float(np.hypot(*(at - body.middle))) for body in placed) for at in tries]
        far = next(
            (at for at, gap in zip(tries, apart, strict=True) if gap > 0.36), tries[int(np.argmax(apart))]
        )
        placed.append(_draw_body(rng, far, (0.11, 0.20), (0.4, 0.95)))
    return placed[1:]


def _draw_tissue(pose: Pose, z: float, rng: np.random.Generator) -> tuple[Field, Field]:
    """Table, fat, muscle, liver, spine, ribs, aorta, gas: all that is not looked for; and where organs can be."""
    wide, high = rng.uniform(0.82, 0.92), rng.uniform(0.60, 0.70)
    skin = fill(pose, [oval(0.0, 0.02, wide * (1 - 0.03 * z), high * (1 - 0.03 * z))])
    inside = fill(pose, [oval(0.0, 0.02, 0.87 * wide, 0.84 * high)])
    field = 0.34 * soften(skin, 0.006) + 0.10 * soften(inside, 0.01)
    liver_at = rng.uniform(-0.50, -0.42)
    liver = [oval(liver_at, -0.10, 0.30 * (1 - 0.45 * z), 0.34 * (1 - 0.25 * z))]
    field = field + 0.10 * soften(fill(pose, liver), 0.01) * inside
    field = field + 0.02 * smooth_noise(rng, pose.size_px, 30) * skin
    aorta = oval(0.05 + 0.02 * z, 0.30, 0.055, 0.055)
    field = field + 0.18 * soften(fill(pose, [aorta]), 0.004)
    gas = [oval(*rng.uniform((-0.5, -0.45), (0.5, -0.25)), *rng.uniform(0.03, 0.09, 2)) for _ in range(4)]
    at = rng.uniform(-1.0, 1.0, 4)  # each bubble lies about a level of its own
    shown = [bubble for bubble, where in zip(gas, at, strict=True) if abs(where - z) < 0.3]
    field = field * (1.0 - 0.8 * soften(fill(pose, shown), 0.004))
    return np.asarray(
        np.maximum(field, _draw_bones(pose, z, wide, high, rng)) + 0.03, dtype=np.float32
    ), inside


def _draw_bones(pose: Pose, z: float, wide: float, high: float, rng: np.random.Generator) -> Field:
    spine = [oval(0.0, 0.44, 0.12, 0.10), oval(0.0, 0.57, 0.06, 0.05), oval(0.0, 0.55, 0.03, 0.03)]
    lines = []
    for sign in (-1, 1):
        for turn in np.linspace(-0.9, 1.1, 5) + rng.normal(0.0, 0.06, 5):
            span = turn + 0.25 * z + np.array([-0.5, 0.0, 0.5]) * 0.22  # ribs run down and forward
            lines.append(
                np.stack([sign * 0.92 * wide * np.cos(span), 0.02 + 0.92 * high * np.sin(span)], axis=1)
            )
    table = curve([(-0.8, 0.86), (-0.4, 0.92), (0.4, 0.92), (0.8, 0.86)], closed=False)
    bones = np.maximum(
        fill(pose, spine, [0.85, 0.85, 0.45]), 0.85 * stroke(pose, lines, [0.035] * len(lines))
    )
    table_alone = 0.5 * stroke(pose, [table], [0.02])
    return np.asarray(
        np.maximum(soften(np.asarray(bones, dtype=np.float32), 0.006), table_alone), dtype=np.float32
    )
