"""From a file's stored integers to the scan's values, and to what a screen shows.

Values are after the modality's rescale, with MONOCHROME1 turned over and colours as RGB; a model is fed with them. The
display goes on from there: 8 bits through the file's own VOI LUT or window.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from segcore.errors import InputError, reading
from segcore.medical.dicom.file import DicomFile, frame_group, numbers_of, text_of, whole_number
from segcore.medical.dicom.frames import check_syntax, stored_frame
from segcore.picture.preprocess import Window

if TYPE_CHECKING:
    from pydicom import Dataset

_GREY = ("MONOCHROME1", "MONOCHROME2")
_COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
_PALETTE = "PALETTE COLOR"
# Refused by name; anything else might be a patient's, written into the wrong element.
_REFUSED = ("HSV", "ARGB", "CMYK", "YBR_PARTIAL_422", "YBR_PARTIAL_420", "XYB")
_BIG_ENDIAN = "1.2.840.10008.1.2.2"
_NARROWEST = 1e-3
# X-ray angiography and fluoroscopy: their modality's table leads back to the beam, and is not for display; the stored
# pixels are the picture. Source: DICOM PS3.3, C.8.7.1.1.2.
_TABLE_NOT_SHOWN = "1.2.840.10008.5.1.4.1.1.12."
# A window's explanation is free text, which may hold anything: it is repeated only where it is made of these words.
_WINDOW_WORDS = re.compile(
    r"(abdomen|angio|bone|brain|breast|chest|contrast|default|ear|hard|harder|head|heart|high|inner|kidney|liver|low"
    r"|lungs?|mediastinum|neck|normal|pelvis|pulmonary|soft|softer|spine|standard|stroke|thorax|tissue|vessel|wide"
    r"|window)\d{0,2}"
)


@dataclass(frozen=True)
class Pixels:
    """How a file's stored integers are to be understood.

    Attributes:
        photometric: one of DICOM's own terms; "" for any other word.
        allocated: bits a sample takes in the file.
        stored: bits of them that count.
        signed: in two's complement.
    """

    photometric: str
    allocated: int
    stored: int
    signed: bool

    @property
    def grey(self) -> bool:
        return self.photometric in _GREY

    @property
    def inverted(self) -> bool:
        return self.photometric == "MONOCHROME1"

    @property
    def stored_ends_sum(self) -> int:
        """Smallest and largest number that the stored bits can hold, added: turning over is this minus the value."""
        return -1 if self.signed else 2**self.stored - 1


def pixels_of(file: DicomFile) -> Pixels:
    """The header's word on the pixels, unchecked."""
    allocated = whole_number(file.header, "BitsAllocated") or 0
    photometric = text_of(file.header, "PhotometricInterpretation")
    return Pixels(
        photometric=photometric if photometric in (*_GREY, *_COLOUR, _PALETTE, *_REFUSED) else "",
        allocated=allocated,
        stored=whole_number(file.header, "BitsStored") or allocated,
        signed=whole_number(file.header, "PixelRepresentation") == 1,
    )


def check_pixels(file: DicomFile) -> None:
    """Refuses what `frame_values` could not turn into grey or RGB, before anything is decoded.

    Raises:
        InputError: naming what it is.
    """
    pixels = pixels_of(file)
    samples = whole_number(file.header, "SamplesPerPixel") or 1
    expected = 3 if pixels.photometric in _COLOUR else 1
    if pixels.photometric not in (*_GREY, *_COLOUR, _PALETTE):
        raise InputError(
            f"DICOM {file.path}: must be grey, RGB, YBR or palette colours, "
            f"got {pixels.photometric or 'none of these'}; convert it first"
        )
    if samples != expected:
        raise InputError(
            f"DICOM {file.path}: must have {expected} samples a pixel where it is {pixels.photometric}, got {samples}; "
            "export it again"
        )
    if pixels.allocated not in (1, 8, 16) or (expected == 3 and pixels.allocated != 8):
        depths = "8 bit where it is colour" if expected == 3 else "1, 8 or 16 bit"
        raise InputError(f"DICOM {file.path}: must be {depths}, got {pixels.allocated} bit; convert it first")
    high = whole_number(file.header, "HighBit")
    if not 1 <= pixels.stored <= pixels.allocated or high not in (None, pixels.stored - 1):
        raise InputError(
            f"DICOM {file.path}: must use the lowest bits of a pixel, got {pixels.stored} of {pixels.allocated} bits "
            f"with the highest at {high}; export it again"
        )
    check_syntax(file)


