"""What it costs to trust nobody: a child for a graph's first open, codes on what a cache holds, a look at every logit.

`python -m benchmarks.checks.guards --bundle B`, with a bundle that OpenVINO opens. What is compared takes turns
(A B A B) in one run; the figures are medians, and their ratios.

    first open      `runtime.predict` on one picture, as a process, with an empty cache and with that of the run before:
                    the first has the child, and unless --no-verify the golden cases, beside it
    compile cache   opening with OpenVINO: compiled anew, and from the cache, whose content is held against its code;
                    and that check alone
    numbers         whether logits are numbers, as a share of the engine's time
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

from PIL import Image
from pydantic import Field

from runtime.engines.seam import check_engine_installed, open_engine
from runtime.pipeline import check_numbers
from runtime.predictor import Predictor
from segcore.bundle.folder import Bundle, open_bundle
from segcore.cache import read_private
from segcore.command import Settings, log, print_result, run_command
from segcore.errors import InputError
from segcore.host import describe_host, library_versions
from segcore.phantom import phantom_case
from segcore.picture.preprocess import mask_of_logits, prepare

_ROOT = Path(__file__).parents[2]
_CALLS = 1000
"""Of the engine with a look at its logits, and as many without."""


class GuardSettings(Settings):
    """`python -m benchmarks.checks.guards` measures what a child, codes and checks cost."""

    bundle: Path
    """Folder of a bundle that OpenVINO opens."""
    rounds: int = Field(7, ge=1)
    """Times that each kind of start and of opening is measured."""
    threads: int = Field(1, ge=1)
    """CPU threads of the engine."""


def main(settings: GuardSettings) -> None:
    """Prints a line a guard and one JSON line."""
    check_engine_installed("openvino")
    bundle = open_bundle(settings.bundle)
    starts = {
        name: _time_starts(settings, words) for name, words in (("probe", ["--no-verify"]), ("both", []))
    }
    cache = _time_cache(settings, bundle)
    numbers = _time_numbers(settings, bundle)
    for name, what in (("probe", "the child"), ("both", "the child and the golden cases")):
        first, second = starts[name]["first_s"], starts[name]["second_s"]
        print(f"first open     {what}: {first:.2f} s, then {second:.2f} s: {first / second:.2f} times")
    compiled, kept, check = cache["compiled_ms"], cache["kept_ms"], cache["check_ms"]
    print(
        f"compile cache  compiled {compiled:.1f} ms, kept {kept:.1f} ms; the check takes {check:.2f} ms, "
        f"{check / (compiled - kept):.2%} of what is gained"
        if compiled > kept
        else f"compile cache  compiled {compiled:.1f} ms, kept {kept:.1f} ms: nothing is gained here"
    )
    print(
        f"numbers        {1e3 * numbers['check_ms']:.1f} µs after {numbers['engine_ms']:.2f} ms: "
        f"{numbers['check_ms'] / numbers['engine_ms']:.2%}"
    )
    print_result(
        bundle=bundle.manifest.name,
        starts=starts,
        cache=cache,
        numbers=numbers,
        rounds=settings.rounds,
        host=describe_host(),
        versions=library_versions(),
    )


def _time_starts(settings: GuardSettings, words: list[str]) -> dict[str, float]:
    """Median seconds of the command with an empty cache, and with the one that this left."""
    seconds: dict[str, list[float]] = {"first_s": [], "second_s": []}
    for number in range(settings.rounds):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            Image.fromarray(phantom_case("cxr", 0)[0]).save(folder / "picture.png")
            for kind, times in seconds.items():
                times.append(_run_predict(settings, folder, kind, words))
        log(f"round {number + 1}/{settings.rounds}: {times_text(seconds)}")
    return {kind: median(times) for kind, times in seconds.items()}


def times_text(seconds: dict[str, list[float]]) -> str:
    """first_s 2.31, second_s 1.20: the last of each."""
    return ", ".join(f"{kind} {times[-1]:.2f}" for kind, times in seconds.items())


def _run_predict(settings: GuardSettings, folder: Path, out: str, words: list[str]) -> float:
    command = [sys.executable, "-m", "runtime.predict", "--bundle", str(settings.bundle.resolve())]
    command += ["--image", str(folder / "picture.png"), "--out", str(folder / out), "--engine", "openvino"]
    command += ["--threads", str(settings.threads), *words]
    paths = [str(_ROOT), os.environ.get("PYTHONPATH", "")]
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "XDG_CACHE_HOME": str(folder / "caches"),
    }
    begin = time.perf_counter()
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise InputError(done.stderr.strip().splitlines()[-1].removeprefix("error: "))
    return time.perf_counter() - begin


def _time_cache(settings: GuardSettings, bundle: Bundle) -> dict[str, float]:
    """Median milliseconds of opening without and with the cache, and of reading what it holds, checked and not."""

    def open_once(cache: Path | None) -> None:
        open_engine(
            "openvino",
            bundle.model_path,
            precision=bundle.manifest.precision,
            threads=settings.threads,
            cache=cache,
        ).close()

    with tempfile.TemporaryDirectory() as name:
        cache = Path(name)
        open_once(cache)  # fills it
        (blob,) = cache.rglob("*.blob")
        kinds: dict[str, Callable[[], object]] = {
            "compiled_ms": lambda: open_once(None),
            "kept_ms": lambda: open_once(cache),
            "checked_ms": lambda: read_private(blob.parent, blob.name),
            "read_ms": blob.read_bytes,
        }
        times: dict[str, list[float]] = {kind: [] for kind in kinds}
        for _ in range(settings.rounds):
            for kind, call in kinds.items():
                times[kind].append(_milliseconds(call))
        found = {kind: median(each) for kind, each in times.items()}
        return {
            **found,
            "check_ms": found["checked_ms"] - found["read_ms"],
            "bytes": float(blob.stat().st_size),
        }


def _time_numbers(settings: GuardSettings, bundle: Bundle) -> dict[str, float]:
    """Median milliseconds of the engine, and of what follows it until the mask, with the look at logits and without.

    The first call of numpy after an engine fetches its code into the processor's cache again, whichever it is; so the
    look is timed together with what follows it.
    """
    spec, output = bundle.manifest.input, bundle.manifest.output
    picture = prepare(phantom_case("cxr", 0)[0], spec)[None]
    times: dict[str, list[float]] = {"engine_ms": [], "with_ms": [], "without_ms": []}
    with Predictor.open(bundle, engine="openvino", threads=settings.threads) as predictor:
        for call in range(2 * _CALLS):
            begin = time.perf_counter()
            (logits,) = predictor.run_file(predictor.files[0], picture)
            ran = time.perf_counter()
            if looked := call % 2 == 0:
                check_numbers(logits, "picture")
            mask_of_logits(logits, output, spec.size_px)
            times["with_ms" if looked else "without_ms"].append(1e3 * (time.perf_counter() - ran))
            times["engine_ms"].append(1e3 * (ran - begin))
    found = {kind: median(each) for kind, each in times.items()}
    return {**found, "check_ms": found["with_ms"] - found["without_ms"]}


def _milliseconds(call: Callable[[], object]) -> float:
    begin = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - begin)


if __name__ == "__main__":
    run_command(main, GuardSettings, "python -m benchmarks.checks.guards")
