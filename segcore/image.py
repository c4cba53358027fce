"""Reads images and masks from files, strictly: what is ambiguous is an error that names the file."""

from __future__ import annotations

import re
import struct
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import numpy as np
from PIL import Image, ImageOps

from segcore.errors import InputError, is_damage, passing_over_damage, reading

IMAGE_SUFFIXES = (
    ".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".gif", ".webp", ".pgm", ".ppm", ".pbm", ".pnm",
)  # fmt: skip
_FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP", "PPM")
MAX_SIDE_PX = 20_000
MAX_PIXELS = 100_000_000
_GREY_MODES = {"L", "I;16", "I;16B", "I;16L", "I", "F", "1"}
_SIDEWAYS = (5, 6, 7, 8)  # values of EXIF's orientation that swap height and width
_TIFF_COMPRESSION, _TIFF_PHOTOMETRIC, _ORIENTATION = 259, 262, 274
# JPEG's two, WebP, JPEG 2000's three: what was saved is not what is read. Source: libtiff, tiff.h.
_LOSSY_IN_TIFF = {6, 7, 33003, 33004, 33005, 34712, 50001}
_FOUR_BITS, _WHITE_16 = 15, 65535
_WHOLE = 1e-3
"""A label that a writer's scale made 0.99998 is 1."""
# Our own limit is lower and is an error. Once and for all, as a thread's `catch_warnings` would be every thread's.
warnings.simplefilter("ignore", Image.DecompressionBombWarning)


def read_image(path: Path) -> np.ndarray:
    """Decodes an image as a viewer shows it: upright, its palette applied, white where it says white.

    Returns:
        H×W (grey) or H×W×3 (RGB); uint8, uint16 or float32.

    Raises:
        InputError: not an image, truncated, empty, too large, NaN, several pages, partly transparent, or ambiguous
            colours.
    """
    return _pixels_of(_open_image(path, "image"), path)


def open_image(path: Path) -> tuple[tuple[int, int], Callable[[], np.ndarray]]:
    """Height and width of an image from its header, and `read_image` of the same opening, decoded once and kept.

    The array is shared by all who ask, so it is read-only.

    Raises:
        InputError: as `image_size`; what is called raises as `read_image`.
    """
    opened = [_open_image(path, "image")]
    size_px = _upright_size(opened[0], path)

    @cache
    def pixels() -> np.ndarray:
        # What could not be decoded is opened anew, for the same error.
        array = _pixels_of(opened.pop() if opened else _open_image(path, "image"), path)
        array.setflags(write=False)
        return array

    return size_px, pixels


def _pixels_of(opened: Image.Image, path: Path) -> np.ndarray:
    jpeg = _decode_jpeg(opened, path)
    if jpeg is not None:
        return jpeg
    picture = _opaque(_decode_image(opened, path, "image").picture, path, "image")
    if picture.mode == "P":
        picture = picture.convert("RGB")
    mode = picture.mode
    if mode == "RGB":
        return _grey_where_equal(np.asarray(picture))
    if mode not in _GREY_MODES:
        raise InputError(f"image {path}: must be grey or RGB, got {mode}; convert it to grey or RGB first")
    array = np.asarray(picture)
    if mode == "1":
        return array.astype(np.uint8) * 255
    if mode == "F":
        if not np.isfinite(array).all():
            bad = int((~np.isfinite(array)).sum())
            raise InputError(
                f"image {path}: must hold finite numbers, got {bad} NaN or infinite pixels; replace them"
            )
        return array.astype(np.float32)
    if mode == "L":
        return array
    if array.min() < 0 or array.max() > np.iinfo(np.uint16).max:
        raise InputError(
            f"image {path}: must be 8 or 16 bit, got values {array.min()} to {array.max()}; rescale it"
        )
    return array.astype(np.uint16)


