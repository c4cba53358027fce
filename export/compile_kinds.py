"""Every kind of graph that is exported for TensorRT, through NVIDIA's own compiler, with random weights.

`python -m export.compile_kinds` prints a Markdown table: does TensorRT for RTX read and compile students,
teachers, a promptable teacher's two parts, several sizes, batches and classes, in FP32, FP16 and INT8; how large is the
engine; and what of the quantised products came through its fusion in INT8. Weights do not change what a compiler does;
the 8-bit ranges come from procedural pictures.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import torch
from pydantic import Field
from torch import nn

from export.graph.fp16_typed import to_fp16_typed
from export.graph.onnx_export import traced_model
from export.int8.qdq import int8_nodes
from export.model_file import calibrate, write_model
from export.promptable import open_parts
from runtime.engines.seam import check_engine_installed
from runtime.trt.layers import prove_int8
from runtime.trt.rtx import ENGINE, JUDGED_FOR, Compilation, CompileRequest, compile_apart
from segcore.bundle.manifest import Manifest
from segcore.command import Settings, log, print_result, run_command
from segcore.dataset.dataset import open_dataset
from segcore.errors import InputError
from segcore.learn.network import DeployGraph
from segcore.picture.preprocess import InputSpec, output_spec
from segcore.tables import table_of
from student.design import find_design
from student.network import GREY_MEAN_STD, build_student
from teacher.promptable import prompt_spec
from teacher.sam2_model import IMAGENET_MEAN_STD
from teacher.system import open_plain

PRECISIONS = ("fp32", "fp16", "int8")
_CALIBRATION_CASES = 4
_STUDENT_CLASSES = {1: ("lung",), 3: ("lung", "heart", "lesion")}


@dataclass(frozen=True)
class GraphKind:
    """One kind of network to compile.

    Attributes:
        name: for the table.
        build: picture size → the network in eval mode, with random weights.
        mean_std: its normalisation; of three channels for a teacher, whose grey picture is repeated.
        classes: how many.
        stride: of its logits.
        size_factor: of the picture that the table is made for.
        batch: pictures a call.
        transformer: it has attention.
        part: "encoder" or "decoder" of a promptable network, which are written in FP32 alone.
    """

    name: str
    build: Callable[[int], nn.Module]
    mean_std: tuple[tuple[float, ...], tuple[float, ...]]
    classes: int = 1
    stride: int = 1
    size_factor: float = 1.0
    batch: int = 1
    transformer: bool = False
    part: str = ""


def _student(design: str, classes: int = 1, **more: Any) -> GraphKind:
    found = find_design(design)
    outputs = classes + (classes > 1)
    what = f"{classes} classes, " * (classes > 1) + f"batch {more.get('batch', 1)}, " * ("batch" in more)
    what += "twice the size, " * ("size_factor" in more)
    return GraphKind(
        f"student {design}" + f" ({what[:-2]})" * bool(what),
        lambda _: build_student(found, channels=1, outputs=outputs),
        GREY_MEAN_STD,
        classes,
        found.logits_stride,
        **more,
    )


def _teacher(title: str, system: str, *, part: str = "", **settings: Any) -> GraphKind:
    mean, std = IMAGENET_MEAN_STD
    stride = 4

    def build(size: int) -> nn.Module:
        spec = InputSpec(height_px=size, width_px=size, channels=1, mean=mean, std=std)
        return open_plain(
            Manifest.model_construct(
                architecture=system,
                architecture_settings={"tune": "decoder", **settings},
                classes=_STUDENT_CLASSES[1],
                input=spec,
                output=output_spec(_STUDENT_CLASSES[1], stride),
            )
        )

    transformer = settings["encoder"] == "tiny"
    return GraphKind(title, build, IMAGENET_MEAN_STD, stride=stride, transformer=transformer, part=part)


SLOTS = 6
"""Points that a promptable network is asked with at most."""


def graph_kinds() -> tuple[GraphKind, ...]:
    """The kinds of the table."""
    prompted: dict[str, Any] = {"encoder": "tiny", "slots": SLOTS}
    return (
        *(_student(design) for design in ("nano", "small", "base", "lightunet")),
        _student("small", 3),
        _student("small", batch=4),
        _student("small", size_factor=2.0),
        _teacher("teacher U-Net on EfficientNet-Lite 0", "unet", encoder="efficientnet-lite0"),
        _teacher("teacher S2AgScUNet tiny", "s2agscunet", encoder="tiny"),
        _teacher("teacher SAM2-UNet tiny", "sam2-unet", encoder="tiny"),
        _teacher("teacher with SAM 2's mask decoder, tiny", "sam2-lora", encoder="tiny"),
        _teacher("promptable teacher tiny, by itself", "sam2-med2d", **prompted),
        _teacher("promptable teacher tiny, encoder", "sam2-med2d", part="encoder", **prompted),
        _teacher("promptable teacher tiny, decoder", "sam2-med2d", part="decoder", **prompted),
    )


class CompilerSettings(Settings):
    """Compiles every kind of exported graph with TensorRT for RTX (no GPU needed) and prints a Markdown table.

    Exit status 2: a name that no kind has, or the compiler is not installed. A refusal is a row of the table.
    """

    size: int = Field(256, ge=64, multiple_of=32)
    """Side of the picture, in pixels."""
    kind: tuple[str, ...] = ()
    """Only the kinds whose name holds one of these words."""
    precision: tuple[str, ...] = PRECISIONS
    """Of fp32, fp16, int8."""


def main(settings: CompilerSettings) -> None:
    """Prints the table and one JSON line."""
    check_engine_installed(ENGINE)
    kinds = [k for k in graph_kinds() if not settings.kind or any(word in k.name for word in settings.kind)]
    if not kinds:
        raise InputError(
            f"--kind: must be in the name of one of {', '.join(k.name for k in graph_kinds())}, "
            f"got {', '.join(settings.kind)}"
        )
    if wrong := set(settings.precision) - set(PRECISIONS):
        raise InputError(f"--precision: must be of {', '.join(PRECISIONS)}, got {', '.join(sorted(wrong))}")
    rows, version = [], ""
    for kind in kinds:
        for precision, compilation, quantised in compile_kind(kind, settings.size, settings.precision):
            version = compilation.version or version
            rows.append(_row(kind, precision, compilation, quantised))
            log(" | ".join(rows[-1]))
    print(f"TensorRT for RTX {version}, compute capability {JUDGED_FOR}, {settings.size} px\n")
    print(table_of("", _HEAD, rows, words=_WORDS).markdown())
    print_result(version=version, graphs=len(rows), refused=sum(row[2].startswith("refused") for row in rows))


_HEAD = ("graph", "precision", "layers", "kernels", "in INT8", "seconds", "engine MB", "activations MB")
_WORDS = (True, True, False, False, False, False, False, False)


def _row(
    kind: GraphKind, precision: str, compilation: Compilation, quantised: tuple[str, ...]
) -> tuple[str, ...]:
    found = compilation.graph
    if found.refused:
        return kind.name, precision, f"refused: {found.refused}", "", "", "", "", ""
    proof = prove_int8(compilation.layers, quantised)
    return (
        kind.name,
        precision,
        f"{found.layers:,}",
        str(found.kernels),
        f"{proof.found} of {proof.expected}" if proof.expected else "–",
        f"{found.seconds:.1f}",
        f"{found.plan_bytes / 1e6:.1f}",
        f"{found.activation_bytes / 1e6:.1f}",
    )


def compile_kind(
    kind: GraphKind, size: int, precisions: tuple[str, ...] = PRECISIONS
) -> Iterator[tuple[str, Compilation, tuple[str, ...]]]:
    """Compiles a kind in each precision, by the strongly typed file that TensorRT 10.13 and later take.

    Yields:
        The precision, what the compiler made of it, and the nodes that were quantised.
    """
    with tempfile.TemporaryDirectory(prefix="sam2edge-compiler-") as name:
        fp32, typed = Path(name) / "fp32.onnx", Path(name) / "typed.onnx"
        spec = _write_fp32(kind, round(size * kind.size_factor), fp32)
        for precision in precisions:
            nodes: tuple[str, ...] = ()
            path = fp32
            if (kind.part and precision != "fp32") or (kind.batch > 1 and precision == "int8"):
                continue  # not written so, or not calibrated so: see export.promptable and export.variants
            if precision == "int8":
                cases = open_dataset("phantom:cxr:12").split("train", limit=_CALIBRATION_CASES)
                quantised = Path(name) / "int8.onnx"
                calibrate(
                    fp32, to="tensorrt-onnx", cases=cases, spec=spec, transformer=kind.transformer
                ).write(quantised)
                path, nodes = quantised, int8_nodes(quantised)
            if precision != "fp32":
                onnx.save(to_fp16_typed(onnx.load(path)), typed)
                path = typed
            yield precision, compile_apart(CompileRequest(path, (JUDGED_FOR,))), nodes


def _write_fp32(kind: GraphKind, size: int, path: Path) -> InputSpec:
    torch.manual_seed(0)
    mean, std = kind.mean_std
    spec = InputSpec(height_px=size, width_px=size, channels=1, mean=mean, std=std)
    network = kind.build(size).eval()
    if kind.part:
        prompt = prompt_spec(("point", "box", "mask"), "three", slots=SLOTS)
        parts = open_parts(network, spec, prompt, stride=kind.stride)
        module, inputs, outputs = (
            (parts.encoder, parts.picture, parts.features)
            if kind.part == "encoder"
            else (parts.decoder, parts.question, ("logits", "iou"))
        )
        onnx.save(traced_model(module, inputs, outputs, path), path)
        return spec
    output = output_spec(_STUDENT_CLASSES[kind.classes], kind.stride)
    graph = DeployGraph(network, spec).eval()
    write_model(graph, spec, output, path, to="tensorrt-onnx", precision="fp32", batch=kind.batch)
    return spec


if __name__ == "__main__":
    run_command(main, CompilerSettings, "python -m export.compile_kinds")
