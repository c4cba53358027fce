"""Panoramic dental radiograph: two arches of overlapping teeth with fillings, caries, gaps and implants."""

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
    letter,
    oval,
    smooth_noise,
    soften,
    stroke,
)

_TOOTH, _FILLING, _CARIES, _IMPLANT = 1, 2, 3, 4
# Relative widths from the midline to the wisdom tooth: two incisors, canine, two premolars, three molars.
_WIDTHS = np.array([0.85, 0.8, 0.9, 0.9, 0.9, 1.35, 1.3, 1.2])
# Half a tooth as (half width, part of the length from the biting edge to the root tip).
_ONE_ROOT = ((0.30, 0.0), (0.47, 0.06), (0.50, 0.22), (0.38, 0.42), (0.30, 0.66), (0.16, 0.92), (0.0, 1.0))
_TWO_ROOTS = (
    (0.34, 0.02),
    (0.48, 0.06),
    (0.52, 0.24),
    (0.42, 0.44),
    (0.42, 0.72),
    (0.34, 0.96),
    (0.22, 0.94),
    (0.12, 0.6),
)


@dataclass(frozen=True)
class _Tooth:
    """One place in an arch; what stands there is drawn from `outline` or, for an implant, from its axis."""

    outline: Points
    crown: Points
    pulp: tuple[Points, ...]
    fillings: tuple[Points, ...]
    caries: tuple[Points, ...]
    implant: tuple[Points, ...]
    level: float


def draw_dental(patient: np.random.Generator, case: np.random.Generator, size_px: int) -> tuple[Bytes, Bytes]:
    """Draws image and mask (see `PHANTOM_CLASSES`), uint8 H×W, from the streams of a patient and a case."""
    pose = draw_pose(patient, case, size_px, scale=1.06, spread=0.6)
    smile, gap = patient.uniform(0.05, 0.2), patient.uniform(0.01, 0.06)
    teeth = [tooth for upward in (True, False) for tooth in _place_teeth(patient, upward, smile, gap)]
    standing = [tooth for tooth in teeth if not tooth.implant]
    film = _draw_jaws(pose, smile, patient)
    film, tooth_cover = _draw_teeth(pose, standing, film)
    caries = fill(pose, [shape for tooth in standing for shape in tooth.caries])
    fillings = fill(pose, [shape for tooth in standing for shape in tooth.fillings])
    implants = fill(pose, [shape for tooth in teeth for shape in tooth.implant])
    film = film - 0.38 * soften(caries * tooth_cover, 0.005)
    film = np.maximum(film, 0.98 * np.maximum(fillings, 0.95 * implants))
    mask = np.asarray(tooth_cover >= 0.5, dtype=np.uint8) * np.uint8(_TOOTH)
    mask[(caries >= 0.5) & (mask == _TOOTH)] = _CARIES
    mask[fillings >= 0.5] = _FILLING
    mask[implants >= 0.5] = _IMPLANT
    film = _draw_ghosts(pose, film, patient, case)
    return expose(film, case, gamma=1.4, noise=0.045, blur=0.010), mask


def _place_teeth(rng: np.random.Generator, upward: bool, smile: float, gap: float) -> list[_Tooth]:
    count = int(rng.integers(7, 9))
    widths = np.concatenate([_WIDTHS[:count][::-1], _WIDTHS[:count]]) * rng.normal(1.0, 0.04, 2 * count)
    widths = widths * (rng.uniform(1.5, 1.72) / widths.sum())
    centres = np.cumsum(widths) - widths / 2 - widths.sum() / 2
    missing, decay = rng.choice([0.03, 0.1, 0.3]), rng.choice([0.03, 0.15, 0.3])
    teeth = []
    for number, (x, width) in enumerate(zip(centres, widths, strict=True)):
        molar = abs(number - count + 0.5) > 5
        kind = "gap" if rng.random() < missing else "tooth"
        if kind == "gap" and rng.random() < 0.75:
            continue
        length = rng.uniform(0.40, 0.47) * (0.9 if molar else 1.0)
        # In the jaw, teeth lean away from the midline and the biting line rises towards the ears: the smile.
        lean = (0.35 * x if upward else -0.12 * x) + rng.normal(0.0, 0.06)
        edge = smile * (0.55 - x * x) + (-gap if upward else gap) + rng.normal(0.0, 0.012)
        teeth.append(
            _make_tooth(rng, (x, edge), (1.1 * width, length), lean, upward, molar, kind == "gap", decay)
        )
    return teeth


