"""A command never writes over what it reads."""

from __future__ import annotations

from pathlib import Path

from segcore.errors import InputError


def check_apart(out: Path, source: Path, flag: str) -> None:
    """Refuses an OUT that holds the input or lies in it: `--overwrite` must not delete the user's files.

    Raises:
        InputError: the two overlap.
    """
    a, b = out.resolve(), source.resolve()
    if a == b or a in b.parents or b in a.parents:
        raise InputError(f"--out {out}: must be apart from {flag} {source}, is not; choose another folder")
