"""Display windows by name: the range of values that becomes black to white."""

from __future__ import annotations

from dataclasses import dataclass

from segcore.errors import InputError


@dataclass(frozen=True)
class Window:
    """Values up to `low` are black, from `high` on white, in the picture's own values (Hounsfield units in CT)."""

    name: str
    low: float
    high: float


# Usual centres and widths in Hounsfield units: lung -600/1500, soft tissue 40/400, bone 400/1800.
# Source: Radiopaedia.org, "Windowing (CT)".
CT_WINDOWS = (
    Window("lung", -1350.0, 150.0),
    Window("soft-tissue", -160.0, 240.0),
    Window("bone", -500.0, 1300.0),
)


def window_named(text: str, *, name: str = "--window") -> Window:
    """A window from what a user typed: a name of `CT_WINDOWS`, or LOW,HIGH.

    Raises:
        InputError: neither.
    """
    for window in CT_WINDOWS:
        if text == window.name:
            return window
    low, _, high = text.partition(",")
    try:
        own = Window("own", float(low), float(high))
    except ValueError:
        own = Window("own", 0.0, 0.0)
    if not (own.low < own.high and abs(own.low) < float("inf") and abs(own.high) < float("inf")):
        names = ", ".join(w.name for w in CT_WINDOWS)
        raise InputError(f"{name}: must be {names} or LOW,HIGH with LOW < HIGH, got {text}")
    return own
