"""Proves, without a dataset, that this machine's engine computes the masks that the bundle's maker computed.

`python -m runtime.verify --bundle B` runs the bundle's golden cases (procedural pictures) and compares masks.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from runtime.parity import LIMITS, Parity, check_parity, percent
from runtime.predictor import Predictor
from segcore.bundle import Bundle, open_bundle
from segcore.command import Settings, print_result, run_command
from segcore.errors import GateError, InputError
from segcore.golden import GOLDEN_FILE, load_golden


class VerifySettings(Settings):
    """Runs a bundle's golden cases through an engine and compares the masks with the bundle's reference."""

    bundle: Path
    """Folder of an exported bundle."""
    engine: str | None = None
    """openvino or onnxruntime; by default openvino where it is installed and can open the bundle."""
    threads: int | None = None
    """CPU threads of the engine; by default all that this process may use."""


@dataclass(frozen=True)
class Verification:
    """What a verification found."""

    engine: str
    engine_version: str
    threads: int
    cases: int
    parity: Parity
    failures: tuple[str, ...]


def verify_bundle(bundle: Bundle, *, engine: str | None = None, threads: int | None = None) -> Verification:
    """Compares the engine's masks of the golden cases with the reference masks.

    The reference of fp32 and fp16 bundles is torch; that of int8 is the int8 engine that the exporter ran.

    Raises:
        InputError: the bundle has no golden cases, or cannot be opened with this engine.
    """
    manifest = bundle.manifest
    with Predictor.open(bundle, engine=engine, threads=threads) as predictor:
        if GOLDEN_FILE not in manifest.files:
            raise InputError(f"bundle {bundle.folder}: must hold {GOLDEN_FILE}, has none; export it again")
        inputs, reference = load_golden(bundle.folder)
        logits = predictor.run(inputs)
        if logits.shape != reference.shape:
            raise InputError(
                f"bundle {bundle.folder}: logits must be {reference.shape} as in {GOLDEN_FILE}, "
                f"got {logits.shape}; export it again"
            )
        parity = check_parity(logits, reference, manifest.output, [manifest.input.size_px] * len(inputs))
        return Verification(
            engine=predictor.engine_name,
            engine_version=predictor.engine_version,
            threads=predictor.threads,
            cases=len(inputs),
            parity=parity,
            failures=tuple(parity.failures(LIMITS[manifest.precision])),
        )


def main(settings: VerifySettings) -> None:
    """Prints a line a figure, PASS or FAIL, and one JSON line.

    Raises:
        GateError: the masks differ by more than the limits of the bundle's precision.
    """
    bundle = open_bundle(settings.bundle)
    found = verify_bundle(bundle, engine=settings.engine, threads=settings.threads)
    parity, limits = found.parity, LIMITS[bundle.manifest.precision]
    worst = "" if limits.worst_share is None else f"   at most {percent(limits.worst_share)}"
    print(f"bundle                        {bundle.folder} ({bundle.manifest.name})")
    print(f"engine                        {found.engine} {found.engine_version}, {found.threads} threads")
    print(f"golden cases                  {found.cases}")
    mean = "" if limits.mean_share is None else f"   at most {percent(limits.mean_share)}"
    print(f"pixels that differ, mean      {percent(parity.mean_share)}{mean}")
    print(f"pixels that differ, worst     {percent(parity.worst_share)}{worst}")
    print(f"output varies with the input  {'no' if parity.constant else 'yes'}")
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
        passed=not found.failures,
    )
    if found.failures:
        raise GateError(
            f"bundle {bundle.folder} with {found.engine} {found.engine_version}: {'; '.join(found.failures)}"
        )


if __name__ == "__main__":
    run_command(main, VerifySettings, "python -m runtime.verify")
