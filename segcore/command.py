"""Turns a settings class into a command: flags, `--config FILE.yaml`, `--help`, exit statuses.

A command is a pydantic model whose fields are the flags (the docstring under a field is its help) and a
function that takes one. pydantic-settings makes the parser: command line, YAML and types cannot disagree.
"""

from __future__ import annotations

import errno
import io
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, NoReturn, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from segcore.errors import GateError, InputError, one_line
from segcore.text import read_yaml
from segcore.words import plural, rough_time

if TYPE_CHECKING:
    from tqdm import tqdm

EXIT_INPUT, EXIT_GATE, EXIT_INTERRUPTED = 2, 3, 130
_LINE_S, _LINE_SHARE, _LONGEST_SILENCE_S = 30.0, 0.1, 600.0
"""Between two lines of `Progress` in a log: at least so long and so much of the work, at most so long."""


class Settings(BaseModel):
    """Base of every command's settings: frozen, no unknown keys, field docstrings become `--help`."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


S = TypeVar("S", bound=Settings)


def parse_settings(settings: type[S], prog: str, argv: Sequence[str]) -> S:
    """Parses `argv` over the YAML named by `--config` over the defaults.

    Raises:
        InputError: the YAML or a value is wrong; every wrong field is named.
        SystemExit: `--help` (0) or an unknown flag (2), from argparse.
    """
    from pydantic_settings import BaseSettings, CliApp, SettingsConfigDict

    rest, base = _take_config(list(argv))
    if unknown := [
        key for key in base if key not in settings.model_fields
    ]:  # pydantic's own words would come first
        raise InputError(
            "; ".join(_field_message({"loc": [key], "type": "extra_forbidden"}) for key in unknown)
        )

    class CommandLine(settings, BaseSettings):  # type: ignore[valid-type,misc]
        model_config = SettingsConfigDict(
            cli_prog_name=prog,
            cli_kebab_case=True,
            cli_implicit_flags=True,
            cli_hide_none_type=True,
            cli_avoid_json=True,
            use_attribute_docstrings=True,
            extra="forbid",
        )

        @classmethod
        def settings_customise_sources(  # type: ignore[override]
            cls, settings_cls: Any, init_settings: Any, **_: Any
        ) -> tuple[Any]:
            return (init_settings,)  # environment variables such as DATA or SEED must not leak in

    CommandLine.__doc__ = settings.__doc__
    try:
        parsed = CliApp.run(CommandLine, cli_args=rest, **base)
        return settings.model_validate(parsed.model_dump(exclude_unset=True))  # a default stays known as one
    except ValidationError as error:
        raise InputError("; ".join(_field_message(e) for e in error.errors())) from None


def _take_config(argv: list[str]) -> tuple[list[str], dict[str, Any]]:
    for i, word in enumerate(argv):
        if word == "--config" or word.startswith("--config="):
            inline = word.partition("=")[2]
            path = inline or (argv[i + 1] if i + 1 < len(argv) else "")
            return argv[:i] + argv[i + (1 if inline else 2) :], read_config(Path(path))
    return argv, {}


def read_config(path: Path) -> dict[str, Any]:
    """Reads a YAML mapping of settings.

    Raises:
        InputError: there is no such file, or it does not hold a mapping.
    """
    if not path.is_file():
        raise InputError(f"--config {path}: must be a YAML file, no such file")
    values = read_yaml(path, f"--config {path}")
    if not isinstance(values, dict):
        raise InputError(f"--config {path}: must hold `name: value` lines, got {type(values).__name__}")
    return {str(key).replace("-", "_"): value for key, value in values.items()}


def _field_message(error: Any) -> str:
    name = "--" + str(error["loc"][0]).replace("_", "-") if error["loc"] else "settings"
    if error["type"] == "missing":
        return f"{name}: must be given"
    if error["type"] == "extra_forbidden":
        return f"{name}: no such setting; see --help"
    message = str(error["msg"]).removeprefix("Input should be ").removeprefix("Value error, ")
    return f"{name}: must be {message}, got {error['input']!r}"


def run_command(
    main: Callable[[S], None], settings: type[S], prog: str, argv: Sequence[str] | None = None
) -> NoReturn:
    """Parses, runs `main`, and exits with how it ended (0, 2, 3, 130; 1 keeps its traceback)."""
    words = sys.argv[1:] if argv is None else list(argv)
    _fill_standard_streams()
    if "-h" in words or "--help" in words:
        log("every command also takes --config FILE.yaml with the same names\n")
    status, problem = 0, ""
    try:
        main(parse_settings(settings, prog, words))
    except SystemExit as end:  # argparse has said why
        status = end.code if isinstance(end.code, int) else EXIT_INPUT
    except InputError as error:
        status, problem = EXIT_INPUT, f"error: {error}"
    except GateError as error:
        status, problem = EXIT_GATE, f"gate failed: {error}"
    except KeyboardInterrupt:
        status, problem = EXIT_INTERRUPTED, "interrupted; run the same command again to go on"
    except _OF_THE_MACHINE as error:
        problem = _machine_message(error)
        if not problem:
            raise
        status, problem = EXIT_INPUT, f"error: {one_line(problem)}"
    # Here and not when the interpreter ends, which has no line for it, and a status of its own.
    try:
        sys.stdout.flush()
    except OSError as error:
        if not status:
            status, problem = EXIT_INPUT, f"error: {_machine_message(error)}"
        _silence(sys.stdout, 1)
    if problem:
        _tell(problem)
    sys.exit(status)


# --- what a run stands on: standard streams, disk, memory ---

_OF_THE_MACHINE = (OSError, MemoryError, RuntimeError, ImportError, SystemError)
"""What is raised where the machine has no more to give; torch and OpenVINO say it with a RuntimeError."""
_STDOUT = "standard output"
_NO_MEMORY = re.compile(
    r"(can.?t|cannot|could not|failed to|unable to) allocate|out of memory|bad_alloc|failed to map segment|"
    r"can't start new thread",
    re.IGNORECASE,
)


def _fill_standard_streams() -> None:
    """Lets a stream that was closed (`2>&-`) end in the null device.

    Else the next file that is opened has its number, and gets what libraries print.
    """
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(number, True)
    os.close(number)
    if sys.stderr is None:
        sys.stderr = os.fdopen(2, "w", closefd=False)
    if sys.stdout is None:
        log("stdout is closed: the results are written to files alone")
    if sys.stdout is None or sys.stdout is sys.__stdout__:  # not where a test or a notebook takes it
        encoding, errors = (sys.stdout.encoding, sys.stdout.errors) if sys.stdout else (None, None)
        raw = _RawStdout(1, "w", closefd=False)
        sys.stdout = io.TextIOWrapper(io.BufferedWriter(raw), encoding, errors, line_buffering=raw.isatty())


class _RawStdout(io.FileIO):
    """Standard output whose errors say that they are of it: those of a write do not tell of what file."""

    def write(self, content: Any) -> int:
        try:
            return super().write(content)
        except OSError as error:
            error.filename = _STDOUT
            raise


def _silence(stream: Any, number: int) -> None:
    """Lets what a stream still holds go nowhere, so that the interpreter's end does not fail at it."""
    if stream is sys.__stderr__ or isinstance(getattr(stream.buffer, "raw", None), _RawStdout):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, number)
        os.close(null)


