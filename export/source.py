"""Opens the network that is to be exported."""

from __future__ import annotations

from torch import nn

from segcore.bundle.folder import Bundle
from segcore.errors import InputError
from segcore.learn.network import DeployGraph
from segcore.picture.preprocess import InputSpec


def open_network(bundle: Bundle) -> nn.Module:
    """The network of a torch bundle, student or teacher: a plain module in eval mode.

    Raises:
        InputError: the bundle is not in torch format.
    """
    if bundle.manifest.format != "torch":
        raise InputError(
            f"bundle {bundle.folder}: must be in torch format, got {bundle.manifest.format}; "
            "export the bundle that it was made from"
        )
    if bundle.manifest.kind == "teacher":
        from teacher.system import load_teacher

        network: nn.Module = load_teacher(bundle)
        return network
    from student.network import load_student

    return load_student(bundle)


def open_graph(bundle: Bundle) -> DeployGraph:
    """The network inside the graph contract: 8-bit picture in, logits out; in eval mode.

    Raises:
        InputError: the bundle is not in torch format.
    """
    return as_graph(open_network(bundle), bundle.manifest.input)


def as_graph(network: nn.Module, spec: InputSpec) -> DeployGraph:
    """A network behind the graph contract at some input; in eval mode."""
    graph = DeployGraph(network, spec)
    graph.eval()
    return graph
