"""A bundle: the folder that a stage writes and the next reads. Its manifest holds all a user must know.

Files are hashed. `open_bundle` checks every hash before anything is parsed, takes no path that leaves the
folder, and reads no pickle: weights are safetensors, graphs carry no external data.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from segcore.calibration import Calibration
from segcore.engine_target import EngineTarget
from segcore.errors import InputError
from segcore.guard_record import GuardRecord
from segcore.host import Made
from segcore.model_card import MODEL_CARD, model_card
from segcore.outfolder import write_text
from segcore.preprocess import InputSpec, OutputSpec
from segcore.prompts import PromptSpec
from segcore.quality import QualityModel

MANIFEST = "manifest.json"
SCHEMA_VERSION = 1
_NOT_HANDED_DOWN = {"files", "metrics", "schema_version"}


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FileEntry(_Part):
    """Size and hash of one file of the bundle."""

    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    bytes: int = Field(ge=0)


class DataRecord(_Part):
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


class Metric(_Part):
    """A measured number: `dice_mean` of the `val` split, say."""

    name: str
    split: str
    value: float
    cases: int


class Variant(_Part):
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
    height_px: int
    width_px: int
    batch: int = 1
    typing: Literal["fp32", "fp16"] = "fp32"

    @property
    def size_px(self) -> tuple[int, int]:
        return self.height_px, self.width_px


class Manifest(_Part):
    """Everything needed to use a model and to know where it comes from.

    Attributes:
        name: short, for tables; `LightUNet 8, INT8`.
        kind: teacher or student.
        format: torch (safetensors), onnx, openvino, tensorrt-onnx (what TensorRT builds an engine from, on the
            device), or tensorrt (an engine, for one device only).
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
        gate: figures of the parity gate that an exported bundle has passed.
        guard: what INT8 was allowed to lose, and lost; None for other precisions, and before there was a guard.
        engine_target: what a tensorrt bundle was built for.
        quality: how the model estimates the Dice of its own masks; None where it was not fitted.
        calibration: how threshold and temperature were chosen; None where they were not.
        prompt: how a promptable model can be asked with points, boxes and masks; None for others.
    """

    schema_version: int = SCHEMA_VERSION
    name: str
    kind: Literal["teacher", "student"]
    format: Literal["torch", "onnx", "openvino", "tensorrt-onnx", "tensorrt"]
    precision: Literal["fp32", "fp16", "int8"]
    architecture: str
    architecture_settings: dict[str, Any]
    classes: tuple[str, ...]
    input: InputSpec
    output: OutputSpec
    parameters: int
    trained_parameters: int
    macs: int
    pretrained: str
    parent: str | None = None
    teacher: str | None = None
    data: DataRecord
    metrics: tuple[Metric, ...] = ()
    gate: dict[str, float] = Field(default_factory=dict)
    guard: GuardRecord | None = None
    engine_target: EngineTarget | None = None
    quality: QualityModel | None = None
    prompt: PromptSpec | None = None
    calibration: Calibration | None = None
    settings: dict[str, Any] = Field(default_factory=dict)
    made: Made
    lineage: tuple[Made, ...] = ()
    model_file: str
    variants: tuple[Variant, ...] = ()
    files: dict[str, FileEntry]

    @property
    def main(self) -> Variant:
        """The model file, told as the variants are."""
        return Variant(file=self.model_file, height_px=self.input.height_px, width_px=self.input.width_px)

    def metric(self, name: str, split: str) -> float | None:
        """The measured value, or None if it was not measured."""
        return next((m.value for m in self.metrics if m.name == name and m.split == split), None)


class Bundle(_Part):
    """An opened bundle: its folder, its manifest, and the hash that children name as their parent."""

    folder: Path
    manifest: Manifest
    sha256: str

    def path(self, name: str) -> Path:
        return self.folder / name

    @property
    def model_path(self) -> Path:
        return self.folder / self.manifest.model_file

    def child_fields(self) -> dict[str, Any]:
        """Of the manifest of a bundle that is made from this one: what stays as it is, the parent, the lineage.

        Metrics are not handed down: they were measured on other numbers.
        """
        kept = {name: value for name, value in self.manifest if name not in _NOT_HANDED_DOWN}
        return {**kept, "parent": self.sha256, "lineage": (*self.manifest.lineage, self.manifest.made)}


def hash_file(path: Path) -> FileEntry:
    """Size and sha256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return FileEntry(sha256=digest.hexdigest(), bytes=path.stat().st_size)


