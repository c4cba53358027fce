"""How far the builder is, on stderr: a bar or lines for each phase."""

from __future__ import annotations

import threading

from segcore.command import Progress

_SHOWN_DEPTHS = 2  # the build and its parts; deeper phases number thousands and last milliseconds


class PhaseBars:
    """One bar a phase, those within another below it. Safe to call from several threads, as TensorRT does."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._depth: dict[str, int] = {}
        self._bars: dict[str, Progress[None]] = {}

    def start(self, name: str, parent: str | None, steps: int) -> None:
        """A phase of so many steps begins within `parent` (None or empty: within nothing)."""
        with self._lock:
            depth = self._depth.get(parent, 0) + 1 if parent else 0
            self._depth[name] = depth
            if depth < _SHOWN_DEPTHS:
                self._bars[name] = Progress(label=name, total=steps, position=depth, leave=False, unit="step")

    def step(self, name: str, step: int) -> None:
        """The phase has done step number `step`, counted from 0."""
        with self._lock:
            if bar := self._bars.get(name):
                bar.update(max(0, step + 1 - bar.n))

    def finish(self, name: str) -> None:
        """The phase is over, with all of its steps or not."""
        with self._lock:
            self._depth.pop(name, None)
            if bar := self._bars.pop(name, None):
                bar.close()

    def close(self) -> None:
        """Closes what a failed build left open."""
        with self._lock:
            for bar in self._bars.values():
                bar.close()
            self._bars.clear()
            self._depth.clear()
