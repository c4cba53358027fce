"""Reads images and masks from files, strictly: what is ambiguous is an error that names the file."""

from __future__ import annotations

import struct
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from segcore.errors import InputError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
# What Pillow 12 raises on damaged files of these formats (found by damaging some).
_DAMAGE = (OSError, SyntaxError, ValueError, EOFError, TypeError, KeyError, IndexError, struct.error)
_FORMATS = ("PNG", "JPEG", "TIFF")
MAX_SIDE_PX = 20_000
MAX_PIXELS = 100_000_000
_GREY_MODES = {"L", "I;16", "I;16B", "I;16L", "I", "F", "1"}


def read_image(path: Path) -> np.ndarray:
    """Decodes an image.

    Returns:
        H×W (grey) or H×W×3 (RGB); uint8, uint16 or float32, as it was stored.

    Raises:
        InputError: not an image, truncated, empty, too large, NaN, several pages, or ambiguous colours.
    """
    picture = _decode_image(path, "image")
    mode = picture.mode
    if mode == "RGB":
        array = np.asarray(picture)
        # Grey pictures saved as RGB are common; one channel is what they hold.
        return array[..., 0].copy() if _equal_channels(array) else array
    if mode not in _GREY_MODES:
        raise InputError(
            f"image {path}: must be grey or RGB, got {_mode_name(mode)}; convert it to grey or RGB first"
        )
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
    """Decodes a mask as stored values, H×W uint8: 0/255, 0/1 or class indices (a palette image's own).

    Raises:
        InputError: as `read_image`, or the mask has colours or values over 255.
    """
    picture = _decode_image(path, "mask")
    array = np.asarray(picture)
    if picture.mode == "1":
        return np.asarray(array, np.uint8)
    if picture.mode == "RGB" and _equal_channels(array):
        return np.array(array[..., 0])
    if picture.mode not in {"L", "P"} | _GREY_MODES:
        raise InputError(
            f"mask {path}: must be one grey channel, got {_mode_name(picture.mode)}; "
            "save class indices as grey"
        )
    if array.min() < 0 or array.max() > 255 or (array != np.round(array)).any():
        raise InputError(
            f"mask {path}: must hold class indices 0 to 255, got values {array.min()} to {array.max()}"
        )
    return array.astype(np.uint8)


def image_size(path: Path) -> tuple[int, int]:
    """Height and width from the header, without decoding."""
    with _open_image(path, "image") as picture:
        return _check_size(picture, path, "image")


def _decode_image(path: Path, what: str) -> Image.Image:
    picture = _open_image(path, what)
    _check_size(picture, path, what)
    try:
        _check_one_reading(picture, path, what)
        picture.load()
    except _DAMAGE as error:
        raise InputError(
            f"{what} {path}: must be a whole image, got a damaged or truncated one ({error}); copy it again"
        ) from None
    return picture


def _open_image(path: Path, what: str) -> Image.Image:
    if not path.is_file():
        raise InputError(f"{what} {path}: must be a file, no such file")
    if path.stat().st_size == 0:
        raise InputError(f"{what} {path}: must be an image, got a file of 0 bytes; copy it again")
    try:
        with warnings.catch_warnings():
            # Our own limit is lower and is an error.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            return Image.open(path, formats=_FORMATS)
    except Image.DecompressionBombError:
        raise InputError(
            f"{what} {path}: must be at most {MAX_PIXELS} pixels, got far more; is it really an image?"
        ) from None
    except PermissionError:
        raise InputError(
            f"{what} {path}: must be readable, permission denied; change its permissions"
        ) from None
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError):
        raise InputError(
            f"{what} {path}: must be PNG, JPEG or TIFF of 8 or 16 bit or 32-bit float, got something else "
            "or a damaged header; save it again"
        ) from None


def _check_one_reading(picture: Image.Image, path: Path, what: str) -> None:
    pages = getattr(picture, "n_frames", 1) if picture.format in ("TIFF", "PNG") else 1
    if pages > 1:
        raise InputError(f"{what} {path}: must hold one picture, got {pages} pages; save the page you mean")
    # Pillow would drop the lower byte of 16-bit colour without a word.
    if picture.mode == "RGB" and any("16" in str(tile.args) for tile in getattr(picture, "tile", ())[:1]):
        raise InputError(
            f"{what} {path}: must be 8 bit where it is RGB, got 16 bit; save it as grey or as 8-bit RGB"
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


def _equal_channels(array: np.ndarray[Any, Any]) -> bool:
    return bool((array[..., 0] == array[..., 1]).all() and (array[..., 0] == array[..., 2]).all())


def _mode_name(mode: str) -> str:
    return {"P": "a palette", "LA": "grey with alpha"}.get(mode, mode)
