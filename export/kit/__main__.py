"""Packs a bundle with all that a device needs to build, verify and measure it: `python -m export.kit`."""

from __future__ import annotations

import shutil
import tarfile
from datetime import date
from pathlib import Path

from export.kit.wheel import wheel_version
from runtime.device.speed import check_baseline
from runtime.engines.seam import builds_tensorrt, engines_for
from segcore.bundle.folder import MANIFEST, Bundle, open_and_tell, open_bundle
from segcore.bundle.guard_record import least_speedup
from segcore.bundle.manifest import Manifest
from segcore.bundle.signature import SIGNATURE
from segcore.command import Settings, log, print_result, run_command
from segcore.errors import InputError
from segcore.outfolder import check_apart, out_folder

SCRIPT = "run_on_device.sh"
_TRTEXEC = "/usr/src/tensorrt/bin/trtexec"
# Source: trtexec --help of each version; NVIDIA/TensorRT samples/common/sampleOptions.cpp.
_MEASURE_FLAGS = (
    "--memPoolSize=workspace:256 --useCudaGraph --noDataTransfers --useSpinWait --separateProfileRun "
    "--dumpProfile --exportLayerInfo=layers.json --profilingVerbosity=detailed"
)
_WEAK_FLAGS = {"int8": " --int8 --fp16", "fp16": " --fp16", "fp32": ""}


class KitSettings(Settings):
    """Packs a bundle into one folder, and a .tar of it, that a device needs nothing else for but its libraries.

    On the device, ./run_on_device.sh installs, builds the engine, verifies its masks, measures, and writes one
    device-report.json; python -m benchmarks --records device-report.json shows it beside what was measured here.
    """

    bundle: Path
    """Folder of an exported bundle."""
    baseline: Path | None = None
    """Folder of the same network's export in a higher precision, for an engine of the bundle's. It goes into the kit,
    and the device says how many times as fast the bundle is."""
    out: Path
    """Folder to write; OUT.tar holds the same."""
    overwrite: bool = False
    """Replace OUT and OUT.tar if they are there."""


def main(settings: KitSettings) -> None:
    """Writes the kit, and prints its engines and one JSON line."""
    engines = make_kit(settings)
    against = settings.baseline and open_bundle(settings.baseline).manifest.precision
    tar = tar_path(settings.out)
    print(f"kit                           {settings.out}, {tar.stat().st_size / 1e6:.1f} MB as {tar.name}")
    print(f"engines                       {', '.join(engines)}")
    if against:
        print(f"baseline                      {against}, timed in turns with the bundle")
    print(f"on the device                 tar xf {tar.name} && ./{settings.out.name}/{SCRIPT}")
    print_result(
        kit=str(settings.out), tar=str(tar), engines=engines, against=against, tar_bytes=tar.stat().st_size
    )


def make_kit(settings: KitSettings) -> tuple[str, ...]:
    """Writes the folder and the archive.

    Returns:
        The engines that it can measure, its default first.

    Raises:
        InputError: not an exported bundle, a baseline that it cannot be compared with, or OUT or OUT.tar is there
            already.
    """
    bundle = open_and_tell(settings.bundle)
    engines = kit_engines(bundle)
    check_apart(settings.out, settings.bundle, "--bundle")
    baseline = open_and_tell(settings.baseline) if settings.baseline else None
    compares: tuple[str, ...] = ()
    if baseline:
        compares = check_baseline(bundle, baseline)
        check_apart(settings.out, baseline.folder, "--baseline")
        engines = tuple(sorted(engines, key=lambda engine: engine not in compares))  # the default compares
    tar = tar_path(settings.out)
    if tar.exists() and not settings.overwrite:
        raise InputError(
            f"--out {settings.out}: {tar} must not exist yet, it does; add --overwrite to replace it"
        )
    made_from = {"command": "export.kit", "bundle": bundle.sha256}
    if baseline:
        made_from["baseline"] = baseline.sha256
    with out_folder(settings.out, made_from, overwrite=settings.overwrite, resumes=False) as folder:
        _fill_kit(folder, bundle, baseline, engines, compares)
        # Written last inside the block: the folder gets its name only when its archive is whole.
        _pack_archive(folder, tar, settings.out.name)
    return engines


def kit_engines(bundle: Bundle) -> tuple[str, ...]:
    """The engines that can run a bundle on a device, the one it was made for first.

    Raises:
        InputError: a torch bundle, an engine that only the device that built it can run, or one for RTX cards.
    """
    manifest = bundle.manifest
    if manifest.format == "tensorrt":
        raise InputError(
            f"bundle {bundle.folder}: must be one that a device can open, is a TensorRT engine, which runs only "
            "where it was built; give the tensorrt-onnx bundle that it was built from"
        )
    if manifest.format == "tensorrt-rtx":
        raise InputError(
            f"bundle {bundle.folder}: must be for a device without sam2edge, is for a PC with an RTX card; there: "
            "pip install 'sam2edge[tensorrt-rtx]', then python -m runtime.device --engine tensorrt-rtx --bundle B"
        )
    able = engines_for(bundle)
    if manifest.format == "tensorrt-onnx":
        return ("tensorrt", *able)
    return (*able, "tensorrt") if builds_tensorrt(manifest) else able


