"""The font of the case's PDF: one that writes more than Western Europe's letters, where one is at hand."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from html import escape
from importlib.util import find_spec
from pathlib import Path

_DEJAVU = ("DejaVuSans.ttf", "DejaVuSans-Bold.ttf")
_VERA = ("Vera.ttf", "VeraBd.ttf")


@dataclass(frozen=True)
class Face:
    """A font and its bold, registered with reportlab.

    Attributes:
        plain: its name.
        bold: the name of its bold.
        letters: code points of the characters that it has.
    """

    plain: str
    bold: str
    letters: frozenset[int]

    def text(self, words: str) -> str:
        """Words as they can be written: what the font lacks becomes "?"."""
        return "".join(c if ord(c) in self.letters else "?" for c in words)

    def markup(self, words: str) -> str:
        """The same for a paragraph, where nothing in them is taken for markup."""
        return escape(self.text(words))


@cache
def best_face() -> Face:
    """DejaVu Sans of matplotlib or the system, else reportlab's own Vera."""
    from reportlab.pdfbase import pdfmetrics
    from reportlab.pdfbase.ttfonts import TTFont

    for folder, names in _font_places():
        if all((folder / name).is_file() for name in names):
            plain, bold = (TTFont(f"case-{Path(name).stem}", str(folder / name)) for name in names)
            pdfmetrics.registerFont(plain)
            pdfmetrics.registerFont(bold)
            return Face(plain.fontName, bold.fontName, frozenset(plain.face.charToGlyph))
    return Face("Helvetica", "Helvetica-Bold", frozenset(range(32, 256)))


def _font_places() -> list[tuple[Path, tuple[str, str]]]:
    """Where a font may lie, the best first."""
    found = [(Path("/usr/share/fonts/truetype/dejavu"), _DEJAVU)]
    for package, inside, names in (
        ("reportlab", "fonts", _VERA),
        ("matplotlib", "mpl-data/fonts/ttf", _DEJAVU),
    ):
        spec = find_spec(package)
        if spec is not None and spec.origin:
            place = Path(spec.origin).parent / inside, names
            found.insert(0 if names == _DEJAVU else len(found), place)
    return found
