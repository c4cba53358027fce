"""What one export is to do, and the cases that it needs.

The command makes a `Job` of its settings, and all that works on the bundle reads that.

Nothing here needs torch: the command makes it before it is known whether what it needs is installed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from export.model_file import MODEL_FILES
from runtime.engines.seam import OPENED_BY, Engine, installed, open_engine
from runtime.parity import ParityLimits
from segcore.bundle.folder import Bundle
from segcore.bundle.manifest import DataRecord, Manifest
from segcore.dataset.case import Case
from segcore.dataset.dataset import is_resplit, open_dataset, tested_among
from segcore.errors import InputError

FORMATS = {"onnx": "onnx", "openvino": "openvino", "tensorrt": "tensorrt-onnx"}
"""`--to` → the format of the bundle that is written here."""
LEARNING_RATE = 3e-4
"""Highest of the fine-tuning: below that of a training, since it starts where one ended."""
GATE_CASES = 32
MIN_CALIBRATION = 2
"""One picture's ranges are no ranges: whatever is brighter in the next one is cut off."""


@dataclass(frozen=True)
class Bounds:
    """What INT8 may lose, and how long the guard may try.

    Attributes:
        drop_points: of mean Dice.
        p05_drop_points: of the 5th percentile over cases.
        steps: attempts with layers in float.
    """

    drop_points: float
    p05_drop_points: float
    steps: int


@dataclass(frozen=True)
class Finetuning:
    """How a student is fine-tuned under fake quantisation.

    Attributes:
        data: as every `--data`; masks of its validation split choose the best epoch, its test split is not read.
        soft: folder of soft labels that teacher.label wrote for this data.
        epochs: passes over the training images, at least 1.
        seed: of the order and the augmentation.
        lr: highest learning rate.
        level: start from the student with levelled channels where that has more Dice under fake quantisation.
        split_seed: of the data's split; the training's by default.
    """

    data: str
    soft: Path | None = None
    epochs: int = 2
    seed: int = 0
    lr: float = LEARNING_RATE
    level: bool = True
    split_seed: int | None = None


@dataclass(frozen=True)
class GuardPlan:
    """What an INT8 model must keep, and what may be done until it does.

    Attributes:
        bounds: on the Dice that it may lose.
        speedup: least ratio of FP32's time to its own; 0 does not ask.
        rank_layers: tell what each layer costs even where none has to go back to float.
        finetuning: of the student, where nothing cheaper keeps the bounds; None does without.
    """

    bounds: Bounds
    speedup: float
    rank_layers: bool = False
    finetuning: Finetuning | None = None


@dataclass(frozen=True)
class MoreInputs:
    """Inputs that the network takes besides those of its training, each in a file of its own.

    Attributes:
        sizes_px: sides of square pictures.
        batches: pictures a call.
        drop_points: most that FP32 may lose of mean Dice at another size, in points.
    """

    sizes_px: tuple[int, ...] = ()
    batches: tuple[int, ...] = ()
    drop_points: float = 1.0


@dataclass(frozen=True)
class ExportData:
    """What an export takes from a dataset, and how it is recorded.

    Attributes:
        record: for the manifest.
        calibration: of the train split.
        validation: of the validation split, for the parity gate.
        guard: of the validation split, for the INT8 guard.
    """

    record: DataRecord
    calibration: tuple[Case, ...] = ()
    validation: tuple[Case, ...] = ()
    guard: tuple[Case, ...] = ()


