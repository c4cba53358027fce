"""Time by part, also of parts that call each other."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class Stopwatch:
    """Seconds by part; a part that begins inside another one stops the outer one's clock meanwhile."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.seconds: dict[str, float] = {}
        self._open: list[str] = []
        self._clock, self._since = clock, 0.0

    def start(self, part: str) -> None:
        """Begins a part."""
        self._charge()
        self._open.append(part)

    def stop(self) -> None:
        """Ends the part that began last."""
        self._charge()
        self._open.pop()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """A part as a block."""
        self.start(name)
        try:
            yield
        finally:
            self.stop()

    def around(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, with its time charged to a part."""

        def timed(*args: Any) -> Any:
            with self.part(name):
                return function(*args)

        return timed

    def lap(self) -> dict[str, float]:
        """The seconds since the last lap."""
        seconds, self.seconds = self.seconds, {}
        return seconds

    def _charge(self) -> None:
        now = self._clock()
        if self._open:
            part = self._open[-1]
            self.seconds[part] = self.seconds.get(part, 0.0) + now - self._since
        self._since = now
