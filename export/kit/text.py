"""The kit's README.txt and run_on_device.sh, filled in for one bundle."""

from __future__ import annotations

from datetime import date
from pathlib import Path

from export.kit.wheel import edge_version
from segcore.bundle.folder import Bundle
from segcore.bundle.guard_record import least_speedup
from segcore.bundle.manifest import Manifest

_TRTEXEC = "/usr/src/tensorrt/bin/trtexec"
# Source: trtexec --help of each version; NVIDIA/TensorRT samples/common/sampleOptions.cpp.
_MEASURE = (
    "--memPoolSize=workspace:256 --useCudaGraph --noDataTransfers --useSpinWait --separateProfileRun "
    "--dumpProfile --exportLayerInfo=layers.json --profilingVerbosity=detailed"
)
_WEAK_FLAGS = {"int8": " --int8 --fp16", "fp16": " --fp16", "fp32": ""}


def run_script(engines: tuple[str, ...], compares: tuple[str, ...] = ()) -> str:
    """run_on_device.sh; the first engine is its default, and those in `compares` also time the kit's baseline."""
    return _fill_template(
        "run_on_device.sh", ENGINE=engines[0], ENGINES=", ".join(engines), COMPARES=" ".join(compares)
    )


def readme(
    bundle: Bundle,
    engines: tuple[str, ...],
    *,
    baseline: Bundle | None = None,
    compares: tuple[str, ...] = (),
) -> str:
    """README.txt."""
    manifest = bundle.manifest
    tensorrt = "tensorrt" in engines
    text = _fill_template(
        "kit_readme.txt",
        NAME=manifest.name,
        ENGINE=engines[0],
        ENGINES=", ".join(engines[1:]) or "none for this bundle",
        CUDA="'cuda-python==12.6.*'" if engines[0] == "tensorrt" else "",
        CUDA_HINT=" and cuda-python==13.0.*" if engines[0] == "tensorrt" else "",
        TRTEXEC=trtexec_lines(manifest) if tensorrt else "",
        ONNX=manifest.model_file,
        BASELINE_ENGINE="\n(The baseline's: device-report-baseline-engine/.)" if baseline else "",
        SPEED=_speed_text(manifest, baseline.manifest, compares) if baseline else "",
        TIME=date.today().isoformat(),
        VERSION=edge_version(),
        SHA256=bundle.sha256,
    )
    if not tensorrt:  # nothing to cross-check without TensorRT
        start, end = text.index("\nCross-checks\n"), text.index("\nState of this kit\n")
        text = text[:start] + text[end:]
    title, _, rest = text.partition("\n")
    return f"{title}\n{'=' * len(title)}\n{rest.partition(chr(10))[2]}"


def _speed_text(manifest: Manifest, baseline: Manifest, compares: tuple[str, ...]) -> str:
    """What the kit's baseline is for."""
    low, high = manifest.precision, baseline.precision
    who = " or ".join(compares)
    text = (
        f"\nSpeed against {high}\n{'-' * (14 + len(high))}\n\n"
        f"baseline/ holds the same network in {high}. With {who} the script builds (TensorRT) and verifies it too,\n"
        "and after the usual measurement times both in turns in one run, the engine alone. The report's speed says\n"
        f"how many times as fast {low} is.\n"
    )
    if low == "int8":
        least = least_speedup(manifest.guard)
        text += (
            f"Below {least:g} the script ends with exit status 3: on this device, in this power mode, int8\n"
            f"is not worth its error, so use the {high} bundle. The report is written all the same; send it back.\n"
        )
    return text + "\n"


def trtexec_lines(manifest: Manifest) -> str:
    """The command of trtexec for each TensorRT: precision flags up to 10.3, a strongly typed graph from 10.13 on."""
    weak = f"{_TRTEXEC} --onnx=bundle/{manifest.model_file}{_WEAK_FLAGS[manifest.precision]} {_MEASURE}"
    typed = f"{_TRTEXEC} --onnx=bundle/{_typed_file(manifest)} --stronglyTyped {_MEASURE}"
    return (
        f"TensorRT 8.6 and 10.3 (JetPack 6):\n\n    {weak}\n\n"
        "TensorRT 10.13, 10.16 and 11 (JetPack 7; 11 has strong typing always on, so leave --stronglyTyped out if it\n"
        f"refuses it):\n\n    {typed}\n"
    )


def _typed_file(manifest: Manifest) -> str:
    """The file whose own types TensorRT follows: the 16-bit one of the bundle's own size, where it has one."""
    own = (
        v.file
        for v in manifest.variants
        if (v.typing, v.batch, v.size_px) == ("fp16", 1, manifest.input.size_px)
    )
    return next(own, manifest.model_file)


def _fill_template(name: str, **values: str) -> str:
    text = Path(__file__).with_name(name).read_text()
    for key, value in values.items():
        text = text.replace(f"@{key}@", value)
    return text
