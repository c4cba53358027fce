"""Writes a graph as the file that an engine opens: the one way, for bundles and for the candidates of a search.

In floating point at once (`write_model`); in INT8 by way of a graph whose ranges are known (`calibrate`), of which many
files can be written. What a target needs is imported for that target alone.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Protocol

from segcore.dataset.case import Case
from segcore.picture.preprocess import InputSpec, OutputSpec

if TYPE_CHECKING:
    from segcore.learn.network import DeployGraph

MODEL_FILES = {"onnx": "model.onnx", "openvino": "model.xml", "tensorrt-onnx": "model.onnx"}
"""Format → name of the file that an engine opens."""


class CalibratedGraph(Protocol):
    """A graph whose ranges are known, so that any choice of its layers can be written in INT8 without new data.

    `calibrate` gives one, by one of two quantisers: `export.int8.qdq` for TensorRT, and OpenVINO's for its own format.
    The guard returns layers to float by their names until the masks are good enough; it knows nothing else of either.
    """

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers that can be quantised, in the graph's order; each name once, the same in every run.

        A layer is an operator with weights (convolution, linear), or an Add or Concat with quantised inputs.
        """
        ...

    def write(self, path: Path, *, in_float: Collection[str] = ()) -> None:
        """Writes the model.

        The same call writes the same file. No call changes what later ones write.

        Args:
            path: file to write, in a folder that is there; what belongs to it goes beside it.
            in_float: names from `layers` that compute in float. Every other layer is quantised, as far as the
                engine's rules allow: an Add or Concat whose reader is in float needs no quantised inputs.

        Raises:
            ValueError: a name that is not in `layers`.
        """
        ...


def write_model(
    graph: DeployGraph,
    spec: InputSpec,
    output: OutputSpec,
    path: Path,
    *,
    to: str,
    precision: str,
    batch: int = 1,
    scratch: Path | None = None,
    bundle_sha256: str = "",
) -> None:
    """Writes the file that an engine opens, and what belongs to it, in floating point.

    Args:
        graph: in eval mode.
        spec: its input.
        output: its output.
        path: file to write, with the suffix of `MODEL_FILES[to]`.
        to: a key of `MODEL_FILES`.
        precision: fp32 or fp16.
        batch: pictures a call.
        scratch: folder for the ONNX file that an IR is made of; by default one of the system's.
        bundle_sha256: of the bundle whose network it is, as it was opened; see `export.graph.onnx_export.write_onnx`.
    """
    from export.graph.onnx_export import write_onnx

    if to == "openvino":
        from export.graph.openvino_export import write_ir

        with TemporaryDirectory(dir=scratch) as folder:
            onnx_path = Path(folder) / "fp32.onnx"
            write_onnx(graph, spec, output, onnx_path, batch=batch, bundle_sha256=bundle_sha256)
            write_ir(onnx_path, path, half_weights=precision == "fp16")
        return
    half_weights = to == "onnx" and precision == "fp16"  # TensorRT is given 16 bits by `export.typed_files`
    write_onnx(graph, spec, output, path, batch=batch, half_weights=half_weights, bundle_sha256=bundle_sha256)


def write_int8(
    graph: DeployGraph, spec: InputSpec, output: OutputSpec, path: Path, *, to: str, cases: Sequence[Case]
) -> None:
    """Writes the file that an engine opens, in INT8 as it comes: `export.int8.guarded` guards it.

    Args:
        graph: in eval mode, without attention.
        spec: its input.
        output: its output.
        path: file to write, with the suffix of `MODEL_FILES[to]`.
        to: a key of `MODEL_FILES`.
        cases: give the ranges.
    """
    from export.graph.onnx_export import write_onnx

    with TemporaryDirectory() as folder:
        onnx_path = Path(folder) / "fp32.onnx"
        write_onnx(graph, spec, output, onnx_path)
        calibrate(onnx_path, to=to, cases=cases, spec=spec).write(path)


def write_float(
    graph: DeployGraph,
    spec: InputSpec,
    output: OutputSpec,
    folder: Path,
    *,
    to: str,
    name: str = "fp32",
    bundle_sha256: str = "",
) -> tuple[Path, Path]:
    """Writes the graph in FP32 once, for a quantiser and for an engine.

    Args:
        graph: in eval mode.
        spec: its input.
        output: its output.
        folder: where the files go.
        to: a key of `MODEL_FILES`.
        name: stem of the files.
        bundle_sha256: as for `write_model`.

    Returns:
        The ONNX file, and the file that the target's engine opens; one file where that is ONNX.
    """
    onnx_path = folder / f"{name}.onnx"
    write_model(graph, spec, output, onnx_path, to="onnx", precision="fp32", bundle_sha256=bundle_sha256)
    if to != "openvino":
        return onnx_path, onnx_path
    from export.graph.openvino_export import write_ir

    write_ir(onnx_path, onnx_path.with_suffix(".xml"), half_weights=False)
    return onnx_path, onnx_path.with_suffix(".xml")


def calibrate(
    onnx_path: Path, *, to: str, cases: Sequence[Case], spec: InputSpec, transformer: bool = False
) -> CalibratedGraph:
    """Finds the 8-bit ranges, by the quantiser that is right for the target.

    Args:
        onnx_path: the FP32 graph.
        to: a key of `MODEL_FILES`.
        cases: of the train split; streamed, one picture at a time.
        spec: the graph's input.
        transformer: the network has attention.
    """
    if to == "openvino":
        from export.graph.openvino_export import calibrate_ir

        return calibrate_ir(onnx_path, cases, spec, transformer=transformer)
    from export.int8.qdq import calibrate_qdq

    signed = calibrate_qdq(onnx_path, cases, spec)
    return signed if to == "tensorrt-onnx" else UnsignedOnnx(signed)


@dataclass(frozen=True)
class UnsignedOnnx:
    """TensorRT's graph with activations as uint8, zero point 128; see `CalibratedGraph`.

    The numbers are the same; OpenVINO computes this form rightly, the signed one not (`export.int8.qdq`).
    """

    signed: CalibratedGraph

    @property
    def layers(self) -> tuple[str, ...]:
        return self.signed.layers

    def write(self, path: Path, *, in_float: Collection[str] = ()) -> None:
        """Writes the signed graph, and that as unsigned over it."""
        import onnx

        from export.int8.qdq import to_uint8

        self.signed.write(path, in_float=in_float)
        onnx.save(to_uint8(onnx.load(path, load_external_data=False)), path)
