"""`python -m export`: makes of a torch bundle what runs without torch; on a device, of a TensorRT bundle an engine.

The settings end here: `make_job` says in a `Job` what is to be done, and nothing below reads a flag. This module
travels to devices without torch, so what needs torch is imported late.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

from pydantic import Field

from export.job import Bounds, ExportData, Finetuning, GuardPlan, Job, MoreInputs, open_export_data
from runtime.engines.seam import available_threads, check_engine_installed, installed
from runtime.parity import PARITY_LIMITS, UNGATED, ParityLimits
from runtime.trt.cuda_runtime import CudaLibrary, choose_cuda
from segcore.bundle.folder import Bundle, open_and_tell, open_bundle
from segcore.bundle.guard_record import MIN_SPEEDUP, GuardRecord, points_text
from segcore.bundle.manifest import Manifest
from segcore.bundle.signature import check_signing_key, sign_bundle
from segcore.command import Settings, print_result, run_command
from segcore.errors import InputError, need
from segcore.outfolder import check_apart, check_new, out_folder, scratch_beside
from segcore.words import bounded_ratio, fixed_percent

_NEEDED = {
    "onnx": ("torch", "onnx", "onnxscript", "onnxruntime"),
    "openvino": ("torch", "onnx", "onnxscript", "openvino", "nncf"),
    "tensorrt": ("torch", "onnx", "onnxscript", "onnxruntime"),
}
_SHOWN_LAYERS = 10


class ExportSettings(Settings):
    """Turns a torch bundle into one that runs without torch, and proves that it computes the same masks.

    Masks of procedural golden cases, and of validation cases with --data, are compared with torch's: at most
    0.1 % of pixels may differ in fp32 and 0.5 % in fp16. int8 is guarded: it may lose so much Dice on validation
    cases and must be faster, in the engine that runs it. --to tensorrt writes what TensorRT builds an engine from;
    the same command on the device, given that bundle, builds the engine there. Of a promptable teacher the encoder and
    the decoder are written, too; they stay in float, since nothing has calibrated prompts. Exit status 3: a gate or the
    guard failed, nothing was written.
    """

    bundle: Path
    """Folder of a bundle in torch format; on the device, with --to tensorrt, of one made with --to tensorrt. That one
    serves --to tensorrt-rtx, too."""
    to: Literal["onnx", "openvino", "tensorrt", "tensorrt-rtx"]
    """onnx runs in onnxruntime and OpenVINO, openvino (IR) in OpenVINO, tensorrt on NVIDIA devices, where its engine is
    built; tensorrt-rtx is an engine that is compiled here for the RTX cards of PCs."""
    precision: Literal["fp32", "fp16", "int8"] = "fp32"
    """fp16: 16-bit weights, 32-bit arithmetic on CPUs, 16-bit in TensorRT; int8 needs --data."""
    data: str | None = None
    """Dataset: its train split calibrates int8, its validation split takes part in the gate and the guard."""
    out: Path
    """Folder to write: the exported bundle."""
    overwrite: bool = False
    """Replace OUT if it is there."""
    size: tuple[int, ...] = ()
    """More square input sizes in pixels, a file each; the runtime takes the one that fits a picture. Needs --data."""
    batch: tuple[int, ...] = ()
    """More batch sizes, a model file each, for throughput; students and U-Nets only."""
    calibration_cases: int = Field(128, gt=0)
    """At most so many train cases calibrate int8."""
    guard_cases: int = Field(128, gt=0)
    """At most so many validation cases tell what int8 loses."""
    max_drop_points: float = Field(0.1, ge=0)
    """Most that int8 may lose of mean Dice, in points (0.01)."""
    max_p05_drop_points: float = Field(0.5, ge=0)
    """Most that int8 may lose of Dice's 5th percentile over cases, in points."""
    max_size_drop_points: float = Field(1.0, ge=0)
    """Most that fp32 may lose of mean Dice at another --size, in points: a network knows the size of its training."""
    min_speedup: float = Field(MIN_SPEEDUP, ge=0)
    """Least that int8 must be faster than fp32 in the engine that runs it; 0 does not ask."""
    max_steps: int = Field(6, ge=0)
    """At most so many attempts with sensitive layers back in float."""
    rank_layers: bool = False
    """Tell what each layer costs in int8 even where none has to go back to float (takes a while)."""
    qat: bool = False
    """Where that is not enough, fine-tune the student under fake quantisation first."""
    qat_epochs: int = Field(3, ge=1)
    """Epochs of that fine-tuning."""
    soft: Path | None = None
    """Soft labels of the teacher for --qat; without them the fp32 student teaches itself."""
    split_seed: int | None = None
    """Seed of the dataset's split; by default the one in the bundle."""
    builder_check: bool = True
    """NVIDIA's own compiler (TensorRT for RTX, extra tensorrt-rtx), where it is installed, must read and compile every
    graph of --to tensorrt; --no-builder-check notes its refusal and writes the bundle all the same."""
    compute_capability: tuple[str, ...] = ()
    """With --to tensorrt-rtx: of the cards that shall run it; by default 8.0 and 8.6 (Ampere), 8.9 (Ada) and 12.0
    (Blackwell); 7.5 is Turing."""
    cuda_library: CudaLibrary | None = None
    """On the device: cuda-python or pycuda; by default cuda-python where it is installed."""
    workspace_mib: int | None = Field(None, gt=0)
    """On the device: TensorRT's scratch memory while it builds; by default a share of what is free."""
    timing_cache: Path | None = None
    """On the device: file of TensorRT's kernel timings, read and written; makes the next build shorter."""
    sign: Path | None = None
    """PEM file of your private key (elliptic curve, no password): signs the bundle, by OpenSSF model signing, for
    python -m runtime.verify --trust. Needs the extra sign."""


