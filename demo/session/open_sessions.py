"""Every reader's session, begun when it is first asked for and ended when the reader has left, and its files' end."""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from pathlib import Path
from threading import Event, RLock, Thread

from demo.session.models import Models
from demo.session.owned_files import PROGRAM, OwnedFiles
from demo.session.reader_session import ReaderSession
from segcore.errors import InputError

IDLE_S = 1800.0
"""A reader who did nothing for so long is taken to have left."""
UNUSED_S = 300.0
"""Uploads that were cut off or not used, and answers to programs, are removed after so long."""
MAX_SESSIONS = 100
SMALL_HELD_PX = 600_000_000
"""Pixels of all small pictures that open sessions hold; a pixel takes some 11 bytes with two models."""
LARGE_HELD_PX = 300_000_000
"""The same of large pictures, apart, so that these never leave no room for small ones."""
_SWEEP_S = 20.0

Key = tuple[str, str]
"""A reader (the browser, by its cookie) and one of its pages. Another reader's page of the same number is another."""


class OpenSessions:
    """Every reader's session; those that were left are ended. Close it at the end.

    A newcomer never ends a session that somebody looks at: only one that holds nothing, or whose page is closed and
    that was left for `unused_s` seconds. Where there is none, the newcomer is told to come back.

    Attributes:
        folder: of the readers' uploads.
        owned: the web server's files; what is there now stays, the rest goes when nobody uses it.
    """

    def __init__(
        self, folder: Path, web: Path, models: Models, *, idle_s: float = IDLE_S, unused_s: float = UNUSED_S
    ) -> None:
        self.folder = folder
        self.owned = OwnedFiles(web)
        self._stays = frozenset(web.iterdir())
        self._unused_s = unused_s
        self._models = models
        self._idle_s = idle_s
        self._open: dict[Key, ReaderSession] = {}
        self._pages: Counter[Key] = Counter()
        self._lock = RLock()
        self._stop = Event()
        self._sweeper = Thread(target=self._sweep_until_closed, daemon=True, name="session sweeper")
        self._sweeper.start()

    def of(self, page: str, reader: str = PROGRAM) -> ReaderSession:
        """The session of a reader's page, new where there is none; it counts as used now.

        Raises:
            InputError: there are as many as may be, and all are in use.
        """
        key = reader, page
        with self._lock:
            if key not in self._open:
                if len(self._open) >= MAX_SESSIONS and not self._end_one_left():
                    raise InputError(
                        f"the page: must have at most {MAX_SESSIONS} readers at once, got one more; "
                        "try again in a few minutes"
                    )
                self._open[key] = ReaderSession(
                    Path(tempfile.mkdtemp(prefix="reader-", dir=self.folder)),
                    self.owned.new_folder(reader),
                    self._models,
                    self._models.names[:2],
                    make_room=self._make_room,
                )
            session = self._open[key]
            session.mark_used()
            return session

    def _end_one_left(self) -> bool:
        """Ends the session that was left longest, if one was left at all."""
        left = [key for key, session in self._open.items() if session.is_untouched or self._is_left(key)]
        return self._end_first(left)

    def _is_left(self, key: Key) -> bool:
        return not self._pages[key] and time.monotonic() - self._open[key].last_seen_s > self._unused_s

    def _end_first(self, keys: list[Key]) -> bool:
        """Ends the one of these sessions that was left longest; what is at work is not waited for, and stays."""
        for key in sorted(keys, key=lambda key: self._open[key].last_seen_s):
            session = self._open[key]
            if session.lock.acquire(blocking=False):
                try:
                    del self._open[key]
                    session.end()
                finally:
                    session.lock.release()
                return True
        return False

    def _make_room(self, wanting: ReaderSession, pixels: int) -> None:
        """Keeps the memory of all sessions bounded.

        Raises:
            InputError: no room beside the pictures of readers who are still there.
        """
        large = self._models.is_large(pixels)
        most = LARGE_HELD_PX if large else SMALL_HELD_PX

        def held() -> int:
            others = [s.held_px for s in self._open.values() if s is not wanting]
            return sum(px for px in others if self._models.is_large(px) == large)

        with self._lock:
            while pixels + held() > most:
                left = [
                    k for k, s in self._open.items() if s is not wanting and s.held_px and self._is_left(k)
                ]
                if not self._end_first(left):
                    raise InputError(
                        "the picture: must find room in memory beside those of other readers, finds none; "
                        "try again in a few minutes, or send it smaller"
                    )

    def end(self, page: str, reader: str = PROGRAM) -> None:
        """Forgets a reader's page and removes its files."""
        with self._lock:
            session = self._open.pop((reader, page), None)
        if session is not None:
            with session.lock:  # what is being read is read to its end
                session.end()

    def page_opened(self, page: str, reader: str) -> None:
        """A browser shows the page from now on."""
        with self._lock:
            self._pages[reader, page] += 1

    def page_closed(self, page: str, reader: str) -> None:
        """It does so no longer; with a reader's last page go the uploads that no session took."""
        with self._lock:
            self._pages[reader, page] -= 1
            self._pages += Counter()  # drops what is zero
            last = not any(one == reader for one, _ in self._pages)
        if last and reader != PROGRAM:
            self.owned.forget_uploads(reader)

    def __len__(self) -> int:
        return len(self._open)

    def end_left(self) -> None:
        """Ends the sessions in which nothing happened for `idle_s` seconds."""
        now = time.monotonic()
        for key in [k for k, s in list(self._open.items()) if now - s.last_seen_s > self._idle_s]:
            self.end(*reversed(key))

    def remove_unused(self) -> None:
        """Removes what lies in the web server's folder and belongs to no open page."""
        with self._lock:
            readers = {reader for reader, _ in self._pages if reader != PROGRAM}
            kept = set(self._stays) | {session.downloads_folder for session in self._open.values()}
        kept |= {path.parent for path in self.owned.uploads_of(readers, self._idle_s)}
        self.owned.remove_old(kept, self._unused_s)

    def close(self) -> None:
        """Ends every session, and removes what else was sent or made."""
        self._stop.set()
        for key in list(self._open):
            self.end(*reversed(key))
        self.owned.remove_old(self._stays, age_s=-1)

    def _sweep_until_closed(self) -> None:
        while not self._stop.wait(min(_SWEEP_S, self._idle_s, self._unused_s)):
            self.end_left()
            self.remove_unused()
