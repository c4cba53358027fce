"""TensorRT's log: kept for error messages, shown where there is no other sign of progress."""

from __future__ import annotations

from collections import deque

import tensorrt as trt

from segcore.command import log

_MOST_LINES = 500


class TensorRtLog(trt.ILogger):
    """Keeps warnings and errors; prints errors, and with `show` what the builder says it is doing.

    TensorRT may call it from threads of its own: a deque's append is atomic.
    """

    def __init__(self, *, show: bool = False) -> None:
        trt.ILogger.__init__(self)
        self._warnings: deque[str] = deque(maxlen=_MOST_LINES)
        self._errors: deque[str] = deque(maxlen=_MOST_LINES)
        self._show = show

    def log(self, severity: trt.ILogger.Severity, msg: str) -> None:
        """Takes one line; smaller severities are worse."""
        level, error, warning, info = map(
            int, (severity, trt.ILogger.ERROR, trt.ILogger.WARNING, trt.ILogger.INFO)
        )
        if level <= error:
            self._errors.append(msg)
        elif level <= warning:
            self._warnings.append(msg)
        if level <= error or (self._show and level <= info):
            log(f"tensorrt: {msg}")

    @property
    def lines(self) -> list[str]:
        """Warnings, then errors: the last line is the last error where there is one."""
        return [*self._warnings, *self._errors]
