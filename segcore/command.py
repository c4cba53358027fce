"""Turns a settings class into a command: flags, `--config FILE.yaml`, `--help`, exit statuses.

A command is a pydantic model whose fields are the flags (the docstring under a field is its help) and a
function that takes one. pydantic-settings makes the parser: command line, YAML and types cannot disagree.
"""

from __future__ import annotations

import errno
import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from segcore.errors import GateError, InputError

EXIT_INPUT, EXIT_GATE, EXIT_INTERRUPTED = 2, 3, 130


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
    import yaml

    if not path.is_file():
        raise InputError(f"--config {path}: must be a YAML file, no such file")
    try:
        values = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise InputError(f"--config {path}: must be YAML, got {str(error).splitlines()[0]}") from None
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
    if "-h" in words or "--help" in words:
        print("every command also takes --config FILE.yaml with the same names\n", file=sys.stderr)
    try:
        main(parse_settings(settings, prog, words))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(EXIT_INPUT)
    except GateError as error:
        print(f"gate failed: {error}", file=sys.stderr)
        sys.exit(EXIT_GATE)
    except KeyboardInterrupt:
        print("interrupted; run the same command again to go on", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)
    except OSError as error:
        problem = _mendable_message(error)
        if problem is None:
            raise
        print(f"error: {problem}", file=sys.stderr)
        sys.exit(EXIT_INPUT)
    sys.exit(0)


def _mendable_message(error: OSError) -> str | None:
    """One line for a full disk or a forbidden file; None for what is our bug."""
    name = error.filename or "output"
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"{name}: must be readable and writable, permission denied; change its permissions"
    if error.errno == errno.EROFS:
        return f"{name}: must be writable, the file system is read-only; choose another --out"
    # numpy's tofile reports a full disk as "N requested and M written", without an errno.
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) or re.search(
        r"requested and \d+ written", str(error)
    ):
        reason = error.strerror or "the disk is full"
        return (
            f"{name}: cannot be written, {reason}; nothing was kept that looks finished: "
            "free some space or choose another --out"
        )
    return None


def print_result(**result: Any) -> None:
    """Prints the one JSON line that scripts read: the last line of stdout."""
    if is_helper_process():
        return
    print(json.dumps(result, default=str), flush=True)


def log(message: str) -> None:
    """Progress and remarks go to stderr; stdout is for results."""
    if is_helper_process():
        return
    print(message, file=sys.stderr, flush=True)


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
