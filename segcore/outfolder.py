"""A stage writes one new folder: into OUT.partial, which takes OUT's name in one step when it is complete.

So an interrupted run never looks finished, and a run with equal settings goes on where it stopped. A stage never writes
over what it reads: `check_apart`.

What lies where, however a run ends:

* OUT is complete, always: the old result or the new one. `--overwrite` exchanges the two in one step where the file
  system can (Linux: ext4, xfs, btrfs, tmpfs); elsewhere OUT.partial-replaced holds the old result until the new one has
  its name, and the next run puts it back where there is none.
* OUT.partial holds what was made so far, and `settings.json` until it is complete; then OUT.partial-done holds the
  settings and which of the folders is the new one. The next run reads from the two how far the last one came.
* OUT.partial-lock is held by the run that writes, and OUT.partial-scratch has what it needs for a while. Everything
  beside OUT goes at success; what a run that was killed left there, the next one removes.

A result that has OUT's name is on the disk, not only in the system's memory. Of a run that is under way a power failure
may take what a kill does not, apart from what is written with `durable`.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from segcore.command import is_helper_process
from segcore.errors import InputError

_SETTINGS = "settings.json"
_HALF = re.compile(r"[0-9a-f]{16}\.(tmp|partial)")
"""Names of what is being written by `write_bytes` and by the writer of a scan's masks: halves, after a kill."""
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
"""Source: renameat2(2), Linux's fcntl.h and fs.h."""
_PARTIAL = "partial"
_LOCK, _DONE, _REPLACED, _SCRATCH = (f"{_PARTIAL}-{what}" for what in ("lock", "done", "replaced", "scratch"))
_CANNOT_EXCHANGE = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EXDEV, errno.EPERM)


@contextmanager
def out_folder(
    out: Path, settings: Mapping[str, Any], *, overwrite: bool = False, resumes: bool = True
) -> Iterator[Path]:
    """Yields the working folder OUT.partial, which gets the name `out` when the block ends without an error.

    Args:
        out: the folder that will hold the result.
        settings: what the result depends on, as JSON values; a partial folder resumes only if they are equal.
        overwrite: replace a complete `out`.
        resumes: the stage can go on with what an earlier run of it left; else it starts from an empty folder, and
            OUT.partial goes after an error.

    Raises:
        InputError: `out` is there already, OUT.partial was made with other settings, another run writes it, or it was
            removed while it was written.
    """
    out = Path(out)
    if not out.name or (out.exists() and not out.is_dir()):
        raise InputError(f"--out {out}: must be the name of a new folder, is not; choose another")
    partial = _beside(out, _PARTIAL)
    wanted = json.loads(json.dumps(dict(settings), default=str, sort_keys=True))
    if is_helper_process():  # under `accelerate launch` the first process makes and renames the folder
        _wait_for(partial / _SETTINGS)
        yield partial
        return
    if not any(
        _beside(out, left).exists() for left in (_DONE, _LOCK)
    ):  # before anything is written beside it
        check_new(out, overwrite=overwrite)
    partial.parent.mkdir(parents=True, exist_ok=True)
    with _sole_run(out):
        _tidy_up(out)
        check_new(out, overwrite=overwrite)
        _open_partial(partial, wanted, out, resumes=resumes)
        made = _inode(partial)
        try:
            yield partial
            _put_in_place(partial, out, wanted)
        except BaseException as error:
            # Whatever a library then says of a file that it cannot find.
            removed = made not in (_inode(partial), _inode(out))
            if removed and isinstance(error, OSError | RuntimeError | InputError):
                shutil.rmtree(partial, ignore_errors=True)  # where a writer has made it again
                _beside(out, _DONE).unlink(missing_ok=True)
                raise InputError(
                    f"--out {out}: {partial} must stay there until it is complete, was removed while it was written; "
                    "run the same command again"
                ) from error
            # Where nothing was made yet, a wrong setting was: it must not stand in the way of the right one.
            if not resumes or [path.name for path in partial.glob("*")] == [_SETTINGS]:
                shutil.rmtree(partial, ignore_errors=True)
            raise


class Taken(InputError):
    """Another run is writing what this one was to write."""


