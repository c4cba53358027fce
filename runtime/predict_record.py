"""predictions.jsonl: a line an input, appended as soon as its files are complete, and read again to go on."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from segcore.errors import InputError

PREDICTIONS_FILE = "predictions.jsonl"


class Records:
    """The open file. A line is either whole or, after a kill, the last and without its end.

    Attributes:
        done: cases that have a line.
        failed: how many of them could not be used.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.done: set[str] = set()
        self.failed = 0
        whole = 0
        for line in file:
            if not line.endswith(b"\n"):
                break
            self._note(json.loads(line))
            whole += len(line)
        file.truncate(whole)
        file.seek(whole)

    def add(self, record: dict[str, Any]) -> None:
        """Appends a record; the file has it when this returns."""
        if record["case"] in self.done:
            raise ValueError(f"a case must have one record, got another of {record['case']}")
        self._file.write(json.dumps(record).encode() + b"\n")
        self._file.flush()
        self._note(record)

    def _note(self, record: dict[str, Any]) -> None:
        self.done.add(record["case"])
        self.failed += "error" in record


@contextmanager
def open_records(folder: Path) -> Iterator[Records]:
    """Opens `folder`/predictions.jsonl to go on with it; a torn last line is cut off.

    Raises:
        InputError: another run is writing it, or it is damaged.
    """
    path = folder / PREDICTIONS_FILE
    path.touch()
    with path.open("rb+") as file:
        _lock(file, path)
        try:
            records = Records(file)
        except (ValueError, KeyError, TypeError):
            raise InputError(
                f"{path}: must hold records of this command, is damaged; remove {folder}"
            ) from None
        yield records


def read_records(folder: Path) -> Iterator[dict[str, Any]]:
    """The records of a finished folder, in the order in which they were completed."""
    with (folder / PREDICTIONS_FILE).open("rb") as file:
        for line in file:
            yield json.loads(line)


def _lock(file: IO[bytes], path: Path) -> None:
    """For as long as the file is open; the kernel lets go of it when the process dies, however it does."""
    if os.name != "posix":
        return
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InputError(
            f"{path}: must be written by one run, another is at it; wait for it or end it"
        ) from None
    except OSError:
        pass  # some network file systems have no locks
