"""Checks a graph against the rules of `table.py`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import onnx

from export.graph.view import view_graph
from export.rules.finding import Finding, release_of
from export.rules.table import FILE_RULES, RULES
from segcore.errors import GateError

VERSIONS = ("8.6", "10.3", "10.13", "10.16", "11.4")
"""TensorRT of JetPack 6.0, 6.1 to 6.2.2, 7.0 and 7.1, 7.2, and 7.2.2 on with 11.4."""


def check_graph(model: onnx.ModelProto, tensorrt: str) -> list[Finding]:
    """What TensorRT would refuse, compute wrongly or compute slowly, errors first.

    Args:
        model: as the file holds it. Data outside the file are not read: with G5, nothing but the file is checked.
        tensorrt: version, "8.6" or newer; `VERSIONS` are those that JetPacks have.

    Returns:
        Findings; the graph follows every rule if there is none.

    Raises:
        InputError: not a version that we know.
    """
    return check_versions(model, (tensorrt,))[tensorrt]


def check_versions(model: onnx.ModelProto, versions: Iterable[str]) -> dict[str, list[Finding]]:
    """`check_graph` for several versions, of a graph that is indexed once."""
    releases = {version: release_of(version) for version in versions}
    found = {version: check_file(model, version) for version in releases}
    if any(finding.rule in ("G3", "G5") for findings in found.values() for finding in findings):
        return found  # shapes of foreign operators, and values of foreign files, are not known
    graph = view_graph(model)
    for version, release in releases.items():
        for rule in RULES:
            for breach in rule.check(graph, release):
                found[version].append(Finding(rule.id, breach.severity, breach.node, breach.text))
        found[version].sort(key=lambda finding: finding.severity)  # stable: errors, then warnings
    return found


def check_file(model: onnx.ModelProto, tensorrt: str) -> list[Finding]:
    """What is wrong with the file as a whole (`FILE_RULES`): opset, domains, operators, external data."""
    release = release_of(tensorrt)
    return [
        Finding(rule.id, breach.severity, breach.node, breach.text)
        for rule in FILE_RULES
        for breach in rule.check(model, release)
    ]


def require_clean(model: onnx.ModelProto, versions: Sequence[str], *, name: str) -> list[Finding]:
    """Checks a graph that is about to be shipped.

    Args:
        model: as `check_graph` takes it.
        versions: of TensorRT that the file is meant for.
        name: the user's own name for it.

    Returns:
        The warnings, each once.

    Raises:
        GateError: a version would refuse it or compute something else.
    """
    found = check_versions(model, versions)
    errors = [(version, f) for version, findings in found.items() for f in findings if f.severity == "error"]
    if errors:
        version, first = errors[0]
        others = len({finding for _, finding in errors}) - 1
        more = f"; and {others} more, which python -m export.check lists" if others else ""
        raise GateError(
            f"{name}: TensorRT {version}, rule {first.rule}, node {first.node}: {first.text}{more}"
        )
    return list(dict.fromkeys(finding for findings in found.values() for finding in findings))