def read_mask(path: Path) -> np.ndarray:
    """Decodes a mask as stored values, H×W uint8: 0/255, 0/1 or class indices.

    A coloured palette's own indices are classes; a palette that is grey, such as white and black, is a grey picture.
    A grey mask of 2 or 4 bits holds its indices, not what they look like in 8 bits.

    Raises:
        InputError: as `read_image`, or the mask was saved with loss, has colours, fractions or values over 255.
    """
    decoded = _decode_image(_open_image(path, "mask"), path, "mask")
    if decoded.lossy:
        raise InputError(
            f"mask {path}: must be saved without loss, got {decoded.lossy}, which changes the values at every edge; "
            "save it as PNG from its source"
        )
    picture = decoded.picture
    if picture.mode == "P":  # whether an entry is transparent says nothing of its index
        return _palette_indices(picture, decoded.format, path)
    if picture.mode in ("LA", "RGBA"):
        picture = _opaque(picture, path, "mask")
    array = np.asarray(picture)
    if picture.mode == "1":
        return np.asarray(array, np.uint8)
    if picture.mode == "RGB" and _equal_channels(array):
        return np.array(array[..., 0])
    if picture.mode not in _GREY_MODES:
        raise InputError(
            f"mask {path}: must be one grey channel, got {picture.mode}; save class indices as grey"
        )
    if decoded.top < 255:
        array = np.round(array * (decoded.top / 255))
        if decoded.top == _FOUR_BITS and np.isin(array, (0, _FOUR_BITS)).all():
            return np.where(array > 0, 255, 0).astype(np.uint8)  # white, in as many bits
    return class_indices(array, f"mask {path}")


