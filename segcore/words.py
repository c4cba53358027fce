"""Numbers and text as readers want them, on pages and in messages: three figures, a unit, a real minus sign."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence

MINUS = "−"


def figures(value: float, digits: int = 3) -> str:
    """Rounds to so many significant figures, without an exponent: 0.0123, 4.56, 78.9, 1230."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    decimals = digits - 1 - int(f"{value:.{digits - 1}e}".partition("e")[2])  # the exponent after rounding
    return f"{round(value, decimals):.{max(decimals, 0)}f}"


def signed(value: float, decimals: int = 4) -> str:
    """+0.0012 or −0.0012; what rounds to nothing has no sign."""
    text = f"{abs(value):.{decimals}f}"
    if float(text) == 0:
        return text
    return (MINUS if value < 0 else "+") + text


def signed_figures(value: float) -> str:
    """+1.23, −0.0456, 0."""
    return (MINUS if value < 0 else "+" if value > 0 else "") + figures(abs(value))


def dice(mean: float, low: float | None, high: float | None) -> str:
    """0.955 (0.948–0.961)."""
    return ranged(mean, low, high, 3)


def distance(mean: float, low: float | None, high: float | None, unit: str) -> str:
    """3.21 px (2.90–3.62)."""
    return ranged(mean, low, high, 2, unit=f" {unit}")


def ranged(value: float, low: float | None, high: float | None, decimals: int, *, unit: str = "") -> str:
    """2.13 (1.98–2.20): a number with the ends of its interval or of its rounds, where they are known."""
    text = f"{value:.{decimals}f}{unit}"
    return text if low is None or high is None else f"{text} ({low:.{decimals}f}–{high:.{decimals}f})"


def difference(mean: float | None, low: float | None, high: float | None, decimals: int = 4) -> str:
    """−0.0032 (−0.0062 to −0.0001)."""
    if mean is None:
        return "–"
    text = signed(mean, decimals)
    if low is None or high is None:
        return text
    return f"{text} ({signed(low, decimals)} to {signed(high, decimals)})"


def count(value: int) -> str:
    """487 k, 31.0 M, 48.2 G."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{figures(value / size)} {letter}"
    return str(value)


def megabytes(size_bytes: int) -> str:
    """Decimal megabytes, as file managers show them."""
    return f"{figures(size_bytes / 1e6)} MB"


def times(ratio: float) -> str:
    """31×, 2.4×; at most two figures below 100, as no measured ratio is surer than that."""
    return f"{figures(ratio, 2)}×"


def bounded_ratio(value: float) -> str:
    """A ratio that is held against "at least so much": two decimals, rounded down.

    1.0499 is 1.04: it must not read 1.05 beside "must be at least 1.05".
    """
    return f"{math.floor(round(100 * value, 6)) / 100:.2f}"  # 1.15 is 1.14999… in binary, and means 1.15


def percent(share: float, decimals: int | None = None) -> str:
    """0.620 %, 12.3 %, 104 %: three figures, or as many decimals as are asked for."""
    return f"{figures(100 * share)} %" if decimals is None else f"{100 * share:.{decimals}f} %"


def fixed_percent(share: float) -> str:
    """0.012 %, 1.250 %: three decimals whatever the size, so that a share and its limit line up."""
    return percent(share, 3)


def plural(number: int, word: str) -> str:
    """1 case, 2 cases, 3 batches."""
    if number == 1:
        return f"{number} {word}"
    return f"{number} {word}{'es' if word.endswith(('tch', 's', 'x')) else 's'}"


def shortened(names: Sequence[str], most: int = 5) -> str:
    """The first few, and how many more: "a.txt, b.txt and 3 more"."""
    more = len(names) - most
    return ", ".join(names) if more <= 0 else f"{', '.join(names[:most])} and {more} more"


def rough_time(seconds: float) -> str:
    """45 s, 12 min, 3 h 05 min: as exact as somebody who waits needs it."""
    minutes = round(seconds / 60)
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"


def printable(text: str) -> str:
    r"""Text with what a terminal obeys, or nobody sees, written as escapes: "\x1b[2J" becomes "\\x1b[2J".

    That is controls, line ends, marks of writing direction and halves of surrogate pairs. Spaces of any width stay, and
    the two joiners that Persian and Hindi are spelt with. What this gave once stays as it is.
    """
    if text.isprintable():
        return text
    return "".join(one if _is_seen(one) else one.encode("unicode_escape").decode() for one in text)


def _is_seen(one: str) -> bool:
    return one.isprintable() or unicodedata.category(one) == "Zs" or one in "\u200c\u200d"