def _make_tooth(
    rng: np.random.Generator,
    edge: tuple[float, float],
    size: tuple[float, float],
    lean: float,
    upward: bool,
    molar: bool,
    implant: bool,
    decay: float,
) -> _Tooth:
    def at(points: Points) -> Points:
        along = points[:, 1] * size[1]
        return np.stack(
            [edge[0] + points[:, 0] * size[0] + lean * along, edge[1] + (-along if upward else along)], axis=1
        )

    half = np.array(_TWO_ROOTS if molar else _ONE_ROOT) + rng.normal(0.0, 0.012, (8 if molar else 7, 2))
    outline = curve(np.concatenate([half, (half * [-1.0, 1.0])[::-1]]), steps=4)
    roots = (-0.28, 0.28) if molar else (0.0,)
    pulp = tuple(at(np.array([(0.3 * root, 0.2), (root, 0.85)])) for root in roots)
    fillings, caries = [], []
    if rng.random() < 0.25:
        wide, deep, x = rng.uniform(0.12, 0.4), rng.uniform(0.08, 0.26), rng.uniform(-0.1, 0.1)
        knots = [(x - wide, 0.03), (x + wide, 0.03), (x + 0.7 * wide, deep), (x - 0.6 * wide, 0.9 * deep)]
        fillings.append(at(curve(np.array(knots) + rng.normal(0.0, 0.015, (4, 2)), steps=4)))
    if rng.random() < decay:
        x, y = rng.choice([-1, 1]) * rng.uniform(0.25, 0.45), rng.uniform(0.1, 0.36)
        radius = rng.uniform(0.12, 0.28)
        caries.append(at(oval(x, y, radius, 0.35 * radius) + rng.normal(0.0, 0.01, (24, 2))))
    cap = np.array([(-0.4, 0.02), (0.4, 0.02), (0.44, 0.25), (0.2, 0.34), (-0.2, 0.34), (-0.44, 0.25)])
    screw = (at(cap), at(_screw_outline()))
    crown = at(np.clip(outline, [-1.0, -1.0], [1.0, 0.34]))
    level = rng.uniform(0.8, 1.0)
    return _Tooth(at(outline), crown, pulp, tuple(fillings), tuple(caries), screw if implant else (), level)


def _screw_outline() -> Points:
    turns = np.linspace(0.3, 0.86, 15)
    half = np.stack([np.where(np.arange(15) % 2 == 0, 0.2, 0.27) * (1.12 - 0.4 * turns), turns], axis=1)
    return np.concatenate([half, (half * [-1.0, 1.0])[::-1]])


def _draw_teeth(pose: Pose, teeth: list[_Tooth], film: Field) -> tuple[Field, Field]:
    """Returns the film with teeth and the area they cover; neighbours add up where they overlap."""
    cover = np.zeros_like(film)
    shadow = np.zeros_like(film)
    for half in (teeth[::2], teeth[1::2]):  # within one `fill` shapes cover each other instead of adding up
        levels = [tooth.level for tooth in half]
        roots = fill(pose, [tooth.outline for tooth in half])
        solid = 0.25 * fill(pose, [tooth.outline for tooth in half], levels)
        crowns = 0.17 * fill(pose, [tooth.crown for tooth in half], levels)
        cover = np.maximum(cover, roots)
        shadow = shadow + soften(solid, 0.005) + soften(crowns, 0.012)
    canals = [line for tooth in teeth for line in tooth.pulp]
    # The dark line around a root is the periodontal ligament.
    halo = soften(cover, 0.02) * (1.0 - cover)
    hollow = soften(stroke(pose, canals, [0.018] * len(canals)), 0.006) * cover
    film = np.asarray(film + shadow * (1.0 - 0.35 * film) - 0.10 * halo - 0.09 * hollow, dtype=np.float32)
    return film, cover


