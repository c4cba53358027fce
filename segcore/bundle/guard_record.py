"""What the INT8 guard found; it travels in the manifest, so that who ships a model sees what it lost."""

from __future__ import annotations

from segcore.record import Record

MIN_SPEEDUP = 1.05
"""What INT8 must be faster by where nobody said otherwise: less is in the noise of a measurement."""


def points_text(points: float) -> str:
    """Two decimals, and no minus before 0.00."""
    return f"{round(points, 2) + 0.0:.2f}"


class DiceScore(Record):
    """Dice over the guard's validation cases, 0–1.

    Attributes:
        mean: over cases.
        p05: 5th percentile over cases: one case in twenty is worse.
    """

    mean: float
    p05: float


class LayerSensitivity(Record):
    """What one layer costs when it alone computes in 8 bits.

    Attributes:
        layer: the graph's name of it.
        drop_points: mean Dice lost, in points.
        p05_drop_points: of the 5th percentile.
        error: relative RMS error of the logits.
    """

    layer: str
    drop_points: float
    p05_drop_points: float
    error: float


class FloatLayer(Record):
    """A layer that could compute in 8 bits and does not."""

    layer: str
    why: str


class GuardStep(Record):
    """One thing the guard tried, and where that left Dice.

    Attributes:
        what: in words; "all layers in INT8".
        float_layers: how many quantisable layers compute in float.
        int8: Dice through the engine.
        drop_points: mean Dice lost against FP32 in the same engine, in points.
        p05_drop_points: of the 5th percentile.
        passed: both drops are within the bounds.
    """

    what: str
    float_layers: int
    int8: DiceScore
    drop_points: float
    p05_drop_points: float
    passed: bool


class SpeedRatio(Record):
    """How much faster INT8 is than a higher precision in the same engine, interleaved in one run.

    Attributes:
        against: fp32 or fp16.
        speedup: median time of `against` divided by INT8's; above 1 is faster.
        low: the smallest such ratio over the rounds.
        high: the largest.
    """

    engine: str
    engine_version: str
    threads: int
    against: str
    speedup: float
    low: float
    high: float
    rounds: int


class GuardRecord(Record):
    """The guard's verdict, and how it came to it.

    Attributes:
        engine: that computed Dice; `engine_version` its version.
        cases: validation cases behind every Dice here.
        layers: quantisable layers of the graph.
        float_layers: those that stayed in float, and why.
        int8_nodes: of TensorRT's graph, the convolutions and matrix products in INT8, by their nodes' names: the
            device looks for each in the engine that it built. Empty for other targets.
        sensitivity: of each layer, the most sensitive first; empty where nothing had to be returned to float.
        speeds: empty means that speed was not measured: the engine that will run it is on another device.
        qat_epochs: of quantisation-aware fine-tuning before the last steps; 0 for none.
        calibration_batch: pictures a calibration step; scales change with it.
    """

    engine: str
    engine_version: str
    cases: int
    max_drop_points: float
    max_p05_drop_points: float
    min_speedup: float
    fp32: DiceScore
    int8: DiceScore
    steps: tuple[GuardStep, ...]
    layers: int
    float_layers: tuple[FloatLayer, ...] = ()
    int8_nodes: tuple[str, ...] = ()
    sensitivity: tuple[LayerSensitivity, ...] = ()
    speeds: tuple[SpeedRatio, ...] = ()
    qat_epochs: int = 0
    calibration_batch: int = 1


def least_speedup(guard: GuardRecord | None) -> float:
    """What INT8 must be faster by on a device: as its guard was told, else `MIN_SPEEDUP`."""
    return guard.min_speedup if guard else MIN_SPEEDUP
