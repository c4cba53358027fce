"""One table, three forms; no name can break any of them."""

from html.parser import HTMLParser

import pytest

from segcore.tables import Column, Table, table_of

NAMES = ["a|b", "<b>bold</b>", "two\nlines", 'say "it\'s" & go', "p < 0.001"]


@pytest.fixture
def table() -> Table:
    columns = (Column("name|s", "", lambda r: r[0], words=True), Column("Dice", "95 %", lambda r: r[1]))
    return Table("Ta<ble", columns, tuple((name, f"0.9{i} (0.8–1.0)") for i, name in enumerate(NAMES)))


class Cells(HTMLParser):
    """The texts of a table's cells as a browser shows them, and the tags it sees."""

    def __init__(self, page: str):
        super().__init__()
        self.rows: list[list[str]] = []
        self.tags: set[str] = set()
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_data(self, data):
        if self.rows and self.rows[-1]:
            self.rows[-1][-1] += data.rstrip("\n") if data == "\n" else data


def test_plain_has_a_line_a_row_and_is_aligned(table):
    lines = table.plain().splitlines()
    assert len(lines) == 3 + len(NAMES)
    assert lines[0].startswith("name|s")
    assert lines[1].strip() == "95 %"
    assert set(lines[2]) == {"─", " "}
    assert lines[3].startswith("a|b ")
    assert lines[4].startswith("<b>bold</b> ")
    assert lines[5].startswith("two lines ")
    assert len({len(line) for line in lines[3:]}) == 1


def test_plain_has_no_line_for_units_where_there_are_none():
    lines = table_of("", ("a", "b"), [("x", "1")], words=(True, False)).plain().splitlines()
    assert lines == ["a  b", "─  ─", "x  1"]


def test_markdown_keeps_a_cell_a_cell(table):
    lines = table.markdown().splitlines()
    assert lines[:2] == [r"| name\|s | Dice 95 % |", "| --- | ---: |"]
    assert lines[2:] == [
        r"| a\|b | 0.90 (0.8–1.0) |",
        "| <b>bold</b> | 0.91 (0.8–1.0) |",
        "| two lines | 0.92 (0.8–1.0) |",
        """| say "it's" & go | 0.93 (0.8–1.0) |""",
        "| p < 0.001 | 0.94 (0.8–1.0) |",
    ]


def test_html_shows_every_name_as_it_is(table):
    page = table.html(row_class=lambda r: "reference" if r[0] == "a|b" else "")
    found = Cells(page)
    assert found.rows[0] == ["name|s", "Dice95 %"]
    assert [row[0] for row in found.rows[1:]] == NAMES
    assert [row[1] for row in found.rows[1:]] == [f"0.9{i} (0.8–1.0)" for i in range(len(NAMES))]
    assert found.tags == {"div", "table", "thead", "tbody", "tr", "th", "td", "small"}
    assert page.count('<tr class="reference">') == 1
    assert 'aria-label="Ta&lt;ble"' in page
    assert "<td>0.90 <small>(0.8–1.0)</small></td>" in page


def test_html_escapes_once():
    markupsafe = pytest.importorskip("markupsafe")
    for name in (*NAMES, "&amp;"):
        page = table_of(name, ("n",), [(name,)], words=(True,)).html()
        assert f'<th scope="row">{markupsafe.escape(name)}</th>' in page
        assert f'aria-label="{markupsafe.escape(name)}"' in page
