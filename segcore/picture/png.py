"""Writes 8-bit pictures as PNG, without loss, several times as fast as a general encoder.

A general encoder tries five filters a row and searches long for what repeats. Of a mask nothing needs a filter, as its
runs repeat by themselves; of a picture one filter, the difference to the row above, does nearly as well as five.
"""

from __future__ import annotations

import struct
import zlib
from functools import cache
from importlib.util import find_spec
from typing import Any, Literal

import numpy as np

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_GREY, _RGB = 0, 2
_FILTERS = {"none": 0, "up": 2}
"""Source of the numbers: PNG Specification, third edition, 9.2 and 11.2.1."""


def encode_png(pixels: np.ndarray, *, filter: Literal["none", "up"]) -> bytes:
    """A PNG file of 8 bits a channel.

    Args:
        pixels: H×W (grey) or H×W×3 (RGB), uint8, at least 1×1.
        filter: "none" for masks, "up" for pictures.
    """
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or pixels.shape[2:] not in ((), (3,)):
        raise ValueError(f"pixels must be uint8 H×W or H×W×3, got {pixels.dtype} {pixels.shape}")
    height, width = pixels.shape[:2]
    flat = pixels.reshape(height, -1)
    rows = np.empty((height, flat.shape[1] + 1), np.uint8)  # each behind the number of its filter
    rows[:, 0] = _FILTERS[filter]
    if filter == "none":
        rows[:, 1:] = flat
    else:
        rows[0, 1:] = flat[0]
        np.subtract(flat[1:], flat[:-1], out=rows[1:, 1:])
    colour = _GREY if pixels.ndim == 2 else _RGB
    header = struct.pack(">LLBBBBB", width, height, 8, colour, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", _compress(rows)), (b"IEND", b""))
    return _SIGNATURE + b"".join(_chunk(kind, content) for kind, content in chunks)


def _chunk(kind: bytes, content: bytes) -> bytes:
    checked = zlib.crc32(content, zlib.crc32(kind))
    return b"".join((struct.pack(">L", len(content)), kind, content, struct.pack(">L", checked)))


def _compress(rows: np.ndarray) -> bytes:
    if igzip := _igzip():
        packed: bytes = igzip.compress(rows.data, level=1)
        return packed
    # Runs are all that is looked for: of masks that finds as much as zlib's own search, and sooner.
    packer = zlib.compressobj(1, zlib.DEFLATED, zlib.MAX_WBITS, 9, zlib.Z_RLE)
    return packer.compress(rows.data) + packer.flush()


@cache
def _igzip() -> Any:
    """Intel's igzip where the extra `fast` is installed, which takes a quarter of zlib's time; else None."""
    if not find_spec("isal"):
        return None
    from isal import isal_zlib

    return isal_zlib
