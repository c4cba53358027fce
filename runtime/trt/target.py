"""An engine runs on one TensorRT version and one kind of GPU; this is checked before TensorRT sees the file.

TensorRT has no preflight ("The general runtime has no compatibility preflight API", its support matrix 11.4.1): a
plan from elsewhere gives None and a line in the log, or worse.
"""

from __future__ import annotations

import platform
from dataclasses import asdict, dataclass
from pathlib import Path

from runtime.trt.cuda_runtime import GpuDevice
from runtime.trt.library import REBUILD
from segcore.bundle.manifest import EngineTarget
from segcore.errors import InputError
from segcore.host import read_l4t


@dataclass(frozen=True)
class DeviceIdentity:
    """The device that an engine is opened or built on, by the names of `EngineTarget`'s fields."""

    tensorrt: str
    gpu: str
    compute_capability: str
    l4t: str
    platform: str

    def target_for(self, *, onnx: str, onnx_sha256: str, flags: tuple[str, ...]) -> EngineTarget:
        """The target of an engine that was built here."""
        return EngineTarget(**asdict(self), onnx=onnx, onnx_sha256=onnx_sha256, flags=flags)


def identify_device(tensorrt: str, device: GpuDevice) -> DeviceIdentity:
    """This machine, with its TensorRT version and its GPU.

    Every Jetson of the Orin family calls its GPU "Orin", with 8 multiprocessors in the Nano and 16 in the AGX; kernels
    are chosen by their number, so it belongs to the name.
    """
    return DeviceIdentity(
        tensorrt=tensorrt,
        gpu=f"{device.name}, {device.multiprocessors} multiprocessors",
        compute_capability=device.compute_capability,
        l4t=read_l4t(),
        platform=f"{platform.system()} {platform.machine()}",
    )


def check_target(target: EngineTarget | None, identity: DeviceIdentity, plan: Path) -> None:
    """Refuses an engine of another TensorRT version, GPU or platform.

    The L4T release is not compared: its fixes leave TensorRT and the GPU as they are.

    Raises:
        InputError: it was built for something else, or nothing says for what.
    """
    if target is None:
        raise InputError(
            f"engine {plan}: must say in its manifest what it was built for, does not; build it here: {REBUILD}"
        )
    same = ("tensorrt", "gpu", "compute_capability", "platform")
    if any(getattr(target, name) != getattr(identity, name) for name in same):
        raise InputError(
            f"engine {plan}: must be built for {_target_words(identity)}, which is here, "
            f"got one for {_target_words(target)}; build it here: {REBUILD}"
        )


def _target_words(what: DeviceIdentity | EngineTarget) -> str:
    return f"TensorRT {what.tensorrt} on {what.gpu} (compute capability {what.compute_capability}, {what.platform})"
