"""The two ways a command can end badly without it being our bug."""


class InputError(Exception):
    """The user can mend it: one line, `<name>: must be X, got Y; do Z`. A command ends with exit status 2."""


class GateError(Exception):
    """A parity, accuracy or latency gate failed; nothing was shipped. A command ends with exit status 3."""


def need(package: str, extra: str) -> InputError:
    """The error for a library that is not installed, naming the extra that brings it."""
    return InputError(f"{package}: must be installed, is not; run: pip install 'sam2edge[{extra}]'")
