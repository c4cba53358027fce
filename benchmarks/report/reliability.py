"""Whether probabilities mean what they say: of the pixels given 80 %, are about 80 % right? And Dice by threshold.

Source: Guo et al., On Calibration of Modern Neural Networks, ICML 2017: reliability diagrams, ECE, 15 bins.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from benchmarks.report.plots import INK, colour, marker, new_axes, new_figure, shortened, styled, to_svg
from benchmarks.report.record import Record, Reliability
from segcore import words
from segcore.bundle.manifest import Manifest
from segcore.picture.preprocess import OutputSpec
from segcore.picture.quality import BINS, expected_calibration_error, reliability_rows

ECE_IN_WORDS = (
    "ECE, the expected calibration error, is by how much a pixel's probability misses how often such pixels are "
    "right, on average over all pixels: 0 is perfect."
)


class PixelCounts:
    """Counts pixels by their probability, case after case; it holds three rows of numbers, whatever the data's size.

    Attributes:
        rows: 3×`BINS`: pixels, the sum of their probabilities, how many were right.
    """

    def __init__(self, output: OutputSpec) -> None:
        self.rows = np.zeros((3, BINS))
        self._output = output

    @property
    def of(self) -> Literal["foreground", "decision"]:
        return "foreground" if self._output.activation == "sigmoid" else "decision"

    def add(self, probability: np.ndarray, truth: np.ndarray) -> None:
        """Adds one case.

        Args:
            probability: K×H×W, as `segcore.picture.preprocess.probabilities` gives it.
            truth: H×W class indices.
        """
        if self.of == "foreground":
            given, right = probability[0], truth == 1
        else:
            given, right = probability.max(axis=0), probability.argmax(axis=0) == truth  # K×H×W → H×W
        self.rows += reliability_rows(given, right)

    def reliability(self) -> Reliability:
        """What was counted so far."""
        pixels, given, right = self.rows
        n = np.maximum(pixels, 1)
        return Reliability(
            of=self.of,
            pixels=tuple(int(p) for p in pixels),
            confidence=tuple(float(f"{v:.5g}") for v in given / n),
            observed=tuple(float(f"{v:.5g}") for v in right / n),
            ece=expected_calibration_error(self.rows),
        )


@styled()
def plot_reliability(records: Sequence[Record], names: Sequence[str]) -> str:
    """The diagram: a line a model, and under it how many pixels are in each bin.

    Args:
        records: with a reliability.
        names: of all models in the report's order, which gives their colours.
    """
    figure = new_figure("reliability", 4.6, 5.0)
    axes, below = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    axes.plot([0, 1], [0, 1], color=INK, linewidth=1, alpha=0.6)
    for record in records:
        found, k = _reliability_of(record), names.index(record.name)
        filled = [i for i, n in enumerate(found.pixels) if n]
        axes.plot(
            [found.confidence[i] for i in filled],
            [found.observed[i] for i in filled],
            marker=marker(k),
            markersize=4,
            linewidth=1.2,
            alpha=0.85,
            color=colour(k),
            label=f"{shortened(record.name, 26)}, ECE {words.figures(found.ece, 2)}",
        )
        share = np.array(found.pixels) / max(sum(found.pixels), 1)
        edges = np.linspace(0, 1, len(share) + 1)
        below.stairs(share, edges, color=colour(k), linewidth=1.2, alpha=0.85, baseline=None)
    _label_reliability(axes, below, _reliability_of(records[0]).of)
    said = "Probability given to pixels against how often it was right. "
    said += "; ".join(f"{r.name}: ECE {words.figures(_reliability_of(r).ece, 2)}" for r in records)
    return to_svg(figure, "reliability", said)


@styled()
def plot_thresholds(models: Sequence[tuple[str, Manifest]], names: Sequence[str]) -> str:
    """Dice on the validation cases at every threshold: a curve a model, with a mark at the one it was given.

    Args:
        models: name and manifest, each with a calibrated threshold; exports of one network once.
        names: of all models in the report's order, which gives their colours.
    """
    figure, axes = new_axes("thresholds", 4.6, 3.4)
    said = []
    for name, manifest in models:
        assert manifest.calibration is not None
        found, chosen, k = manifest.calibration, manifest.output.threshold, names.index(name)
        label = f"{shortened(name, 30)}: {chosen:g}"
        axes.plot(found.thresholds, found.dice, color=colour(k), linewidth=1.4, label=label)
        best = found.dice[found.thresholds.index(chosen)]
        axes.plot([chosen], [best], marker=marker(k), color=colour(k), markersize=6)
        said.append(f"{name}: threshold {chosen:g}, Dice {best:.4f}")
    axes.set_xlim(0, 1)
    axes.set_xlabel("probability from which a pixel is marked")
    axes.set_ylabel("mean Dice, validation cases")
    axes.grid(alpha=0.18)
    axes.legend(loc="lower center", frameon=False, fontsize=8)
    return to_svg(figure, "thresholds", "Dice against the threshold. " + "; ".join(said))


def calibrated(models: Sequence[tuple[str, Manifest]]) -> list[tuple[str, Manifest]]:
    """The models with a curve; of several exports of one network, which share it, the first."""
    # Exports carry their parent's calibration, so equal curves are one network's.
    once = dict[tuple[float, ...], tuple[str, Manifest]]()
    for name, manifest in models:
        if manifest.calibration and manifest.output.threshold in manifest.calibration.thresholds:
            once.setdefault(manifest.calibration.dice, (name, manifest))
    return list(once.values())


def _label_reliability(axes: Any, below: Any, of: str) -> None:
    axes.set_ylim(0, 1)
    axes.set_ylabel("how often it is there" if of == "foreground" else "how often it is right")
    axes.legend(loc="upper left", frameon=False, fontsize=8, borderaxespad=0)
    below.set_yscale("log")
    below.set_xlim(0, 1)
    below.yaxis.set_major_formatter(lambda share, _: f"{100 * share:g} %")
    below.yaxis.set_minor_formatter(lambda *_: "")
    below.set_ylabel("of the pixels", fontsize=8)
    what = "the class" if of == "foreground" else "the chosen class"
    below.set_xlabel(f"probability the model gives {what}")
    for each in (axes, below):
        each.grid(alpha=0.18)
        each.set_axisbelow(True)


def _reliability_of(record: Record) -> Reliability:
    assert record.reliability is not None
    return record.reliability
