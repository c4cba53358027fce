"""What INT8 was allowed to lose, and lost: the guard's record of each bundle, for the page and the Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from segcore import words
from segcore.bundle.folder import Bundle
from segcore.bundle.guard_record import DiceScore, GuardRecord
from segcore.bundle.story import guard_source, layer_words, speeds_words
from segcore.tables import Table, table_of

TITLE = "What INT8 was allowed to lose"
SHOWN_LAYERS = 10
"""Rows of the table of sensitive layers."""


@dataclass(frozen=True)
class GuardSummary:
    """One bundle's guard, in words.

    Attributes:
        name: the bundle's.
        folder: the bundle's.
        facts: (what, text), in the order of reading.
        grids: what the guard tried, the layers in float, the most sensitive layers; empty ones are left out.
    """

    name: str
    folder: Path
    facts: tuple[tuple[str, str], ...]
    grids: tuple[Table, ...]


def summarise_guards(bundles: Sequence[Bundle]) -> list[GuardSummary]:
    """The bundles that a guard has passed, in their order."""
    return [_summarise_guard(bundle, guard) for bundle in bundles if (guard := bundle.manifest.guard)]


def guard_markdown(bundles: Sequence[Bundle]) -> list[str]:
    """The section's lines in Markdown; none if no bundle has a guard."""
    lines = []
    for one in summarise_guards(bundles):
        lines += [f"**{one.name}**", "", *(f"* {what}: {text}" for what, text in one.facts), ""]
        for grid in one.grids:
            lines += [f"{grid.title}:", "", grid.markdown(), ""]
    return [f"**{TITLE}**", "", *lines] if lines else []


def _summarise_guard(bundle: Bundle, guard: GuardRecord) -> GuardSummary:
    mean = _dice_change(guard.fp32.mean, guard.int8.mean)
    p05 = _dice_change(guard.fp32.p05, guard.int8.p05)
    facts = {
        "Dice, mean": f"{mean} (at most {guard.max_drop_points:g} may be lost)",
        "Dice, 5th percentile": f"{p05} (at most {guard.max_p05_drop_points:g} may be lost)",
        "measured": guard_source(guard),
        "speed": speeds_words(guard),
        "bound on speed": f"at least {guard.min_speedup:g} times as fast" if guard.speeds else "not applied",
        "layers": layer_words(guard),
        "calibration": _calibration_fact(bundle, guard),
    }
    if guard.qat_epochs:
        epochs = words.plural(guard.qat_epochs, "epoch")
        facts["fine-tuning"] = f"{epochs} with 8-bit rounding in the training graph"
    grids = (_steps_table(guard), _float_table(guard), _sensitivity_table(guard))
    return GuardSummary(
        bundle.manifest.name, bundle.folder, tuple(facts.items()), tuple(g for g in grids if g.records)
    )


def _dice_change(before: float, after: float) -> str:
    """0.9550 → 0.9547, −0.03 points."""
    return f"{before:.4f} → {after:.4f}, {_points(before, after)} points"


def _points(before: float, after: float) -> str:
    """How much Dice changed: −0.03; a point is 0.01."""
    return words.signed(100 * (after - before), 2)


def _calibration_fact(bundle: Bundle, guard: GuardRecord) -> str:
    cases = words.plural(len(bundle.manifest.data.calibration_cases), "train case")
    return f"{cases}, {guard.calibration_batch} at a time"


def _steps_table(guard: GuardRecord) -> Table:
    def row(number: int, what: str, floats: int, dice: DiceScore, passed: bool) -> tuple[str, ...]:
        drops = _points(guard.fp32.mean, dice.mean), _points(guard.fp32.p05, dice.p05)
        kept = "kept" if passed else "too much"
        return str(number), what, str(floats), f"{dice.mean:.4f}", drops[0], f"{dice.p05:.4f}", drops[1], kept

    rows = [
        row(i, step.what, step.float_layers, step.int8, step.passed)
        for i, step in enumerate(guard.steps, start=1)
    ]
    head = ("step", "what", "in float", "Dice", "points", "5th percentile", "points", "verdict")
    of_words = (False, True, False, False, False, False, False, True)
    return table_of("What the guard tried", head, rows, words=of_words)


def _float_table(guard: GuardRecord) -> Table:
    rows = tuple((one.layer, one.why) for one in guard.float_layers)
    return table_of("Layers that stayed in float", ("layer", "why"), rows, words=(True, True))


def _sensitivity_table(guard: GuardRecord) -> Table:
    shown = guard.sensitivity[:SHOWN_LAYERS]
    floats = {one.layer for one in guard.float_layers}
    rows = tuple(
        (
            one.layer,
            words.signed(-one.drop_points, 2),
            words.signed(-one.p05_drop_points, 2),
            words.percent(one.error),
            "float" if one.layer in floats else "INT8",
        )
        for one in shown
    )
    title = f"The most sensitive layers, each alone in INT8 ({len(shown)} of {len(guard.sensitivity)})"
    head = ("layer", "Dice, points", "5th percentile, points", "logits' error", "ends in")
    return table_of(title, head, rows, words=(True, False, False, False, True))
