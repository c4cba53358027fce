"""The case page as PDF: the text and pictures of `demo.case.content`, set by reportlab."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from html import escape
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from demo.case.content import CaseFigure, CaseTable, CaseText, CaseView, case_text
from segcore.errors import need
from segcore.picture.overlay import COLOURS

_LEFT_MM, _BOTTOM_MM, _TOP_MM = 12.0, 13.0, 286.0
_WIDTH_MM, _BETWEEN_MM = 186.0, 7.0  # of what is printed, and between its two columns
_COLUMN_MM = (_WIDTH_MM - _BETWEEN_MM) / 2
_INK, _SOFT = "#1b1f23", "#4d5761"


def case_pdf(case: CaseView) -> bytes:
    """The page as PDF, A4: the words and pictures of `demo.case.downloads.case_html`.

    Letters that the font lacks become "?". DejaVu Sans, which matplotlib or the system brings, writes Latin, Greek,
    Cyrillic and Arabic letters (unshaped), no Chinese or Japanese; reportlab's own Vera writes Western Europe's.

    Raises:
        InputError: reportlab is not installed.
    """
    try:
        from reportlab.lib.units import mm
        from reportlab.platypus import BaseDocTemplate, FrameBreak, NextPageTemplate, PageTemplate
    except ModuleNotFoundError:
        raise need("reportlab", "demo") from None
    text, face, stream = case_text(case), best_face(), io.BytesIO()
    head, sections = _page_head(text, face), _page_sections(text, face)
    below_mm = _TOP_MM - _flow_height(head, _WIDTH_MM) / mm - 1
    flow = [
        *head,
        NextPageTemplate("later"),
        FrameBreak(),
        *_in_columns(sections, (below_mm - _BOTTOM_MM) * mm),
    ]
    foot = _page_footer(text, face)
    page = BaseDocTemplate(
        stream,
        pagesize=(210 * mm, 297 * mm),
        title=text.heading,
        author="sam2edge",
        subject=text.banner,
        lang="en",
    )
    page.addPageTemplates(
        [
            PageTemplate(
                "first", [_page_frame(below_mm, _TOP_MM, _WIDTH_MM), *_two_columns(below_mm)], onPage=foot
            ),
            PageTemplate("later", _two_columns(_TOP_MM), onPage=foot),
        ]
    )
    page.build(flow)
    return stream.getvalue()


def _page_head(text: CaseText, face: Face) -> list[Any]:
    from reportlab.lib.units import mm
    from reportlab.platypus import Spacer

    return [
        _set_banner(text.banner, face),
        Spacer(0, 3 * mm),
        _set_words(text.heading, face, 15, bold=True),
        _set_words(text.facts, face, 7.8, soft=True),
        Spacer(0, 2 * mm),
        _set_figures(text.figures, face),
        *(_set_words(f"• {note}", face, 7.6, soft=True) for note in text.notes),
        Spacer(0, 3 * mm),
    ]


def _page_sections(text: CaseText, face: Face) -> list[list[Any]]:
    models = [_set_words("Models and their limits", face, 9.6, bold=True)]
    for title, bundle, limits in text.models:
        models += [
            _set_words(f"{title} ({bundle})", face, 7.8, bold=True),
            _set_words(limits, face, 7.4, soft=True),
        ]
    return [*(_set_table(one, face) for one in text.tables), models]


def _in_columns(sections: Sequence[list[Any]], room: float) -> list[Any]:
    """The sections in order, broken where the longer column is shortest; where they do not fit, as they come.

    Args:
        sections: their flowables.
        room: height of the two columns of the first page, in points.
    """
    from reportlab.lib.units import mm
    from reportlab.platypus import FrameBreak, KeepTogether, Spacer

    set_apart = [[*section, Spacer(0, 3 * mm)] for section in sections]
    heights = [_flow_height(section, _COLUMN_MM) for section in set_apart]
    longer, split = min((max(sum(heights[:n]), sum(heights[n:])), n) for n in range(1, len(heights) + 1))
    flow: list[Any] = [KeepTogether(section) for section in set_apart]
    if longer <= room:
        flow.insert(split, FrameBreak())
    return flow


def _flow_height(flow: Sequence[Any], width_mm: float) -> float:
    """In points."""
    from reportlab.lib.units import mm

    return float(sum(one.wrap(width_mm * mm, 1e6)[1] for one in flow))


def _page_frame(bottom_mm: float, top_mm: float, width_mm: float, *, left_mm: float = _LEFT_MM) -> Any:
    from reportlab.lib.units import mm
    from reportlab.platypus import Frame

    size = width_mm * mm, (top_mm - bottom_mm) * mm
    return Frame(
        left_mm * mm, bottom_mm * mm, *size, leftPadding=0, rightPadding=0, topPadding=0, bottomPadding=0
    )


def _two_columns(top_mm: float) -> list[Any]:
    right_mm = _LEFT_MM + _COLUMN_MM + _BETWEEN_MM
    return [_page_frame(_BOTTOM_MM, top_mm, _COLUMN_MM, left_mm=left) for left in (_LEFT_MM, right_mm)]


def _page_footer(text: CaseText, face: Face) -> Callable[[Any, Any], None]:
    """Draws the footer and the page's number, on every page."""
    from reportlab.lib.colors import HexColor
    from reportlab.lib.units import mm

    def draw(canvas: Any, page: Any) -> None:
        canvas.setFont(face.plain, 7.4)
        canvas.setFillColor(HexColor(_SOFT))
        canvas.drawString(_LEFT_MM * mm, 8 * mm, face.text(text.footer))
        canvas.drawRightString((_LEFT_MM + _WIDTH_MM) * mm, 8 * mm, f"page {page.page}")

    return draw


