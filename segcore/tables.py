"""A table of texts, once, for the terminal, for Markdown and for a page; escaped here and nowhere else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

_HTML = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&#34;", "'": "&#39;"})


@dataclass(frozen=True)
class Column:
    """A column: its header, the unit or remark under it, and the text of a record's cell.

    Attributes:
        words: the column holds words, to the left; numbers are to the right.
    """

    header: str
    unit: str
    cell: Callable[[Any], str]
    words: bool = False


@dataclass(frozen=True)
class Table:
    """A table ready to be written.

    Attributes:
        title: what it shows.
        columns: its columns.
        records: one a row.
        note: how to read it; empty where it needs no word.
    """

    title: str
    columns: tuple[Column, ...]
    records: tuple[Any, ...]
    note: str = ""

    @property
    def rows(self) -> list[list[str]]:
        """The texts, a row a record."""
        return [[column.cell(record) for column in self.columns] for record in self.records]

    def plain(self) -> str:
        """Lines for a terminal: headers, units where there are any, a rule, rows; aligned."""
        heads = [[c.header for c in self.columns]]
        if any(c.unit for c in self.columns):
            heads.append([c.unit for c in self.columns])
        lines = [[_one_line(text) for text in row] for row in (*heads, *self.rows)]
        widths = [max(len(line[i]) for line in lines) for i in range(len(self.columns))]
        aligned = [
            "  ".join(
                text.ljust(width) if column.words else text.rjust(width)
                for text, width, column in zip(line, widths, self.columns, strict=True)
            ).rstrip()
            for line in lines
        ]
        aligned.insert(len(heads), "  ".join("─" * width for width in widths))
        return "\n".join(aligned)

    def markdown(self) -> str:
        """The table alone in Markdown, without title and note."""
        head = [" ".join(filter(None, (c.header, c.unit))) for c in self.columns]
        rule = ["---" if c.words else "---:" for c in self.columns]
        return "\n".join(f"| {' | '.join(map(_in_markdown, line))} |" for line in (head, rule, *self.rows))

    def html(
        self, *, label: str = "", row_class: Callable[[Any], str] | None = None, row_heads: bool = True
    ) -> str:
        """The table as an element that scrolls by itself where the page is narrow.

        Args:
            label: for screen readers; by default the title.
            row_class: the CSS class of a record's row, or nothing.
            row_heads: the first cell of a row is its header.
        """
        lines = [
            f'<div class="scroll" tabindex="0" role="region" aria-label="{in_html(label or self.title)}">',
            "<table>",
            "<thead><tr>",
        ]
        for c in self.columns:
            unit = f"<small>{in_html(c.unit)}</small>" if c.unit else ""
            lines.append(f'<th scope="col"{_cell_class(c)}>{in_html(c.header)}{unit}</th>')
        lines += ["</tr></thead>", "<tbody>"]
        for record, row in zip(self.records, self.rows, strict=True):
            name = row_class(record) if row_class else ""
            lines.append(f'<tr class="{name}">' if name else "<tr>")
            for i, (column, text) in enumerate(zip(self.columns, row, strict=True)):
                if row_heads and not i:
                    lines.append(f'<th scope="row">{in_html(text)}</th>')
                else:
                    said = in_html(text) if column.words else _with_small_range(text)
                    lines.append(f"<td{_cell_class(column)}>{said}</td>")
            lines.append("</tr>")
        return "\n".join((*lines, "</tbody>", "</table>", "</div>"))


def table_of(
    title: str,
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    words: Sequence[bool],
    note: str = "",
) -> Table:
    """A table of texts that are there already.

    Args:
        title: what it shows.
        head: the columns' headers.
        rows: the texts.
        words: which columns are of words.
        note: how to read it.
    """
    columns = tuple(Column(h, "", itemgetter(i), w) for i, (h, w) in enumerate(zip(head, words, strict=True)))
    return Table(title, columns, tuple(rows), note)


def in_html(text: str) -> str:
    """A text in a page, also in an attribute."""
    return text.translate(_HTML)


def _in_markdown(text: str) -> str:
    return _one_line(text).replace("|", "\\|")


def _one_line(text: str) -> str:
    """A cell is one line: a line break in a name would end its row."""
    return " ".join(text.splitlines()) if "\n" in text or "\r" in text else text


def _cell_class(column: Column) -> str:
    return ' class="words"' if column.words else ""


def _with_small_range(text: str) -> str:
    """0.955 (0.948–0.961): the range is smaller print."""
    number, opened, rest = in_html(text).partition(" (")
    return f"{number} <small>({rest}</small>" if opened else number