def main(settings: ExportSettings) -> None:
    """Exports, and prints the gate's figures and one JSON line."""
    if settings.sign:
        check_signing_key(settings.sign)
    manifest = export_bundle(settings)
    if (
        settings.sign
    ):  # of what is finished: a run that ends between the two leaves a bundle that nobody trusts
        sign_bundle(settings.out, settings.sign)
    for name, value in manifest.gate.items():
        print(f"{name:32}{fixed_percent(value) if name.endswith('_share') else f'{value:.4g}'}")
    if manifest.guard:
        print_guard(manifest.guard)
    size = sum(entry.bytes for entry in manifest.files.values())
    print_result(
        bundle=str(settings.out),
        sha256=open_bundle(settings.out).sha256,
        name=manifest.name,
        model_bytes=manifest.model_bytes,
        bundle_bytes=size,
        gate=manifest.gate,
        guard=manifest.guard and manifest.guard.model_dump(exclude={"sensitivity"}),
    )


def print_guard(guard: GuardRecord) -> None:
    """The guard's verdict for a reader: what was tried, which layers stayed in float, how fast."""
    print(f"\nint8 against fp32 in {guard.engine} {guard.engine_version}, {guard.cases} validation cases")
    print(f"{'':52}{'Dice':>8}{'5th pct':>9}{'points lost':>13}{'of 5th pct':>12}")
    print(f"{'fp32':52}{guard.fp32.mean:8.4f}{guard.fp32.p05:9.4f}")
    for step in guard.steps:
        dice = f"{step.int8.mean:8.4f}{step.int8.p05:9.4f}"
        lost = f"{points_text(step.drop_points):>13}{points_text(step.p05_drop_points):>12}"
        print(f"{step.what:52.52}{dice}{lost}")
    for layer in guard.float_layers:
        print(f"in float: {layer.layer}: {layer.why}")
    for one in guard.sensitivity[:_SHOWN_LAYERS]:
        lost = points_text(one.drop_points)
        print(f"sensitivity: {one.layer:44.44}{lost:>7} points, logits off by {100 * one.error:.2f} %")
    for speed in guard.speeds:
        spread = f"({bounded_ratio(speed.low)} to {bounded_ratio(speed.high)})"
        print(
            f"speed in {speed.engine}, {speed.threads} threads: {bounded_ratio(speed.speedup)} times fp32 {spread}"
        )
    if not guard.speeds:
        print("speed: unmeasured; it is measured on the device (python -m export.kit)")


def export_bundle(
    settings: ExportSettings, *, limits: ParityLimits | None = None, judge: bool = True
) -> Manifest:
    """Writes the exported bundle.

    Args:
        settings: of the command.
        limits: of the gate against torch; by default the precision's (int8 is not gated against torch).
        judge: have NVIDIA's compiler judge TensorRT's graphs, where it is installed.

    Raises:
        InputError: settings that do not go together, or a bundle or data that cannot be used.
        GateError: the exported model computes other masks than torch, or int8 loses too much or gains too little;
            nothing is left behind.
    """
    source = open_and_tell(settings.bundle)
    check_apart(settings.out, settings.bundle, "--bundle")
    choose_cuda(settings.cuda_library)
    if settings.to == "tensorrt-rtx":
        return _compile_for_rtx(settings, source, limits)
    if settings.to == "tensorrt" and source.manifest.format != "torch":
        from runtime.trt.build import build_bundle

        return build_bundle(
            source,
            settings.out,
            overwrite=settings.overwrite,
            workspace_mib=settings.workspace_mib,
            timing_cache=settings.timing_cache,
        )
    _check_settings(settings, source)
    for package in _NEEDED[settings.to]:
        if not installed(package):
            raise need(package, "export")
    from export.pipeline import write_bundle

    data = _open_cases(settings, source.manifest)
    made_from = {
        **settings.model_dump(mode="json", exclude={"out", "overwrite", "sign"}),
        "parent": source.sha256,
    }
    with (
        out_folder(settings.out, made_from, overwrite=settings.overwrite, resumes=False) as folder,
        scratch_beside(folder) as scratch,
    ):
        job = replace(make_job(settings, source, data, folder, scratch), judge=judge)
        return write_bundle(replace(job, parity_limits=limits) if limits else job)