def gives_float(file: DicomFile) -> bool:
    """Whether some frame's values are not its stored integers: they are rescaled, or may be negative."""
    pixels = pixels_of(file)
    if not pixels.grey:
        return False
    rescaled = _has_modality_table(file) or any(
        _rescale_of(file, i) != (1.0, 0.0) for i in range(file.frames)
    )
    return pixels.signed or rescaled


def frame_values(file: DicomFile, index: int, *, as_float: bool) -> np.ndarray:
    """One frame, higher is brighter: H×W or H×W×3 (RGB) of uint8 or uint16, or with `as_float` a grey one's float32.

    MONOCHROME1, whose lowest value is white, is turned over within the range of its stored bits.
    """
    pixels = pixels_of(file)
    if not pixels.grey:
        return _rgb_values(stored_frame(file, index), file)
    values: np.ndarray = _modality_values(file, index, stored_frame(file, index).astype(np.int32))
    if pixels.inverted:
        values = np.asarray(_ends_sum(file, index) - values)
    if as_float:
        return values.astype(np.float32)
    if pixels.allocated == 1:
        return np.asarray(values * 255, np.uint8)
    return np.asarray(values, np.uint8 if pixels.stored <= 8 else np.uint16)


def frame_display(file: DicomFile, index: int) -> np.ndarray:
    """One frame through its VOI LUT, else its first window, else the full range of its values; colours as they are.

    Padding takes no part in the range, and is black.

    Returns:
        H×W or H×W×3 (RGB), uint8. 8-bit values without a window are shown as stored.
    """
    pixels = pixels_of(file)
    if not pixels.grey or pixels.allocated == 1:
        return frame_values(file, index, as_float=False)
    stored = stored_frame(file, index).astype(np.int32)
    padding = _padding_of(file, stored)
    values = _modality_values(file, index, stored)
    listed = _file_windows(file, index)
    shown: np.ndarray
    group = frame_group(file.header, "FrameVOILUTSequence", index)
    if group.get("VOILUTSequence"):
        looked_up, top = _through_table(np.round(values).astype(np.int32), group, "VOILUTSequence", file)
        shown = looked_up / top
    elif listed:
        shown = _through_window(values, listed[0])
    elif pixels.stored == 8 and not gives_float(file):  # the usual 8-bit picture is what it shows
        shown = values / 255.0
    else:
        pictured = values if padding is None else values[~padding]
        low, high = float(pictured.min()), float(pictured.max())
        shown = (values - low) / ((high - low) or 1.0)
    if pixels.inverted:
        shown = 1.0 - shown
    if padding is not None:
        shown = np.where(padding, 0.0, shown)
    return np.round(np.clip(shown, 0.0, 1.0) * 255.0).astype(np.uint8)


def frame_padding(file: DicomFile, index: int) -> np.ndarray | None:
    """Which pixels of a frame the file calls padding, H×W bool; None where there are none, or no others."""
    if not pixels_of(file).grey or "PixelPaddingValue" not in file.header:
        return None
    return _padding_of(file, stored_frame(file, index).astype(np.int32))


def windows_of(file: DicomFile, index: int) -> tuple[Window, ...]:
    """The windows that one frame's header lists, the default first, in the scan's values; of a sigmoid the middle."""
    turned = _ends_sum(file, index) if pixels_of(file).inverted else None
    windows = []
    for voi in _file_windows(file, index):
        low, high = voi.ends()
        windows.append(
            Window(voi.name, low, high) if turned is None else Window(voi.name, turned - high, turned - low)
        )
    return tuple(windows)


# From stored integers to the scan's values.


