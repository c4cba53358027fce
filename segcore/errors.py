"""How a command can end badly without it being our bug, and the one boundary between a bad file and a bug of ours."""

from __future__ import annotations

import errno
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from traceback import walk_tb
from types import FrameType

from segcore.words import printable

LONGEST_MESSAGE = 500
"""Characters of an error's message, whatever the input held that it quotes."""
_KEPT_OF_END = 160  # what to do stands at the end of a message
_LONGEST_REASON = 120
_OURS = ("segcore", "teacher", "student", "export", "runtime", "benchmarks", "demo", "sam2edge", "__main__")
# What content that makes no sense raises, also from a built-in that has no frame of its own: int(), decode().
_NO_SENSE = (ValueError, EOFError, OverflowError, RecursionError)
_NO_ERRNO_OF_A_DISK = (
    None,
    errno.EINVAL,
)  # Pillow and gzip raise OSError, too; EINVAL is a seek to before the start


class _OneLine(Exception):
    """An error whose text is one printable line."""

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


class InputError(_OneLine):
    """The user can mend it: one line, `<name>: must be X, got Y; do Z`. A command ends with exit status 2."""


class GateError(_OneLine):
    """A parity, accuracy or latency gate failed; nothing was shipped. A command ends with exit status 3."""


def need(package: str, extra: str) -> InputError:
    """The error for a library that is not installed, naming the extra that brings it."""
    return InputError(f"{package}: must be installed, is not; run: pip install 'sam2edge[{extra}]'")


def one_line(text: str) -> str:
    """A text with what cannot be printed escaped, and its middle left out where it is longer than `LONGEST_MESSAGE`."""
    if len(text) > 4 * LONGEST_MESSAGE:
        text = text[: 2 * LONGEST_MESSAGE] + text[-LONGEST_MESSAGE:]
    text = printable(text)
    if len(text) > LONGEST_MESSAGE:
        text = f"{text[: LONGEST_MESSAGE - _KEPT_OF_END - 3]} … {text[-_KEPT_OF_END:]}"
    return text


@contextmanager
def reading(
    name: str,
    wanted: str,
    *,
    remedy: str = "copy it again",
    quoted: bool = True,
    also: type[Exception] | tuple[type[Exception], ...] = EOFError,
) -> Iterator[None]:
    """Turns what damaged content raises, in our code or a library's, into an `InputError`; a bug keeps its traceback.

    Within the block stands what parses the content and nothing else. See `is_damage` for what counts.

    Args:
        name: what the user calls the file: "--weights a.pt".
        wanted: what it must be: "a checkpoint that holds tensors only".
        remedy: what to do.
        quoted: repeat the library's words. Not of a file that may hold a patient's name.
        also: errors of other kinds that mean damage here: KeyError where our own code looks a name up in the content.

    Raises:
        InputError: `<name>: must be <wanted>, is damaged (<reason>); <remedy>`.
    """
    try:
        yield
    except Exception as error:
        if not isinstance(error, also) and not is_damage(error):
            raise
        reason = f" ({reason_of(error)})" if quoted else ""
        raise InputError(f"{name}: must be {wanted}, is damaged{reason}; {remedy}") from None


@contextmanager
def passing_over_damage(also: type[Exception] | tuple[type[Exception], ...] = EOFError) -> Iterator[None]:
    """Ends the block, and no more, where damaged content raises in it: what it would have given counts as missing.

    Args:
        also: errors of other kinds that mean damage here.
    """
    try:
        yield
    except Exception as error:
        if not isinstance(error, also) and not is_damage(error):
            raise


def is_damage(error: Exception) -> bool:
    """Whether an error that came up while content was parsed says something of the content, and not of our code.

    It does where its class means so (`ValueError`, or one that a library defines: struct.error, SafetensorError), or
    where a library's code raised it, whatever it is: pydicom raises AttributeError and TypeError on damaged headers.
    What our own lines raise, a TypeError among others, is our bug; so is what they call wrongly, for Python raises that
    in the line that calls. A disk's errors and a lack of memory say nothing of the content.
    """
    if isinstance(error, InputError | GateError | MemoryError | ImportError):
        return False
    if isinstance(error, OSError):
        return error.errno in _NO_ERRNO_OF_A_DISK
    home = type(error).__module__.partition(".")[0]
    if isinstance(error, _NO_SENSE) or home not in ("builtins", *_OURS):
        return True
    frames = [frame for frame, _ in walk_tb(error.__traceback__)]
    return bool(frames) and _is_library(frames[-1])


def _is_library(frame: FrameType) -> bool:
    module, file = str(frame.f_globals.get("__name__", "")), frame.f_code.co_filename
    if module.partition(".")[0] in _OURS:
        return False
    places = (sysconfig.get_path("stdlib"), "<frozen ")
    return file.startswith(places) or "site-packages" in file or "dist-packages" in file


def reason_of(error: Exception) -> str:
    """The first line of what an error says, without the name of its class where there is such a line."""
    if type(error).__module__.startswith("pydantic"):
        first = error.errors()[0]  # type: ignore[attr-defined]
        where = ".".join(map(str, first["loc"]))
        text = f"{where}: {first['msg']}" if where else str(first["msg"])
    else:
        text = str(error).strip().partition("\n")[0]
        if (mark := getattr(error, "problem_mark", None)) is not None:  # YAML's
            text += f", line {mark.line + 1}"
    return one_line(text)[:_LONGEST_REASON] or type(error).__name__
