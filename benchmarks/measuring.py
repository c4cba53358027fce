"""What every measuring command does around its measurement: look for libraries, make OUT, take turns, write records.

A command's `main` is always the same few steps, and this file holds what they share:

    check_libraries("matplotlib")
    with results_folder(settings) as folder:
        record = measure_…(settings)             # everything between the settings and the files; a `Part`
        write_record(folder / "record.json", record)
        draw_…(record, folder / "….png")         # on a `new_png_figure`
    print_result(…)
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, TypeAdapter

from runtime.timing.latency import busy_remark, rotations
from segcore.command import Progress, log
from segcore.errors import need, reading
from segcore.outfolder import out_folder, write_text


class Part(BaseModel):
    """A record, or a part of one: what was measured does not change, and a misspelt field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


R = TypeVar("R", bound=BaseModel)


class MeasuringSettings(Protocol):
    """Settings with --out and --overwrite."""

    @property
    def out(self) -> Path | None: ...

    @property
    def overwrite(self) -> bool: ...

    def model_dump(self, *, mode: str, exclude: set[str]) -> dict[str, Any]: ...


def check_libraries(*names: str, extra: str = "bench") -> None:
    """Whether what draws and writes the result is there, before minutes of measuring.

    Args:
        names: of the libraries, such as matplotlib and jinja2.
        extra: of ours that installs them.

    Raises:
        InputError: one is not installed.
    """
    for name in names:
        try:
            __import__(name)
        except ImportError:
            raise need(name, extra) from None


@contextmanager
def results_folder(settings: MeasuringSettings, made_from: Mapping[str, Any] | None = None) -> Iterator[Path]:
    """Yields the folder that becomes --out when the block ends; half a measurement is not kept.

    Args:
        settings: of the command.
        made_from: what the result depends on, where that is not all settings but --out and --overwrite.

    Raises:
        InputError: --out is there already, or cannot be made.
    """
    if made_from is None:
        made_from = settings.model_dump(mode="json", exclude={"out", "overwrite"})
    assert settings.out is not None  # a command that can do without it measures without a folder
    with out_folder(settings.out, made_from, overwrite=settings.overwrite, resumes=False) as folder:
        yield folder


def write_record(path: Path, record: BaseModel) -> None:
    """Writes a record as JSON for people: indented, with a newline at the end."""
    path.write_text(record.model_dump_json(indent=2) + "\n")


def write_lines(path: Path, lines: Iterable[BaseModel]) -> None:
    """Writes one JSON object a line; the file is there when it is whole, which may mean that its maker is done."""
    write_text(path, "".join(line.model_dump_json() + "\n" for line in lines))


def read_lines(path: Path, kind: type[R]) -> list[R]:
    """Reads what `write_lines` wrote."""
    with reading(str(path), "records of a run", remedy="remove it to run again"):
        return [kind.model_validate_json(line) for line in path.read_bytes().splitlines()]


def read_masks(path: Path) -> dict[str, np.ndarray]:
    """Masks by case, H×W uint8, of a .npz that a run left."""
    with (
        reading(str(path), "masks of a run", remedy="remove it to run again"),
        np.load(path, allow_pickle=False) as stored,
    ):
        return {case: stored[case] for case in stored.files}


def read_history(path: Path) -> list[dict[str, float]]:
    """A training's log, a row an epoch; empty where there is none."""
    if not path.is_file():
        return []
    with reading(str(path), "the log of a training", remedy="train again"):
        rows = list(csv.DictReader(path.read_text("utf-8").splitlines()))
        return TypeAdapter(list[dict[str, float]]).validate_python(rows)


def time_in_turns(
    ways: Sequence[Callable[[], float]], *, rounds: int, title: str = "measuring"
) -> np.ndarray:
    """Seconds of every way in every round, rounds×ways. Each round takes all ways, and another one comes first.

    Args:
        ways: each does its work once and returns the seconds that count.
        rounds: how often.
        title: of the progress bar.
    """
    seconds = np.empty((rounds, len(ways)))
    bar = Progress(rotations(len(ways), rounds), title, total=rounds, unit="round")
    for n, order in enumerate(bar):
        for i in order:
            seconds[n, i] = ways[i]()
    return seconds


def log_load(other_load_share: float | None) -> None:
    """Warns where other programs took so much of the processor that the figures mean little."""
    if remark := busy_remark(other_load_share):
        log(remark.strip())


def resident_mib(pid: int | None = None) -> float:
    """Resident size of a process, of this one without `pid`, now, in MiB. Source: proc_pid_status(5), VmRSS."""
    status = Path(f"/proc/{pid or 'self'}/status").read_text()
    return next(int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmRSS:"))


def new_png_figure(width_in: float, height_in: float, *, dpi: float = 100.0) -> Any:
    """An empty figure to be saved as PNG: without pyplot, which keeps every figure and may look for a display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width_in, height_in), dpi=dpi, layout="constrained")
    FigureCanvasAgg(figure)
    return figure
