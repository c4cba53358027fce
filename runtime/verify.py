"""Proves, without a dataset, that this machine's engine computes the masks that the bundle's maker computed.

`python -m runtime.verify --bundle B` runs the bundle's golden cases (procedural pictures) and compares masks, for every
file of the bundle that the engine opens. `runtime.predict` and the page do so too, once a machine: `prove`.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from runtime.buckets import Size, model_files
from runtime.parity import (
    PARITY_LIMITS,
    PROMPT_LIMITS,
    Parity,
    PromptParity,
    check_parity,
    check_prompt_parity,
)
from runtime.predictor import Predictor
from runtime.promptable import PromptPredictor, is_promptable
from runtime.trt.cuda_runtime import CudaLibrary, choose_cuda
from segcore.bundle.folder import Bundle, open_and_tell
from segcore.bundle.golden import (
    GOLDEN_FILE,
    GOLDEN_PROMPTS,
    ask,
    golden_masks,
    graphs_digest,
    load_golden,
    load_golden_prompts,
    load_whole_way,
    mask_digest,
)
from segcore.bundle.manifest import Manifest, Variant
from segcore.bundle.signature import check_signature
from segcore.cache import is_remembered, remember
from segcore.command import Settings, log, print_result, run_command
from segcore.errors import GateError, InputError
from segcore.host import describe_host
from segcore.measure.metrics import disagreement
from segcore.words import fixed_percent

_PLANS = ("tensorrt", "tensorrt-rtx")
"""Formats whose graph was built from the one that was exported, and is another file on every device."""


class VerifySettings(Settings):
    """Runs a bundle's golden cases through an engine and compares the masks with the bundle's reference."""

    bundle: Path
    """Folder of an exported bundle."""
    expect: tuple[str, ...] = ()
    """sha256 of the bundle (its first 12 digits or more will do); another bundle is refused. Repeat for several."""
    trust: Path | None = None
    """PEM file of the public key of the bundle's maker: a bundle that it did not sign is refused (exit status 2). Needs
    the extra sign."""
    engine: str | None = None
    """openvino, onnxruntime, tensorrt or tensorrt-rtx; by default openvino where it is there and can open the bundle
    (on ARM onnxruntime for int8)."""
    threads: int | None = None
    """CPU threads of the engine; by default all that this process may use."""
    cuda_library: CudaLibrary | None = None
    """For an engine on a GPU: cuda-python or pycuda; by default cuda-python where it is installed."""


@dataclass(frozen=True)
class FileVerification:
    """What a verification found of one file of the bundle.

    Attributes:
        file: its name.
        size_px: height and width of its input.
        batch: pictures a call.
        cases: golden cases.
        parity: how far their masks are from the reference.
        failures: what is over the limits, one phrase each.
    """

    file: str
    size_px: Size
    batch: int
    cases: int
    parity: Parity
    failures: tuple[str, ...]


@dataclass(frozen=True)
class Verification:
    """What a verification found.

    Attributes:
        cases: golden cases of the bundle's model.
        parity: of the bundle's model.
        files: the model, then every variant that this engine opens.
        failures: of all of them; those of a variant begin with its name.
        left_out: variants that this engine does not open.
        prompts: of a promptable bundle's encoder and decoder; None for others.
        whole_way: share of pixels that differ from the masks of the golden pictures, from file to mask; None for a
            bundle that was exported before there were any.
    """

    engine: str
    engine_version: str
    threads: int
    cases: int
    parity: Parity
    files: tuple[FileVerification, ...]
    failures: tuple[str, ...]
    left_out: tuple[str, ...] = ()
    prompts: PromptParity | None = None
    whole_way: float | None = None


def verify_bundle(bundle: Bundle, *, engine: str | None = None, threads: int | None = None) -> Verification:
    """Compares the engine's masks of the golden cases with the reference masks, for every file of the bundle.

    The reference of fp32 and fp16 bundles is torch; that of int8 is the int8 engine that the exporter ran.

    Raises:
        InputError: the bundle has no golden cases, or cannot be opened with this engine.
    """
    manifest = bundle.manifest
    with Predictor.open(bundle, engine=engine, threads=threads) as predictor:
        if GOLDEN_FILE not in manifest.files:
            raise InputError(f"bundle {bundle.folder}: must hold {GOLDEN_FILE}, has none; export it again")
        files = tuple(_verify_file(predictor, variant) for variant in predictor.files)
        model, *variants = files
        opened = {file.file for file in files}
        prompts = _verify_promptable(predictor) if is_promptable(manifest) else None
        prompt_failures = prompts.failures(PROMPT_LIMITS[manifest.precision]) if prompts else []
        whole_way, whole_failures = _verify_whole_way(predictor)
        return Verification(
            engine=predictor.engine_name,
            engine_version=predictor.engine_version,
            threads=predictor.threads,
            cases=model.cases,
            parity=model.parity,
            files=files,
            failures=(
                *model.failures,
                *(f"{variant.file}: {text}" for variant in variants for text in variant.failures),
                *(f"prompts: {text}" for text in prompt_failures),
                *whole_failures,
            ),
            left_out=tuple(v.file for v in manifest.variants if v.file not in opened),
            prompts=prompts,
            whole_way=whole_way,
        )


def prove(predictor: Predictor | PromptPredictor) -> None:
    """Runs the golden cases before the first masks of a bundle on this machine; milliseconds for a student.

    That they passed is kept in the user's cache, and holds for this bundle, these of its files, this engine's version
    and this processor. A bundle without golden cases is told and let pass.

    Raises:
        GateError: the masks are not those that the bundle's maker computed.
    """
    bundle = predictor.bundle
    asked = isinstance(predictor, PromptPredictor)
    _tell_unmeasured_speed(bundle.manifest)
    if (GOLDEN_PROMPTS if asked else GOLDEN_FILE) not in bundle.manifest.files:
        log(f"{bundle.folder} holds no golden cases: its masks are not proved on this machine")
        return
    verdict = _verdict_key(predictor)
    if is_remembered("golden", verdict):
        return
    engine = f"{predictor.engine_name} {predictor.engine_version}"
    log(f"checking the golden cases of {bundle.folder} with {engine} on this machine, once")
    if isinstance(predictor, PromptPredictor):
        limits = PROMPT_LIMITS[bundle.manifest.precision]
        failures = _verify_prompts(predictor).failures(limits)
    else:
        failures = [text for variant in predictor.files for text in _verify_file(predictor, variant).failures]
        failures += _verify_whole_way(predictor)[1]
    if failures:
        raise GateError(
            f"bundle {bundle.folder} with {engine}: must compute the masks of its golden cases on this machine, does "
            f"not ({'; '.join(failures)}); do not use its masks here: choose another engine, or another version of it"
        )
    remember("golden", verdict)


def _verdict_key(predictor: Predictor | PromptPredictor) -> dict[str, Any]:
    """What it holds for that the golden cases passed."""
    if isinstance(predictor, PromptPredictor):
        files = [predictor.spec.encoder_file, predictor.spec.decoder_file]
    else:
        files = [variant.file for variant in predictor.files]
    return {
        "bundle": predictor.bundle.sha256,
        "files": files,
        "engine": f"{predictor.engine_name} {predictor.engine_version}",
        "host": describe_host(),
    }


def _tell_unmeasured_speed(manifest: Manifest) -> None:
    """INT8's gain belongs to the kind of processor that it was measured on."""
    here = platform.machine()
    if manifest.guard and manifest.guard.speeds and not manifest.made.host.endswith(here):
        log(
            f"note: that INT8 is faster was measured on {manifest.made.host}; on {here} it is unmeasured: "
            "python -m runtime.device --baseline FP32_BUNDLE measures it"
        )


