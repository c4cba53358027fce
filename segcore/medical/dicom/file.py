"""Opens one DICOM file: its header, and where its pixels lie. Nothing is decoded here.

Nothing in the file is trusted: a malformed element counts as missing, and a file that holds fewer pixels than its
header promises is refused before anything makes room for them.
"""

from __future__ import annotations

import logging
import struct
import warnings
import zlib
from contextlib import ExitStack
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from segcore.errors import InputError, is_damage, need, passing_over_damage, reading
from segcore.image import MAX_PIXELS, MAX_SIDE_PX

if TYPE_CHECKING:
    from pydicom import Dataset
    from pydicom.uid import UID

MAX_VOXELS = 2_000_000_000
MAX_INFLATED_BYTES = 2**30
DEFLATED = "1.2.840.10008.1.2.1.99"
_UNNAMED_SYNTAXES = {  # (implicit VR, little endian) of a file that does not name its transfer syntax
    (True, True): "1.2.840.10008.1.2",
    (False, True): "1.2.840.10008.1.2.1",
    (False, False): "1.2.840.10008.1.2.2",
}
# Objects that are no picture, by the start of their SOP class UID, the longer before the shorter.
# Source: DICOM PS3.4, B.5, and PS3.6, A.
_NOT_PICTURES = {
    "1.2.840.10008.5.1.4.1.1.66.1": "a registration; give the images that it registers",
    "1.2.840.10008.5.1.4.1.1.66.3": "a registration; give the images that it registers",
    "1.2.840.10008.5.1.4.1.1.66.2": "fiducials; give the image that they are placed on",
    "1.2.840.10008.5.1.4.1.1.66.4": "a segmentation, which is a mask; give the image that it refers to",
    "1.2.840.10008.5.1.4.1.1.66.5": "a segmentation, which is a mask; give the image that it refers to",
    "1.2.840.10008.5.1.4.1.1.66.7": "a segmentation, which is a mask; give the image that it refers to",
    "1.2.840.10008.5.1.4.1.1.66": "raw data; give the image that was made of them",
    "1.2.840.10008.5.1.4.1.1.67": "a map of values; give the image that it is for",
    "1.2.840.10008.5.1.4.1.1.4.2": "a spectrum; give an image",
    "1.2.840.10008.5.1.4.1.1.9": "a waveform; give an image",
    "1.2.840.10008.5.1.4.1.1.481": "a radiotherapy object; give the image that it was planned on",
    "1.2.840.10008.5.1.4.1.1.88": "a structured report; give the image that it reports on",
    "1.2.840.10008.5.1.4.1.1.104": "a document; give the image itself",
    "1.2.840.10008.5.1.4.1.1.11": "a presentation state; give the image that it presents",
    "1.2.840.10008.1.3.10": "a DICOMDIR; give the folder that it lists",
}
# The one radiotherapy object that is a picture.
_RT_IMAGE = "1.2.840.10008.5.1.4.1.1.481.1"
_UNDEFINED = 0xFFFFFFFF


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
        remarks: what the record should say of how it was read; filled while it is.
    """

    path: Path
    header: Dataset = field(repr=False)
    syntax: UID
    frames: int
    size_px: tuple[int, int]
    offset: int
    pixel_vr: str
    changed_ns: int
    remarks: set[str] = field(default_factory=set, compare=False)

    def stream(self) -> BinaryIO:
        """The file at the first byte of the pixel data's value.

        Raises:
            InputError: it is gone, or no longer the file that was opened.
        """
        if not self.path.is_file() or self.path.stat().st_mtime_ns != self.changed_ns:
            raise InputError(
                f"DICOM {self.path}: must stay as it is while it is read, was changed; read it again"
            )
        stream = _inflate_file(self.path) if self.syntax == DEFLATED else self.path.open("rb")
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


def open_dicom(path: Path) -> DicomFile:
    """Reads a file's header and checks that it can hold a picture.

    Raises:
        InputError: no DICOM, damaged, cut off, no picture, too large, or it promises more than it holds.
    """
    header, stream = _parse_header(path)
    changed_ns = path.stat().st_mtime_ns
    with stream:
        _refuse_other_objects(header, path)
        pixel_vr, length = _pixel_element(stream, header, path)
        offset = stream.tell()
        held = stream.seek(0, 2) - offset
        stream.seek(offset)
        frames = _frame_count(header, path)
        size_px = _frame_size(header, path, frames)
        file = DicomFile(
            path, header, _transfer_syntax(header, path), frames, size_px, offset, pixel_vr, changed_ns
        )
        if file.syntax.is_encapsulated:
            _check_fragments(stream, path, offset, frames)
        else:
            # The element may claim more than the file has left, or less.
            _check_length(header, path, size_px, frames, min(held, length))
    return file


def read_header(path: Path, tags: list[str] | None = None) -> Dataset:
    """Every element before the pixels, or only those of `tags`.

    Raises:
        InputError: no DICOM, damaged or cut off.
    """
    header, stream = _parse_header(path, tags)
    stream.close()
    return header


# Elements of a header, read without trust: what is malformed counts as missing.


def text_of(header: Dataset, keyword: str) -> str:
    """An element as one line of text; "" where it is missing or malformed."""
    text = ""
    with passing_over_damage():
        text = str(header.get(keyword) or "")
    return "".join(c if c.isprintable() else " " for c in text).strip()


def whole_number(header: Dataset, keyword: str) -> int | None:
    """An element as an integer; None where it is missing or is none."""
    numbers = numbers_of(header, keyword)  # of several values the first counts
    return int(numbers[0]) if numbers and numbers[0] == int(numbers[0]) else None


def numbers_of(header: Dataset, keyword: str) -> tuple[float, ...]:
    """An element's values as finite numbers; empty where it is missing or one of them is no number."""
    numbers: tuple[float, ...] = ()
    with passing_over_damage(also=TypeError):  # float() of what is no number
        value = header.get(keyword)
        values = value if hasattr(value, "__iter__") and not isinstance(value, str) else [value]
        numbers = tuple(float(v) for v in values)
    return numbers if all(abs(n) < float("inf") for n in numbers) else ()


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