def _machine_message(error: BaseException) -> str:
    """One line for a full disk, a forbidden file or too little memory; an empty string for what is our bug."""
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    number = error.errno if isinstance(error, OSError) else None
    if (
        isinstance(error, MemoryError)
        or number in (errno.ENOMEM, errno.EAGAIN)
        or (_NO_MEMORY.search(str(error)) and "static TLS" not in str(error))
    ):
        return (
            f"memory: must be enough for this run, ran out ({reason[:200]}); close other programs, raise the limit "
            "(ulimit -v, ulimit -u), or ask for less at once: smaller batches or pictures, fewer workers or threads"
        )
    if not isinstance(error, OSError):
        return ""
    if error.filename == _STDOUT:
        return (
            f"stdout: must take the results, could not ({error.strerror}); the files that were written stay: send it "
            "to a file, or to a program that reads it to the end"
        )
    name = error.filename or "output"
    if number in (errno.EACCES, errno.EPERM):
        return f"{name}: must be readable and writable, permission denied; change its permissions"
    if number == errno.EROFS:
        return f"{name}: must be writable, the file system is read-only; choose another --out"
    if number == errno.ENAMETOOLONG:
        return f"{name}: must have a shorter name, it is too long for this disk; choose another"
    if number in (errno.EMFILE, errno.ENFILE):
        return f"{name}: must be opened, too many files are open already; raise the limit (ulimit -n)"
    if number == errno.EIO:
        return f"{name}: must be readable and writable, its disk or its connection fails ({error.strerror}); see to it"
    # numpy's tofile reports a full disk as "N requested and M written", without an errno.
    if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) or re.search(
        r"requested and \d+ written", str(error)
    ):
        reason = error.strerror or "the disk is full"
        return (
            f"{name}: cannot be written, {reason}; nothing was kept that looks finished: "
            "free some space or choose another --out"
        )
    return ""


def print_result(**result: Any) -> None:
    """Prints the one JSON line that scripts read: the last line of stdout."""
    if is_helper_process():
        return
    print(json.dumps(result, default=str), flush=True)


