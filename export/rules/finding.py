"""What a rule says about a node."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from segcore.errors import InputError

Severity = Literal["error", "warning"]
Release = tuple[int, int]
"""TensorRT's major and minor version: (10, 3)."""

OLDEST: Release = (8, 6)


@dataclass(frozen=True)
class Breach:
    """A node that breaks a rule.

    Attributes:
        node: its name; of the tensor, for graph inputs and outputs; "graph" where it is no single node's.
        text: one line: what, expected, got, what to do.
        severity: error, where TensorRT refuses the graph or computes something else; warning, where it is slower.
    """

    node: str
    text: str
    severity: Severity = "error"


@dataclass(frozen=True)
class Finding:
    """A breach, and the rule that it is of; `export.rules.check` has all rules."""

    rule: str
    severity: Severity
    node: str
    text: str

    def __str__(self) -> str:
        return f"{self.severity} {self.rule} at {self.node}: {self.text}"


def release_of(tensorrt: str) -> Release:
    """The release that a version belongs to: "10.3.0.30" → (10, 3).

    Raises:
        InputError: not a version, or older than 8.6.
    """
    parts = tensorrt.split(".")
    if len(parts) < 2 or not all(part.isdecimal() for part in parts[:2]):
        raise InputError(f"--tensorrt {tensorrt}: must be a version such as 10.3; read it on the device")
    release = int(parts[0]), int(parts[1])
    if release < OLDEST:
        raise InputError(f"--tensorrt {tensorrt}: must be 8.6 (JetPack 6.0) or newer; update JetPack")
    return release
