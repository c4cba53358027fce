"""Builds a TensorRT bundle from a bundle of ONNX files, on the device that will run it. Without torch and onnx.

Each plan is built in a process of its own. The builder's memory goes back to the system when it is done, which on a
Jetson is the GPU's memory too; and when the kernel kills it, or it crashes, that is one line here and not the end of
the program.
"""

from __future__ import annotations

import multiprocessing
import shutil
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from runtime.engines.seam import BUILDS_FROM, check_engine_installed
from runtime.trt.cuda_runtime import open_cuda
from runtime.trt.library import (
    OLDEST,
    STRONGLY_TYPED,
    Release,
    import_tensorrt,
    killed_error,
    release_of,
)
from runtime.trt.plan_request import BuiltPlan, PlanRequest
from runtime.verify import Verification, verify_bundle
from segcore.bundle.folder import Bundle, open_bundle, seal_bundle
from segcore.bundle.golden import GOLDEN_FILE
from segcore.bundle.manifest import CompilerVerdict, EngineTarget, Manifest, Variant
from segcore.command import log
from segcore.errors import GateError, InputError
from segcore.host import Made, made_now
from segcore.outfolder import check_apart, out_folder, scratch_beside


@dataclass(frozen=True)
class PlanFile:
    """One plan to build.

    Attributes:
        source: the graph; a variant, as which the bundle's own model file counts too.
        plan: name of the file to write.
    """

    source: Variant
    plan: str


def build_bundle(
    source: Bundle,
    out: Path,
    *,
    overwrite: bool = False,
    timing_cache: Path | None = None,
    workspace_mib: int | None = None,
) -> Manifest:
    """Builds a plan of each of the bundle's graphs, and verifies them with the golden cases.

    Args:
        source: in tensorrt-onnx format, or in onnx format with fp32 or fp16.
        out: folder to write.
        overwrite: replace `out` if it is there.
        timing_cache: file of kernel timings, kept from one build to the next: makes the next one shorter.
        workspace_mib: bound of one layer's scratch memory; by default 256 MiB or less.

    Raises:
        InputError: no TensorRT, cuda-python or GPU here; a bundle that this TensorRT does not take; too little memory.
        GateError: the engine computes other masks than the bundle's golden ones; nothing is left behind.
    """
    check_source(source)
    check_apart(out, source.folder, "--bundle")
    check_engine_installed("tensorrt")
    version: str = run_apart(_check_device, None, what="engine")
    plans = plan_files(source, release_of(version))
    settings = {
        "parent": source.sha256,
        "to": "tensorrt",
        "tensorrt": version,
        "workspace_mib": workspace_mib,
    }
    made = made_now()
    with (
        out_folder(out, settings, overwrite=overwrite, resumes=False) as folder,
        scratch_beside(folder) as scratch,
    ):
        # The plans of one bundle share most of their kernels.
        cache = timing_cache or scratch / "timings"
        built = {
            plan.plan: build_apart(
                PlanRequest(
                    onnx=source.path(plan.source.file),
                    plan=folder / plan.plan,
                    precision=source.manifest.precision,
                    timing_cache=cache,
                    workspace_mib=workspace_mib,
                )
            )
            for plan in plans
        }
        return _seal_verified(source, folder, plans, built, made)


def _check_device(_: None) -> str:
    """TensorRT's version, where it loads and there is a GPU; in a child, so that no CUDA context stays here."""
    version: str = import_tensorrt().__version__
    open_cuda().close()
    return version


def check_source(source: Bundle) -> None:
    """Refuses what no TensorRT engine is built from.

    Raises:
        InputError: a bundle of another format, or int8 that was not quantised for TensorRT.
    """
    manifest = source.manifest
    if manifest.format not in BUILDS_FROM:
        raise InputError(
            f"bundle {source.folder}: must be in tensorrt-onnx format to build an engine, got {manifest.format}; "
            "run python -m export --to tensorrt where torch is, and copy the result here"
        )
    if manifest.format == "onnx" and manifest.precision == "int8":
        raise InputError(
            f"bundle {source.folder}: must be in tensorrt-onnx format for int8, got onnx; TensorRT would read its "
            "8-bit numbers wrongly: export it with --to tensorrt --precision int8"
        )


def plan_files(source: Bundle, release: Release) -> tuple[PlanFile, ...]:
    """Which graphs this TensorRT takes: the FP32-typed ones with flags, or the strongly typed ones.

    fp32 is the same graph for all. fp16 and int8 need 16-bit tensors from 10.13 on, where the graph's types decide:
    an FP32-typed graph would compute in FP32 whatever is not quantised.

    Raises:
        InputError: a TensorRT that is too old, or graphs that it would not run as the bundle says.
    """
    manifest = source.manifest
    if release < OLDEST:
        raise InputError(
            f"TensorRT {release[0]}.{release[1]}: must be {OLDEST[0]}.{OLDEST[1]} or newer, is not; "
            "update JetPack to 6.0 or newer"
        )
    first = manifest.main
    typing = "fp16" if release >= STRONGLY_TYPED and manifest.precision != "fp32" else "fp32"
    chosen = [variant for variant in (first, *manifest.variants) if variant.typing == typing]
    if not any(variant.size_px == first.size_px and variant.batch == 1 for variant in chosen):
        raise InputError(
            f"bundle {source.folder}: must hold a graph with {typing} types for {manifest.precision} with TensorRT "
            f"{release[0]}.{release[1]}, has none; export it again with --to tensorrt"
        )
    # By name: of two graphs that would give one plan the last is built.
    plans = {name: PlanFile(variant, name) for variant in chosen for name in [_plan_name(variant, first)]}
    return tuple(plans.values())