def _draw_jaws(pose: Pose, smile: float, rng: np.random.Generator) -> Field:
    """Soft tissue, upper and lower jaw with spongy bone, sinuses, nose, nerve canal."""
    top, chin = rng.uniform(-0.62, -0.5), rng.uniform(0.72, 0.85)
    ridge = [(-0.7, 0.2 + smile * 0.1), (0.0, 0.2 + smile), (0.7, 0.2 + smile * 0.1)]
    hem = [(0.9, 0.55), (0.5, chin - 0.06), (0.0, chin), (-0.5, chin - 0.06), (-0.9, 0.55)]
    lower = [(-1.0, -0.6), (-0.84, -0.1), *ridge, (0.84, -0.1), (1.0, -0.6), (1.1, 0.1), *hem, (-1.1, 0.1)]
    upper = curve(
        [(-0.85, -0.16), (0.0, -0.16 + smile), (0.85, -0.16), (0.9, top), (0.0, top - 0.3), (-0.9, top)]
    )
    rim = stroke(pose, [curve(hem, closed=False)], [0.05])
    bone = soften(fill(pose, [curve(lower), upper], [1.0, 0.85]), 0.015)
    spongy = 1.0 + 0.09 * smooth_noise(rng, pose.size_px, 48) + 0.08 * smooth_noise(rng, pose.size_px, 16)
    holes = [
        oval(s * rng.uniform(0.42, 0.55), top - 0.02, rng.uniform(0.2, 0.3), rng.uniform(0.1, 0.18))
        for s in (-1, 1)
    ]
    holes += [oval(s * 0.1, top - 0.06, 0.07, 0.18) for s in (-1, 1)]
    canal = [curve([(s * 0.95, 0.1), (s * 0.75, 0.45), (s * 0.4, 0.62)], closed=False) for s in (-1, 1)]
    film = 0.16 + 0.24 * bone * spongy + 0.2 * soften(rim, 0.012) - 0.14 * soften(fill(pose, holes), 0.02)
    return np.asarray(film - 0.07 * soften(stroke(pose, canal, [0.04, 0.04]), 0.01), dtype=np.float32)


def _draw_ghosts(pose: Pose, film: Field, patient: np.random.Generator, case: np.random.Generator) -> Field:
    """Adds what the turning camera smears over the film (spine, other jaw), ear rings and a lead marker."""
    x, y = pose.grid()
    haze = patient.uniform(0.04, 0.16) * np.exp(-((x / 0.16) ** 2)) * (0.6 + 0.4 * y)
    for sign in (-1, 1):
        tilt = patient.uniform(0.1, 0.3)
        band = np.exp(-(((y - sign * tilt * x + 0.1) / 0.18) ** 2)) * (x * sign > 0.35)
        haze = haze + patient.uniform(0.0, 0.12) * band
    lines = letter(("R", "L")[case.integers(2)], case.uniform(-0.9, 0.8), 0.78, 0.1)
    widths = [0.025] * len(lines)
    if patient.random() < 0.2:
        lines += [curve(oval(s * 0.88, -0.35, 0.05, 0.07)) for s in (-1, 1)]
        widths += [0.02, 0.02]
    haze = haze + 0.06 * smooth_noise(patient, pose.size_px, 5)
    return np.asarray(np.maximum(film + haze, 0.95 * stroke(pose, lines, widths)), dtype=np.float32)
