"""What every measuring command does around its measurement: look for the libraries, make OUT, write the record."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict

from segcore.errors import need
from segcore.outfolder import out_folder


class Part(BaseModel):
    """A record, or a part of one: what was measured does not change, and a misspelt field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class MeasuringSettings(Protocol):
    """Settings with --out and --overwrite."""

    @property
    def out(self) -> Path | None: ...

    @property
    def overwrite(self) -> bool: ...

    def model_dump(self, *, mode: str, exclude: set[str]) -> dict[str, Any]: ...


def check_libraries(*names: str) -> None:
    """Whether what draws and writes the result is there, before minutes of measuring.

    Args:
        names: of the extra `bench`: matplotlib, jinja2.

    Raises:
        InputError: one is not installed.
    """
    for name in names:
        try:
            __import__(name)
        except ImportError:
            raise need(name, "bench") from None


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
    with out_folder(settings.out, made_from, overwrite=settings.overwrite, keep_on_error=False) as folder:
        yield folder


def write_record(path: Path, record: BaseModel) -> None:
    """Writes a record as JSON for people: indented, with a newline at the end."""
    path.write_text(record.model_dump_json(indent=2) + "\n")


def resident_mib(pid: int | None = None) -> float:
    """Resident size of a process, of this one without `pid`, now, in MiB. Source: proc_pid_status(5), VmRSS."""
    status = Path(f"/proc/{pid or 'self'}/status").read_text()
    return next(int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmRSS:"))
