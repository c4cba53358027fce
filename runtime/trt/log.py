"""TensorRT's log: kept for error messages, shown where there is no other sign of progress."""

from __future__ import annotations

from collections import deque
from typing import Any

from segcore.command import log

_MOST_LINES = 500


class LogLines:
    """What TensorRT logged, the newest messages of each kind; of `details` a message can have many lines."""

    def __init__(self) -> None:
        self.details: deque[str] = deque(maxlen=_MOST_LINES)
        self._warnings: deque[str] = deque(maxlen=_MOST_LINES)
        self.errors: deque[str] = deque(maxlen=_MOST_LINES)

    @property
    def lines(self) -> list[str]:
        """Warnings, then errors: the last line is the last error where there is one."""
        return [*self._warnings, *self.errors]


def open_log(library: Any, *, show: bool = False) -> Any:
    """A logger of a library's own kind that keeps `LogLines`, prints errors, and with `show` what the builder is doing.

    Args:
        library: the module tensorrt, or that of TensorRT for RTX.
        show: print what it says of its progress, too.
    """

    class Log(LogLines, library.ILogger):
        """TensorRT may call it from threads of its own: a deque's append is atomic."""

        def __init__(self) -> None:
            library.ILogger.__init__(self)
            LogLines.__init__(self)

        def log(self, severity: Any, msg: str) -> None:
            """Takes one line; smaller severities are worse."""
            level = int(severity)
            error, warning = int(library.ILogger.ERROR), int(library.ILogger.WARNING)
            kept = self.errors if level <= error else self._warnings if level <= warning else self.details
            kept.append(msg)
            if level <= error or (show and level <= int(library.ILogger.INFO)):
                log(f"tensorrt: {msg}")

    return Log()
