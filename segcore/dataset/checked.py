"""The check of a data set's cases, and what is kept of it, so that the next stage does not read all files again.

A case is read once, whole: its pixels must open and its mask must have the picture's size. What that found lies in the
user's cache, an entry for each data set, and holds for a case until one of its files is another one: another path,
size, inode, time of writing or time of change. The last two differ where a file was exchanged and its old time put
back.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from segcore.cache import made_by, open_private_entry, read_private, user_cache, write_private
from segcore.dataset.case import Case, FileSource
from segcore.dataset.scan_cases import ScanSource
from segcore.errors import InputError

_KIND, _FILE = "datasets", "cases"
_MOST_BYTES = 2**26
"""Of all data sets; some 400,000 cases."""
_SETTLED_S = 3.0
"""A file must have been left alone for so long to be kept: of two changes within one tick of the file system's clock,
which is 2 s on a memory card, the second cannot be seen."""
# Another reader may find other values in a file.
_READERS = ("numpy", "pillow", "nibabel", "highdicom", "pydicom", "pylibjpeg", "pyjpegls", "python-gdcm")


@dataclass(frozen=True)
class CaseCheck:
    """What reading one case found.

    Attributes:
        fingerprint: of its files.
        values: that occur in its mask, as stored.
    """

    fingerprint: str
    values: frozenset[int]


def check_case(case: Case) -> frozenset[int]:
    """Reads what can be wrong with one case and returns its stored mask values.

    Raises:
        InputError: the image cannot be opened, or the mask has another size.
    """
    assert isinstance(case.source, FileSource | ScanSource)
    size = case.source.size_px()
    if not case.labelled:
        return frozenset()
    mask = case.source.mask()
    if mask.shape != size:
        raise InputError(
            f"mask {case.source.mask_path}: must have the size of its image, {size[0]}×{size[1]}, "
            f"got {mask.shape[0]}×{mask.shape[1]}; export it again at the image's size"
        )
    return frozenset(np.flatnonzero(np.bincount(mask.ravel(), minlength=256)).tolist())


def check_and_hash(case: Case) -> CaseCheck:
    """Reads one case.

    Raises:
        InputError: as `check_case`.
    """
    return CaseCheck(case.source.fingerprint(), check_case(case))


def check_cases(
    data: str,
    cases: Sequence[Case],
    *,
    check: Callable[[Case], CaseCheck] = check_and_hash,
    settled_s: float = _SETTLED_S,
) -> list[CaseCheck]:
    """What reading each case finds; those whose files are as they were when they were last read are not read again.

    Args:
        data: a folder or an index.csv; its cases have an entry of their own.
        cases: as they were listed.
        check: reads one case; called by several threads.
        settled_s: age of the files from which on a finding is kept.

    Raises:
        InputError: of the first case with something wrong.
    """
    # Only as a hash: a folder's name may be a patient's.
    key = {"data": _short_hash(str(Path(data).resolve())), **made_by((Path(__file__).parents[1],), _READERS)}
    entry = open_private_entry(user_cache(), _KIND, key)
    kept = _read_kept(entry)
    started_ns = time.time_ns()
    # Before the files are read: what changes meanwhile is read again next time.
    states = list(_states_of(cases))
    fresh = [case for case, state in zip(cases, states, strict=True) if state.key not in kept]
    if not fresh:
        return [kept[state.key] for state in states]
    with ThreadPoolExecutor() as pool:  # decoding and hashing leave Python's lock
        read = iter(list(pool.map(check, fresh)))
    found = [kept[state.key] if state.key in kept else next(read) for state in states]
    if entry is not None:
        settled = {
            state.key: [one.fingerprint, sorted(one.values)]
            for state, one in zip(states, found, strict=True)
            if state.changed_ns <= started_ns - int(settled_s * 1e9)
        }
        write_private(entry, _FILE, json.dumps(settled).encode(), max_bytes=_MOST_BYTES)
    return found


@dataclass(frozen=True)
class _FileState:
    """Of the files of a case.

    Attributes:
        key: differs where one of them is another one.
        changed_ns: when the last of them was written or changed.
    """

    key: str
    changed_ns: int


def _states_of(cases: Sequence[Case]) -> Iterator[_FileState]:
    """Each path is looked at once, however many slices it holds."""
    seen: dict[Path, _FileState] = {}
    for case in cases:
        assert isinstance(case.source, FileSource | ScanSource)
        source = case.source
        paths = [path for path in (source.image_path, source.mask_path) if path is not None]
        for path in paths:
            if path not in seen:
                seen[path] = _state_of_path(path)
        index = source.index if isinstance(source, ScanSource) else None
        text = json.dumps([type(source).__name__, index, *(seen[path].key for path in paths)])
        yield _FileState(_short_hash(text), max(seen[path].changed_ns for path in paths))


def _state_of_path(path: Path) -> _FileState:
    """Of a file, or of a folder with all that is in it; one that is not there has a state, too: reading will tell."""
    rows: list[tuple[str, int, int, int, int]] = []
    for file in (path, *sorted(path.rglob("*"))) if path.is_dir() else (path,):
        try:
            status = file.stat()
        except OSError:
            rows.append((str(file), 0, 0, 0, 0))
            continue
        times = (status.st_mtime_ns, status.st_ctime_ns)
        rows.append((str(file.absolute()), status.st_size, status.st_ino, *times))
    return _FileState(_short_hash(json.dumps(rows)), max(max(row[3:]) for row in rows))


def _short_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _read_kept(entry: Path | None) -> Mapping[str, CaseCheck]:
    content = None if entry is None else read_private(entry, _FILE)
    if content is None:
        return {}
    rows = json.loads(bytes(content))
    return {key: CaseCheck(fingerprint, frozenset(values)) for key, (fingerprint, values) in rows.items()}