def _drop_malformed(header: Dataset) -> None:
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
                    _drop_malformed(item)
        except Exception as error:  # pydicom raises many types, by what is wrong
            if not is_damage(error):
                raise
            del header[tag]


# Reading the header.


def _parse_header(path: Path, tags: list[str] | None = None) -> tuple[Dataset, BinaryIO]:
    """The header, and the stream at the element after it."""
    pydicom = load_pydicom()
    try:
        stream: BinaryIO = path.open("rb")
    except OSError as error:
        raise InputError(f"DICOM {path}: must be a readable file, got {error.strerror}") from None
    # What pydicom says may quote a value, so it is not repeated.
    with ExitStack() as stack, reading(f"DICOM {path}", "a whole DICOM file", quoted=False):
        stack.callback(lambda: stream.close())  # whichever it is by then
        head = stream.read(132)
        if not is_dicom(head):
            raise InputError(f"DICOM {path}: must be a DICOM file, got something else")
        stream.seek(0)
        # Read by itself, because of a deflated file only this group can be read before the rest is inflated.
        meta = pydicom.filereader.read_file_meta_info(path) if head[128:] == b"DICM" else None
        if meta is not None and meta.get("TransferSyntaxUID") == DEFLATED:
            stream.close()
            stream = _inflate_file(path)
        # Forced, because files without a preamble and the inflated rest of a deflated one begin at once with elements.
        header = pydicom.dcmread(stream, stop_before_pixels=True, force=True, specific_tags=tags)
        _check_whole(header, path)
        _drop_malformed(header)
        if meta is not None:
            _drop_malformed(meta)
            header.file_meta = meta  # of a deflated file, pydicom has not seen it
        stack.pop_all()
    return header, stream


def _inflate_file(path: Path) -> BytesIO:
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
        raise InputError(f"DICOM {path}: must be a whole DICOM file, is damaged; copy it again")


# Checks that the header promises a picture, and that the file holds as many pixels as promised.


def object_that_is_no_picture(header: Dataset) -> str:
    """What a DICOM object is, and what to give in its place, where it is no picture; "" for one that is."""
    kind = text_of(header, "SOPClassUID") or text_of(
        getattr(header, "file_meta", header), "MediaStorageSOPClassUID"
    )
    for start, what in _NOT_PICTURES.items():
        if (kind == start or kind.startswith(f"{start}.")) and kind != _RT_IMAGE:
            return what
    return ""


def _refuse_other_objects(header: Dataset, path: Path) -> None:
    if what := object_that_is_no_picture(header):
        raise InputError(f"DICOM {path}: must be an image, got {what}")


def _transfer_syntax(header: Dataset, path: Path) -> UID:
    from pydicom.uid import UID

    named = text_of(getattr(header, "file_meta", header), "TransferSyntaxUID")
    implicit, little = header.original_encoding  # what pydicom found the elements to be written in
    syntax = UID(named or _UNNAMED_SYNTAXES[bool(implicit), bool(little)])
    if not syntax.is_transfer_syntax:
        raise InputError(
            f"DICOM {path}: must be in a transfer syntax that the extra medical reads, got an unknown one; "
            "store it uncompressed first"
        )
    return syntax


def _frame_count(header: Dataset, path: Path) -> int:
    if "NumberOfFrames" not in header:
        return 1
    frames = whole_number(header, "NumberOfFrames")
    if frames is None or frames < 1:
        raise InputError(f"DICOM {path}: must hold at least one frame, got {frames or 0}; export it again")
    return frames


def _frame_size(header: Dataset, path: Path, frames: int) -> tuple[int, int]:
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


def _pixel_element(stream: BinaryIO, header: Dataset, path: Path) -> tuple[str, int]:
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


def _check_length(
    header: Dataset, path: Path, size_px: tuple[int, int], frames: int, held_bytes: int
) -> None:
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


def _check_fragments(stream: BinaryIO, path: Path, offset: int, frames: int) -> None:
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
