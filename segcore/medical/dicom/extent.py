"""Checks that a DICOM file holds as many pixels as its header promises; nothing is decoded."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from segcore.errors import InputError
from segcore.medical.dicom.header import whole_number

if TYPE_CHECKING:
    from pydicom import Dataset


def pixel_element(stream: BinaryIO, header: Dataset, path: Path) -> tuple[str, int]:
    """VR and length of the pixel data's element, whose value is then next in the stream."""
    implicit, little = header.original_encoding
    order = "<" if little else ">"
    start = stream.read(8)
    vr = "OW"
    try:
        group, element, length = struct.unpack(f"{order}HHL", start)
        if not implicit and start[4:6].isalpha():  # some writers of explicit files forget it here
            (length,) = struct.unpack(f"{order}L", stream.read(4))
            vr = start[4:6].decode("ascii", "replace")
    except struct.error:
        raise InputError(
            f"DICOM {path}: must hold pixels, got a header alone or a file cut off before them; copy it again"
        ) from None
    if (group, element) != (0x7FE0, 0x0010):
        raise InputError(
            f"DICOM {path}: must hold integer pixels, got floating-point ones; export it as an image"
        )
    return vr, int(length)


def check_length(header: Dataset, path: Path, size_px: tuple[int, int], frames: int, held_bytes: int) -> None:
    """Compares the bytes of uncompressed pixels with the header's promise."""
    samples, bits = (whole_number(header, key) or 1 for key in ("SamplesPerPixel", "BitsAllocated"))
    if header.get("PhotometricInterpretation") == "YBR_FULL_422":
        samples = 2  # chroma is stored for every second pixel. Source: DICOM PS3.3, C.7.6.3.1.2
    height, width = size_px
    needed = (height * width * frames * samples * bits + 7) // 8
    if needed > held_bytes:
        raise InputError(
            f"DICOM {path}: must hold the {needed} bytes of pixels its header promises, "
            f"got {held_bytes}; copy it again"
        )


def check_fragments(stream: BinaryIO, path: Path, offset: int, frames: int) -> None:
    """Walks over the fragments' lengths up to the end mark, which a file cut off has lost. Source: DICOM PS3.5, A.4."""
    fragments, end = -1, stream.seek(0, 2)  # the first item is the offset table
    stream.seek(offset)
    while len(item := stream.read(8)) == 8:
        group, element, length = struct.unpack("<HHL", item)
        if (group, element) != (0xFFFE, 0xE000) or stream.tell() + length > end:
            break
        fragments += 1
        stream.seek(length, 1)
    if item[:4] != b"\xfe\xff\xdd\xe0":
        raise InputError(
            f"DICOM {path}: must hold whole compressed pixels, got a file cut off in them; copy it again"
        )
    if fragments < frames:
        raise InputError(
            f"DICOM {path}: must hold the {frames} frames its header promises, got {fragments}; copy it again"
        )
