"""What a TensorRT engine was built for."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class EngineTarget(BaseModel):
    """What a TensorRT engine was built for; it runs nowhere else.

    Attributes:
        tensorrt: version, "10.3.0".
        gpu: the device's name, "Orin".
        compute_capability: "8.7".
        l4t: Jetson Linux release, "36.4.3"; empty where it is no Jetson.
        platform: "Linux aarch64".
        onnx: name of the bundle's file that it was built from.
        onnx_sha256: of that file.
        flags: precision flags and typing, as TensorRT names them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    tensorrt: str
    gpu: str
    compute_capability: str
    l4t: str = ""
    platform: str
    onnx: str
    onnx_sha256: str
    flags: tuple[str, ...] = ()
