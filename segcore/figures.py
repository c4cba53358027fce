"""Numbers in so many significant figures, for every page, report and card."""

from __future__ import annotations

import math


def figures(value: float, digits: int = 3) -> str:
    """Rounds to so many significant figures, without an exponent: 0.0123, 4.56, 78.9, 1230."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    decimals = digits - 1 - int(f"{value:.{digits - 1}e}".partition("e")[2])  # the exponent after rounding
    return f"{round(value, decimals):.{max(decimals, 0)}f}"
