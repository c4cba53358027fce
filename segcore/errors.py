"""The two ways a command can end badly without it being our bug."""

_LONGEST = 500
_LONGEST_TAIL = 180
"""Characters of a message, and of its end, which says what to do."""


class _OneLine(Exception):
    """An error whose text is fit for a terminal, a log and a page, whatever the input held that it quotes."""

    def __str__(self) -> str:
        return one_line(super().__str__())


class InputError(_OneLine):
    """The user can mend it: one line, `<name>: must be X, got Y; do Z`. A command ends with exit status 2."""


class GateError(_OneLine):
    """A parity, accuracy or latency gate failed; nothing was shipped. A command ends with exit status 3."""


def one_line(text: str) -> str:
    """The text with control and other invisible characters shown escaped, and its middle left out where it is long."""
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    if len(shown) <= _LONGEST:
        return shown
    return f"{shown[: _LONGEST - _LONGEST_TAIL - 5]} ... {shown[-_LONGEST_TAIL:]}"


def need(package: str, extra: str) -> InputError:
    """The error for a library that is not installed, naming the extra that brings it."""
    return InputError(f"{package}: must be installed, is not; run: pip install 'sam2edge[{extra}]'")
