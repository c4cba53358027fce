"""NVIDIA's own parser and compiler as the last gate of TensorRT's graphs, where it is installed."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from runtime.engines.seam import EXTRAS, installed
from runtime.trt.layers import prove_int8
from runtime.trt.rtx import ENGINE, JUDGED_FOR, CompileRequest, compile_apart
from segcore.bundle.manifest import CompiledGraph, CompilerVerdict
from segcore.bundle.story import compiled_words
from segcore.command import log
from segcore.errors import GateError


def judge_graphs(
    folder: Path, *, must_compile: bool, int8_nodes: Collection[str] = ()
) -> CompilerVerdict | None:
    """Has NVIDIA's compiler read and compile every ONNX file of a folder; the engines are thrown away.

    Args:
        folder: of the bundle to write.
        must_compile: a refusal ends the export; else it is noted.
        int8_nodes: quantised convolutions and matrix products of the model's files; what the compiler did not keep in
            INT8 is named in the log.

    Returns:
        The verdict for the manifest; None where the compiler is not installed.

    Raises:
        GateError: it refuses a graph, or dies of it.
    """
    if not installed(ENGINE):
        log(f"not judged by NVIDIA's compiler: to have it, pip install 'sam2edge[{EXTRAS[ENGINE]}]'")
        return None
    graphs, compiler = list[CompiledGraph](), ""
    for path in sorted(folder.glob("*.onnx")):
        compilation = compile_apart(CompileRequest(path, (JUDGED_FOR,)))
        found, version = compilation.graph, compilation.version
        quantised = path.name.startswith("model")  # a promptable bundle's encoder and decoder are in float
        proof = prove_int8(compilation.layers, int8_nodes if quantised and compilation.layers else ())
        found = found.model_copy(update={"int8_expected": proof.expected, "int8_found": proof.found})
        graphs.append(found)
        compiler = f"TensorRT for RTX {version}" if version else compiler or "TensorRT for RTX"
        log(f"{compiler} on {path.name}: {compiled_words(found)}")
        if proof.expected and not proof.proven:
            log(f"{path.name}: {proof.words}")
        if found.refused and must_compile:
            raise GateError(
                f"{path.name}: must compile with {compiler}, does not: {found.refused}; export it otherwise, or write "
                "it all the same with --no-builder-check, for a device whose TensorRT may take what this one does not"
            )
    return CompilerVerdict(compiler=compiler, compute_capability=JUDGED_FOR, graphs=tuple(graphs))
