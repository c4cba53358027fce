"""What travels in a manifest or a report: frozen, without unknown fields, and with text that is safe to print.

A manifest is a stranger's file, and much of it is told on terminals and in logs: names, commands, notes, versions. So
its text holds no character that a terminal would obey, from the moment that it is read; nobody who prints needs to ask.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator

from segcore.words import printable


class Record(BaseModel):
    """Base of all parts of a manifest. Every text of it, at any depth and in keys, too, is `printable`.

    What is no text to print is escaped and not refused: a command line may hold a line feed, and a training must not
    fail for it when it is sealed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _printable_text(cls, fields: Any) -> Any:
        return _printable_values(fields)


def _printable_values(value: Any) -> Any:
    """JSON values with every text `printable`; models in them are already."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return {_printable_values(key): _printable_values(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_printable_values(item) for item in value)
    return value
