"""Dice on the validation cases at every threshold that a model could have been given, and the one it was given."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.report.drawing import colour, marker, new_axes, shortened, styled, to_svg
from segcore.bundle.manifest import Manifest
from segcore.picture.quality import Calibration


@styled()
def plot_thresholds(models: Sequence[tuple[str, Manifest]], names: Sequence[str]) -> str:
    """A curve a model, with a mark at its threshold.

    Args:
        models: name and manifest, each with a calibrated threshold; exports of one network once.
        names: of all models in the report's order, which gives their colours.
    """
    figure, axes = new_axes("thresholds", 4.6, 3.4)
    said = []
    for name, manifest in models:
        found, chosen, k = _found(manifest), manifest.output.threshold, names.index(name)
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
    once = dict[tuple[float, ...], tuple[str, Manifest]]()
    for name, manifest in models:
        if manifest.calibration and manifest.output.threshold in manifest.calibration.thresholds:
            once.setdefault(manifest.calibration.dice, (name, manifest))
    return list(once.values())


def _found(manifest: Manifest) -> Calibration:
    assert manifest.calibration is not None
    return manifest.calibration
