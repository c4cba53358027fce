"""Opens one DICOM file: its header, and where its pixels lie. Nothing is decoded here."""

from __future__ import annotations

import logging
import struct
import warnings
import zlib
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from segcore.errors import InputError, need
from segcore.image import MAX_PIXELS, MAX_SIDE_PX
from segcore.medical.dicom.extent import check_fragments, check_length, pixel_element
from segcore.medical.dicom.header import drop_malformed, text_of, whole_number

if TYPE_CHECKING:
    from pydicom import Dataset
    from pydicom.uid import UID

MAX_VOXELS = 2_000_000_000
MAX_INFLATED_BYTES = 2**30
DEFLATED = "1.2.840.10008.1.2.1.99"
_SYNTAXES = {  # (implicit VR, little endian) of a file that does not name its transfer syntax
    (True, True): "1.2.840.10008.1.2",
    (False, True): "1.2.840.10008.1.2.1",
    (False, False): "1.2.840.10008.1.2.2",
}
# Objects that are no picture, by the start of their SOP class UID.
_NOT_PICTURES = {
    "1.2.840.10008.5.1.4.1.1.66": "a segmentation, which is a mask; give the image that it refers to",
    "1.2.840.10008.5.1.4.1.1.481": "a radiotherapy object; give the image that it was planned on",
    "1.2.840.10008.5.1.4.1.1.88": "a structured report; give the image that it reports on",
    "1.2.840.10008.5.1.4.1.1.104": "a document; give the image itself",
    "1.2.840.10008.5.1.4.1.1.11": "a presentation state; give the image that it presents",
    "1.2.840.10008.1.3.10": "a DICOMDIR; give the folder that it lists",
}
_UNDEFINED = 0xFFFFFFFF
_RT_IMAGE = "1.2.840.10008.5.1.4.1.1.481.1"


@dataclass(frozen=True)
class DicomFile:
    """One file's header and the place of its pixels.

    Attributes:
        path: the file.
        header: every element before the pixels. It may hold the patient's name.
        syntax: its transfer syntax.
        frames: how many pictures it holds, at least 1.
        size_px: height and width.
        offset: where the pixel data's value begins, in bytes (of a deflated file: after inflating).
        pixel_vr: "OB" or "OW" as written; "OW" in an implicit syntax.
        changed_ns: when the file was last written, so that another one in its place is noticed.
    """

    path: Path
    header: Dataset = field(repr=False)
    syntax: UID
    frames: int
    size_px: tuple[int, int]
    offset: int
    pixel_vr: str
    changed_ns: int

    def stream(self) -> BinaryIO:
        """The file at the first byte of the pixel data's value.

        Raises:
            InputError: it is gone, or no longer the file that was opened.
        """
        if not self.path.is_file() or self.path.stat().st_mtime_ns != self.changed_ns:
            raise InputError(
                f"DICOM {self.path}: must stay as it is while it is read, was changed; read it again"
            )
        stream = _inflated(self.path) if self.syntax == DEFLATED else self.path.open("rb")
        stream.seek(self.offset)
        return stream


def is_dicom(head: bytes) -> bool:
    """Whether a file's first bytes (132 or more, where it has them) are DICOM's, with its preamble or without.

    Without one, a file begins with an element of group 0002 or 0008, as no other picture does.
    """
    if head[128:132] == b"DICM":
        return True
    # After group and element come two letters of a VR, or the value's length, which is short there.
    named = head[4:6].isalpha() and head[4:6].isupper()
    if head[:2] in (b"\x08\0", b"\x02\0"):
        return named or (len(head) >= 8 and head[6:8] == b"\0\0")
    return named and head[:2] in (b"\0\x08", b"\0\x02")


def load_pydicom() -> Any:
    """Imports pydicom and keeps it silent: its warnings and log records quote values, a patient's name among them."""
    try:
        import pydicom
    except ImportError:
        raise need("pydicom", "medical") from None
    logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)
    warnings.filterwarnings("ignore", module=r"pydicom(\.|$)")
    return pydicom


def read_header(path: Path, tags: list[str] | None = None) -> Dataset:
    """Every element before the pixels, or only those of `tags`.

    Raises:
        InputError: no DICOM, damaged or cut off.
    """
    header, stream = _parse(path, tags)
    stream.close()
    return header


def open_dicom(path: Path) -> DicomFile:
    """Reads a file's header and checks that it can hold a picture.

    Raises:
        InputError: no DICOM, damaged, cut off, no picture, too large, or it promises more than it holds.
    """
    header, stream = _parse(path)
    changed_ns = path.stat().st_mtime_ns
    with stream:
        _refuse_other_objects(header, path)
        pixel_vr, length = pixel_element(stream, header, path)
        offset = stream.tell()
        held = stream.seek(0, 2) - offset
        stream.seek(offset)
        frames = _frames(header, path)
        size_px = _size(header, path, frames)
        file = DicomFile(path, header, _syntax(header, path), frames, size_px, offset, pixel_vr, changed_ns)
        if file.syntax.is_encapsulated:
            check_fragments(stream, path, offset, frames)
        else:
            check_length(header, path, size_px, frames, min(held, length))
    return file


