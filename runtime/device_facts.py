"""Puts a device report together: what was measured, on what, and why some fields are None."""

from __future__ import annotations

import platform
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path

from runtime.device_measure import PICTURE_PX, Measured
from runtime.device_report import BundleFacts, DeviceReport, VerificationFacts
from runtime.device_sensors import read_board, read_power_mode
from runtime.device_tensorrt import Inspected
from runtime.device_watch import Watch, clocks_pinned, throttling, unread_sensors
from runtime.verify import Verification
from segcore import __version__
from segcore.bundle import Bundle
from segcore.host import describe_host, library_versions


def assemble(
    source: Bundle,
    bundle: Bundle,
    found: Verification,
    measured: Measured,
    inspected: Inspected | None,
    watch: Watch,
    *,
    command: str,
    warm_up_s: float,
    no_speed: str,
) -> DeviceReport:
    """Puts everything into the report, with the reason of whatever could not be read.

    Args:
        source: the bundle that the kit brought.
        bundle: the one that ran; for TensorRT the engine that was built from `source`.
        found: of the golden cases.
        measured: figures of any engine.
        inspected: TensorRT's own figures; None for other engines.
        watch: with all its snapshots.
        command: how the measurement was called, without folders.
        warm_up_s: seconds before the first timed call.
        no_speed: why there is no comparison with a baseline so far.
    """
    board, mode = read_board(), read_power_mode()
    pinned = clocks_pinned(watch.snapshots[0])
    reasons = {
        "board.model": (board.model, "no device tree and no DMI names it"),
        "board.l4t": (board.l4t, "no /etc/nv_tegra_release: not a Jetson"),
        "board.jetpack": (
            board.jetpack,
            "no Jetson" if board.l4t is None else "a release that is not known here",
        ),
        "board.memory_mib": (board.memory_mib, "no /proc/meminfo"),
        "power_mode": (mode, "nvpmodel is not here, or tells nothing"),
        "clocks_pinned": (pinned, "no clock could be read"),
        "other_load_share": (measured.other_load_share, "no /proc/stat"),
        "latency_no_copies_ms": (inspected, f"{found.engine} computes in the CPU's own memory"),
        "device_memory_mib": (inspected, f"{found.engine} holds nothing on a GPU"),
        "guard": (source.manifest.guard, "the bundle holds no record of a guard"),
        "tensorrt": (inspected, f"{found.engine} ran"),
        "speed": (None, no_speed),  # comes after the rest, if at all
    }
    unread = {name: why for name, (value, why) in reasons.items() if value is None}
    return DeviceReport(
        sam2edge=edge_version(),
        time=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        command=command,
        python=platform.python_version(),
        host=describe_host(),
        versions=library_versions(),
        board=board,
        power_mode=mode,
        clocks_pinned=pinned,
        throttling=throttling(watch.snapshots),
        engine=found.engine,
        engine_version=found.engine_version,
        engine_target=bundle.manifest.engine_target,
        threads=found.threads,
        bundle=_bundle_facts(source, bundle),
        guard=source.manifest.guard,
        verification=VerificationFacts(
            cases=found.cases,
            mean_share=found.parity.mean_share,
            worst_share=found.parity.worst_share,
            constant=found.parity.constant,
            failures=found.failures,
        ),
        warm_up_s=warm_up_s,
        latency_ms=measured.latency_ms,
        latency_no_copies_ms=inspected.latency_no_copies_ms if inspected else None,
        end_to_end_ms=measured.end_to_end_ms,
        throughput_images_s=measured.throughput_images_s,
        picture_px=(PICTURE_PX, PICTURE_PX),
        process_peak_mib=measured.process_peak_mib,
        device_memory_mib=inspected.device_memory_mib if inspected else None,
        other_load_share=measured.other_load_share,
        tensorrt=inspected.facts if inspected else None,
        snapshots=tuple(watch.snapshots),
        unread=unread | unread_sensors(watch.snapshots),
    )


def edge_version() -> str:
    """Of the kit's wheel, which names the commit too; else of sam2edge."""
    try:
        return metadata.version("sam2edge-edge")
    except metadata.PackageNotFoundError:
        return __version__


def _bundle_facts(source: Bundle, bundle: Bundle) -> BundleFacts:
    manifest, files = source.manifest, bundle.manifest.files
    weights = {name for name in files if Path(name).stem == Path(bundle.manifest.model_file).stem}
    return BundleFacts(
        name=manifest.name,
        sha256=source.sha256,
        parent=manifest.parent,
        kind=manifest.kind,
        format=manifest.format,
        precision=manifest.precision,
        height_px=manifest.input.height_px,
        width_px=manifest.input.width_px,
        channels=manifest.input.channels,
        classes=manifest.classes,
        parameters=manifest.parameters,
        macs=manifest.macs,
        model_bytes=sum(files[name].bytes for name in weights),
    )
