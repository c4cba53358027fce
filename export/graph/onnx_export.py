"""Writes the graph contract as ONNX: opset 17, IR ≤ 10, static batch, one file.

Opset 17 is what TensorRT 8.6 (JetPack 6.0) and onnxruntime 1.23 (the newest for Python 3.10) read, and the
first with LayerNormalization, which FP16 needs in one piece.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from export.graph.fold import fold_constants
from export.graph.layer_names import name_layers
from export.graph.opset import to_opset_17
from export.graph.quiet import quiet
from segcore.learn.deploy import DeployGraph
from segcore.picture.preprocess import InputSpec, OutputSpec

OPSET, MAX_IR = 17, 10
INPUT, OUTPUT = "picture", "logits"
Ends = Mapping[str, tuple[int, list[int]]]
"""Inputs and outputs by name: type, as ONNX numbers it, and shape."""
_MIN_HALVED = 256  # numbers in a tensor; below, 16 bits save nothing worth a node


def write_onnx(
    graph: DeployGraph, input_spec: InputSpec, output_spec: OutputSpec, path: Path, *, batch: int = 1
) -> None:
    """Exports the graph in FP32 and checks that the file keeps the contract.

    Args:
        graph: in eval mode.
        input_spec: its input.
        output_spec: its output.
        path: file to write.
        batch: pictures a call.

    Raises:
        RuntimeError: what the exporter wrote breaks the contract; this architecture cannot be exported so.
    """
    picture = torch.zeros(batch, *input_spec.size_px, input_spec.channels, dtype=torch.uint8)
    model = traced_model(graph, {INPUT: picture}, (OUTPUT,), path)
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


def halve_weights(path: Path, input_spec: InputSpec, output_spec: OutputSpec, *, batch: int = 1) -> None:
    """Stores large weights in 16 bits, with a Cast back to 32: half the file, arithmetic still in FP32.

    Biases, normalisation and whatever would overflow stay in 32 bits. Engines fold the casts when loading.
    """
    model = onnx.load(path, load_external_data=False)
    halve(model)
    check_onnx(model, input_spec, output_spec, batch=batch)
    onnx.save(model, path)


def halve(model: onnx.ModelProto) -> None:
    """What `halve_weights` does, in place."""
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