def _parse(path: Path, tags: list[str] | None = None) -> tuple[Dataset, BinaryIO]:
    """The header, and the stream at the element after it."""
    pydicom = load_pydicom()
    try:
        stream: BinaryIO = path.open("rb")
    except OSError as error:
        raise InputError(f"DICOM {path}: must be a readable file, got {error.strerror}") from None
    try:
        head = stream.read(132)
        if not is_dicom(head):
            raise InputError(f"DICOM {path}: must be a DICOM file, got something else")
        stream.seek(0)
        meta = pydicom.filereader.read_file_meta_info(path) if head[128:] == b"DICM" else None
        if meta is not None and meta.get("TransferSyntaxUID") == DEFLATED:
            stream.close()
            stream = _inflated(path)
        header = pydicom.dcmread(stream, stop_before_pixels=True, force=True, specific_tags=tags)
        _check_whole(header, path)
        drop_malformed(header)
        if meta is not None:
            drop_malformed(meta)
            header.file_meta = meta
        return header, stream
    except InputError:
        stream.close()
        raise
    except Exception:
        # pydicom raises a dozen types on damaged headers; what it says may quote a value, so it is not repeated.
        stream.close()
        raise InputError(
            f"DICOM {path}: must be a whole DICOM file, got a damaged or truncated header; copy it again"
        ) from None


def _inflated(path: Path) -> BytesIO:
    """A deflated file's data set without its file meta information. Source: DICOM PS3.5, A.5."""
    raw = path.read_bytes()
    (group_length,) = struct.unpack("<L", raw[140:144])
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    data = inflater.decompress(raw[144 + group_length :], MAX_INFLATED_BYTES)
    if inflater.unconsumed_tail:
        raise InputError(
            f"DICOM {path}: must be at most {MAX_INFLATED_BYTES} bytes when inflated, got more; store it uncompressed"
        )
    return BytesIO(data)


def _check_whole(header: Dataset, path: Path) -> None:
    """Refuses a file that ends in the middle of an element, of which pydicom takes what is there."""
    last: Any = max(
        header._dict.values(), key=lambda element: getattr(element, "value_tell", 0), default=None
    )
    held, length = getattr(last, "value", None), getattr(last, "length", None)
    cut_short = isinstance(held, bytes) and length not in (None, _UNDEFINED) and len(held) < length
    if last is None or cut_short:
        raise InputError(
            f"DICOM {path}: must be a whole DICOM file, got a damaged or truncated header; copy it again"
        )


def _refuse_other_objects(header: Dataset, path: Path) -> None:
    kind = text_of(header, "SOPClassUID") or text_of(
        getattr(header, "file_meta", header), "MediaStorageSOPClassUID"
    )
    for start, what in _NOT_PICTURES.items():
        if (kind == start or kind.startswith(f"{start}.")) and kind != _RT_IMAGE:
            raise InputError(f"DICOM {path}: must be an image, got {what}")


def _syntax(header: Dataset, path: Path) -> UID:
    from pydicom.uid import UID

    named = text_of(getattr(header, "file_meta", header), "TransferSyntaxUID")
    implicit, little = header.original_encoding
    syntax = UID(named or _SYNTAXES[bool(implicit), bool(little)])
    if not syntax.is_transfer_syntax:
        raise InputError(
            f"DICOM {path}: must be in a transfer syntax that the extra medical reads, got an unknown one; "
            "store it uncompressed first"
        )
    return syntax


def _frames(header: Dataset, path: Path) -> int:
    if "NumberOfFrames" not in header:
        return 1
    frames = whole_number(header, "NumberOfFrames")
    if frames is None or frames < 1:
        raise InputError(f"DICOM {path}: must hold at least one frame, got {frames or 0}; export it again")
    return frames


def _size(header: Dataset, path: Path, frames: int) -> tuple[int, int]:
    height, width = whole_number(header, "Rows") or 0, whole_number(header, "Columns") or 0
    if min(height, width) < 1:
        raise InputError(f"DICOM {path}: must have pixels, got {height}×{width}")
    if max(height, width) > MAX_SIDE_PX or height * width > MAX_PIXELS:
        raise InputError(
            f"DICOM {path}: must be at most {MAX_SIDE_PX} pixels a side and {MAX_PIXELS} in all, "
            f"got {height}×{width}; tile or shrink it"
        )
    if height * width * frames > MAX_VOXELS:
        raise InputError(
            f"DICOM {path}: must be at most {MAX_VOXELS} pixels in all frames, got {frames} of {height}×{width}; "
            "split it"
        )
    return height, width