def tar_path(out: Path) -> Path:
    """Where the archive of a kit lies: beside its folder."""
    return out.with_name(out.name + ".tar")


def _fill_kit(
    folder: Path,
    bundle: Bundle,
    baseline: Bundle | None,
    engines: tuple[str, ...],
    compares: tuple[str, ...],
) -> None:
    from export.kit.wheel import build_wheel
    from export.kit_requirements import list_requirements

    _copy_bundle(bundle, folder / "bundle")
    if baseline:
        _copy_bundle(baseline, folder / "baseline")
    log("building the wheel of the edge part")
    build_wheel(folder)
    for engine in engines:
        lines = "".join(f"{line}\n" for line in list_requirements(engine))
        (folder / f"requirements-{engine}.txt").write_text(lines)
    (folder / "README.txt").write_text(readme_text(bundle, engines, baseline=baseline, compares=compares))
    (folder / SCRIPT).write_text(run_script(engines, compares))
    (folder / SCRIPT).chmod(0o755)


def _copy_bundle(bundle: Bundle, folder: Path) -> None:
    signature = [SIGNATURE] if (bundle.folder / SIGNATURE).is_file() else []
    for name in (MANIFEST, *signature, *bundle.manifest.files):
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(bundle.folder / name, target)
    open_bundle(folder)  # checks the copies' hashes


def _pack_archive(folder: Path, tar: Path, name: str) -> None:
    """An archive of the folder under its final name, with nobody's user name in it."""

    def nameless(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
        if member.name == f"{name}/settings.json":  # of the unfinished folder
            return None
        member.uid = member.gid = 0
        member.uname = member.gname = ""
        return member

    partial = tar.with_name(tar.name + ".tmp")
    try:
        with tarfile.open(partial, "w") as archive:
            archive.add(folder, arcname=name, filter=nameless)
        partial.replace(tar)
    finally:
        partial.unlink(missing_ok=True)


_PYCUDA = """
CUDA is called through cuda-python, which has wheels. pycuda serves instead (--cuda-library pycuda); it has none, and is
compiled on the device, in some minutes, for the numpy that is there:

    sudo apt install build-essential python3-dev
    PATH=/usr/local/cuda/bin:$PATH python3 -m pip install pycuda

Where the system's numpy is 1 (JetPack 6), the script keeps numpy below 2 for it; offline add 'numpy<2' to the line
above.
"""

# --- its README.txt and run_on_device.sh, filled in for one bundle ---


def run_script(engines: tuple[str, ...], compares: tuple[str, ...] = ()) -> str:
    """run_on_device.sh; the first engine is its default, and those in `compares` also time the kit's baseline."""
    return _fill_template(
        "run_on_device.sh", ENGINE=engines[0], ENGINES=", ".join(engines), COMPARES=" ".join(compares)
    )


def readme_text(
    bundle: Bundle,
    engines: tuple[str, ...],
    *,
    baseline: Bundle | None = None,
    compares: tuple[str, ...] = (),
) -> str:
    """The text of README.txt.

    Args:
        bundle: that the kit brings.
        engines: that can measure it, the default first.
        baseline: that it is compared with.
        compares: the engines that can compare the two.
    """
    manifest = bundle.manifest
    tensorrt = "tensorrt" in engines
    text = _fill_template(
        "kit_readme.txt",
        NAME=manifest.name,
        ENGINE=engines[0],
        ENGINES=", ".join(engines[1:]) or "none for this bundle",
        CUDA="'cuda-python==12.6.*'" if engines[0] == "tensorrt" else "",
        CUDA_HINT=" and cuda-python==13.0.*" if engines[0] == "tensorrt" else "",
        PYCUDA=_PYCUDA if tensorrt else "",
        TRTEXEC=trtexec_lines(manifest) if tensorrt else "",
        ONNX=manifest.model_file,
        BASELINE_ENGINE="\n(The baseline's: device-report-baseline-engine/.)" if baseline else "",
        SPEED=_speed_text(manifest, baseline.manifest, compares) if baseline else "",
        TIME=date.today().isoformat(),
        VERSION=wheel_version(),
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
    weak = f"{_TRTEXEC} --onnx=bundle/{manifest.model_file}{_WEAK_FLAGS[manifest.precision]} {_MEASURE_FLAGS}"
    typed = f"{_TRTEXEC} --onnx=bundle/{_typed_file(manifest)} --stronglyTyped {_MEASURE_FLAGS}"
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


if __name__ == "__main__":
    run_command(main, KitSettings, "python -m export.kit")
