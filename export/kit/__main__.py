"""Packs a bundle with all that a device needs to build, verify and measure it: `python -m export.kit`."""

from __future__ import annotations

import shutil
import tarfile
from pathlib import Path

from runtime.device.speed import check_baseline
from runtime.engines.seam import BUILDS_FROM, engines_for
from segcore.bundle.folder import MANIFEST, Bundle, open_bundle
from segcore.bundle.manifest import Manifest
from segcore.command import Settings, log, print_result, run_command
from segcore.errors import InputError
from segcore.outfolder import check_apart, out_folder

SCRIPT = "run_on_device.sh"


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
    bundle = open_bundle(settings.bundle)
    engines = kit_engines(bundle.manifest, name=str(settings.bundle))
    check_apart(settings.out, settings.bundle, "--bundle")
    baseline = open_bundle(settings.baseline) if settings.baseline else None
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
    with out_folder(settings.out, made_from, overwrite=settings.overwrite, keep_on_error=False) as folder:
        _fill_kit(folder, bundle, baseline, engines, compares)
        # Written last inside the block: the folder gets its name only when its archive is whole.
        _pack_archive(folder, tar, settings.out.name)
    return engines


def kit_engines(manifest: Manifest, *, name: str) -> tuple[str, ...]:
    """The engines that can run a bundle on a device, the one it was made for first.

    Raises:
        InputError: a torch bundle, or an engine that only the device that built it can run.
    """
    if manifest.format == "tensorrt":
        raise InputError(
            f"bundle {name}: must be one that a device can open, is a TensorRT engine, which runs only where it was "
            "built; give the tensorrt-onnx bundle that it was built from"
        )
    able = engines_for(manifest, name=name)
    if manifest.format == "tensorrt-onnx":
        return ("tensorrt", *able)
    # An onnx bundle in int8 was quantised for CPUs; TensorRT would read its 8-bit numbers wrongly.
    builds = manifest.format in BUILDS_FROM and manifest.precision != "int8"
    return (*able, "tensorrt") if builds else able


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
    from export.kit.text import readme, run_script
    from export.kit.wheel import build_wheel
    from export.kit_requirements import requirements

    _copy_bundle(bundle, folder / "bundle")
    if baseline:
        _copy_bundle(baseline, folder / "baseline")
    log("building the wheel of the edge part")
    build_wheel(folder)
    for engine in engines:
        lines = "".join(f"{line}\n" for line in requirements(engine))
        (folder / f"requirements-{engine}.txt").write_text(lines)
    (folder / "README.txt").write_text(readme(bundle, engines, baseline=baseline, compares=compares))
    (folder / SCRIPT).write_text(run_script(engines, compares))
    (folder / SCRIPT).chmod(0o755)


def _copy_bundle(bundle: Bundle, folder: Path) -> None:
    for name in (MANIFEST, *bundle.manifest.files):
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(bundle.path(name), target)
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


if __name__ == "__main__":
    run_command(main, KitSettings, "python -m export.kit")
