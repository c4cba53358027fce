"""What one export is to do: the command makes a `Job` of its settings, and all that works on the bundle reads that.

Nothing here needs torch: the command makes it before it is known whether what it needs is installed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from export.data import ExportData
from export.model_file import MODEL_FILES
from runtime.engines.seam import OPENED_BY, Engine, installed, open_engine
from runtime.parity import ParityLimits
from segcore.bundle.folder import Bundle
from segcore.bundle.manifest import Manifest

FORMATS = {"onnx": "onnx", "openvino": "openvino", "tensorrt": "tensorrt-onnx"}
"""`--to` → the format of the bundle that is written here."""
LEARNING_RATE = 3e-4
"""Highest of the fine-tuning: below that of a training, since it starts where one ended."""


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
