"""The pieces of the case's PDF, as reportlab's flowables: words, pictures, tables."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from demo.case.fonts import Face
from demo.case.text import CaseFigure, CaseTable
from segcore.picture.overlay import COLOURS

WIDTH_MM, BETWEEN_MM = 186.0, 7.0
"""Of what is printed, and between its two columns."""
INK, SOFT = "#1b1f23", "#4d5761"
_LINE, _RULE = "#d5dade", "#8a949e"
_COLUMN_MM = (WIDTH_MM - BETWEEN_MM) / 2
_GAP_MM = 3.5
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


def set_words(words: str, face: Face, size: float, *, bold: bool = False, soft: bool = False) -> Any:
    """A paragraph; `size` in points."""
    from reportlab.lib.styles import ParagraphStyle
    from reportlab.platypus import Paragraph

    style = ParagraphStyle(
        f"{size} {bold} {soft}",
        fontName=face.bold if bold else face.plain,
        fontSize=size,
        leading=1.3 * size,
        textColor=SOFT if soft else INK,
        splitLongWords=1,
    )
    return Paragraph(face.markup(words), style)


def set_banner(words: str, face: Face) -> Any:
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
        [[set_words(words, face, 9.6, bold=True)]], colWidths=[WIDTH_MM * mm], style=TableStyle(style)
    )


def set_figures(figures: Sequence[CaseFigure], face: Face) -> Any:
    """Four pictures a row, with their words below."""
    from reportlab.lib.units import mm
    from reportlab.platypus import Table, TableStyle

    columns = min(len(figures), _ACROSS)
    width_mm = (WIDTH_MM - _GAP_MM * (columns - 1)) / columns
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
        set_words(one.heading, face, 9.6, bold=True),
        set_words(one.detail, face, 7.6, soft=True),
        Spacer(0, 1 * mm),
        _place_picture(one.picture, width * scale * mm, height * scale * mm),
        Spacer(0, 1 * mm),
    ]
    cells += [_key_row(k, name, line, face) for k, name, line in one.key]
    if one.heat:
        cells.append(set_words("Black: they agree. White: they are opposite.", face, 7.6))
    if one.note:
        cells.append(set_words(one.note, face, 7.6))
    if one.light is not None:
        cells += [Spacer(0, 1 * mm), _draw_lamps(one.light.colour)]
        cells.append(set_words(f"{one.light.colour.capitalize()}: {one.light.word}", face, 8.4, bold=True))
        cells.append(set_words(f"Expected overlap (Dice): {one.estimate:.2f}", face, 7.6))
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
        [[drawing, set_words(f"{name} ({line} line)", face, 7.6)]],
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


def set_table(table: CaseTable, face: Face) -> list[Any]:
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
        laid = [set_words(cell.strip(), face, size, bold=bold) for cell in row]
        cells.append(laid + [""] * (columns - len(row)))
    found = [
        set_words(table.title, face, 9.6, bold=True),
        Spacer(0, 2),
        Table(cells, colWidths=widths, style=TableStyle(style), hAlign="LEFT", repeatRows=1),
    ]
    return found + ([set_words(table.hint, face, 7.4, soft=True)] if table.hint else [])
