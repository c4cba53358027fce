"""The one folder of what can be computed again: where it lies, its bound, and how what is read back is held to be ours.

    <cache>/secret                                 the user's key, which no other user may read
    <cache>/<kind>/<hash of the key>/key.json      what an entry was made from; when it was last used is its mtime
                                     rows.npy      the rows
                                     hashes.npy    sha256 of each; zeros where a row was not written yet
                                     NAME          a private file: a code made with the secret, then the content

Deleting an entry, or all of them, costs time and nothing else. A cache that cannot be written is no error: whoever uses
it does without.

What a program runs, or what spares a check, is a private file. It is read back only where the folder is the user's
alone and its code fits its place and its content, so that neither another user of the machine nor a bad disk can put
something else there.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Collection, Mapping
from contextlib import suppress
from functools import cache as once
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from segcore.command import log
from segcore.errors import InputError, reading
from segcore.outfolder import write_bytes, write_text

GIB = 2**30
_KEY, _ROWS, _HASHES = "key.json", "rows.npy", "hashes.npy"
_SECRET, _VERDICT = "secret", "verdict"
_HASH_BYTES = 32
_MOST_VERDICT_BYTES = 2**24
"""Of one kind of verdict; two thousand of them."""


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
    cache.mkdir(
        mode=0o700, parents=True, exist_ok=True
    )  # whatever the user's umask; the folders above it as usual
    for folder in (entry.parent, entry):
        folder.mkdir(mode=0o700, exist_ok=True)
    if (entry / _KEY).is_file():
        os.utime(entry / _KEY)
    else:
        write_text(entry / _KEY, text)
    return entry


def shrink_cache(cache: Path, max_bytes: int, *, kind: str = "*", keep: Collection[Path] = ()) -> int:
    """Removes the entries that were not used for longest until the others take at most `max_bytes`.

    A process that has an entry open reads on: the system frees its space when it is closed.

    Args:
        cache: from `user_cache`; what is no entry of ours stays.
        max_bytes: bound of all entries, on the disk.
        kind: the sort of entries that is meant; all by default.
        keep: entries that stay whatever they take.

    Returns:
        Bytes on the disk that the entries take now.
    """
    entries = [path.parent for path in cache.glob(f"{kind}/*/{_KEY}")]
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


# Private files: what a program runs, or what spares a check.


def open_private_entry(cache: Path, kind: str, key: Mapping[str, Any]) -> Path | None:
    """As `open_entry`, for private files.

    Returns:
        None where the cache cannot be written, or is not this user's alone; which is said once.
    """
    try:
        why = _why_not_private(cache) if cache.exists() else ""
        entry = None if why else open_entry(cache, kind, key)
    except OSError as error:
        _tell_once(f"cache {cache}: cannot be written ({error.strerror or error}); nothing is kept in it")
        return None
    if why:
        _tell_once(
            f"cache {cache}: must be this user's alone, {why}; nothing in it is used and nothing is kept: use a folder "
            "of your own, with chmod 700"
        )
        return None
    return entry


def read_private(entry: Path, name: str) -> memoryview | None:
    """A private file of an entry, where it is there and whole; one that is not what was written is removed.

    The content was read once, and is what the code was checked against: nobody can exchange it in between.
    """
    try:
        stored = (entry / name).read_bytes()
        code, content = stored[:_HASH_BYTES], memoryview(stored)[_HASH_BYTES:]
        if hmac.compare_digest(code, _code(entry, name, content)):
            return content
        (entry / name).unlink()
    except OSError:
        return None
    return None


def write_private(entry: Path, name: str, content: bytes, *, max_bytes: int) -> None:
    """Writes a private file, and removes what was not used for longest where its kind takes more than `max_bytes`.

    A disk that is full keeps nothing; that is no error.
    """
    with suppress(OSError):
        write_bytes(entry / name, _code(entry, name, memoryview(content)) + content)
        shrink_cache(entry.parents[1], max_bytes, kind=entry.parent.name, keep=[entry])


def is_remembered(kind: str, key: Mapping[str, Any]) -> bool:
    """Whether this user's cache holds, from `remember`, that what `key` describes was checked and found good."""
    entry = open_private_entry(user_cache(), kind, key)
    return entry is not None and read_private(entry, _VERDICT) is not None


def remember(kind: str, key: Mapping[str, Any]) -> None:
    """Keeps that what `key` describes is good; see `is_remembered`."""
    if entry := open_private_entry(user_cache(), kind, key):
        write_private(entry, _VERDICT, b"", max_bytes=_MOST_VERDICT_BYTES)


@once
def made_by(sources: tuple[Path, ...], libraries: tuple[str, ...]) -> dict[str, str]:
    """What else a result follows from, for its key: a hash of our code, and versions.

    Args:
        sources: Python files, or folders of them, that the result is made by.
        libraries: distributions that have a part in it; one that is not installed has an empty version.
    """
    digest = hashlib.sha256()
    for source in sources:
        for path in sorted(source.rglob("*.py")) if source.is_dir() else (source,):
            digest.update(path.read_bytes())
    versions = {"code": digest.hexdigest()}
    for library in libraries:
        try:
            versions[library] = version(library)
        except PackageNotFoundError:
            versions[library] = ""
    return versions


@once
def _tell_once(text: str) -> None:
    log(text)


def _why_not_private(folder: Path) -> str:
    """Who else may change what lies in a folder; empty where nobody may."""
    if os.name != "posix":
        return ""  # the user's profile is private on Windows; st_mode says nothing there
    status = folder.stat()
    if status.st_uid != os.geteuid():
        return f"belongs to user {status.st_uid}"
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return f"others may write to it (mode {stat.S_IMODE(status.st_mode):03o})"
    return ""


def _code(entry: Path, name: str, content: memoryview) -> bytes:
    """The code of a private file: of the user, the entry and the name as well as of the content.

    Source: HMAC, RFC 2104, with SHA-256.
    """
    place = f"{entry.parent.name}/{entry.name}/{name}\0".encode()
    made = hmac.new(_user_secret(entry.parents[1]), place, "sha256")
    made.update(content)
    return made.digest()


def _user_secret(cache: Path) -> bytes:
    """The key of this user's codes, made once; one that others could know is replaced, and the codes made with it fail.

    Raises:
        OSError: it cannot be made.
    """
    path = cache / _SECRET
    for _ in range(2):
        found = _read_own(path)
        if len(found) == _HASH_BYTES:
            return found
        path.unlink(missing_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as scratch, suppress(FileExistsError):
            descriptor, new = tempfile.mkstemp(dir=scratch)  # mode 0600
            with os.fdopen(descriptor, "wb") as file:
                file.write(secrets.token_bytes(_HASH_BYTES))
            os.link(new, path)  # not renamed: of two processes the second takes what the first one made
    raise OSError(f"{path} cannot be made")


def _read_own(path: Path) -> bytes:
    """A small file that only this user can read or write; nothing where it is not there, or is not like that."""
    if path.is_symlink() or not path.is_file():
        return b""
    with path.open("rb") as file:
        status = os.fstat(file.fileno())
        shared = os.name == "posix" and (status.st_uid != os.geteuid() or status.st_mode & 0o077)
        return b"" if shared else file.read()


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
