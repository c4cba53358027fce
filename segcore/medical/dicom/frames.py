"""Decodes one frame's stored values, with the decoders listed here for each transfer syntax, one after another.

A file counts as damaged when no installed decoder reads it; which one did is remarked where it was not the first.
What a compressed frame says of its own picture is read before any decoder is asked: it must be what the header says.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

from segcore.errors import InputError, is_damage, reading
from segcore.medical.dicom.file import DEFLATED, DicomFile, whole_number
from segcore.medical.dicom.gdcm_process import decode_by_gdcm

# pydicom's names of decoders, in the order in which the installed ones are tried. pylibjpeg's decoder of the JPEGs is
# GPL and not of the extra: it is asked where the user has installed it.
_JPEG, _JPEG_LOSSLESS = ("pillow", "gdcm", "pylibjpeg"), ("gdcm", "pylibjpeg")
_JPEG_LS, _JPEG_2000 = ("pyjpegls", "gdcm", "pylibjpeg"), ("pylibjpeg", "pillow", "gdcm")
# Not pylibjpeg-rle 2.2.0: it is faster, but on damaged data it panics with a backtrace on the terminal.
_RLE = ("pydicom", "gdcm")
_DECODERS = {
    "1.2.840.10008.1.2": (),
    "1.2.840.10008.1.2.1": (),
    "1.2.840.10008.1.2.1.98": (),
    DEFLATED: (),
    "1.2.840.10008.1.2.2": (),
    "1.2.840.10008.1.2.4.50": _JPEG,
    "1.2.840.10008.1.2.4.51": _JPEG,
    "1.2.840.10008.1.2.4.57": _JPEG_LOSSLESS,
    "1.2.840.10008.1.2.4.70": _JPEG_LOSSLESS,
    "1.2.840.10008.1.2.4.80": _JPEG_LS,
    "1.2.840.10008.1.2.4.81": _JPEG_LS,
    "1.2.840.10008.1.2.4.90": _JPEG_2000,
    "1.2.840.10008.1.2.4.91": _JPEG_2000,
    "1.2.840.10008.1.2.4.201": _JPEG_2000,
    "1.2.840.10008.1.2.4.202": _JPEG_2000,
    "1.2.840.10008.1.2.4.203": _JPEG_2000,
    "1.2.840.10008.1.2.5": _RLE,
}
_STORE_UNCOMPRESSED = "store it uncompressed first (a JPEG by dcmtk's dcmdjpeg)"
_LOSSLESS_MARKER, _LS_MARKER = 0xC3, 0xF7
_NO_FRAME = (0xC4, 0xC8, 0xCC)  # tables and extensions among the markers of frames


def check_syntax(file: DicomFile) -> None:
    """Refuses what could not be decoded, before anything is.

    Raises:
        InputError: naming the transfer syntax, and the extra that reads it or what to do.
    """
    _installed_decoders(file)
    # Source: DICOM PS3.5, 8.2.1; pydicom 3.0.2 refuses it with Pillow and with GDCM.
    if file.syntax == "1.2.840.10008.1.2.4.51" and whole_number(file.header, "BitsStored") != 8:
        raise InputError(
            f"DICOM {file.path}: must be 8 bit where it is {_syntax_name(file)}, got 12 bit, which no decoder of the "
            f"extra medical reads; {_STORE_UNCOMPRESSED}"
        )


def stored_frame(file: DicomFile, index: int) -> np.ndarray:
    """One frame as it is stored, before any rescale: H×W, or H×W×3 with YBR turned to RGB.

    Raises:
        InputError: its pixels cannot be decoded, or are of another size than the header says.
    """
    from pydicom.pixels import get_decoder
    from pydicom.pixels.utils import as_pixel_options

    names = _installed_decoders(file)
    # `DicomFile.stream` has inflated a deflated file, which is then explicit little endian.
    syntax = "1.2.840.10008.1.2.1" if file.syntax == DEFLATED else file.syntax
    options = as_pixel_options(file.header, number_of_frames=file.frames)
    options |= {"pixel_keyword": "PixelData", "pixel_vr": file.pixel_vr}
    wanted = f"a file whose pixels decode as {_syntax_name(file)}"
    with reading(f"DICOM {file.path}", wanted, quoted=False), file.stream() as stream:
        if not file.syntax.is_encapsulated:
            # Not validated: it would read the whole of a large file to count its bytes, which open_dicom has done.
            frame, _ = get_decoder(syntax).as_array(stream, index=index, validate=False, **options)
            return np.asarray(frame)
        codestream = _checked_codestream(stream, file, index)
    options = {**options, "number_of_frames": 1}  # each decoder is sent this frame alone
    options.pop("extended_offsets", None)
    for name in names:
        try:
            frame = _decoded_by(name, codestream, file, options)
        except Exception as error:
            # The decoders raise anything, and what they say may quote the header, so it is not repeated.
            if not is_damage(error):
                raise
            continue
        if name != names[0]:
            file.remarks.add(f"pixels decoded by {name}, which {names[0]} could not read")
        return frame
    raise _damaged_error(file)


def _decoded_by(name: str, codestream: bytes, file: DicomFile, options: dict[str, Any]) -> np.ndarray:
    """One frame's codestream by one of pydicom's decoders, which raises what it likes."""
    from pydicom.encaps import encapsulate
    from pydicom.pixels import get_decoder

    if name == "gdcm":
        # GDCM ends its process on damaged data, so it works in another one.
        return decode_by_gdcm(codestream, file.syntax, options)
    frame, _ = get_decoder(file.syntax).as_array(
        encapsulate([codestream]), index=0, decoding_plugin=name, validate=False, **options
    )
    return np.asarray(frame)


def _damaged_error(file: DicomFile) -> InputError:
    return InputError(
        f"DICOM {file.path}: must be a file whose pixels decode as {_syntax_name(file)}, is damaged; copy it again"
    )


def _installed_decoders(file: DicomFile) -> tuple[str, ...]:
    """Those of a compressed file's syntax, the best first; none for an uncompressed one.

    Raises:
        InputError: of an unknown syntax, or none is installed.
    """
    from pydicom.pixels import get_decoder

    names = _DECODERS.get(file.syntax)
    if names is None:
        raise InputError(
            f"DICOM {file.path}: must be in a transfer syntax that the extra medical reads, got {_syntax_name(file)}; "
            f"{_STORE_UNCOMPRESSED}"
        )
    if not names:
        return ()
    there = get_decoder(file.syntax).available_plugins
    if found := tuple(name for name in names if name in there):
        return found
    raise InputError(
        f"DICOM {file.path}: is in the transfer syntax {_syntax_name(file)}, whose decoder must be installed, is not; "
        "run: pip install 'sam2edge[medical]'"
    )


def _syntax_name(file: DicomFile) -> str:
    name = file.syntax.name
    return str(file.syntax) if name == file.syntax else f"{name} ({file.syntax})"


def _checked_codestream(stream: BinaryIO, file: DicomFile, index: int) -> bytes:
    """One frame's bytes; refuses a picture that is not what the header says before a decoder makes room for it."""
    from pydicom.encaps import get_frame

    names = _DECODERS[file.syntax]
    start = stream.tell()
    frame = get_frame(stream, index, number_of_frames=file.frames, extended_offsets=_extended_offsets(file))
    stream.seek(start)
    if names == _RLE:
        return frame
    found = _jpeg_2000_codestream(frame) if names == _JPEG_2000 else _jpeg_codestream(frame)
    if found is None or (names == _JPEG_LOSSLESS and not found.lossless):
        raise _damaged_error(file)
    if found.size_px != file.size_px:
        (height, width), (own_height, own_width) = file.size_px, found.size_px
        raise InputError(
            f"DICOM {file.path}: must hold a picture of {height}×{width} as its header says, "
            f"got one of {own_height}×{own_width}; export it again"
        )
    samples, bits = (whole_number(file.header, key) or 1 for key in ("SamplesPerPixel", "BitsAllocated"))
    stored = 8 * math.ceil(found.bits / 8)  # 12 bits of a codestream come out of the decoder in 16
    if found.samples != samples or stored > bits or (names == _JPEG_LOSSLESS and stored != bits):
        raise InputError(
            f"DICOM {file.path}: must hold {samples} samples of {bits} bit a pixel as its header says, "
            f"got {found.samples} of {stored} bit; export it again"
        )
    return frame


