"""Names for the layers of a graph: those that torch's modules have, which a reader of the sensitivity table knows.

The exporter numbers its nodes as they come (`node_Conv_83`); weights keep their names (`network.stem.0.weight`).
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx

from export.graph.view import WEIGHTED, Graph, Node, view_graph

_PREFIX = "network."


def name_layers(model: onnx.ModelProto) -> None:
    """Renames, in place, operators with weights by their weights, and Adds, Concats and Resizes by who reads them.

    `stem.0`, `encoder.blocks.0.attn.qkv`, `merge.1.0.add`. Other nodes keep the exporter's names. Equal networks give
    equal names.
    """
    graph = view_graph(model)
    taken: set[str] = set()
    names = {}
    for node, name in [*_weighted_names(graph), *_joint_names(graph)]:
        unique = next(n for n in _numbered_names(name) if n not in taken)
        taken.add(unique)
        names[node.name] = unique
    for i, node in enumerate(model.graph.node):
        node.name = names.get(node.name, node.name) or f"{node.op_type}_{i}"


def _weighted_names(graph: Graph) -> Iterator[tuple[Node, str]]:
    for node in graph.of(*WEIGHTED):
        if node.input(1) in graph.fixed:
            yield node, _module_name(graph, node) or node.name


def _module_name(graph: Graph, node: Node) -> str:
    """The torch module's name, from its weight, or from its bias: a linear layer's transposed weight has none."""
    adds = [reader for reader in graph.consumers(node.output) if reader.op == "Add"]
    for name in [*node.inputs[1:], *(one for add in adds for one in add.inputs)]:
        for suffix in (".weight", ".bias"):
            if name in graph.fixed and name.endswith(suffix):
                module = name.removesuffix(suffix)
                while module.startswith(_PREFIX):
                    module = module.removeprefix(_PREFIX)
                return module
    return ""


def _joint_names(graph: Graph) -> Iterator[tuple[Node, str]]:
    modules = {node.name: name for node, name in _weighted_names(graph)}
    for node in graph.of("Add", "Concat", "Resize"):
        if node.op != "Resize" and any(name in graph.fixed for name in node.inputs):
            continue
        reader: Node | None = node
        while reader is not None and reader.name not in modules:
            reader = next(iter(graph.consumers(reader.output)), None)
        if reader is not None:
            yield node, f"{modules[reader.name]}.{node.op.lower()}"


def _numbered_names(name: str) -> Iterator[str]:
    yield name
    number = 2
    while True:
        yield f"{name}_{number}"
        number += 1
