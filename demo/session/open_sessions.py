"""Every reader's session, begun when it is first asked for and ended when the reader has left, and its files' end."""

from __future__ import annotations

import secrets
import shutil
import tempfile
import time
from collections.abc import Collection
from pathlib import Path
from threading import Event, RLock, Thread

from demo.session.models import Models
from demo.session.reader_session import ReaderSession

IDLE_S = 1800.0
"""A reader who did nothing for so long is taken to have left."""
UNUSED_S = 300.0
"""Uploads that were cut off or not used, and answers to programs, are removed after so long."""
MAX_SESSIONS = 100
_SWEEP_S = 20.0


class OpenSessions:
    """Every reader's session, by the web server's own key; those that were left are ended. Close it at the end.

    Attributes:
        folder: of the readers' uploads.
        web: of the web server; what is there now stays, the rest goes when nobody uses it.
    """

    def __init__(
        self, folder: Path, web: Path, models: Models, *, idle_s: float = IDLE_S, unused_s: float = UNUSED_S
    ) -> None:
        self.folder = folder
        self.web = web
        self._stays = frozenset(web.iterdir())
        self._unused_s = unused_s
        self._models = models
        self._idle_s = idle_s
        self._open: dict[str, ReaderSession] = {}
        self._lock = RLock()
        self._stop = Event()
        self._sweeper = Thread(target=self._sweep_until_closed, daemon=True, name="session sweeper")
        self._sweeper.start()

    def of(self, key: str) -> ReaderSession:
        """The session of a reader, new where there is none; it counts as used now."""
        with self._lock:
            if key not in self._open:
                while len(self._open) >= MAX_SESSIONS:  # the one that was left longest makes room
                    self.end(min(self._open, key=lambda k: self._open[k].last_seen_s))
                folder = Path(tempfile.mkdtemp(prefix="reader-", dir=self.folder))
                self._open[key] = ReaderSession(
                    folder, new_folder(self.web), self._models, self._models.names[:2]
                )
            session = self._open[key]
            session.mark_used()
            return session

    def end(self, key: str) -> None:
        """Forgets a reader and removes the files."""
        with self._lock:
            session = self._open.pop(key, None)
        if session is not None:
            with session.lock:  # what is being read is read to its end
                session.end()

    def __len__(self) -> int:
        return len(self._open)

    def end_left(self) -> None:
        """Ends the sessions in which nothing happened for `idle_s` seconds."""
        now = time.monotonic()
        for key in [k for k, s in list(self._open.items()) if now - s.last_seen_s > self._idle_s]:
            self.end(key)

    def remove_unused(self) -> None:
        """Removes what lies in the web server's folder and belongs to no open page."""
        kept = set(self._stays)
        for session in list(self._open.values()):
            kept |= {session.downloads_folder, *(path.parent for path in tuple(session.waiting_uploads))}
        _remove_old(self.web, kept, self._unused_s)

    def close(self) -> None:
        """Ends every session."""
        self._stop.set()
        for key in list(self._open):
            self.end(key)

    def _sweep_until_closed(self) -> None:
        while not self._stop.wait(min(_SWEEP_S, self._idle_s, self._unused_s)):
            self.end_left()
            self.remove_unused()


# The web server's own folder: uploads until they are taken, and files that readers take along.


def new_folder(web: Path) -> Path:
    """A folder whose files the web server gives to whoever knows its name, which nobody can guess."""
    folder = web / f"made-{secrets.token_hex(16)}"
    folder.mkdir(parents=True)
    return folder


def _remove_old(web: Path, kept: Collection[Path], age_s: float) -> None:
    """Removes what nobody changed for `age_s` seconds: uploads that were cut off or not used, answers to programs.

    Args:
        web: the folder.
        kept: entries of it that stay.
        age_s: from which age the others go.
    """
    for entry in web.iterdir():
        if entry in kept:
            continue
        try:
            changed = max(path.stat().st_mtime for path in (entry, *entry.rglob("*")))
        except FileNotFoundError:  # taken this moment
            continue
        if time.time() - changed > age_s:
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink(missing_ok=True)
