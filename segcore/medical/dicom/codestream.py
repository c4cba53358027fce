"""What a JPEG, JPEG-LS or JPEG 2000 codestream says of its picture, before anything decodes it."""

from __future__ import annotations

import struct
from dataclasses import dataclass

_JPEG_LOSSLESS, _JPEG_LS = 0xC3, 0xF7
_NO_FRAME = (0xC4, 0xC8, 0xCC)  # tables and extensions among the markers of frames


@dataclass(frozen=True)
class Codestream:
    """A codestream's own word on its picture: height and width, samples a pixel, bits a sample, losslessness."""

    size_px: tuple[int, int]
    samples: int
    bits: int
    lossless: bool


def jpeg_picture(frame: bytes) -> Codestream | None:
    """Reads the frame header of JPEG or JPEG-LS; None where there is none.

    Source: ITU-T T.81, B.2.2, and T.87, C.2.2.
    """
    at = 2
    while at + 10 <= len(frame) and frame[at] == 0xFF:
        marker, length = frame[at + 1], struct.unpack(">H", frame[at + 2 : at + 4])[0]
        if (0xC0 <= marker <= 0xCF and marker not in _NO_FRAME) or marker == _JPEG_LS:
            bits, height, width, samples = struct.unpack(">BHHB", frame[at + 4 : at + 10])
            return Codestream((height, width), samples, bits, marker in (_JPEG_LOSSLESS, _JPEG_LS))
        at += 2 + length
    return None


def jpeg_2000_picture(frame: bytes) -> Codestream | None:
    """Reads the size marker of JPEG 2000, with or without boxes around; None where there is none.

    Source: ITU-T T.800, A.5.1.
    """
    at = frame.find(b"\xff\x4f\xff\x51", 0, 1024)
    if at < 0 or at + 43 > len(frame):
        return None
    right, bottom, left, top = struct.unpack(">4L", frame[at + 8 : at + 24])
    samples, depth = struct.unpack(">HB", frame[at + 40 : at + 43])
    return Codestream((bottom - top, right - left), samples, (depth & 0x7F) + 1, False)
