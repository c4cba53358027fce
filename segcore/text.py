"""Text from other people's machines: encodings, YAML, JSON, tables as spreadsheets save them, names in no encoding."""

from __future__ import annotations

import codecs
import csv
import io
import json
import os
import re
import unicodedata
from collections.abc import Collection
from pathlib import Path
from typing import Any

from segcore.errors import InputError, reading

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_SEPARATORS = ",;\t"
_LONGEST_NAME, _LONGEST_PATH = 255, 4000
"""Bytes. Linux, macOS and Windows have no longer names."""
_BRACKET, _NESTED_LINE = re.compile(r"[\[\]{}]"), re.compile(r"([-?] +){100}")
_MOST_VALUES, _DEEPEST = 100_000, 100
"""Of a YAML file, which can repeat a value by name: nine lines of such names hold a thousand million values."""


def read_text(path: Path, name: str) -> str:
    """A text file in UTF-8, with or without a byte order mark, or in another Unicode encoding that has one.

    Args:
        path: of the file, which is there.
        name: what the error calls it: "--config a.yaml".

    Raises:
        InputError: in another encoding, where a guess could turn one name into another; or it holds a NUL, as no text
            does, and no name of a file can.
    """
    content = path.read_bytes()
    encoding = next((name for mark, name in _MARKS if content.startswith(mark)), "utf-8")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise InputError(
            f"{name}: must be text in UTF-8, got another encoding in line {line}; save it as UTF-8"
        ) from None
    if (at := text.find("\0")) >= 0:
        line = text[:at].count("\n") + 1
        raise InputError(f"{name}: must be text, got a NUL character in line {line}; save it as UTF-8")
    return text


def read_yaml(path: Path, name: str) -> Any:
    """What a YAML file holds: values, lists and mappings, no objects.

    Args:
        path: of the file, which is there.
        name: what the error calls it.

    Raises:
        InputError: another encoding, no YAML, or more values or deeper ones than anybody writes.
    """
    import yaml

    text = read_text(path, name)
    depth = deepest = 0
    for found in _BRACKET.finditer(text):  # before PyYAML, which takes seconds to give up on a few thousand
        depth = max(0, depth + (1 if found[0] in "[{" else -1))
        deepest = max(deepest, depth)
    if deepest > _DEEPEST or _NESTED_LINE.search(text):
        raise _too_much(name)
    with reading(name, "YAML", remedy="mend that line"):
        values = yaml.safe_load(text)
    _check_extent(values, name)
    return values


def _too_much(name: str) -> InputError:
    return InputError(
        f"{name}: must hold at most {_MOST_VALUES} values, {_DEEPEST} levels deep, got more; write it without &names"
    )


def _check_extent(root: Any, name: str) -> None:
    """Refuses what would grow out of bounds when it is written out, as an error message writes it."""
    level, count = [root], 0
    for _ in range(_DEEPEST):
        below = list[Any]()
        for value in level:
            if isinstance(value, dict | list | tuple | set):
                below += [*value, *value.values()] if isinstance(value, dict) else value
            count += 1
            if count + len(below) > _MOST_VALUES:
                break
        level = below
        if not level:
            return
        if count + len(below) > _MOST_VALUES:
            break
    raise _too_much(name)


def read_json(path: Path, name: str, *, remedy: str = "copy it again") -> Any:
    """What a JSON file holds.

    Args:
        path: of the file, which is there.
        name: what the error calls it.
        remedy: what to do where it is damaged.

    Raises:
        InputError: no JSON.
    """
    with reading(name, "JSON", remedy=remedy):
        return json.loads(path.read_bytes())


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
    with reading(name, "a table", remedy="save it again"):
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
        skipped = 1 if said else 0
        rows = [(reader.line_num + skipped, [_plain(cell) for cell in row]) for row in reader]
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

    Raises:
        InputError: no file can have that name.
    """
    if len(cell.encode()) > _LONGEST_PATH or any(
        len(p.encode()) > _LONGEST_NAME for p in re.split(r"[/\\]", cell)
    ):
        raise InputError(
            f"{cell[:40]}…: must be the name of a file, has {len(cell)} characters, more than a name can; mend it"
        )
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