def _compile_for_rtx(settings: ExportSettings, source: Bundle, limits: ParityLimits | None) -> Manifest:
    """Compiles a bundle's graphs; of a torch bundle they are written, gated and guarded first, and thrown away."""
    from runtime.trt.rtx import CAPABILITIES, compile_bundle

    check_engine_installed("tensorrt-rtx")  # before minutes are spent
    check_new(settings.out, overwrite=settings.overwrite)
    capabilities = settings.compute_capability or CAPABILITIES
    if source.manifest.format != "torch":
        return compile_bundle(source, settings.out, capabilities=capabilities, overwrite=settings.overwrite)
    with scratch_beside(settings.out.with_name(f"{settings.out.name}.partial"), "graphs") as scratch:
        # Not judged there: what the compiler refuses it refuses below.
        asked = {"to": "tensorrt", "out": scratch / "graphs"}
        export_bundle(settings.model_copy(update=asked), limits=limits, judge=False)
        graphs = open_bundle(scratch / "graphs")
        return compile_bundle(graphs, settings.out, capabilities=capabilities, overwrite=settings.overwrite)


def make_job(settings: ExportSettings, source: Bundle, data: ExportData, folder: Path, scratch: Path) -> Job:
    """What the settings ask for, in the words of those who do it.

    Args:
        settings: of the command, checked.
        source: in torch format.
        data: what was taken from --data.
        folder: of the bundle to write.
        scratch: folder for what is thrown away.
    """
    finetuning = None
    if settings.qat:
        finetuning = Finetuning(
            str(settings.data),
            soft=settings.soft,
            epochs=settings.qat_epochs,
            split_seed=settings.split_seed,
        )
    bounds = Bounds(settings.max_drop_points, settings.max_p05_drop_points, settings.max_steps)
    return Job(
        source=source,
        target=settings.to,
        precision=settings.precision,
        data=data,
        parity_limits=UNGATED if settings.precision == "int8" else PARITY_LIMITS[settings.precision],
        guard=GuardPlan(
            bounds, speedup=settings.min_speedup, rank_layers=settings.rank_layers, finetuning=finetuning
        ),
        folder=folder,
        scratch=scratch,
        threads=available_threads(),
        inputs=MoreInputs(settings.size, settings.batch, drop_points=settings.max_size_drop_points),
        must_compile=settings.builder_check,
    )


def _open_cases(settings: ExportSettings, parent: Manifest) -> ExportData:
    """The cases of --data; none without it."""
    if not settings.data:
        return ExportData(parent.data)
    int8 = settings.precision == "int8"
    return open_export_data(
        settings.data,
        parent,
        calibration_cases=settings.calibration_cases if int8 else 0,
        guard_cases=settings.guard_cases if int8 else 0,
        split_seed=settings.split_seed,
    )


def _check_settings(settings: ExportSettings, source: Bundle) -> None:
    """Raises `InputError` for what does not go together, before anything is opened or written."""
    from export.int8.guard import has_attention

    teacher = source.manifest.kind == "teacher"
    if settings.precision == "int8" and settings.data is None:
        raise InputError(
            "--data: must be given for --precision int8, got none; its train split calibrates the ranges"
        )
    if settings.qat and (teacher or settings.precision != "int8"):
        what = "a teacher" if teacher else settings.precision
        raise InputError(f"--qat: must be for a student in int8, got {what}; leave it out")
    if has_attention(source.manifest) and any(batch > 1 for batch in settings.batch):
        raise InputError(
            "--batch: must be 1 for a teacher, got more; its graph holds the batch in many places"
        )
    for flag, values, least in (("--size", settings.size, 32), ("--batch", settings.batch, 1)):
        for value in values:
            if value < least or (least == 32 and value % 32):
                must = "a multiple of 32" if least == 32 else "at least 1"
                raise InputError(f"{flag}: must be {must}, got {value}")
    if settings.size and settings.data is None:
        raise InputError("--data: must be given with --size, got none; it tells what the size costs")


if __name__ == "__main__":
    run_command(main, ExportSettings, "python -m export")