def _verify_file(predictor: Predictor, variant: Variant) -> FileVerification:
    folder, manifest = predictor.bundle.folder, predictor.manifest
    inputs, reference = load_golden(folder, file=variant.golden)
    if inputs.shape[1:] != (*variant.size_px, manifest.input.channels):
        raise InputError(
            f"bundle {folder}: pictures must be {'×'.join(map(str, variant.size_px))} as {variant.file} takes them, "
            f"got {inputs.shape} in {variant.golden}; export it again"
        )
    logits = predictor.run_file(variant, inputs)
    if logits.shape != reference.shape:
        raise InputError(
            f"bundle {folder}: logits must be {reference.shape} as in {variant.golden}, "
            f"got {logits.shape}; export it again"
        )
    parity = check_parity(logits, reference, manifest.output, [variant.size_px] * len(inputs))
    failures = tuple(parity.failures(PARITY_LIMITS[manifest.precision]))
    if not np.isfinite(logits).all():
        failures = ("the model gives NaN or infinity",)  # which is why the masks differ
    return FileVerification(variant.file, variant.size_px, variant.batch, len(inputs), parity, failures)


def _verify_whole_way(predictor: Predictor) -> tuple[float | None, list[str]]:
    """Share of pixels that differ between file and mask, and what is wrong.

    The digests find what no picture does: a threshold moved by a hair, a class renamed, a weight that hardly counts.
    """
    manifest = predictor.manifest
    whole = load_whole_way(predictor.bundle.folder)
    if whole is None:
        return None, []
    failures = []
    if whole.digest != mask_digest(manifest, (file.size_px for file in model_files(manifest))):
        failures.append(
            "the manifest's input, output, classes, precision, quality, prompt or sizes are not those that it was "
            "exported with"
        )
    if manifest.format not in _PLANS and whole.graphs != graphs_digest(manifest.files):
        failures.append("the graph or its weights are not those that it was exported with")
    masks = golden_masks(
        whole.pictures,
        lambda batch: predictor.run_file(predictor.files[0], batch),
        manifest.input,
        manifest.output,
    )
    shares = [disagreement(a, b) for a, b in zip(masks, whole.masks, strict=True)]
    share, limits = float(np.mean(shares)), PARITY_LIMITS[manifest.precision]
    if limits.mean_share is not None and share > limits.mean_share:
        most = fixed_percent(limits.mean_share)
        failures.append(f"from picture to mask {fixed_percent(share)} of pixels differ, at most {most} may")
    return share, failures


