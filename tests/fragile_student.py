"""Students whose FP32 function is that of the student they are made from, and which INT8 breaks. For tests and docs.

`python tests/fragile_student.py --bundle B --out O …` writes one as a torch bundle; docs/int8.md has the commands.

* `make_fragile`: some channels are written `factor` times as large and read `factor` times as small. Their activations
  take all of the 8-bit range; a layer's other channels round to nothing, and so do the weights that read them.
* `make_hopeless`: every channel exists twice, and every layer reads the one with weight w + m and its twin with −m.
  In FP32 the m cancel; in 8 bits the w between them are lost. No layer's ranges are uneven, so nothing can be levelled.
"""

from __future__ import annotations

import argparse
import copy
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import fx, nn

from segcore.bundle.folder import open_bundle, seal_bundle
from segcore.host import made_now
from segcore.learn.network import save_weights
from student.network import Student, build_student, load_student

_WEIGHTED = (nn.Conv2d, nn.ConvTranspose2d)


@torch.no_grad()
def make_fragile(network: Student, *, layers: Sequence[str], factor: float, channels: int = 2) -> Student:
    """A copy of equal function, some of whose activations have channels `factor` times as large.

    Args:
        network: left as it is.
        layers: convolutions, as the network names them ("merge.2.0"), followed by a batch norm and ReLU, whose output
            is read by one layer.
        factor: how much larger, above 0.
        channels: so many of each layer's, spread evenly.
    """
    network = copy.deepcopy(network).eval()
    graph = fx.symbolic_trace(network)
    for name in layers:
        norm, reader = _norm_and_reader(graph, name)
        picked = torch.linspace(0, norm.num_features - 1, channels + 2)[1:-1].long()
        norm.weight[picked] *= factor
        norm.bias[picked] *= factor
        if isinstance(reader, nn.ConvTranspose2d):
            reader.weight[picked] /= factor
        else:
            reader.weight[:, picked] /= factor
    return network


def fragile_layers(network: Student) -> tuple[str, ...]:
    """Every layer that `make_fragile` can take, in the order of the graph."""
    graph = fx.symbolic_trace(network)
    found = []
    for node in graph.graph.nodes:
        if node.op == "call_module" and isinstance(graph.get_submodule(node.target), nn.Conv2d):
            try:
                _norm_and_reader(graph, node.target)
            except ValueError:
                continue
            found.append(node.target)
    return tuple(found)


def _norm_and_reader(graph: fx.GraphModule, name: str) -> tuple[nn.BatchNorm2d, nn.Module]:
    """The batch norm behind a convolution, and the only layer that reads what comes out."""
    (node,) = (n for n in graph.graph.nodes if n.target == name)
    norm, passed = None, (nn.BatchNorm2d, nn.ReLU, nn.MaxPool2d)
    while True:
        if len(node.users) != 1:
            raise ValueError(f"{name}: its output is read in several places")
        (node,) = node.users
        layer = graph.get_submodule(node.target) if node.op == "call_module" else None
        if isinstance(layer, nn.BatchNorm2d) and norm is None:
            norm = layer
        if isinstance(layer, _WEIGHTED) and norm is not None:
            return norm, layer
        if not isinstance(layer, passed):
            raise ValueError(f"{name}: its output passes {layer or node.target}")


@torch.no_grad()
def make_hopeless(network: Student, *, cancelling: float, layers: Sequence[str] = ()) -> Student:
    """A student of twice the widths and equal function, in which layers subtract two large numbers.

    Args:
        network: of plain blocks, strided or pooled, with sums; left as it is.
        cancelling: m, in units of each layer's largest weight.
        layers: that do so, as the network names them; by default every one but the first.

    Source: Chen et al., Net2Net, ICLR 2016, for widening by twins.
    """
    design = network.design
    wide = design.model_copy(update={"widths": tuple(2 * w for w in design.widths)})
    outputs = network.head.out_channels // design.head_upscale**2
    called = (n.target for n in fx.symbolic_trace(network).graph.nodes if n.op == "call_module")
    first = next(m for m in map(network.get_submodule, called) if isinstance(m, nn.Conv2d))
    stem = design.stem_stride**2 if design.stem == "unshuffle" else 1
    twin = build_student(wide, channels=first.in_channels // stem, outputs=outputs)
    ours = dict(network.named_modules())
    for name, layer in twin.named_modules():
        source = ours[name]
        if isinstance(layer, nn.Conv2d):
            weight = source.weight
            if layer.in_channels != source.in_channels:  # not the picture's
                share = cancelling if name in layers or not layers else 0.0
                m = share * weight.abs().max() * torch.randn_like(weight).sign()
                weight = torch.cat([weight + m, -m], dim=1)
            copies = layer.out_channels // source.out_channels
            layer.weight.copy_(torch.cat([weight] * copies))
            layer.bias.copy_(torch.cat([source.bias] * copies))
        elif isinstance(layer, nn.BatchNorm2d):
            for mine, theirs in zip(
                [*layer.parameters(), layer.running_mean, layer.running_var],
                [*source.parameters(), source.running_mean, source.running_var],
                strict=True,
            ):
                mine.copy_(torch.cat([theirs, theirs]))
    return twin.eval()


def write_bundle(source: Path, network: Student, out: Path, name: str, **changes: object) -> None:
    """Seals `network` in `out` (a new folder) with the manifest of the bundle that it was made from, and `changes`."""
    parent = open_bundle(source).manifest
    out.mkdir(parents=True)
    save_weights(out / parent.model_file, network)
    carried = {key: value for key, value in parent if key not in {"files", "schema_version"}}
    parameters = sum(p.numel() for p in network.parameters())
    carried |= {
        "name": name,
        "architecture": "student",
        "architecture_settings": network.design.model_dump(mode="json"),
        "parameters": parameters,
        "trained_parameters": parameters,
        "parent": open_bundle(source).sha256,
        "quality": None,  # fitted to the logits of the parent in float
        "made": made_now(),
        "lineage": (*parent.lineage, parent.made),
    }
    seal_bundle(out, **(carried | changes))


def main() -> None:
    """Writes a fragile bundle."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True, help="a student in torch format")
    parser.add_argument("--out", type=Path, required=True, help="the bundle to write")
    parser.add_argument("--layers", nargs="*", default=[], help="all: every one that make_fragile can take")
    parser.add_argument("--factor", type=float, default=100.0, help="for make_fragile")
    parser.add_argument("--channels", type=int, default=2, help="for make_fragile")
    parser.add_argument(
        "--cancelling",
        type=float,
        default=0.0,
        help="for make_hopeless, of all layers or of --layers; 0: make_fragile",
    )
    parser.add_argument("--overwrite", action="store_true")
    args = parser.parse_args()
    torch.manual_seed(0)
    network = load_student(open_bundle(args.bundle))
    layers = fragile_layers(network) if args.layers == ["all"] else args.layers
    if args.cancelling:
        network = make_hopeless(network, cancelling=args.cancelling, layers=layers)
    else:
        network = make_fragile(network, layers=layers, factor=args.factor, channels=args.channels)
    if args.overwrite:
        shutil.rmtree(args.out, ignore_errors=True)
    write_bundle(args.bundle, network, args.out, f"{open_bundle(args.bundle).manifest.name}, fragile")
    print(args.out)


if __name__ == "__main__":
    main()
