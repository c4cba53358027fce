"""Text from other people's machines: encodings, tables as spreadsheets save them, and names in no encoding."""

from __future__ import annotations

import codecs
import csv
import io
import os
import re
import unicodedata
from collections.abc import Collection
from pathlib import Path

from segcore.errors import InputError

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_SEPARATORS = ",;\t"


def read_text(path: Path, name: str) -> str:
    """A text file in UTF-8, with or without a byte order mark, or in another Unicode encoding that has one.

    Args:
        path: of the file, which is there.
        name: what the error calls it: "--config a.yaml".

    Raises:
        InputError: in another encoding, where a guess could turn one name into another.
    """
    content = path.read_bytes()
    encoding = next((name for mark, name in _MARKS if content.startswith(mark)), "utf-8")
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise InputError(
            f"{name}: must be text in UTF-8, got another encoding in line {line}; save it as UTF-8"
        ) from None


def read_table(
    path: Path, name: str, columns: Collection[str]
) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """A table with a line of headings, its cells between commas, semicolons or tabs, and without blanks around them.

    Args:
        path: of the file, which is there.
        name: what the error calls it.
        columns: headings that are known, in small letters; they are found in whatever case they are written.

    Returns:
        The headings, and of each row that holds anything its line's number and its cells; "" where one is missing.

    Raises:
        InputError: another encoding, or no table.
    """
    text = read_text(path, name)
    first = next((line for line in text.splitlines() if line.strip()), "")
    separator = max(_SEPARATORS, key=first.count)  # the first of equals: a single column has none
    if said := re.fullmatch(r"sep=(.)", first.strip(), re.IGNORECASE):  # a line that Excel writes and reads
        separator, text = said[1], text.partition("\n")[2]
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
        skipped = 1 if said else 0
        rows = [(reader.line_num + skipped, [_plain(cell) for cell in row]) for row in reader]
    except csv.Error as error:
        raise InputError(f"{name}: must be a table, got {error}; save it again") from None
    rows = [(line, row) for line, row in rows if any(row)]
    if not rows:
        return [], []
    (_, headings), *body = rows
    headings = [known if (known := cell.lower()) in columns else cell for cell in headings]
    return headings, [
        (line, {**dict.fromkeys(headings, ""), **dict(zip(headings, row, strict=False))})
        for line, row in body
    ]


def _plain(cell: str) -> str:
    """Without what cannot be seen around it, and letters in one form: macOS writes ü as u and two dots."""
    return unicodedata.normalize("NFC", cell.strip().strip("\u200b\ufeff").strip())


def path_in(folder: Path, cell: str) -> Path:
    """The file that a table's cell names.

    Where there is none of that very name, back-slashes part folders, and letters may be in another form.
    """
    forms = [cell, cell.replace("\\", "/")]
    paths = [folder / unicodedata.normalize(form, name) for name in forms for form in ("NFC", "NFD")]
    return next((path for path in (folder / cell, *paths) if path.exists()), paths[2])


def readable_name(name: str) -> str:
    """A file's name as text that can be written, letters in one form.

    Bytes that are no UTF-8 are taken for Windows' Western letters.
    """
    try:
        name.encode()
    except UnicodeEncodeError:
        name = os.fsencode(name).decode("cp1252", "replace")
    return unicodedata.normalize("NFC", name)
