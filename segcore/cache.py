"""The one folder of what can be computed again: where it lies, its bound, and rows in it that are held to their hashes.

    <cache>/<kind>/<hash of the key>/key.json      what an entry was made from; when it was last used is its mtime
                                     rows.npy      the rows
                                     hashes.npy    sha256 of each; zeros where a row was not written yet

Deleting an entry, or all of them, costs time and nothing else. A cache that cannot be written is no error: whoever uses
it does without.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from segcore.errors import InputError, reading
from segcore.outfolder import write_text

GIB = 2**30
_KEY, _ROWS, _HASHES = "key.json", "rows.npy", "hashes.npy"
_HASH_BYTES = 32


def user_cache(chosen: Path | None = None) -> Path:
    """The folder: `chosen`, or sam2edge in the user's folder of caches.

    Source: XDG Base Directory Specification; a relative XDG_CACHE_HOME is invalid there.
    """
    if chosen is not None:
        return chosen
    home = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (home if home.is_absolute() else Path.home() / ".cache") / "sam2edge"


def open_entry(cache: Path, kind: str, key: Mapping[str, Any]) -> Path:
    """The folder of what is made from `key`, marked as used now; new and empty where there is none.

    Args:
        cache: from `user_cache`.
        kind: what sort of thing it is; a folder of the cache.
        key: everything that the entry depends on, as JSON values.

    Raises:
        OSError: the cache cannot be written.
    """
    text = json.dumps(key, indent=1, sort_keys=True)
    entry = cache / kind / hashlib.sha256(text.encode()).hexdigest()[:32]
    entry.mkdir(parents=True, exist_ok=True)
    if (entry / _KEY).is_file():
        os.utime(entry / _KEY)
    else:
        write_text(entry / _KEY, text)
    return entry


def shrink_cache(cache: Path, max_bytes: int, *, keep: Collection[Path] = ()) -> int:
    """Removes the entries that were not used for longest until the others take at most `max_bytes`.

    A process that has an entry open reads on: the system frees its space when it is closed.

    Args:
        cache: from `user_cache`; what is no entry of ours stays.
        max_bytes: bound of all entries, on the disk.
        keep: entries that stay whatever they take.

    Returns:
        Bytes on the disk that the entries take now.
    """
    entries = [path.parent for path in cache.glob(f"*/*/{_KEY}")]
    taken = {entry: disk_bytes(entry) for entry in entries}
    total = sum(taken.values())
    for entry in sorted(set(entries) - set(keep), key=_last_used):
        if total <= max_bytes:
            break
        shutil.rmtree(entry, ignore_errors=True)
        total -= taken[entry]
    return total


def disk_bytes(folder: Path) -> int:
    """What the files of a folder take on the disk: rows that were not written take nothing."""
    total = 0
    for path in folder.iterdir() if folder.is_dir() else ():
        try:
            status = path.stat()
        except OSError:  # removed by another process just now
            continue
        total += getattr(status, "st_blocks", -(-status.st_size // 512)) * 512
    return total


def _last_used(entry: Path) -> float:
    try:
        return (entry / _KEY).stat().st_mtime
    except OSError:
        return 0.0


class RowFile:
    """Rows of equally many numbers in an entry, memory-mapped, each held to its hash. Processes may share one.

    A row that was not written yet, or not to its end, or that was damaged since, is not there: see `holds`.
    """

    def __init__(self, entry: Path, rows: int, width: int, dtype: DTypeLike) -> None:
        """Opens the file; makes it anew where there is none of this shape.

        Raises:
            OSError: it cannot be read or written.
        """
        self._made_from = (entry, rows, width, dtype)
        self._rows = _open_rows(entry / _ROWS, (rows, width), np.dtype(dtype))
        self._hashes = _open_rows(entry / _HASHES, (rows, _HASH_BYTES), np.dtype(np.uint8))

    def __reduce__(self) -> tuple[Any, ...]:
        return RowFile, self._made_from  # a loader process opens the file; numpy would send its content

    def __getitem__(self, row: int) -> np.ndarray:
        """The numbers of a row that `holds` was asked about; read-only, and not checked again."""
        found: np.ndarray = self._rows[row]
        return found

    def holds(self, row: int) -> bool:
        """Whether a row is there and is what was written."""
        stored = self._hashes[row].tobytes()
        return any(stored) and stored == _row_hash(row, self._rows[row])

    def write(self, row: int, numbers: np.ndarray) -> None:
        """Writes a row.

        Raises:
            OSError: the disk is full, for one.
        """
        numbers = np.ascontiguousarray(numbers, self._rows.dtype)
        # Through files and not the maps, in which a full disk would end the process. The hash comes last: what is
        # killed in between leaves no row.
        _write_row(self._rows, row, numbers.tobytes())
        _write_row(self._hashes, row, _row_hash(row, numbers))


def _row_hash(row: int, numbers: np.ndarray) -> bytes:
    digest = hashlib.sha256(str(row).encode())
    digest.update(np.ascontiguousarray(numbers).view(np.uint8).data)
    return digest.digest()


def _open_rows(path: Path, shape: tuple[int, int], dtype: np.dtype[Any]) -> np.memmap[Any, Any]:
    """The map of a .npy of this shape, for reading."""
    for _ in range(2):
        try:
            with reading(str(path), "rows of this cache"):
                found = np.load(path, mmap_mode="r", allow_pickle=False)
            if found.shape == shape and found.dtype == dtype:
                return found  # type: ignore[no-any-return]
        except (FileNotFoundError, InputError):  # none, or one that is damaged: made anew
            pass
        path.unlink(missing_ok=True)
        _make_holes(path, shape, dtype)
    raise OSError(f"{path} cannot be made")


def _make_holes(path: Path, shape: tuple[int, int], dtype: np.dtype[Any]) -> None:
    """A .npy that is all holes: zeros that take no place on the disk."""
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        new = Path(scratch) / path.name
        np.lib.format.open_memmap(new, "w+", dtype, shape).flush()
        try:
            # Not renamed: of two processes the second must not take the file away that the first one writes to.
            os.link(new, path)
        except FileExistsError:
            return


def _write_row(rows: np.memmap[Any, Any], row: int, content: bytes) -> None:
    assert rows.filename is not None
    with Path(rows.filename).open("r+b", buffering=0) as file:
        file.seek(rows.offset + row * rows.strides[0])
        if file.write(content) != len(content):
            raise OSError(f"{rows.filename}: the disk is full")
