"""What one export is to do: made once by the command, and read by all that works on the bundle."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from export.data import ExportData
from export.int8.guard import Bounds
from export.int8.qat import Finetuning
from export.model_file import MODEL_FILES
from runtime.engines.seam import OPENED_BY, Engine, installed, open_engine
from runtime.parity import ParityLimits
from segcore.bundle.folder import Bundle
from segcore.bundle.manifest import Manifest
from segcore.errors import InputError
from segcore.learn.network import DeployGraph
from segcore.picture.preprocess import InputSpec

FORMATS = {"onnx": "onnx", "openvino": "openvino", "tensorrt": "tensorrt-onnx"}
"""`--to` → the format of the bundle that is written here."""


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
        limits: of the parity gate against torch.
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
    limits: ParityLimits
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


# Opens the network that is to be exported.


def open_network(bundle: Bundle) -> nn.Module:
    """The network of a torch bundle, student or teacher: a plain module in eval mode.

    Raises:
        InputError: the bundle is not in torch format.
    """
    if bundle.manifest.format != "torch":
        raise InputError(
            f"bundle {bundle.folder}: must be in torch format, got {bundle.manifest.format}; "
            "export the bundle that it was made from"
        )
    if bundle.manifest.kind == "teacher":
        from teacher.system import load_teacher

        network: nn.Module = load_teacher(bundle)
        return network
    from student.network import load_student

    return load_student(bundle)


def open_graph(bundle: Bundle) -> DeployGraph:
    """The network inside the graph contract: 8-bit picture in, logits out; in eval mode.

    Raises:
        InputError: the bundle is not in torch format.
    """
    return as_graph(open_network(bundle), bundle.manifest.input)


def as_graph(network: nn.Module, spec: InputSpec) -> DeployGraph:
    """A network behind the graph contract at some input; in eval mode."""
    graph = DeployGraph(network, spec)
    graph.eval()
    return graph