def seal_bundle(folder: Path, **manifest: Any) -> Manifest:
    """Writes the model card, hashes every file in `folder` and writes the manifest; the last step of a stage.

    Args:
        folder: the stage's working folder (OUT.partial); its `settings.json` is not part of the bundle.
        manifest: the fields of `Manifest` except `files`.
    """
    skip = {MANIFEST, MODEL_CARD, "settings.json"}
    files = {
        path.relative_to(folder).as_posix(): hash_file(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.relative_to(folder).as_posix() not in skip
    }
    card = folder / MODEL_CARD
    write_text(card, model_card(Manifest(files=files, **manifest)))
    sealed = Manifest(files={**files, MODEL_CARD: hash_file(card)}, **manifest)
    write_text(folder / MANIFEST, sealed.model_dump_json(indent=2) + "\n")
    return sealed


def open_bundle(folder: Path | str) -> Bundle:
    """Reads the manifest and checks every file's size and hash.

    Raises:
        InputError: not a bundle, a newer schema, a missing or changed file, or a path that leaves the folder.
    """
    folder = Path(folder)
    path = folder / MANIFEST
    if not path.is_file():
        hint = (
            f"; {folder}.partial is unfinished, run its command again"
            if Path(f"{folder}.partial").exists()
            else ""
        )
        raise InputError(f"bundle {folder}: must be a folder with {MANIFEST}, got none{hint}")
    text = path.read_bytes()
    manifest = _parse(text, folder)
    for name, entry in manifest.files.items():
        _check_file(folder, name, entry)
    for name in (manifest.model_file, *(file for v in manifest.variants for file in (v.file, v.golden))):
        if name not in manifest.files:
            raise InputError(f"bundle {folder}: {name} must be listed in {MANIFEST}, is not; export it again")
    return Bundle(folder=folder, manifest=manifest, sha256=hashlib.sha256(text).hexdigest())


def _parse(text: bytes, folder: Path) -> Manifest:
    try:
        raw = json.loads(text)
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError):
        raise InputError(
            f"bundle {folder}: {MANIFEST} must be JSON, is damaged; copy the bundle again"
        ) from None
    version = raw.get("schema_version") if isinstance(raw, dict) else None
    if version != SCHEMA_VERSION:
        raise InputError(
            f"bundle {folder}: schema must be {SCHEMA_VERSION}, got {version}; "
            "install a newer sam2edge, or export the bundle again with this one"
        )
    try:
        return Manifest.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        if first["type"] == "extra_forbidden":
            raise InputError(
                f"bundle {folder}: {MANIFEST} must hold known fields, got {where}: a newer sam2edge made it; "
                "install that version, or export the bundle again with this one"
            ) from None
        raise InputError(
            f"bundle {folder}: {MANIFEST} field {where}: {first['msg']}; export the bundle again"
        ) from None


def _check_file(folder: Path, name: str, entry: FileEntry) -> None:
    pure = PurePosixPath(name)
    if pure.is_absolute() or ".." in pure.parts or "\\" in name:
        raise InputError(
            f"bundle {folder}: file paths must stay inside the bundle, got {name}; do not use this bundle"
        )
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()) or path.is_symlink():
        raise InputError(f"bundle {folder}: {name} must be a file, is a link; copy the bundle with its files")
    if not path.is_file():
        raise InputError(f"bundle {folder}: {name} must be there, is missing; copy the bundle again")
    found = path.stat().st_size
    if found != entry.bytes or hash_file(path).sha256 != entry.sha256:
        raise InputError(
            f"bundle {folder}: {name} was changed after it was made (sha256 differs); copy the bundle again"
        )