# The pieces of the page, as reportlab's flowables: words, pictures, tables.

_LINE, _RULE = "#d5dade", "#8a949e"
_GAP_MM = 3.5  # between two pictures
_HIGHEST_MM = 70.0
_ACROSS = 4
_LAMPS = {"red": "#ff4d5e", "amber": "#ffb52b", "green": "#00d29a"}
_DASHES = {"solid": None, "dashed": (4, 3), "dotted": (1.5, 1.5)}
_TIGHT = [
    ("LEFTPADDING", (0, 0), (-1, -1), 0),
    ("RIGHTPADDING", (0, 0), (-1, -1), 4),
    ("TOPPADDING", (0, 0), (-1, -1), 0.5),
    ("BOTTOMPADDING", (0, 0), (-1, -1), 1.5),
]


def _set_words(words: str, face: Face, size: float, *, bold: bool = False, soft: bool = False) -> Any:
    """A paragraph; `size` in points."""
    from reportlab.lib.styles import ParagraphStyle
    from reportlab.platypus import Paragraph

    style = ParagraphStyle(
        f"{size} {bold} {soft}",
        fontName=face.bold if bold else face.plain,
        fontSize=size,
        leading=1.3 * size,
        textColor=_SOFT if soft else _INK,
        splitLongWords=1,
    )
    return Paragraph(face.markup(words), style)


def _set_banner(words: str, face: Face) -> Any:
    """Words that cannot be overlooked."""
    from reportlab.lib.colors import HexColor
    from reportlab.lib.units import mm
    from reportlab.platypus import Table, TableStyle

    style = [
        ("BACKGROUND", (0, 0), (-1, -1), HexColor("#fff4d6")),
        ("BOX", (0, 0), (-1, -1), 0.7, HexColor("#b58a1b")),
        ("TOPPADDING", (0, 0), (-1, -1), 3),
        ("BOTTOMPADDING", (0, 0), (-1, -1), 5),
    ]
    return Table(
        [[_set_words(words, face, 9.6, bold=True)]], colWidths=[_WIDTH_MM * mm], style=TableStyle(style)
    )


def _set_figures(figures: Sequence[CaseFigure], face: Face) -> Any:
    """Four pictures a row, with their words below."""
    from reportlab.lib.units import mm
    from reportlab.platypus import Table, TableStyle

    columns = min(len(figures), _ACROSS)
    width_mm = (_WIDTH_MM - _GAP_MM * (columns - 1)) / columns
    cells: list[Any] = [_figure_cells(one, face, width_mm) for one in figures]
    rows = [cells[n : n + columns] for n in range(0, len(cells), columns)]
    rows[-1] += [""] * (columns - len(rows[-1]))
    style = [
        ("VALIGN", (0, 0), (-1, -1), "TOP"),
        ("LEFTPADDING", (0, 0), (-1, -1), 0),
        ("RIGHTPADDING", (0, 0), (-1, -1), _GAP_MM * mm),
        ("RIGHTPADDING", (-1, 0), (-1, -1), 0),
    ]
    widths = [(width_mm + _GAP_MM) * mm] * (columns - 1) + [width_mm * mm]
    return Table(rows, colWidths=widths, style=TableStyle(style))