def _plan_name(variant: Variant, first: Variant) -> str:
    size = "" if variant.size_px == first.size_px else f"-{variant.height_px}x{variant.width_px}"
    batch = "" if variant.batch == 1 else f"-b{variant.batch}"
    return f"model{size}{batch}.plan"


def _seal_verified(
    source: Bundle, folder: Path, plans: Sequence[PlanFile], built: Mapping[str, BuiltPlan], made: Made
) -> Manifest:
    first = next(plan for plan in plans if plan.plan == "model.plan")
    model = built[first.plan]
    target = model.identity.target_for(
        onnx=first.source.file,
        onnx_sha256=source.manifest.files[first.source.file].sha256,
        flags=model.flags,
    )
    # Sealed twice: only a sealed bundle can be verified, and the figures of that belong into its manifest.
    seal_engine(source, folder, plans, target, made=made, gate={})
    log("verifying the engine with the golden cases")
    found = verify_bundle(open_bundle(folder), engine="tensorrt")
    if found.failures:
        raise GateError(f"the built engine in TensorRT {found.engine_version}: {'; '.join(found.failures)}")
    return seal_engine(source, folder, plans, target, made=made, gate=_gate_figures(found))


def _gate_figures(found: Verification) -> dict[str, float]:
    return {
        "golden_cases": float(found.cases),
        "tensorrt_golden_mean_share": found.parity.mean_share,
        "tensorrt_golden_worst_share": found.parity.worst_share,
    }


def seal_engine(
    source: Bundle,
    folder: Path,
    plans: Sequence[PlanFile],
    target: EngineTarget,
    *,
    made: Made,
    gate: Mapping[str, float],
    format: str = "tensorrt",
    compiled: CompilerVerdict | None = None,
) -> Manifest:
    """Copies the golden cases beside the plans in `folder` and writes the manifest.

    Args:
        source: the bundle of graphs.
        folder: holds the plans.
        plans: all of them.
        target: what they were built for.
        made: when and how.
        gate: figures of the verification.
        format: of the bundle: tensorrt or tensorrt-rtx.
        compiled: what TensorRT for RTX made of the graphs.
    """
    parent = source.manifest
    for golden in sorted({plan.source.golden for plan in plans} | {GOLDEN_FILE}):
        if golden in parent.files:
            (folder / golden).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source.path(golden), folder / golden)
    others = (plan for plan in plans if plan.plan != "model.plan")
    return seal_bundle(
        folder,
        **{
            **source.child_fields(),
            "format": format,
            "gate": dict(gate),
            "compiled": compiled,
            "engine_target": target,
            "made": made,
            "model_file": "model.plan",
            "variants": tuple(plan.source.model_copy(update={"file": plan.plan}) for plan in others),
            "prompt": None,  # an engine has one input; encoder and decoder stay behind in the bundle of graphs
        },
    )


# --- a process of its own ---


def build_apart(request: PlanRequest) -> BuiltPlan:
    """Runs `runtime.trt.plan.build_plan` in a child process.

    Raises:
        InputError: it cannot be built, or the child died.
    """
    built: BuiltPlan = run_apart(_build_plan, request, what=request.onnx.name)
    return built


def run_apart(
    function: Any, argument: Any, *, what: str, died: Callable[..., Exception] = killed_error
) -> Any:
    """`function(argument)` in a child process; both must be importable and picklable.

    Args:
        function: of a module's top level.
        argument: its only one.
        what: an error calls the work.
        died: the error for a process that a signal ended: (minus the signal, file=what).

    Raises:
        InputError: the function raised it, or its process died.
    """
    # Not fork, which would copy a CUDA context, and that does not survive it.
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=_send_result, args=(function, argument, theirs))
    child.start()
    theirs.close()  # so that the child's death ends our wait
    try:
        kind, answer = ours.recv()
        child.join()
    except EOFError:
        child.join()
        if (child.exitcode or 0) > 0:  # it ended by itself, with a traceback; below 0 a signal ended it
            raise RuntimeError(f"building {what} failed; the builder's traceback is above") from None
        raise died(child.exitcode or 0, file=what) from None
    finally:
        child.kill()  # where we were interrupted; else it is over already
        child.join()
        ours.close()
    if kind == "input":
        raise InputError(answer)
    return answer


def _send_result(function: Any, argument: Any, connection: Connection) -> None:
    # Ctrl-C is the parent's to handle, which then kills this process: an exception inside TensorRT's C++ would abort.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        connection.send(("ok", function(argument)))
    except InputError as error:
        connection.send(("input", str(error)))
    finally:
        connection.close()


def _build_plan(request: PlanRequest) -> BuiltPlan:
    import_tensorrt()  # before the module below, whose own import would fail without a line that says what to do
    from runtime.trt.plan import build_plan

    return build_plan(request)
