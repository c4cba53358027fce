"""Ranges of activations over calibration pictures, one picture at a time: memory does not grow with their number.

onnxruntime's calibrators keep what pictures gave to every tensor until they are asked for the ranges (its MinMax one
unless CalibMaxIntermediateOutputs is set, its histogram ones in any case). Here a tensor leaves a histogram of fixed
size, from which the range with the least squared error follows.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import onnx

from export.graph.onnx_export import INPUT

_BINS = 4096
_STEPS = 127
_NARROWEST = 1 / 32
"""Of the largest value, the range that is tried last."""


class Magnitudes:
    """How often |x| fell where: equal bins from 0 to a limit that doubles when something larger comes."""

    def __init__(self) -> None:
        self.counts = np.zeros(_BINS, np.int64)
        self.limit = 0.0
        self.largest = 0.0

    def add(self, values: np.ndarray) -> None:
        """Counts a tensor; of any shape, float32."""
        magnitudes = np.abs(values, dtype=np.float32).ravel()
        largest = float(magnitudes.max(initial=0.0))
        if largest == 0.0:
            return
        self.largest = max(self.largest, largest)
        if self.limit == 0.0:
            self.limit = 2.0 ** np.ceil(np.log2(largest))
        while largest > self.limit:  # two bins become one
            self.counts = np.concatenate([self.counts.reshape(-1, 2).sum(1), np.zeros(_BINS // 2, np.int64)])
            self.limit *= 2
        places = np.minimum(magnitudes * np.float32(_BINS / self.limit), _BINS - 1).astype(np.int32)
        self.counts += np.bincount(places, minlength=_BINS)

    def range(self) -> float:
        """The range ±r whose 255 steps leave the least squared error; 0 for a tensor of zeros.

        What is beyond r is cut to it; within, rounding to steps of s leaves s²/12, and x² where x rounds to 0.
        """
        if self.largest == 0.0:
            return 0.0
        x = (np.arange(_BINS) + 0.5) * (self.limit / _BINS)
        tried = self.largest * np.geomspace(1.0, _NARROWEST, 81)
        errors = [(self.counts * _squared_error(x, r)).sum() for r in tried]
        return float(tried[int(np.argmin(errors))])


def _squared_error(x: np.ndarray, r: float) -> np.ndarray:
    step = r / _STEPS
    return np.where(x > r, (x - r) ** 2, np.minimum(x**2, step**2 / 12))


def activation_ranges(
    model: onnx.ModelProto, tensors: Sequence[str], pictures: Iterable[np.ndarray], *, threads: int = 1
) -> dict[str, float]:
    """The range of each tensor over all pictures: ±r, where r is what `Magnitudes.range` gives.

    Args:
        model: float graph.
        tensors: names of float tensors in it.
        pictures: each 1×H×W×C uint8; read once, one by one.
        threads: of onnxruntime.

    Raises:
        ValueError: no picture, or a value that is not finite.
    """
    found = {name: Magnitudes() for name in tensors}
    session = session_with_outputs(model, tensors, threads=threads)
    pictures_read = 0
    for picture in pictures:
        for name, values in zip(tensors, session.run(list(tensors), {INPUT: picture}), strict=True):
            if not np.isfinite(values).all():
                raise ValueError(f"tensor {name}: must be finite on calibration pictures, is not")
            found[name].add(values)
        pictures_read += 1
    if not pictures_read:
        raise ValueError("calibration: must have at least one picture, got none")
    return {name: magnitudes.range() for name, magnitudes in found.items()}


def session_with_outputs(model: onnx.ModelProto, tensors: Sequence[str], *, threads: int = 1) -> Any:
    """An onnxruntime session that gives these tensors and nothing else."""
    import onnxruntime

    opened = onnx.ModelProto()
    opened.CopyFrom(model)
    del opened.graph.output[:]
    opened.graph.output.extend(onnx.ValueInfoProto(name=name) for name in tensors)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(
        opened.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
