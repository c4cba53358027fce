"""A student as a graph of layers, which quantisation-aware fine-tuning and scale equalisation both walk."""

from __future__ import annotations

import copy
import operator

import torch
import torch.nn.functional as F
from torch import fx, nn

from student.network import Student, sealed_form

WEIGHTED = (nn.Conv2d, nn.ConvTranspose2d)
_COPIES = (nn.MaxPool2d, nn.PixelShuffle, nn.PixelUnshuffle, nn.Identity)


def trace(network: Student) -> fx.GraphModule:
    """The network's graph; its layers are the network's own, not copies: training one trains the other."""
    return fx.symbolic_trace(network)


def layer_of(graph: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    """The layer that a node calls; None for functions, inputs and outputs."""
    return graph.get_submodule(str(node.target)) if node.op == "call_module" else None


def is_add(node: fx.Node) -> bool:
    """Whether a node is the sum of two tensors."""
    return node.op == "call_function" and node.target in (operator.add, torch.add)


def is_concat(node: fx.Node) -> bool:
    """Whether a node joins tensors along their channels."""
    return node.op == "call_function" and node.target is torch.cat


def is_copy(graph: fx.GraphModule, node: fx.Node) -> bool:
    """Whether every number of the output is one of the input, so that one scale serves both."""
    layer = layer_of(graph, node)
    nearest = isinstance(layer, nn.Upsample) and layer.mode == "nearest"
    return nearest or isinstance(layer, _COPIES) or node.target in (F.pixel_shuffle, F.pixel_unshuffle)


@torch.no_grad()
def fold_norms(network: Student) -> Student:
    """A copy of equal function in eval mode, whose convolutions hold what their batch norms did.

    Each norm stays in its place as an identity, so that the copy is still a student of the same design.

    Args:
        network: left as it is.
    """
    network = copy.deepcopy(sealed_form(network)).eval()
    graph = trace(network)
    for node, norm in norms_behind_convolutions(graph):
        source = node.all_input_nodes[0]
        layer = layer_of(graph, source)
        assert isinstance(layer, WEIGHTED)
        assert layer.bias is not None  # the family's convolutions all have one
        assert norm.running_mean is not None
        assert norm.running_var is not None
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        layer.weight.mul_(scale.view((-1, 1, 1, 1)))
        layer.bias.copy_((layer.bias - norm.running_mean) * scale + norm.bias)
        norm.weight.fill_((1 + norm.eps) ** 0.5)  # undoes 1/√(running variance 1 + ε)
        norm.bias.zero_()
        norm.running_mean.zero_()
        norm.running_var.fill_(1)
    return network


def norms_behind_convolutions(graph: fx.GraphModule) -> list[tuple[fx.Node, nn.BatchNorm2d]]:
    """Every batch norm, with its node, that is all that follows its convolution: those of the whole family."""
    found = []
    for node in graph.graph.nodes:
        norm = layer_of(graph, node)
        if isinstance(norm, nn.BatchNorm2d):
            source = node.all_input_nodes[0]
            if isinstance(layer_of(graph, source), nn.Conv2d) and len(source.users) == 1:
                found.append((node, norm))
    return found
