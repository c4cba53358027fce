"""Whose the files in the web server's folder are: uploads until they are taken, and what was made to be taken along."""

from __future__ import annotations

import secrets
import shutil
import stat
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

from segcore.errors import InputError

PROGRAM = ""
"""Owner of what comes without a browser's cookie: it owns what it can name, and nobody can guess a name."""


@dataclass(frozen=True)
class _Upload:
    owner: str
    came_s: float


class OwnedFiles:
    """Every upload that nobody has taken yet and every folder of made files, each with its owner.

    An owner is a browser (by the cookie that the page gave it) or `PROGRAM`. Paths are compared as text: what the
    server did not name itself is nobody's. A folder is never an upload.

    Attributes:
        web: the web server's folder.
    """

    def __init__(self, web: Path) -> None:
        self.web = web
        self._uploads: dict[str, _Upload] = {}
        self._made: dict[Path, str] = {}
        self._lock = Lock()

    def add_uploads(self, paths: Sequence[str], owner: str) -> None:
        """Notes files that were just sent, and by whom."""
        with self._lock:
            for path in paths:
                self._uploads[path] = _Upload(owner, time.monotonic())

    def claim_uploads(self, paths: Sequence[str], owner: str, name: str) -> None:
        """Hands uploads to the call that names them: each is its owner's, a file, and used once.

        Args:
            paths: as the server named them when they were sent; all of them are handed over, or none.
            owner: who calls.
            name: what an error calls the value.

        Raises:
            InputError: one of them is not that.
        """
        with self._lock:
            mine = all((one := self._uploads.get(path)) and one.owner == owner for path in paths)
            if not mine or len(set(paths)) < len(paths) or not all(map(_is_plain_file, paths)):
                raise InputError(
                    f"{name}: must be a file that was uploaded for this and not used before, "
                    "got something else; upload it again"
                )
            for path in paths:
                del self._uploads[path]

    def forget_uploads(self, owner: str) -> None:
        """Removes what an owner sent and nobody took."""
        with self._lock:
            left = [path for path, one in self._uploads.items() if one.owner == owner]
            for path in left:
                del self._uploads[path]
        for path in left:
            Path(path).unlink(missing_ok=True)

    def new_folder(self, owner: str) -> Path:
        """A folder for files that the owner may take along; to a program its name is the key."""
        folder = self.web / f"made-{secrets.token_hex(16)}"
        folder.mkdir(parents=True)
        with self._lock:
            self._made[folder] = owner
        return folder

    def may_read(self, path: str, reader: str) -> bool:
        """Whether the web server may give a file to a reader: made for it, or its own upload.

        Nobody reads a program's upload back: it has the file.
        """
        upload = self._uploads.get(path)
        if upload is not None:
            return upload.owner == reader != PROGRAM
        wanted = Path(path)
        if ".." in wanted.parts or not _is_plain_file(path):
            return False
        owners = [owner for folder, owner in tuple(self._made.items()) if folder in wanted.parents]
        return any(owner in (PROGRAM, reader) for owner in owners)

    def uploads_of(self, owners: Collection[str], younger_than_s: float) -> set[Path]:
        """Uploads of these owners that wait to be used."""
        now = time.monotonic()
        waiting = tuple(self._uploads.items())
        return {
            Path(path) for path, one in waiting if one.owner in owners and now - one.came_s < younger_than_s
        }

    def remove_old(self, kept: Collection[Path], age_s: float) -> None:
        """Removes what nobody changed for `age_s` seconds: uploads that were cut off or not used, answers to programs.

        Args:
            kept: entries of the web server's folder that stay.
            age_s: from which age the others go.
        """
        for entry in self.web.iterdir():
            if entry in kept:
                continue
            try:
                changed = max(path.stat().st_mtime for path in (entry, *entry.rglob("*")))
            except FileNotFoundError:  # taken this moment
                continue
            if time.time() - changed > age_s:
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink(missing_ok=True)
        with self._lock:
            self._uploads = {path: one for path, one in self._uploads.items() if Path(path).exists()}
            self._made = {folder: owner for folder, owner in self._made.items() if folder.exists()}


def _is_plain_file(path: str) -> bool:
    """A file, and no link to one."""
    try:
        return stat.S_ISREG(Path(path).lstat().st_mode)
    except (OSError, ValueError):  # not there, or no path at all
        return False
