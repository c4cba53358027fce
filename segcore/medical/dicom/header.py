"""Reads elements of a DICOM header without trusting them: what is malformed counts as missing."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydicom import Dataset


def drop_malformed(header: Dataset) -> None:
    """Deletes, in place, elements that pydicom cannot convert or that are a sequence where none belongs, or none.

    pydicom converts an element when it is asked for; after this, asking raises nothing.
    """
    from pydicom.datadict import dictionary_VR

    for tag in list(header.keys()):
        try:
            element = header[tag]
            is_sequence = element.VR == "SQ"
            if not element.tag.is_private and element.keyword and is_sequence != (dictionary_VR(tag) == "SQ"):
                del header[tag]
            elif is_sequence:
                for item in element.value:
                    drop_malformed(item)
        except Exception:  # pydicom raises many types, by what is wrong
            del header[tag]


def whole_number(header: Dataset, keyword: str) -> int | None:
    """An element as an integer; None where it is missing or is none."""
    numbers = numbers_of(header, keyword)
    return int(numbers[0]) if numbers and numbers[0] == int(numbers[0]) else None


def numbers_of(header: Dataset, keyword: str) -> tuple[float, ...]:
    """An element's values as finite numbers; empty where it is missing or one of them is no number."""
    try:
        value = header.get(keyword)
        values = value if hasattr(value, "__iter__") and not isinstance(value, str) else [value]
        numbers = tuple(float(v) for v in values)
    except Exception:  # whatever pydicom raises on a malformed value: it counts as missing
        return ()
    return numbers if all(abs(n) < float("inf") for n in numbers) else ()


def text_of(header: Dataset, keyword: str) -> str:
    """An element as one line of text; "" where it is missing or malformed."""
    try:
        text = str(header.get(keyword) or "")
    except Exception:  # as above
        return ""
    return "".join(c if c.isprintable() else " " for c in text).strip()


def frame_group(header: Dataset, sequence: str, frame: int) -> Dataset:
    """The frame's own item of a functional group, else the one that all frames share, else the header itself.

    Source: DICOM PS3.3, C.7.6.16.
    """
    per_frame = header.get("PerFrameFunctionalGroupsSequence") or []
    own = per_frame[frame : frame + 1]
    for group in (*own, *(header.get("SharedFunctionalGroupsSequence") or [])):
        if group.get(sequence):
            item: Dataset = group[sequence].value[0]
            return item
    return header
