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

_TEMPLATE = Path(__file__).with_name("guard.html.j2")


@dataclass(frozen=True)
class Guarded:
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


def guarded_bundles(bundles: Sequence[Bundle]) -> list[Guarded]:
    """The bundles that a guard has passed, in their order."""
    return [_describe(bundle, guard) for bundle in bundles if (guard := bundle.manifest.guard)]


def guard_html(bundles: Sequence[Bundle]) -> str:
    """The page's section; empty if no bundle has a guard."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    def drawn(grid: Table, name: str) -> Markup:
        return Markup(grid.html(label=f"{grid.title}, {name}", row_heads=False))

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(_TEMPLATE.read_text())
    return template.render(title=TITLE, guarded=guarded_bundles(bundles), drawn=drawn)


def guard_markdown(bundles: Sequence[Bundle]) -> list[str]:
    """Its lines in Markdown; none if no bundle has a guard."""
    lines = []
    for one in guarded_bundles(bundles):
        lines += [f"**{one.name}**", "", *(f"* {what}: {text}" for what, text in one.facts), ""]
        for grid in one.grids:
            lines += [f"{grid.title}:", "", grid.markdown(), ""]
    return [f"**{TITLE}**", "", *lines] if lines else []


def _describe(bundle: Bundle, guard: GuardRecord) -> Guarded:
    fp32, int8 = guard.fp32, guard.int8
    facts = {
        "Dice, mean": f"{_change(fp32.mean, int8.mean)} (at most {guard.max_drop_points:g} may be lost)",
        "Dice, 5th percentile": f"{_change(fp32.p05, int8.p05)} (at most {guard.max_p05_drop_points:g} may be lost)",
        "measured": guard_source(guard),
        "speed": speeds_words(guard),
        "bound on speed": f"at least {guard.min_speedup:g} times as fast" if guard.speeds else "not applied",
        "layers": layer_words(guard),
        "calibration": _calibration(bundle, guard),
    }
    if guard.qat_epochs:
        epochs = words.plural(guard.qat_epochs, "epoch")
        facts["fine-tuning"] = f"{epochs} with 8-bit rounding in the training graph"
    grids = (_steps(guard), _float_layers(guard), _sensitivity(guard))
    return Guarded(
        bundle.manifest.name, bundle.folder, tuple(facts.items()), tuple(g for g in grids if g.records)
    )


def _change(before: float, after: float) -> str:
    """0.9550 → 0.9547, −0.03 points."""
    return f"{before:.4f} → {after:.4f}, {_points(before, after)} points"


def _points(before: float, after: float) -> str:
    return words.signed(100 * (after - before), 2)


def _calibration(bundle: Bundle, guard: GuardRecord) -> str:
    cases = words.plural(len(bundle.manifest.data.calibration_cases), "train case")
    return f"{cases}, {guard.calibration_batch} at a time"


def _steps(guard: GuardRecord) -> Table:
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


def _float_layers(guard: GuardRecord) -> Table:
    rows = tuple((one.layer, one.why) for one in guard.float_layers)
    return table_of("Layers that stayed in float", ("layer", "why"), rows, words=(True, True))


def _sensitivity(guard: GuardRecord) -> Table:
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
