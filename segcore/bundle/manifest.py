"""The manifest of a bundle and its parts: everything needed to use a model and to know where it comes from."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any, Literal

from pydantic import Field, model_validator

from segcore.bundle.guard_record import GuardRecord
from segcore.host import Made
from segcore.picture.preprocess import MAX_INPUT_PX, InputSpec, OutputSpec, output_spec
from segcore.picture.prompts import PromptSpec
from segcore.picture.quality import Calibration, QualityModel
from segcore.record import Record

SCHEMA_VERSION = 1
MAX_CLASSES = 32
_LONGEST_NAME = 200
"""Characters of a model's or a class's name."""


class FileEntry(Record):
    """Size and hash of one file of the bundle."""

    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    bytes: int = Field(ge=0)


class DataRecord(Record):
    """The data a bundle was trained or calibrated on; names and hashes, no pixels.

    Attributes:
        fold: "2/5" where the split was one of a cross-validation's; "" for the usual 60/20/20.
        test_images: `Source.image_fingerprint` of the test split, so that nobody calibrates on it under another name.
    """

    name: str
    sha256: str
    split_sha256: str
    split_seed: int = 0
    fold: str = ""
    counts: dict[str, int] = Field(default_factory=dict)
    calibration_cases: tuple[str, ...] = ()
    test_images: tuple[str, ...] = ()


class Metric(Record):
    """A measured number: `dice_mean` of the `val` split, say."""

    name: str
    split: str
    value: float
    cases: int


class Variant(Record):
    """Another file of the same network: for another size, for several pictures a call, or with other number types.

    Attributes:
        file: of the graph.
        golden: the file of golden cases that it is verified with.
        height_px: of its input.
        width_px: of its input.
        batch: pictures a call.
        typing: fp16 where the graph's own tensors are 16-bit (for TensorRT's strongly typed networks), else fp32.
    """

    file: str
    golden: str = "golden.npz"
    height_px: int = Field(gt=0, le=MAX_INPUT_PX)
    width_px: int = Field(gt=0, le=MAX_INPUT_PX)
    batch: int = Field(default=1, gt=0, le=4096)
    typing: Literal["fp32", "fp16"] = "fp32"

    @property
    def size_px(self) -> tuple[int, int]:
        return self.height_px, self.width_px


class EngineTarget(Record):
    """What a TensorRT engine was built for; it runs nowhere else.

    Attributes:
        tensorrt: version, "10.3.0", or that of TensorRT for RTX.
        gpu: the device's name, "Orin"; "RTX" for TensorRT for RTX, whose engines are for several.
        compute_capability: "8.7"; or several, "8.0, 8.6".
        l4t: Jetson Linux release, "36.4.3"; empty where it is no Jetson.
        platform: "Linux aarch64"; "any" for TensorRT for RTX.
        onnx: name of the bundle's file that it was built from.
        onnx_sha256: of that file.
        flags: precision flags and typing, as TensorRT names them.
    """

    tensorrt: str
    gpu: str
    compute_capability: str
    l4t: str = ""
    platform: str
    onnx: str
    onnx_sha256: str
    flags: tuple[str, ...] = ()


class CompiledGraph(Record):
    """What NVIDIA's compiler made of one graph.

    Attributes:
        file: of the graph.
        layers: that the parser made of it.
        kernels: layers of the engine, after fusion.
        int8_expected: convolutions and matrix products that were quantised.
        int8_found: how many of them the engine computes in INT8.
        plan_bytes: of the engine.
        activation_bytes: device memory for what flows between layers.
        seconds: of parsing and building.
        refused: the parser's or compiler's words; "" where it was compiled.
    """

    file: str
    layers: int = 0
    kernels: int = 0
    int8_expected: int = 0
    int8_found: int = 0
    plan_bytes: int = 0
    activation_bytes: int = 0
    seconds: float = 0.0
    refused: str = ""


class CompilerVerdict(Record):
    """NVIDIA's compiler on a bundle's graphs, where they were exported. It is not the device's own TensorRT.

    Attributes:
        compiler: name and version.
        compute_capability: that it compiled for.
        graphs: every one.
    """

    compiler: str
    compute_capability: str
    graphs: tuple[CompiledGraph, ...]


class Manifest(Record):
    """Everything needed to use a model and to know where it comes from.

    Attributes:
        name: short, for tables; `LightUNet 8, INT8`.
        kind: teacher or student.
        format: torch (safetensors), onnx, openvino, tensorrt-onnx (what TensorRT builds an engine from, on the
            device), tensorrt (an engine, for one device only), or tensorrt-rtx (one for NVIDIA's RTX cards).
        architecture: the builder's name and its settings, enough to build the module again.
        files: every file beside the manifest, by its path inside the folder.
        model_file: the one that an engine or the builder opens; batch 1, at `input`'s size.
        variants: other files of the same network.
        parent: `Bundle.sha256` of the bundle that this one was made from.
        teacher: `Bundle.sha256` of the teacher a student was distilled from.
        lineage: how the ancestors were made, oldest first.
        pretrained: where the starting weights came from; "no pretrained weights".
        macs: multiply-accumulates of one image at the input size.
        settings: the resolved settings of the command that trained it.
        stopped_epoch: the last epoch of a training that `--early-stop` ended before all of its epochs; else None.
        gate: figures of the parity gate that an exported bundle has passed.
        guard: what INT8 was allowed to lose, and lost; None for other precisions, and before there was a guard.
        engine_target: what a tensorrt or tensorrt-rtx bundle was built for.
        compiled: what NVIDIA's compiler made of a tensorrt-onnx bundle's graphs; None where none was there to ask.
        quality: how the model estimates the Dice of its own masks; None where it was not fitted.
        calibration: how threshold and temperature were chosen; None where they were not.
        prompt: how a promptable model can be asked with points, boxes and masks; None for others.
    """

    schema_version: int = SCHEMA_VERSION
    name: str
    kind: Literal["teacher", "student"]
    format: Literal["torch", "onnx", "openvino", "tensorrt-onnx", "tensorrt", "tensorrt-rtx"]
    precision: Literal["fp32", "fp16", "int8"]
    architecture: str
    architecture_settings: dict[str, Any]
    classes: tuple[str, ...]
    input: InputSpec
    output: OutputSpec
    parameters: int = Field(ge=0)
    trained_parameters: int = Field(ge=0)
    macs: int = Field(ge=0)
    pretrained: str
    parent: str | None = None
    teacher: str | None = None
    data: DataRecord
    metrics: tuple[Metric, ...] = ()
    gate: dict[str, float] = Field(default_factory=dict)
    guard: GuardRecord | None = None
    engine_target: EngineTarget | None = None
    compiled: CompilerVerdict | None = None
    quality: QualityModel | None = None
    prompt: PromptSpec | None = None
    calibration: Calibration | None = None
    settings: dict[str, Any] = Field(default_factory=dict)
    stopped_epoch: int | None = None
    made: Made
    lineage: tuple[Made, ...] = ()
    model_file: str
    variants: tuple[Variant, ...] = ()
    files: dict[str, FileEntry]

    @model_validator(mode="after")
    def _means_what_it_says(self) -> Manifest:
        if not 1 <= len(self.classes) <= MAX_CLASSES or len(set(self.classes)) < len(self.classes):
            raise ValueError(f"classes must be 1 to {MAX_CLASSES} different names, got {len(self.classes)}")
        for what, text in (("name", self.name), *(("class", name) for name in self.classes)):
            if not text.strip() or len(text) > _LONGEST_NAME:
                raise ValueError(f"{what} must be 1 to {_LONGEST_NAME} characters, got {text[:40]!r}")
        expected = output_spec(self.classes, self.output.stride)
        if (self.output.activation, self.output.channels) != (expected.activation, expected.channels):
            raise ValueError(
                f"output must be {expected.activation} of {expected.channels} for {len(self.classes)} classes, got "
                f"{self.output.activation} of {self.output.channels}"
            )
        if self.quality and len(self.quality.empty_right) != len(self.classes):
            raise ValueError(
                f"quality must have a row for each of {len(self.classes)} classes, got {len(self.quality.empty_right)}"
            )
        return self

    @property
    def main(self) -> Variant:
        """The model file, told as the variants are."""
        return Variant(file=self.model_file, height_px=self.input.height_px, width_px=self.input.width_px)

    @property
    def model_bytes(self) -> int:
        """Bytes of the automatic model's files: `model_file`, and the weights of the same name beside it (OpenVINO's).

        All that is told beside a size (parameters, Dice, times) is of this model, so the size is too. Variants do not
        count, for an engine opens one of them instead. Nor do a promptable bundle's encoder and decoder, which hold
        the same encoder's weights once more, a teacher's `adapter/`, whose numbers the model file has already, and
        what only checks or tells: golden cases, pictures, the card.
        """
        stem = PurePosixPath(self.model_file).with_suffix("")
        own = (entry for name, entry in self.files.items() if PurePosixPath(name).with_suffix("") == stem)
        return sum(entry.bytes for entry in own)

    def metric(self, name: str, split: str) -> float | None:
        """The measured value, or None if it was not measured."""
        return next((m.value for m in self.metrics if m.name == name and m.split == split), None)