def class_indices(values: np.ndarray, what: str) -> np.ndarray:
    """Stored numbers as uint8; what a writer's scale moved by less than a thousandth is the index that it was.

    0 and 65535 alone are black and white in 16 bits, and become 0 and 255.

    Args:
        values: of any type and shape.
        what: "mask a.nii.gz", for the message.

    Raises:
        InputError: fractions, or beyond 0 to 255.
    """
    whole = np.round(values)
    if whole.max(initial=0) == _WHITE_16 and np.isin(whole, (0, _WHITE_16)).all():
        whole = values = whole / (_WHITE_16 // 255)
    if not np.isfinite(values).all() or np.abs(values - whole).max(initial=0) > _WHOLE:
        raise InputError(f"{what}: must hold class indices 0 to 255, got fractions; save class indices")
    if whole.min(initial=0) < 0 or whole.max(initial=0) > 255:
        raise InputError(
            f"{what}: must hold class indices 0 to 255, got values {whole.min():g} to {whole.max():g}"
        )
    return whole.astype(np.uint8)


def image_size(path: Path) -> tuple[int, int]:
    """Height and width as `read_image` gives them, from the header, without decoding."""
    with _open_image(path, "image") as picture:
        return _upright_size(picture, path)


@dataclass(frozen=True)
class _Decoded:
    """A decoded picture, upright, white where its file says white; and what its file said beside the pixels.

    Attributes:
        picture: decoded.
        format: Pillow's name of the file's format.
        lossy: name of a compression that does not keep values; empty where they are kept.
        top: the largest number of the file's own bits where they are fewer than 8: Pillow stretches them to 255.
    """

    picture: Image.Image
    format: str
    lossy: str
    top: int


def _decode_image(picture: Image.Image, path: Path, what: str) -> _Decoded:
    form = str(picture.format)
    _check_size(picture, path, what)
    with reading(f"{what} {path}", "a whole image"):
        _check_one_reading(picture, path, what)
        lossy, top, white_is_zero = _lossy_kind(picture, path), _own_top(picture), _white_is_zero(picture)
        if form == "TIFF":  # Pillow 12 maps a file with a name into memory, and a sideways one wrongly
            cast(Any, picture).filename = ""
        picture.load()
    if form != "TIFF":  # Pillow turns a TIFF by itself
        with passing_over_damage():  # of the camera's own data, which viewers then pass over
            ImageOps.exif_transpose(picture, in_place=True)
    if white_is_zero and picture.mode.startswith("I;16"):  # Pillow 12 turns over 1 to 8 bits only
        picture = Image.fromarray(np.uint16(0xFFFF) - np.asarray(picture).astype(np.uint16))
    return _Decoded(picture, form, lossy, top)


def _decode_jpeg(picture: Image.Image, path: Path) -> np.ndarray | None:
    """The pixels by simplejpeg, where the extra `fast` is installed: the same numbers as Pillow's, sooner.

    Returns:
        None where it is for Pillow: other formats and colours, a picture that must be turned, a file that is not whole.
    """
    kinds, stream = {"L": "GRAY", "RGB": "RGB"}, getattr(picture, "fp", None)
    may_be_turned = picture.info.keys() & {"exif", "xmp"}
    if picture.format != "JPEG" or picture.mode not in kinds or may_be_turned or stream is None:
        return None
    decoder = _simplejpeg()
    if decoder is None:
        return None
    _check_size(picture, path, "image")
    stream.seek(0)
    try:
        pixels: np.ndarray = decoder.decode_jpeg(stream.read(), kinds[picture.mode])
    except ValueError:  # Pillow says what is wrong with it
        return None
    return pixels[..., 0] if picture.mode == "L" else _grey_where_equal(pixels)


@cache
def _simplejpeg() -> Any:
    """The library where it is installed, else None; looked for once and not for every picture."""
    if not find_spec("simplejpeg"):
        return None
    import simplejpeg

    return simplejpeg


def _open_image(path: Path, what: str) -> Image.Image:
    if not path.is_file():
        raise InputError(f"{what} {path}: must be a file, no such file")
    if path.stat().st_size == 0:
        raise InputError(f"{what} {path}: must be an image, got a file of 0 bytes; copy it again")
    try:
        return Image.open(path, formats=_FORMATS)
    except Image.DecompressionBombError:
        raise InputError(
            f"{what} {path}: must be at most {MAX_PIXELS} pixels, got far more; is it really an image?"
        ) from None
    except PermissionError:
        raise InputError(
            f"{what} {path}: must be readable, permission denied; change its permissions"
        ) from None
    except Exception as error:
        if not is_damage(error):
            raise
        raise InputError(
            f"{what} {path}: must be PNG, JPEG, TIFF, BMP, GIF, WebP or PPM of 8 or 16 bit or 32-bit float, got "
            "something else or a damaged header; save it again"
        ) from None


def _check_one_reading(picture: Image.Image, path: Path, what: str) -> None:
    pages = getattr(picture, "n_frames", 1) if picture.format != "MPO" else 1  # a camera's, with a preview
    if pages > 1:
        raise InputError(f"{what} {path}: must hold one picture, got {pages} pages; save the page you mean")
    # Pillow would drop the lower byte of 16-bit colour without a word.
    if picture.mode in ("RGB", "RGBA", "LA") and "16" in _raw_mode(picture):
        raise InputError(
            f"{what} {path}: must be 8 bit where it is RGB or has an alpha, got 16 bit; save it as grey or as 8-bit RGB"
        )
    if _white_is_zero(picture) and picture.mode in ("F", "I"):
        raise InputError(
            f"{what} {path}: must say that 0 is black where it holds more than 16 bit, says white; save it anew"
        )


def _check_size(picture: Image.Image, path: Path, what: str) -> tuple[int, int]:
    width, height = picture.size
    if min(width, height) == 0:
        raise InputError(f"{what} {path}: must have pixels, got {height}×{width}")
    if max(width, height) > MAX_SIDE_PX or width * height > MAX_PIXELS:
        raise InputError(
            f"{what} {path}: must be at most {MAX_SIDE_PX} pixels a side and {MAX_PIXELS} in all, "
            f"got {height}×{width}; tile or shrink it"
        )
    return height, width


def _grey_where_equal(array: np.ndarray) -> np.ndarray:
    """Grey pictures saved as RGB are common; one channel is what they hold."""
    return np.array(array[..., 0]) if _equal_channels(array) else array


def _equal_channels(array: np.ndarray[Any, Any]) -> bool:
    return bool((array[..., 0] == array[..., 1]).all() and (array[..., 0] == array[..., 2]).all())


# What a file says of its pixels.


def _upright_size(picture: Image.Image, path: Path) -> tuple[int, int]:
    height, width = _check_size(picture, path, "image")
    if picture.format == "TIFF" or not _may_be_turned(picture, path):
        return height, width  # of a TIFF Pillow has swapped them
    turned = False
    with passing_over_damage():
        turned = picture.getexif().get(_ORIENTATION) in _SIDEWAYS
    return (width, height) if turned else (height, width)


def _may_be_turned(picture: Image.Image, path: Path) -> bool:
    """Whether the header may hold an orientation; of a PNG Pillow would decode the pixels to find out."""
    if picture.format != "PNG":
        return picture.format in ("JPEG", "MPO", "WEBP")
    with path.open("rb") as stream:
        stream.seek(8)
        while len(head := stream.read(8)) == 8:
            length, kind = struct.unpack(">L4s", head)
            if kind in (b"eXIf", b"tEXt", b"zTXt", b"iTXt"):  # the texts may hold it, too
                return True
            stream.seek(length + 4, 1)
    return False


def _white_is_zero(picture: Image.Image) -> bool:
    return bool(getattr(picture, "tag_v2", {}).get(_TIFF_PHOTOMETRIC) == 0)


def _raw_mode(picture: Image.Image) -> str:
    """How Pillow is about to unpack a file's bits: "L;2", "RGB;16B", "('L', 15)"."""
    tiles = getattr(picture, "tile", ())
    return str(tiles[0].args) if tiles else ""


def _own_top(picture: Image.Image) -> int:
    raw = _raw_mode(picture)
    if few := re.search(r"\bL;([24])", raw):
        return int(2 ** int(few[1])) - 1
    if picture.format == "PPM" and (most := re.fullmatch(r"\('L', (\d+)\)", raw)):
        return int(most[1])
    return 255


def _opaque(picture: Image.Image, path: Path, what: str) -> Image.Image:
    """Without its alpha, where that hides nothing.

    Raises:
        InputError: some pixels are transparent: what is under them is not what a viewer shows.
    """
    if not picture.has_transparency_data:
        return picture
    if picture.mode.startswith("I;16"):
        hides = bool((np.asarray(picture) == picture.info["transparency"]).any())
    else:
        hides = np.asarray(picture.convert("RGBA").getchannel("A")).min() < 255
    if hides:
        raise InputError(
            f"{what} {path}: must be opaque, got transparent pixels; lay it on a background and save it without alpha"
        )
    picture.info.pop("transparency", None)
    return picture.convert({"LA": "L", "RGBA": "RGB", "PA": "P"}.get(picture.mode, picture.mode))


def _lossy_kind(picture: Image.Image, path: Path) -> str:
    """The name of a compression that does not keep values; empty where they are kept."""
    if picture.format in ("JPEG", "MPO"):
        return "JPEG"
    if picture.format == "WEBP":
        with path.open("rb") as stream:
            return "" if b"VP8L" in stream.read(64) else "lossy WebP"
    if getattr(picture, "tag_v2", {}).get(_TIFF_COMPRESSION) in _LOSSY_IN_TIFF:
        return "JPEG in a TIFF"
    return ""


def _palette_indices(picture: Image.Image, form: str, path: Path) -> np.ndarray:
    indices = np.array(picture, np.uint8)
    assert picture.palette is not None
    colours = np.zeros((256, 3), np.uint8)
    listed = np.asarray(picture.convert("P").getpalette("RGB"), np.uint8).reshape(-1, 3)
    colours[: len(listed)] = listed
    # A picture in grey, in whatever order its entries are: black and white alone, a ramp turned over, and each grey
    # palette of a format that has no other greys.
    if _equal_channels(listed[None]) and (
        form in ("GIF", "BMP")
        or np.isin(listed, (0, 255)).all()
        or (listed[:, 0] == 255 - np.arange(len(listed))).all()
    ):
        return np.asarray(colours[indices, 0])
    black = (colours == 0).all(axis=1)
    used = np.flatnonzero(np.bincount(indices.ravel(), minlength=256))
    if not black[0] and black[used].any():
        raise InputError(
            f"mask {path}: must have black, the background, as its palette's first entry, has it as entry "
            f"{used[black[used]][0]}; save class indices as grey"
        )
    return indices