@contextmanager
def sole_user(path: Path, name: str) -> Iterator[None]:
    """Holds a file, which is made if need be, while the block runs; the kernel lets go of it however a process dies.

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

    while True:
        file = path.open("ab")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise Taken(
                f"{name}: must be written by one run, another is at it; wait for it or end it"
            ) from None
        except OSError:
            pass  # some network file systems have no locks
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                break
        file.close()  # the run that had it has removed it meanwhile
    with file:
        yield


@contextmanager
def scratch_beside(folder: Path, what: str = "scratch") -> Iterator[Path]:
    """OUT.partial-scratch, empty, for what is thrown away; what a run that was killed left there goes first.

    It is beside OUT.partial and not in it: what lies in a bundle's folder when it is sealed is part of the bundle.

    Args:
        folder: OUT.partial.
        what: the end of its name: "scratch" is for what runs within `out_folder`, which removes what is left of it.
    """
    scratch = folder.with_name(f"{folder.name}-{what}")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _beside(out: Path, what: str) -> Path:
    return out.with_name(f"{out.name}.{what}")


@contextmanager
def _sole_run(out: Path) -> Iterator[None]:
    """Holds a file beside OUT.partial: that changes its name while this run must still be the only one."""
    lock = _beside(out, _LOCK)
    with sole_user(lock, f"--out {out}"):
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def _tidy_up(out: Path) -> None:
    """Leads to its end what a run that was killed had begun: afterwards OUT is complete or absent.

    Before its folder had OUT's name, OUT.partial is as it was before; after it, OUT stays and the rest goes.
    """
    partial, replaced, done = (_beside(out, what) for what in (_PARTIAL, _REPLACED, _DONE))
    shutil.rmtree(_beside(out, _SCRATCH), ignore_errors=True)
    if not done.is_file():
        return
    complete = _read_json(done)
    if complete.get("inode") == _inode(partial):
        if not out.exists() and replaced.exists():
            replaced.replace(out)
        if not (partial / _SETTINGS).exists():
            write_text(partial / _SETTINGS, json.dumps(complete["settings"], indent=2))
    elif complete.get("inode") == _inode(out):
        for old in (partial, replaced):
            shutil.rmtree(old, ignore_errors=True)
    done.unlink()


def _open_partial(partial: Path, wanted: dict[str, Any], out: Path, *, resumes: bool) -> None:
    stored = partial / _SETTINGS
    if stored.is_file():
        found = _read_json(stored)
        if found != wanted:
            changed = sorted(k for k in wanted.keys() | found.keys() if found.get(k) != wanted.get(k))
            raise InputError(
                f"--out {out}: {partial} was made with other settings ({', '.join(changed)}); "
                f"use the same settings{' to resume it' if resumes else ''}, or remove it"
            )
        if resumes:
            _remove_halves(partial)
            return
    if partial.exists():
        shutil.rmtree(partial)
    partial.mkdir()
    write_text(stored, json.dumps(wanted, indent=2))


def _remove_halves(folder: Path) -> None:
    """Removes what a run was writing when it was killed; the whole ones have other names."""
    for parent, folders, files in os.walk(folder, topdown=False):
        for name in filter(_HALF.fullmatch, files):
            Path(parent, name).unlink()
        for name in filter(_HALF.fullmatch, folders):
            shutil.rmtree(Path(parent, name))


def _put_in_place(partial: Path, out: Path, settings: Mapping[str, Any]) -> None:
    """Gives the complete folder its name; `_tidy_up` goes on wherever a kill ends this."""
    done, replaced = _beside(out, _DONE), _beside(out, _REPLACED)
    write_text(done, json.dumps({"settings": settings, "inode": partial.stat().st_ino}))
    (partial / _SETTINGS).unlink()
    _sync_tree(partial)
    if not out.exists():
        partial.replace(out)
    elif not _exchange(partial, out):
        out.replace(replaced)
        partial.replace(out)
    _sync_folder(out.parent)
    for old in (partial, replaced):
        if old.exists():
            shutil.rmtree(old)
    done.unlink()


def _wait_for(path: Path, *, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not path.is_file():
        if time.monotonic() > end:
            raise InputError(
                f"--out {path.parent}: must be made by the first process, was not within {seconds:.0f} s; "
                "see its error"
            )
        time.sleep(0.1)


def write_text(path: Path, text: str, *, durable: bool = False) -> None:
    """Writes a small file so that a reader sees the old text or the new one, never a half; see `write_bytes`."""
    write_bytes(path, text.encode(), durable=durable)


def write_bytes(path: Path, content: bytes | memoryview, *, durable: bool = False) -> None:
    """Writes a file so that a reader sees the old content or the new one, never a half.

    Args:
        path: of the file.
        content: all of it.
        durable: it is on the disk when this returns, for what is costly and there once, as a checkpoint is; what lies
            in OUT.partial is in any case when that becomes OUT.
    """
    # Its own name would be too long where the file's is as long as it may be.
    temporary = path.with_name(f"{hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
        if durable:
            _sync_folder(path.parent)
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


def _inode(folder: Path) -> int:
    """Which folder it is, under whatever name; 0 for none."""
    try:
        return folder.stat().st_ino
    except FileNotFoundError:
        return 0


def _exchange(a: Path, b: Path) -> bool:
    """Lets two folders swap their names in one step; False where the system or the file system cannot."""
    try:
        exchange = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):  # not Linux, or a C library from before 2018
        return False
    if exchange(_AT_FDCWD, os.fsencode(a), _AT_FDCWD, os.fsencode(b), _RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in _CANNOT_EXCHANGE:
        return False
    raise OSError(number, os.strerror(number), str(b))


def _sync_tree(folder: Path) -> None:
    """Returns when the folder's files are on the disk.

    By one call for its file system: of 10,000 masks it takes half a second, an fsync of each half a minute.
    """
    if os.name != "posix":
        return
    try:
        sync = ctypes.CDLL(None, use_errno=True).syncfs
    except (AttributeError, OSError):  # not Linux
        for parent, _, files in os.walk(folder):
            for name in files:
                with Path(parent, name).open("rb") as file:
                    os.fsync(file.fileno())
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        if sync(handle) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(folder))
    finally:
        os.close(handle)


def _sync_folder(folder: Path) -> None:
    """Returns when the names in a folder are on the disk."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _read_json(path: Path) -> dict[str, Any]:
    """An object of a file; an empty one where it is damaged."""
    try:
        found = json.loads(path.read_text())
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
