"""Unpacks a ZIP that a stranger sent, strictly: what could harm or confuse is an error, and then nothing stays."""

from __future__ import annotations

import shutil
import stat
import zipfile
from pathlib import Path, PurePosixPath, PureWindowsPath

from segcore.errors import InputError, reading

_CHUNK_BYTES = 2**20
_ENCRYPTED = 0x1
_LONGEST_NAME, _LONGEST_PATH = 255, 1000  # bytes; beyond them Linux, or Windows, writes no file
# Stored, deflated, bzip2, LZMA: what Python's zipfile can unpack.
_METHODS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA}
# Below this size a ratio says nothing: an empty mask compresses a thousandfold.
_RATIO_FROM_BYTES = 2**24
_ARCHIVE_SUFFIXES = (".zip", ".7z", ".rar", ".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz")
_ARCHIVE_MAGIC = (b"PK\x03\x04", b"PK\x05\x06", b"7z\xbc\xaf\x27\x1c", b"Rar!")


def unpack(
    path: Path, folder: Path, *, max_bytes: int = 2**31, max_files: int = 5000, max_ratio: float = 200.0
) -> None:
    """Writes a ZIP's files into a folder, which must be new or empty; on any error nothing stays in it.

    Sizes are counted while unpacking: what the ZIP's own table says of them may be a lie.

    Args:
        path: the ZIP.
        folder: where to; it is made if it is not there.
        max_bytes: of all files together, unpacked.
        max_files: how many files at most.
        max_ratio: unpacked to packed size of the whole, checked from 16 MiB on.

    Raises:
        InputError: not a ZIP, damaged, encrypted, too large, or with names that lead out of the folder, links, names
            that occur twice, or archives in the archive.
    """
    existed = folder.exists()
    if existed and any(folder.iterdir()):
        raise InputError(f"folder {folder}: must be empty to unpack into, is not; give another")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with reading(f"ZIP {path}", "a whole ZIP file", remedy="pack it again", quoted=False):
            _unpack_zip(path, folder, max_bytes, max_files, max_ratio)
    except BaseException:
        for child in folder.iterdir():
            shutil.rmtree(child) if child.is_dir() else child.unlink()
        if not existed:
            folder.rmdir()
        raise


def _unpack_zip(path: Path, folder: Path, max_bytes: int, max_files: int, max_ratio: float) -> None:
    with zipfile.ZipFile(path) as archive:
        entries = [entry for entry in archive.infolist() if not entry.is_dir()]
        if not entries:
            raise InputError(f"ZIP {path}: must hold files, got none")
        if len(entries) > max_files:
            raise InputError(f"ZIP {path}: must hold at most {max_files} files, got {len(entries)}; split it")
        _check_names(path, entries)
        declared = sum(entry.file_size for entry in entries)
        if declared > max_bytes:
            raise InputError(
                f"ZIP {path}: must unpack to at most {max_bytes} bytes, got {declared}; split it"
            )
        packed_bytes, written = path.stat().st_size, 0
        for entry in entries:
            target = folder / entry.filename
            target.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(entry) as source, target.open("xb") as out:
                start = True
                while chunk := source.read(_CHUNK_BYTES):
                    if start and (chunk.startswith(_ARCHIVE_MAGIC) or chunk[257:262] == b"ustar"):
                        raise _nested_error(path, entry)
                    start = False
                    written += len(chunk)
                    if written > max_bytes:
                        raise InputError(
                            f"ZIP {path}: must unpack to at most {max_bytes} bytes, got more; split it"
                        )
                    if written > max(_RATIO_FROM_BYTES, max_ratio * packed_bytes):
                        raise InputError(
                            f"ZIP {path}: must unpack to at most {max_ratio:g} times its size, got more; "
                            "pack the files without compression if they are meant"
                        )
                    out.write(chunk)


def _check_names(path: Path, entries: list[zipfile.ZipInfo]) -> None:
    seen: set[str] = set()
    for entry in entries:
        name = entry.filename
        windows = PureWindowsPath(name)
        # A backslash or a drive means a path on Windows only; on every system it is refused.
        if (
            PurePosixPath(name).is_absolute()
            or windows.drive
            or windows.root
            or ".." in windows.parts
            or not all(c.isprintable() for c in name)
        ):
            raise InputError(
                f"ZIP {path}: must hold names within its own folder, got {_entry_name(entry)}; pack it again"
            )
        if len(name.encode()) > _LONGEST_PATH or any(
            len(part.encode()) > _LONGEST_NAME for part in name.split("/")
        ):
            raise InputError(
                f"ZIP {path}: must hold names of at most {_LONGEST_NAME} bytes, got {name[:40]}…; shorten it"
            )
        if stat.S_ISLNK(entry.external_attr >> 16):
            raise InputError(
                f"ZIP {path}: must hold files only, got the link {_entry_name(entry)}; pack what it points to"
            )
        if entry.flag_bits & _ENCRYPTED:
            raise InputError(
                f"ZIP {path}: must not be encrypted, got {_entry_name(entry)}; pack it without a password"
            )
        if entry.compress_type not in _METHODS:
            raise InputError(
                f"ZIP {path}: must be packed by deflate or stored, got method {entry.compress_type} "
                f"for {_entry_name(entry)}; pack it again"
            )
        if name.lower().endswith(_ARCHIVE_SUFFIXES):
            raise _nested_error(path, entry)
        # Two names that differ in case only are one file on Windows and macOS.
        key = "/".join(
            part for part in name.replace("\\", "/").split("/") if part not in ("", ".")
        ).casefold()
        if key in seen:
            raise InputError(
                f"ZIP {path}: must hold every name once, got {_entry_name(entry)} twice; pack it again"
            )
        seen.add(key)
    for key in seen:
        if folder := next((str(above) for above in PurePosixPath(key).parents if str(above) in seen), ""):
            raise InputError(f"ZIP {path}: must hold {folder} as a file or a folder, got both; pack it again")


def _nested_error(path: Path, entry: zipfile.ZipInfo) -> InputError:
    return InputError(f"ZIP {path}: must hold no archives, got {_entry_name(entry)}; unpack that first")


def _entry_name(entry: zipfile.ZipInfo) -> str:
    """A name as one line of text, whatever bytes it is made of."""
    return (
        entry.filename.encode("unicode_escape").decode("ascii")
        if not entry.filename.isprintable()
        else entry.filename
    )