@dataclass(frozen=True)
class Job:
    """One torch bundle, and the exported bundle that is to be made of it.

    Attributes:
        source: in torch format.
        target: a key of `FORMATS`.
        precision: fp32, fp16 or int8.
        data: calibration, gate and guard cases.
        parity_limits: of the gate against torch.
        guard: read for int8 alone.
        folder: of the bundle to write.
        scratch: folder for what is thrown away.
        threads: of the engines that try the result.
        inputs: more input sizes and batches.
        judge: NVIDIA's compiler, where it is installed, is asked about TensorRT's graphs.
        must_compile: it must take them.
    """

    source: Bundle
    target: str
    precision: str
    data: ExportData
    parity_limits: ParityLimits
    guard: GuardPlan
    folder: Path
    scratch: Path
    threads: int
    inputs: MoreInputs = MoreInputs()
    judge: bool = True
    must_compile: bool = True

    @property
    def parent(self) -> Manifest:
        """The manifest of `source`."""
        return self.source.manifest

    @property
    def format(self) -> str:
        """Of the bundle to write: a key of `MODEL_FILES`."""
        return FORMATS[self.target]

    @property
    def model_path(self) -> Path:
        """The file that an engine opens, for the network's own input."""
        return self.folder / MODEL_FILES[self.format]

    @property
    def engines(self) -> tuple[str, ...]:
        """The installed engines that open the format, the one that it is made for first."""
        return tuple(name for name in OPENED_BY[self.format] if installed(name))

    def open_model(self, engine: str, path: Path) -> Engine:
        """Opens a model file of the format as the bundle's user will."""
        return open_engine(engine, path, precision=self.precision, threads=self.threads)


def open_export_data(
    data: str, manifest: Manifest, *, calibration_cases: int, guard_cases: int, split_seed: int | None = None
) -> ExportData:
    """Opens `--data` and checks that it is fit for the model.

    Another dataset with the same classes may calibrate (a site's own images, say): its cases are recorded as
    NAME/CASE, and the record of the training data stays. The data that the model was trained on must come
    with the split it was trained on, else "validation" cases would be training cases.

    Args:
        data: as every `--data`.
        manifest: of the bundle that is exported.
        calibration_cases: at most so many of the train split, spread evenly; 0 for none.
        guard_cases: at most so many of the validation split for the guard; 0 for none.
        split_seed: of the split; the training's by default.

    Raises:
        InputError: unreadable data, other classes, the training data with another split, or calibration on too few
            images or on images that the model is tested on.
    """
    seed = manifest.data.split_seed if split_seed is None else split_seed
    dataset = open_dataset(data, seed=seed, fold=manifest.data.fold)
    if dataset.classes != manifest.classes:
        raise InputError(
            f"--data {data}: classes must be {', '.join(manifest.classes)} as in the bundle, "
            f"got {', '.join(dataset.classes)}; name the data the model was made for"
        )
    if is_resplit(dataset, manifest.data.sha256, manifest.data.split_sha256):
        raise InputError(
            f"--data {data}: must be split as the model was trained (split seed {manifest.data.split_seed}), "
            f"got another split (seed {seed}); leave --split-seed out"
        )
    same = dataset.sha256 == manifest.data.sha256
    calibration = dataset.split("train", limit=calibration_cases) if calibration_cases else ()
    if calibration_cases:
        _check_calibration(data, calibration, manifest)
    names = tuple(case.id if same else f"{dataset.name}/{case.id}" for case in calibration)
    record = manifest.data.model_copy(update={"calibration_cases": names})
    return ExportData(
        record,
        calibration=calibration,
        validation=dataset.split("val", limit=GATE_CASES),
        guard=dataset.split("val", limit=guard_cases) if guard_cases else (),
    )


def _check_calibration(data: str, cases: Sequence[Case], manifest: Manifest) -> None:
    if len(cases) < MIN_CALIBRATION:
        raise InputError(
            f"--data {data}: must have at least {MIN_CALIBRATION} labelled images in its train split to calibrate "
            f"int8, got {len(cases)}; add images, or export fp32"
        )
    if seen := tested_among(cases, manifest.data):
        raise InputError(
            f"--data {data}: must calibrate on other images than the model is tested on, got {len(seen)} of them "
            f"({seen[0]}); name data without the test images"
        )
