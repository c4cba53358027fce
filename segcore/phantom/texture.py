"""What all phantoms share: shapes on a posed canvas, smooth noise, film exposure, lead markers.

Shapes live in anatomy coordinates: x to the right, y down, both about -1..1; a `Pose` places them on the
image, so the same anatomy can be drawn at any size. Only numpy and Pillow are used. No BLAS call takes part
in drawing: its rounding may depend on the thread count, and a case must give the same bytes in every process.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

Field = npt.NDArray[np.float32]
"""H×W brightness or coverage, 0..1 unless told otherwise."""
Points = npt.NDArray[np.float64]
"""N×2 vertices (x, y) in anatomy coordinates."""
Bytes = npt.NDArray[np.uint8]
"""H×W image or class indices."""

_LETTERS = {
    "R": (
        ((0.0, 1.0), (0.0, 0.0), (0.5, 0.0), (0.6, 0.25), (0.5, 0.5), (0.0, 0.5)),
        ((0.25, 0.5), (0.65, 1.0)),
    ),
    "L": (((0.0, 0.0), (0.0, 1.0), (0.55, 1.0)),),
}


@dataclass(frozen=True)
class Pose:
    """How anatomy coordinates land on a square image: turn, scale each axis, shift."""

    size_px: int
    angle_rad: float = 0.0
    scale_x: float = 1.0
    scale_y: float = 1.0
    shift_x: float = 0.0
    shift_y: float = 0.0

    def place(self, points: Points) -> Points:
        """Returns the N×2 points in units of the image side, 0..1 inside the image."""
        cos, sin = np.cos(self.angle_rad), np.sin(self.angle_rad)
        x, y = points[:, 0] * self.scale_x, points[:, 1] * self.scale_y
        placed = np.stack([cos * x - sin * y + self.shift_x, sin * x + cos * y + self.shift_y], axis=1)
        return np.asarray((placed + 1.0) / 2.0, dtype=np.float64)

    def grid(self) -> tuple[Field, Field]:
        """Returns the anatomy coordinates x and y of every pixel centre, each H×W."""
        axis = (np.arange(self.size_px, dtype=np.float32) + 0.5) * (2.0 / self.size_px) - 1.0
        x, y = axis[None, :] - np.float32(self.shift_x), axis[:, None] - np.float32(self.shift_y)
        cos, sin = np.float32(np.cos(self.angle_rad)), np.float32(np.sin(self.angle_rad))
        return (cos * x + sin * y) / np.float32(self.scale_x), (cos * y - sin * x) / np.float32(self.scale_y)


def draw_pose(
    patient: np.random.Generator, case: np.random.Generator, size_px: int, *, scale: float, spread: float
) -> Pose:
    """Draws a pose about `scale`: most of the variation is the patient's, a tenth of it the single case's."""
    scale = scale + spread * patient.uniform(-0.17, 0.17) + case.uniform(-0.015, 0.015)
    aspect = 1.0 + spread * patient.uniform(-0.1, 0.1)
    return Pose(
        size_px=size_px,
        angle_rad=spread * patient.normal(0.0, 0.07) + case.normal(0.0, 0.012),
        scale_x=scale * aspect,
        scale_y=scale / aspect,
        shift_x=spread * patient.uniform(-0.1, 0.1) + case.uniform(-0.015, 0.015),
        shift_y=spread * patient.uniform(-0.1, 0.1) + case.uniform(-0.015, 0.015),
    )


def curve(points: npt.ArrayLike, *, closed: bool = True, steps: int = 5) -> Points:
    """Returns a Catmull-Rom curve through the N×2 points, `steps` vertices from each to the next."""
    knots = np.asarray(points, dtype=np.float64)
    ends = (knots[-1:], knots[:2]) if closed else (knots[:1], knots[-1:])
    knots = np.concatenate([ends[0], knots, ends[1]])
    p0, p1, p2, p3 = (knots[i : len(knots) - 3 + i, None, :] for i in range(4))
    t = (np.arange(steps) / steps)[None, :, None]
    bend = t * t * (2 * p0 - 5 * p1 + 4 * p2 - p3) + t**3 * (3 * p1 - p0 - 3 * p2 + p3)
    vertices = (0.5 * (2 * p1 + t * (p2 - p0) + bend)).reshape(-1, 2)
    return np.asarray(vertices if closed else np.concatenate([vertices, knots[-1:]]), dtype=np.float64)


def oval(x: float, y: float, radius_x: float, radius_y: float) -> Points:
    """Returns an ellipse as 24 vertices."""
    turn = np.arange(24) * (2 * np.pi / 24)
    return np.stack([x + radius_x * np.cos(turn), y + radius_y * np.sin(turn)], axis=1)


def fill(pose: Pose, polygons: Sequence[Points], levels: Sequence[float] | None = None) -> Field:
    """Returns the coverage (0..1, times its level) of filled polygons; a later one covers an earlier one."""
    canvas, factor = _new_canvas(pose)
    draw = ImageDraw.Draw(canvas)
    for number, polygon in enumerate(polygons):
        vertices = pose.place(polygon) * canvas.width - 0.5
        draw.polygon([(x, y) for x, y in vertices.tolist()], fill=_ink_level(levels, number))
    return _canvas_coverage(canvas, factor)


def stroke(
    pose: Pose, lines: Sequence[Points], widths: Sequence[float], levels: Sequence[float] | None = None
) -> Field:
    """Returns the coverage of open lines; `widths` are in anatomy units."""
    canvas, factor = _new_canvas(pose)
    draw = ImageDraw.Draw(canvas)
    for number, (line, width) in enumerate(zip(lines, widths, strict=True)):
        vertices = pose.place(line) * canvas.width - 0.5
        width_px = max(1, round(width * pose.scale_x * canvas.width / 2))
        path = [(x, y) for x, y in vertices.tolist()]
        draw.line(path, fill=_ink_level(levels, number), width=width_px, joint="curve")
    return _canvas_coverage(canvas, factor)


def soften(field: Field, sigma: float) -> Field:
    """Blurs a 0..1 field; `sigma` is in anatomy units (2 = the image side)."""
    radius_px = sigma * field.shape[0] / 2
    blurred = Image.fromarray(to_bytes(field)).filter(ImageFilter.GaussianBlur(radius_px))
    return _as_fractions(blurred)


def smooth_noise(rng: np.random.Generator, size_px: int, cells: int) -> Field:
    """Returns noise of mean 0 and spread about 1 whose bumps are 1/cells of the image wide."""
    coarse = Image.fromarray(rng.normal(0.0, 1.3, (cells, cells)).astype(np.float32))
    return np.asarray(coarse.resize((size_px, size_px), Image.Resampling.BICUBIC), dtype=np.float32)


def blob(
    pose: Pose, x: float, y: float, radius_x: float, radius_y: float, ragged: Field | float = 0.0
) -> Field:
    """Returns 1 - distance from (x, y) in radii, roughened by `ragged`: above 0 inside, below 0 outside."""
    grid_x, grid_y = pose.grid()
    distance = np.hypot(
        (grid_x - np.float32(x)) / np.float32(radius_x), (grid_y - np.float32(y)) / np.float32(radius_y)
    )
    return np.asarray(1.0 - distance + ragged, dtype=np.float32)


def letter(name: str, x: float, y: float, height: float) -> list[Points]:
    """Returns the lines of a lead marker, "R" or "L", with its upper left corner at (x, y)."""
    return [np.asarray(line) * height + np.array([x, y]) for line in _LETTERS[name]]


def expose(field: Field, rng: np.random.Generator, *, gamma: float, noise: float, blur: float) -> Bytes:
    """Turns a brightness field into a film: contrast, uneven illumination, blur, noise.

    Args:
        field: H×W, about 0..1; values outside are clipped as a detector saturates.
        rng: of the case.
        gamma: Largest factor by which contrast is bent, either way.
        noise: Largest standard deviation of the grain, in parts of full scale.
        blur: Largest sigma, in anatomy units.
    """
    size_px = field.shape[0]
    bent = np.clip(field, 0.0, 1.0) ** np.float32(np.exp(rng.uniform(-np.log(gamma), np.log(gamma))))
    low, high = rng.uniform(0.0, 0.12), rng.uniform(0.75, 1.0)
    lit = low + (high - low) * bent * (1.0 + 0.05 * smooth_noise(rng, size_px, 3))
    sharp = soften(np.asarray(lit, dtype=np.float32), rng.uniform(0.15, 1.0) * blur)
    grain = rng.standard_normal((size_px, size_px), dtype=np.float32) * np.float32(
        rng.uniform(0.3, 1.0) * noise
    )
    return to_bytes(sharp + grain)


def to_bytes(field: Field) -> Bytes:
    """Rounds a 0..1 field to uint8, clipping what is outside."""
    return np.asarray(np.clip(field, 0.0, 1.0) * np.float32(255) + np.float32(0.5), dtype=np.uint8)


def _new_canvas(pose: Pose) -> tuple[Image.Image, int]:
    """Returns an empty sheet, larger than the image by the returned factor so that edges come out smooth."""
    factor = 2 if pose.size_px >= 256 else 4
    return Image.new("L", (pose.size_px * factor, pose.size_px * factor)), factor


def _ink_level(levels: Sequence[float] | None, number: int) -> int:
    return 255 if levels is None else round(255 * levels[number])


def _canvas_coverage(canvas: Image.Image, factor: int) -> Field:
    return _as_fractions(canvas.reduce(factor))


def _as_fractions(image: Image.Image) -> Field:
    return np.asarray(np.asarray(image, dtype=np.float32) / np.float32(255), dtype=np.float32)
