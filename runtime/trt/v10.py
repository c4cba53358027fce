"""What TensorRT has since 10.0, and 8.6 has not."""

from __future__ import annotations

import tensorrt as trt

from runtime.trt.library import ReleaseRange
from runtime.trt.progress import PhaseBars

SERVES = ReleaseRange((10, 0))


class ProgressMonitor(trt.IProgressMonitor):
    """Hands the builder's phases to `PhaseBars`; TensorRT calls it from several threads."""

    def __init__(self, bars: PhaseBars) -> None:
        trt.IProgressMonitor.__init__(self)
        self._bars = bars

    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
        self._bars.start(phase_name, parent_phase, num_steps)

    def step_complete(self, phase_name: str, step: int) -> bool:
        self._bars.step(phase_name, step)
        return True  # False would cancel the build

    def phase_finish(self, phase_name: str) -> None:
        self._bars.finish(phase_name)


def show_progress(config: trt.IBuilderConfig, bars: PhaseBars) -> None:
    """Bars on stderr while the builder works. `config` keeps the monitor alive."""
    config.progress_monitor = ProgressMonitor(bars)