def _figure_cells(one: CaseFigure, face: Face, width_mm: float) -> list[Any]:
    from reportlab.lib.units import mm
    from reportlab.platypus import Spacer

    height, width = one.picture.shape[:2]
    scale = min(width_mm / width, _HIGHEST_MM / height)
    cells: list[Any] = [
        _set_words(one.heading, face, 9.6, bold=True),
        _set_words(one.detail, face, 7.6, soft=True),
        Spacer(0, 1 * mm),
        _place_picture(one.picture, width * scale * mm, height * scale * mm),
        Spacer(0, 1 * mm),
    ]
    cells += [_key_row(k, name, line, face) for k, name, line in one.key]
    if one.heat:
        cells.append(_set_words("Black: they agree. White: they are opposite.", face, 7.6))
    if one.note:
        cells.append(_set_words(one.note, face, 7.6))
    if one.light is not None:
        cells += [Spacer(0, 1 * mm), _draw_lamps(one.light.colour)]
        cells.append(_set_words(f"{one.light.colour.capitalize()}: {one.light.word}", face, 8.4, bold=True))
        cells.append(_set_words(f"Expected overlap (Dice): {one.estimate:.2f}", face, 7.6))
    return cells


def _place_picture(picture: np.ndarray, width: float, height: float) -> Any:
    from reportlab.platypus import Image as PdfImage

    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "PNG")
    stream.seek(0)
    return PdfImage(stream, width, height, hAlign="LEFT")


def _key_row(k: int, name: str, line: str, face: Face) -> Any:
    """A piece of the line, and the class that it outlines."""
    from reportlab.graphics.shapes import Drawing, Line
    from reportlab.lib.colors import Color
    from reportlab.platypus import Table

    drawing = Drawing(20, 6)
    colour = Color(*(part / 255 for part in COLOURS[(k - 1) % len(COLOURS)]))
    drawing.add(Line(0, 3, 18, 3, strokeColor=colour, strokeWidth=2.5, strokeDashArray=_DASHES[line]))
    return Table(
        [[drawing, _set_words(f"{name} ({line} line)", face, 7.6)]],
        colWidths=[24, None],
        style=_TIGHT,
        hAlign="LEFT",
    )


def _draw_lamps(colour: str) -> Any:
    from reportlab.graphics.shapes import Circle, Drawing, Rect
    from reportlab.lib.colors import HexColor

    drawing = Drawing(40, 14)
    drawing.add(Rect(0, 0, 38, 13, rx=3, fillColor=HexColor("#22262b"), strokeColor=None))
    for n, name in enumerate(_LAMPS):
        lit = HexColor(_LAMPS[name] if name == colour else "#4a5058")
        drawing.add(Circle(7 + 12 * n, 6.5, 4.5, fillColor=lit, strokeColor=None))
    return drawing


def _set_table(table: CaseTable, face: Face) -> list[Any]:
    """Title, table and hint, of the width of a column."""
    from reportlab.lib.colors import HexColor
    from reportlab.lib.units import mm
    from reportlab.platypus import Spacer, Table, TableStyle

    columns = len(table.rows[0])
    first_mm = (0.32 if columns < 5 else 0.25) * _COLUMN_MM
    widths = [first_mm * mm] + [(_COLUMN_MM - first_mm) / (columns - 1) * mm] * (columns - 1)
    style: list[Any] = [
        *_TIGHT,
        ("VALIGN", (0, 0), (-1, -1), "TOP"),
        ("LINEBELOW", (0, 0), (-1, -1), 0.4, HexColor(_LINE)),
        ("LINEBELOW", (0, 0), (-1, 0), 0.7, HexColor(_RULE)),
    ]
    cells = []
    for n, row in enumerate(table.rows):
        bold = n == 0 or len(row) == 1
        if len(row) < columns:
            style.append(("SPAN", (len(row) - 1, n), (-1, n)))
        if row[0].startswith(" "):
            style.append(("LEFTPADDING", (0, n), (0, n), 8))
        size = 7.8 if columns < 5 else 7.0
        laid = [_set_words(cell.strip(), face, size, bold=bold) for cell in row]
        cells.append(laid + [""] * (columns - len(row)))
    found = [
        _set_words(table.title, face, 9.6, bold=True),
        Spacer(0, 2),
        Table(cells, colWidths=widths, style=TableStyle(style), hAlign="LEFT", repeatRows=1),
    ]
    return found + ([_set_words(table.hint, face, 7.4, soft=True)] if table.hint else [])


# The font: one that writes more than Western Europe's letters, where one is at hand.

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
