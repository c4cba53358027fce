"""A stage writes one new folder: into OUT.partial, renamed to OUT when it is complete.

So an interrupted run never looks finished, and a run with equal settings goes on where it stopped. A stage never writes
over what it reads: `check_apart`.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from segcore.command import is_helper_process
from segcore.errors import InputError

_SETTINGS = "settings.json"


@contextmanager
def out_folder(
    out: Path, settings: Mapping[str, Any], *, overwrite: bool = False, keep_on_error: bool = True
) -> Iterator[Path]:
    """Yields the working folder OUT.partial and renames it to `out` when the block ends without an error.

    Args:
        out: the folder that will hold the result.
        settings: what the result depends on, as JSON values; a partial folder resumes only if they are equal.
        overwrite: replace a complete `out`.
        keep_on_error: keep OUT.partial after an error, for stages that can resume; else remove it.

    Raises:
        InputError: `out` is there already, or OUT.partial was made with other settings.
    """
    out = Path(out)
    if not out.name or (out.exists() and not out.is_dir()):
        raise InputError(f"--out {out}: must be the name of a new folder, is not; choose another")
    check_new(out, overwrite=overwrite)
    partial = out.with_name(out.name + ".partial")
    wanted = json.loads(json.dumps(dict(settings), default=str, sort_keys=True))
    if is_helper_process():  # under `accelerate launch` the first process makes and renames the folder
        _wait_for(partial / _SETTINGS)
        yield partial
        return
    _open_partial(partial, wanted, out)
    try:
        with sole_user(partial / _SETTINGS, f"--out {out}"):
            yield partial
    except Taken:
        raise  # it is the other run's
    except BaseException:
        # Where nothing was made yet, a wrong setting was: it must not stand in the way of the right one.
        if not keep_on_error or [path.name for path in partial.glob("*")] == [_SETTINGS]:
            shutil.rmtree(partial, ignore_errors=True)
        raise
    if out.exists():
        old = out.with_name(out.name + ".old")
        shutil.rmtree(old, ignore_errors=True)
        out.replace(old)  # moved away first: at no moment is there neither the old result nor the new
        partial.replace(out)
        shutil.rmtree(old)
    else:
        partial.replace(out)
    (out / _SETTINGS).unlink()  # last: a partial folder without it would be taken for foreign and removed


class Taken(InputError):
    """Another run is writing what this one was to write."""


@contextmanager
def sole_user(path: Path, name: str) -> Iterator[None]:
    """Holds a file, which is there, for as long as the block runs; the kernel lets go of it however a process dies.

    Args:
        path: of the file.
        name: what the error calls what it stands for.

    Raises:
        Taken: another run holds it.
    """
    if os.name != "posix":
        yield
        return
    import fcntl

    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Taken(
                f"{name}: must be written by one run, another is at it; wait for it or end it"
            ) from None
        except OSError:
            pass  # some network file systems have no locks
        yield


def _open_partial(partial: Path, wanted: dict[str, Any], out: Path) -> None:
    stored = partial / _SETTINGS
    if stored.is_file():
        try:
            found = json.loads(stored.read_text())
        except (ValueError, RecursionError):
            found = {}
        found = found if isinstance(found, dict) else {}
        if found != wanted:
            changed = sorted(k for k in wanted.keys() | found.keys() if found.get(k) != wanted.get(k))
            raise InputError(
                f"--out {out}: {partial} was made with other settings ({', '.join(changed)}); "
                "use the same settings to resume it, or remove it"
            )
        return
    if partial.exists():
        shutil.rmtree(partial)
    partial.mkdir(parents=True)
    write_text(stored, json.dumps(wanted, indent=2))


def _wait_for(path: Path, *, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not path.is_file():
        if time.monotonic() > end:
            raise InputError(
                f"--out {path.parent}: must be made by the first process, was not within {seconds:.0f} s; "
                "see its error"
            )
        time.sleep(0.1)


def write_text(path: Path, text: str) -> None:
    """Writes a small file so that a reader sees the old text or the new one, never a half."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes | memoryview) -> None:
    """Writes a file so that a reader sees the old content or the new one, never a half."""
    # Its own name would be too long where the file's is as long as it may be.
    temporary = path.with_name(f"{hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]}.tmp")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def check_new(out: Path, *, overwrite: bool) -> None:
    """Refuses an OUT that is there already.

    Raises:
        InputError: it is, and may not be replaced.
    """
    if out.exists() and not overwrite:
        raise InputError(f"--out {out}: must not exist yet, it does; add --overwrite to replace it")


def check_apart(out: Path, source: Path, flag: str) -> None:
    """Refuses an OUT that holds the input or lies in it: `--overwrite` must not delete the user's files.

    Raises:
        InputError: the two overlap.
    """
    a, b = out.resolve(), source.resolve()
    if a == b or a in b.parents or b in a.parents:
        raise InputError(f"--out {out}: must be apart from {flag} {source}, is not; choose another folder")