def _modality_values(file: DicomFile, index: int, stored: np.ndarray) -> np.ndarray:
    """A grey frame after the modality's rescale, MONOCHROME1 as it is: H×W, float64, or int32 where none applies."""
    pixels = pixels_of(file)
    values = stored
    if not pixels.signed:
        values = values & (
            2**pixels.stored - 1
        )  # an overlay may lie in the bits above. Source: DICOM PS3.5, 8.1.1
    if _has_modality_table(file):
        return _through_table(values, file.header, "ModalityLUTSequence", file)[0]
    slope, intercept = _rescale_of(file, index)
    return values if (slope, intercept) == (1.0, 0.0) else values * slope + intercept


def _has_modality_table(file: DicomFile) -> bool:
    """An empty sequence, as de-identifiers leave it, is none; a rescale beside it counts then."""
    kind = text_of(file.header, "SOPClassUID")
    return bool(file.header.get("ModalityLUTSequence")) and not kind.startswith(_TABLE_NOT_SHOWN)


def _padding_of(file: DicomFile, stored: np.ndarray) -> np.ndarray | None:
    """Which stored numbers are padding and no part of the picture, H×W bool; None where the file names none.

    A value alone, or all from it to the limit. Writers mistake the sign, so equal bits are equal numbers.

    Source: DICOM PS3.3, C.7.5.1.1.2.
    """
    value = whole_number(file.header, "PixelPaddingValue")
    if value is None:
        return None
    limit = whole_number(file.header, "PixelPaddingRangeLimit")
    pixels = pixels_of(file)
    size, half = 2**pixels.allocated, 2 ** (pixels.allocated - 1)

    def as_stored(number: int) -> int:
        number %= size
        return number - size if pixels.signed and number >= half else number

    ends = sorted(as_stored(number) for number in (value, value if limit is None else limit))
    padding: np.ndarray = (stored >= ends[0]) & (stored <= ends[1])
    return padding if padding.any() and not padding.all() else None


def _rescale_of(file: DicomFile, index: int) -> tuple[float, float]:
    """One frame's slope and intercept."""
    group = frame_group(file.header, "PixelValueTransformationSequence", index)
    slope, intercept = numbers_of(group, "RescaleSlope"), numbers_of(group, "RescaleIntercept")
    # A slope of 0 would wipe the picture; writers leave it where they mean none.
    return (slope[0] if slope and slope[0] else 1.0), (intercept[0] if intercept else 0.0)


def _ends_sum(file: DicomFile, index: int) -> float:
    """The smallest and the largest value that can occur, added: MONOCHROME1 is turned over by this minus a value."""
    if _has_modality_table(file):
        return _through_table(np.zeros(1, np.int32), file.header, "ModalityLUTSequence", file)[1]
    slope, intercept = _rescale_of(file, index)
    # Of low and high: (slope·low + intercept) + (slope·high + intercept).
    return slope * pixels_of(file).stored_ends_sum + 2 * intercept


def _through_table(
    values: np.ndarray, group: Dataset, sequence: str, file: DicomFile
) -> tuple[np.ndarray, float]:
    """Integers through a modality's or a display's lookup table: int32, and the largest number it can give.

    Source: DICOM PS3.3, C.11.1.1 and C.11.2.1.1.
    """
    from pydicom.pixels import apply_modality_lut, apply_voi

    apply = apply_modality_lut if sequence == "ModalityLUTSequence" else apply_voi
    with reading(
        f"DICOM {file.path}", "one with a whole lookup table", remedy="export it again", quoted=False
    ):
        _, _, bits = numbers_of(
            group[sequence].value[0], "LUTDescriptor"
        )  # a ValueError where they are not three
        if not 1 <= bits <= 16:
            raise ValueError
        return np.asarray(apply(values, group)).astype(np.int32), 2.0**bits - 1


def _rgb_values(stored: np.ndarray, file: DicomFile) -> np.ndarray:
    if stored.ndim == 2:
        with reading(
            f"DICOM {file.path}", "one with its colours' palette", remedy="export it again", quoted=False
        ):
            first, table = _palette_table(file)
        # What lies before or behind the table's entries has the colour of its first or last.
        stored = table[np.clip(stored.astype(np.int32) - first, 0, len(table) - 1)]
    grey = (stored[..., 0] == stored[..., 1]).all() and (stored[..., 0] == stored[..., 2]).all()
    # Grey pictures saved as RGB are common; one channel is what they hold, as in segcore.image.
    return np.ascontiguousarray(stored[..., 0] if grey else stored)