def _extended_offsets(file: DicomFile) -> tuple[Any, Any] | None:
    """The table of frames that files of over 4 GiB need, whose offsets do not fit into the usual one."""
    if "ExtendedOffsetTable" in file.header:
        return file.header.ExtendedOffsetTable, file.header.ExtendedOffsetTableLengths
    return None


@dataclass(frozen=True)
class _Codestream:
    """A codestream's own word on its picture: height and width, samples a pixel, bits a sample, losslessness."""

    size_px: tuple[int, int]
    samples: int
    bits: int
    lossless: bool


def _jpeg_codestream(frame: bytes) -> _Codestream | None:
    """Reads the frame header of JPEG or JPEG-LS; None where there is none.

    Source: ITU-T T.81, B.2.2, and T.87, C.2.2.
    """
    at = 2  # past the mark of the picture's start; each segment then begins with its marker and its length
    while at + 10 <= len(frame) and frame[at] == 0xFF:
        marker, length = frame[at + 1], struct.unpack(">H", frame[at + 2 : at + 4])[0]
        if (0xC0 <= marker <= 0xCF and marker not in _NO_FRAME) or marker == _LS_MARKER:
            bits, height, width, samples = struct.unpack(">BHHB", frame[at + 4 : at + 10])
            return _Codestream((height, width), samples, bits, marker in (_LOSSLESS_MARKER, _LS_MARKER))
        at += 2 + length
    return None


def _jpeg_2000_codestream(frame: bytes) -> _Codestream | None:
    """Reads the size marker of JPEG 2000, with or without boxes around; None where there is none.

    Source: ITU-T T.800, A.5.1.
    """
    at = frame.find(b"\xff\x4f\xff\x51")  # start of the codestream and its size marker, past any boxes
    if at < 0 or at + 43 > len(frame):
        return None
    right, bottom, left, top = struct.unpack(">4L", frame[at + 8 : at + 24])
    samples, depth = struct.unpack(">HB", frame[at + 40 : at + 43])
    return _Codestream((bottom - top, right - left), samples, (depth & 0x7F) + 1, False)
