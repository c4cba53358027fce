"""From a bundle that was brought to a device to one that its engine opens there: TensorRT's is built first."""

from __future__ import annotations

import time
from pathlib import Path

from runtime.engine import choose_engine
from segcore.bundle import MANIFEST, Bundle, open_bundle
from segcore.command import log
from segcore.errors import InputError

BUILDS_FROM = ("tensorrt-onnx", "onnx")
"""Formats that a TensorRT engine is built from."""


def engine_folder(out: Path, *, of: str = "") -> Path:
    """Where an engine of a report is built: beside it. One of an earlier run is replaced, nothing else.

    Args:
        out: the report's file.
        of: "baseline" for the engine that the report's is compared with.

    Raises:
        InputError: another folder has that name.
    """
    folder = out.with_name(f"{out.stem}-{of}-engine" if of else f"{out.stem}-engine")
    if folder.exists() and not (folder / MANIFEST).is_file():
        raise InputError(f"--out {out}: {folder} must be free for the engine, is not; move it away")
    return folder


def needs_building(source: Bundle, engine: str) -> bool:
    """Whether the engine opens a bundle only after it was built from it."""
    return engine == "tensorrt" and source.manifest.format in BUILDS_FROM


def runnable(source: Bundle, engine: str, out: Path, *, of: str = "") -> tuple[Bundle, float | None]:
    """The bundle that the engine opens, and the seconds that building it took; None where nothing was built.

    Args:
        source: the bundle that was brought.
        engine: to run it with.
        out: the report's file; see `engine_folder`.
        of: as in `engine_folder`.

    Raises:
        InputError: this engine cannot run the bundle, or TensorRT cannot build it here.
        GateError: TensorRT built it, and its masks are not the bundle's.
    """
    if not needs_building(source, engine):
        choose_engine(source.manifest, engine, name=str(source.folder))
        return source, None
    from runtime.trt.build import build_bundle

    folder = engine_folder(out, of=of)
    # One for both engines of a report: two precisions of a network have kernels in common.
    timings = out.with_name(f"{out.stem}-engine-timings")
    log(f"building TensorRT's engine into {folder}; minutes on a small device")
    begin = time.perf_counter()
    build_bundle(source, folder, overwrite=True, timing_cache=timings)
    return open_bundle(folder), time.perf_counter() - begin