def _palette_table(file: DicomFile) -> tuple[int, np.ndarray]:
    """The stored number of a palette's first entry, and the entries, K×3 uint8.

    Source: DICOM PS3.3, C.7.6.3.1.5 and C.7.6.3.1.6.
    """
    header = file.header
    count, first, bits = map(int, numbers_of(header, "RedPaletteColorLookupTableDescriptor"))
    count = count or 2**16
    if not 0 < count <= 2**16 or not abs(first) <= 2**16:
        raise ValueError
    if pixels_of(file).signed and first >= 2**15:
        first -= 2**16
    if "SegmentedRedPaletteColorLookupTableData" in header:
        from pydicom.pixels import apply_color_lut

        table = np.asarray(apply_color_lut(np.arange(first, first + count, dtype=np.int32), header))[:, :3]
    else:
        channels = (header[f"{name}PaletteColorLookupTableData"].value for name in ("Red", "Green", "Blue"))
        table = np.stack([_palette_channel(data, count, file) for data in channels], axis=1)
    # Entries of 16 bits span all of them; some writers keep 8 bits in them, a picture all but black. dcmtk sees it so.
    if bits > 8 and table.max() > 255:
        table = table >> 8
    return first, table.astype(np.uint8)


def _palette_channel(data: bytes, count: int, file: DicomFile) -> np.ndarray:
    """A colour's entries of 8 or 16 bits, in the byte order of the file."""
    big = file.syntax == _BIG_ENDIAN
    if not isinstance(data, bytes):  # an element of another kind than a palette's
        raise ValueError
    if len(data) >= 2 * count:
        return np.frombuffer(data, ">u2" if big else "<u2", count)
    # Of two in a word the first is the low byte.
    words = np.frombuffer(data, "<u2", len(data) // 2)
    entries = (words.byteswap() if big else words).view(np.uint8)
    if len(entries) < count:
        raise ValueError
    return entries[:count]


# The file's own windows. Source: DICOM PS3.3, C.11.2.


@dataclass(frozen=True)
class _FileWindow:
    """One window as the file writes it, in values before MONOCHROME1 is turned over."""

    name: str
    centre: float
    width: float
    function: str

    def ends(self) -> tuple[float, float]:
        """The values that become black and white. Source: DICOM PS3.3, C.11.2.1.2.1 and C.11.2.1.3.2."""
        if self.function == "LINEAR" and self.width >= 1:
            low = self.centre - 0.5 - (self.width - 1) / 2
            return low, low + max(self.width - 1, _NARROWEST)
        return self.centre - self.width / 2, self.centre + self.width / 2


def _file_windows(file: DicomFile, index: int) -> list[_FileWindow]:
    if not pixels_of(file).grey:
        return []
    group = frame_group(file.header, "FrameVOILUTSequence", index)
    centres, widths = numbers_of(group, "WindowCenter"), numbers_of(group, "WindowWidth")
    function = str(group.get("VOILUTFunction") or "LINEAR")
    names = group.get("WindowCenterWidthExplanation") or []
    names = [names] if isinstance(names, str) else [str(name) for name in names]
    listed = []
    for i, (centre, width) in enumerate(zip(centres, widths, strict=False)):
        own = _harmless_name(names[i]) if i < len(names) else ""
        if width > 0:  # some writers leave 0 where they mean none
            listed.append(
                _FileWindow(own or ("file" if i == 0 else f"file {i + 1}"), centre, width, function)
            )
    return listed


def _harmless_name(name: str) -> str:
    words = re.split(r"[\s_-]+", name.strip().lower())
    return name.strip() if all(_WINDOW_WORDS.fullmatch(word) for word in words) else ""


def _through_window(values: np.ndarray, voi: _FileWindow) -> np.ndarray:
    if voi.function == "SIGMOID":
        with np.errstate(over="ignore"):
            return np.asarray(1.0 / (1.0 + np.exp(-4.0 * (values - voi.centre) / voi.width)))
    low, high = voi.ends()
    return np.asarray((values - low) / (high - low))
