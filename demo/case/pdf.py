"""The case page as PDF: the text and pictures of `demo.case.text`, set by reportlab."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any

from demo.case.fonts import Face, best_face
from demo.case.pdf_parts import BETWEEN_MM, SOFT, WIDTH_MM, set_banner, set_figures, set_table, set_words
from demo.case.text import CaseText, case_text
from demo.case.view import CaseView
from segcore.errors import need

_LEFT_MM, _BOTTOM_MM, _TOP_MM = 12.0, 13.0, 286.0


def case_pdf(case: CaseView) -> bytes:
    """The page as PDF, A4: the words and pictures of `demo.case.page.case_html`.

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
    below_mm = _TOP_MM - _flow_height(head, WIDTH_MM) / mm - 1
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
                "first", [_page_frame(below_mm, _TOP_MM, WIDTH_MM), *_two_columns(below_mm)], onPage=foot
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
        set_banner(text.banner, face),
        Spacer(0, 3 * mm),
        set_words(text.heading, face, 15, bold=True),
        set_words(text.facts, face, 7.8, soft=True),
        Spacer(0, 2 * mm),
        set_figures(text.figures, face),
        *(set_words(f"• {note}", face, 7.6, soft=True) for note in text.notes),
        Spacer(0, 3 * mm),
    ]


def _page_sections(text: CaseText, face: Face) -> list[list[Any]]:
    models = [set_words("Models and their limits", face, 9.6, bold=True)]
    for title, bundle, limits in text.models:
        models += [
            set_words(f"{title} ({bundle})", face, 7.8, bold=True),
            set_words(limits, face, 7.4, soft=True),
        ]
    return [*(set_table(one, face) for one in text.tables), models]


def _in_columns(sections: Sequence[list[Any]], room: float) -> list[Any]:
    """The sections in order, broken where the longer column is shortest; where they do not fit, as they come.

    Args:
        sections: their flowables.
        room: height of the two columns of the first page, in points.
    """
    from reportlab.lib.units import mm
    from reportlab.platypus import FrameBreak, KeepTogether, Spacer

    set_apart = [[*section, Spacer(0, 3 * mm)] for section in sections]
    heights = [_flow_height(section, (WIDTH_MM - BETWEEN_MM) / 2) for section in set_apart]
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
    width_mm = (WIDTH_MM - BETWEEN_MM) / 2
    right_mm = _LEFT_MM + width_mm + BETWEEN_MM
    return [_page_frame(_BOTTOM_MM, top_mm, width_mm, left_mm=left) for left in (_LEFT_MM, right_mm)]


def _page_footer(text: CaseText, face: Face) -> Callable[[Any, Any], None]:
    """Draws the footer and the page's number, on every page."""
    from reportlab.lib.colors import HexColor
    from reportlab.lib.units import mm

    def draw(canvas: Any, page: Any) -> None:
        canvas.setFont(face.plain, 7.4)
        canvas.setFillColor(HexColor(SOFT))
        canvas.drawString(_LEFT_MM * mm, 8 * mm, face.text(text.footer))
        canvas.drawRightString((_LEFT_MM + WIDTH_MM) * mm, 8 * mm, f"page {page.page}")

    return draw