def log(message: str) -> None:
    """Progress and remarks go to stderr; stdout is for results."""
    if is_helper_process():
        return
    _tell(message)


def _tell(message: str) -> None:
    """Writes to stderr. That its reader is gone, or its disk full, is no reason to end hours of work."""
    try:
        print(message, file=sys.stderr, flush=True)
    except OSError:
        _silence(sys.stderr, 2)


T = TypeVar("T")


class Progress(Generic[T]):
    """How far a command is, on stderr: a bar on a terminal, else a plain line now and then.

    A log holds a line after 30 s of work and a tenth of it, whichever is later, but at least one in 10 minutes; what
    takes less than 30 s leaves none. Go round it (each item counts 1), or call `update` within a `with` block.

    Attributes:
        n: units done.
    """

    def __init__(
        self,
        items: Iterable[T] = (),
        label: str = "",
        *,
        unit: str,
        total: int | None = None,
        done: int = 0,
        leave: bool = True,
        position: int | None = None,
    ) -> None:
        """Starts at `done` units.

        Args:
            items: what to go round.
            label: what is being done.
            unit: its name for one, "image".
            total: units of all the work; by default as many as there are items, where they can be counted.
            done: units that an earlier run did.
            leave: whether the finished bar, or a last line of a long work, stays.
            position: row of the bar, where several stand below each other.
        """
        self.items, self.label, self.unit, self.leave = items, label, unit, leave
        self.total = len(items) if total is None and isinstance(items, Sized) and items else total
        self.n = self._begun = self._told = done
        self._note = ""
        self._started = self._last = time.monotonic()
        self._bar: tqdm[Any] | None = None
        if sys.stderr.isatty() and not is_helper_process():
            from tqdm import tqdm  # here, because it takes a tenth of a second to import

            self._bar = tqdm(
                total=self.total, initial=done, desc=label or None, unit=unit, leave=leave, position=position
            )

    def __iter__(self) -> Iterator[T]:
        with self:
            for item in self.items:
                yield item
                self.update()

    def __enter__(self) -> Progress[T]:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close()

    def update(self, units: int = 1) -> None:
        """So many more are done."""
        self.n += units
        if self._bar is not None:
            self._bar.update(units)
            return
        silent = time.monotonic() - self._last
        much = self.total is None or self.n - self._told >= _LINE_SHARE * self.total
        if (silent >= _LINE_S and much) or silent >= _LONGEST_SILENCE_S:
            self._tell()

    def note(self, text: str) -> None:
        """Shows a remark beside the count: "3 failed"."""
        self._note = text
        if self._bar is not None:
            self._bar.set_postfix_str(text)

    def write(self, message: str) -> None:
        """Writes a line of its own to stderr, above the bar."""
        if self._bar is not None:
            self._bar.write(message, file=sys.stderr)
        else:
            log(message)

    def close(self) -> None:
        """Ends the bar; a log gets a last line if it got one before, or if the work took long."""
        if self._bar is not None:
            self._bar.close()
        elif self.leave and self.n > self._told and time.monotonic() - self._started >= _LINE_S:
            self._tell()
        self.leave = False  # closing twice tells once

    def _tell(self) -> None:
        """One line: "labelling: 40 % (120 of 300 images) after 2 min, 3 min left, 3 failed"."""
        self._last, self._told = time.monotonic(), self.n
        gone = self._last - self._started
        text = f"{self.label}: " if self.label else ""
        if self.total:
            share = self.n / self.total
            text += (
                f"{100 * share:.0f} % ({self.n} of {plural(self.total, self.unit)}) after {rough_time(gone)}"
            )
            if self.n > self._begun and self.n < self.total:
                text += f", {rough_time(gone * (self.total - self.n) / (self.n - self._begun))} left"
        else:
            text += f"{plural(self.n, self.unit)} after {rough_time(gone)}"
        log(text + (f", {self._note}" if self._note else ""))


def is_helper_process() -> bool:
    """Whether this is one of several processes of `accelerate launch`, and not the first."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and int(os.environ.get("RANK", "0")) > 0


def repeat_flags(words: Sequence[str], flags: Sequence[str]) -> list[str]:
    """`--threads 1 2` to `--threads 1 --threads 2`, which is what `parse_settings` reads.

    Args:
        words: of the command line.
        flags: which may be followed by several values.
    """
    repeated: list[str] = []
    listing = ""  # the flag whose values follow
    for word in words:
        if word.startswith("--"):
            listing = word if word in flags else ""
        elif listing and repeated[-1] != listing:
            repeated.append(listing)
        repeated.append(word)
    return repeated