def _verify_promptable(predictor: Predictor) -> PromptParity:
    bundle = predictor.bundle
    with PromptPredictor.open(bundle, engine=predictor.engine_name, threads=predictor.threads) as prompted:
        return _verify_prompts(prompted)


def _verify_prompts(prompted: PromptPredictor) -> PromptParity:
    bundle = prompted.bundle
    if GOLDEN_PROMPTS not in bundle.manifest.files:
        raise InputError(f"bundle {bundle.folder}: must hold {GOLDEN_PROMPTS}, has none; export it again")
    questions, reference = load_golden_prompts(bundle.folder)
    replies = ask(questions, prompted.model.encode, prompted.model.decode)
    if replies.logits.shape != reference.logits.shape:
        raise InputError(
            f"bundle {bundle.folder}: logits must be {reference.logits.shape} as in {GOLDEN_PROMPTS}, "
            f"got {replies.logits.shape}; export it again"
        )
    manifest = bundle.manifest
    return check_prompt_parity(replies, reference, manifest.output, manifest.input.size_px)


def main(settings: VerifySettings) -> None:
    """Prints a line a figure, then one a variant, PASS or FAIL, and one JSON line.

    Raises:
        GateError: the masks differ by more than the limits of the bundle's precision.
    """
    choose_cuda(settings.cuda_library)
    bundle = open_and_tell(settings.bundle, settings.expect)
    if settings.trust:
        check_signature(bundle, settings.trust)  # before a stranger's graph is opened
    found = verify_bundle(bundle, engine=settings.engine, threads=settings.threads)
    parity, limits = found.parity, PARITY_LIMITS[bundle.manifest.precision]
    worst = "" if limits.worst_share is None else f"   at most {fixed_percent(limits.worst_share)}"
    print(f"bundle                        {bundle.folder} ({bundle.manifest.name})")
    if settings.trust:
        print(f"signature                     of {settings.trust}")
    print(f"engine                        {found.engine} {found.engine_version}, {found.threads} threads")
    print(f"golden cases                  {found.cases}")
    mean = "" if limits.mean_share is None else f"   at most {fixed_percent(limits.mean_share)}"
    print(f"pixels that differ, mean      {fixed_percent(parity.mean_share)}{mean}")
    print(f"pixels that differ, worst     {fixed_percent(parity.worst_share)}{worst}")
    print(f"output varies with the input  {'no' if parity.constant else 'yes'}")
    for one in found.files[1:]:
        print(_file_line(one))
    if found.prompts:
        print(_prompts_line(found.prompts))
    for name in found.left_out:
        print(f"{name:30}not verified: {found.engine} does not open it")
    whole_way = (
        "not verified: exported before it was kept"
        if found.whole_way is None
        else fixed_percent(found.whole_way)
    )
    print(f"from picture to mask          {whole_way}")
    print("FAIL" if found.failures else "PASS")
    print_result(
        bundle=str(bundle.folder),
        sha256=bundle.sha256,
        engine=found.engine,
        engine_version=found.engine_version,
        threads=found.threads,
        cases=found.cases,
        mean_share=parity.mean_share,
        worst_share=parity.worst_share,
        constant=parity.constant,
        whole_way=found.whole_way,
        signed=settings.trust is not None,
        variants=[
            {"file": one.file, "mean_share": one.parity.mean_share, "worst_share": one.parity.worst_share}
            for one in found.files[1:]
        ],
        prompts=found.prompts
        and {
            "answers": found.prompts.answers,
            "mean_share": found.prompts.parity.mean_share,
            "worst_share": found.prompts.parity.worst_share,
            "iou_change": found.prompts.iou_change,
        },
        passed=not found.failures,
    )
    if found.failures:
        raise GateError(
            f"bundle {bundle.folder} with {found.engine} {found.engine_version}: {'; '.join(found.failures)}"
        )


def _file_line(one: FileVerification) -> str:
    what = f"{'×'.join(map(str, one.size_px))}, batch {one.batch}, {one.cases} golden cases"
    shares = f"mean {fixed_percent(one.parity.mean_share)}, worst {fixed_percent(one.parity.worst_share)}"
    return f"{one.file:30}{what}: {shares}{', FAIL' if one.failures else ''}"


def _prompts_line(found: PromptParity) -> str:
    shares = f"mean {fixed_percent(found.parity.mean_share)}, worst {fixed_percent(found.parity.worst_share)}"
    return f"{'prompts':30}{found.answers} answers: {shares}, estimated IoU off by at most {found.iou_change:.2g}"


if __name__ == "__main__":
    run_command(main, VerifySettings, "python -m runtime.verify")
