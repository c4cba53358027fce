"""What can be proved in a quarter of an hour with a GPU: `python -m benchmarks.checks.gpu --out gpu`.

    arithmetic   a training step in bfloat16 on the GPU against the same step in float32 on the CPU: loss, gradients
    masks        student and teacher on the golden pictures, GPU against CPU: soft labels and mask pixels
    speed        pictures a second of both at several batches, in float32 and bfloat16
    training     teacher.train and student.distill, an epoch on built-in pictures, as commands
    engine       a student compiled by TensorRT for RTX, opened on this card, proved by its golden cases, timed

Networks have random weights; no data and no network are needed. Each part ends in a line; one that fails does not end
the others, and one that would not fit into --minutes any more is not begun, and said to be so. With --device cpu the
same parts run on the processor, small, which proves this script and nothing of a GPU.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from benchmarks.measuring import Part, write_record
from segcore.command import Settings, log, print_result, run_command
from segcore.errors import GateError, InputError, need
from segcore.host import describe_host, library_versions

if TYPE_CHECKING:
    from torch import nn

_LEAST_COSINE, _MOST_LOSS_CHANGE = 0.98, 0.02
"""Of bfloat16's gradients against float32's, and of its loss: eight bits of mantissa are 0.4 % a number."""
_MOST_SOFT_CHANGE, _MOST_PIXELS = 0.01, 0.001
"""Of probabilities between GPU and CPU in float32, and share of mask pixels."""
_SECONDS_A_BATCH = 1.0
_TYPICAL_S = {"arithmetic": 20, "masks": 20, "speed": 60, "training": 180, "engine": 120}
"""What a part takes on a GPU at most; one that would pass --minutes is not begun."""


class GpuSettings(Settings):
    """Proves on a GPU, in minutes, what is claimed of it: bf16 training, soft labels, speed, commands, engines.

    Exit status 3: something came out otherwise than on the CPU, or did not run; gpu.json is written all the same.
    """

    out: Path
    """New file, gpu.json."""
    device: Literal["cuda", "cpu"] = "cuda"
    """cpu runs the same parts small, to try the script."""
    minutes: float = Field(12, gt=0)
    """No part is begun that would end later."""
    part: tuple[str, ...] = tuple(_TYPICAL_S)
    """Only these parts."""


class PartResult(Part):
    """How a part ended.

    Attributes:
        passed: None where it was not run.
        said: in words, a line.
        figures: its numbers.
    """

    name: str
    passed: bool | None
    said: str
    seconds: float = 0.0
    figures: dict[str, float] = Field(default_factory=dict)


class GpuRecord(Part):
    """Everything that was found, and on what."""

    device: str
    parts: tuple[PartResult, ...]
    host: str = Field(default_factory=describe_host)
    versions: dict[str, str] = Field(default_factory=library_versions)


class PartFailed(Exception):
    """A part ran and came out wrong; the text says what."""


def main(settings: GpuSettings) -> None:
    """Runs the parts, writes the record, prints a line a part and one JSON line.

    Raises:
        InputError: no torch, no GPU, or a part of no such name.
        GateError: a part failed.
    """
    if settings.out.exists():
        raise InputError(f"--out {settings.out}: must not exist yet, it does; move it away")
    if wrong := [name for name in settings.part if name not in _TYPICAL_S]:
        raise InputError(f"--part: must be of {', '.join(_TYPICAL_S)}, got {wrong[0]}")
    record = GpuRecord(device=_device_name(settings.device), parts=tuple(run_parts(settings)))
    write_record(settings.out, record)
    print(record.device)
    for part in record.parts:
        verdict = {True: "PASS", False: "FAIL", None: "not run"}[part.passed]
        print(f"{part.name:12}{verdict:9}{part.said} ({part.seconds:.0f} s)")
    print_result(out=str(settings.out), passed=all(p.passed is not False for p in record.parts))
    if failed := [part.name for part in record.parts if part.passed is False]:
        raise GateError(f"on {record.device}: {', '.join(failed)} must pass, did not; see {settings.out}")


def run_parts(settings: GpuSettings) -> Iterator[PartResult]:
    """Runs one part after another while there is time for it."""
    end = time.monotonic() + 60 * settings.minutes
    for name in settings.part:
        left = end - time.monotonic()
        if _TYPICAL_S[name] > left:
            yield PartResult(
                name=name, passed=None, said=f"takes {_TYPICAL_S[name]} s, {max(left, 0):.0f} s were left"
            )
            continue
        log(f"{name} …")
        began = time.monotonic()
        try:
            said, figures = _PARTS[name](settings.device)
            passed = True
        except (PartFailed, InputError, GateError) as error:
            said, figures, passed = str(error), {}, False
        yield PartResult(
            name=name, passed=passed, said=said, seconds=time.monotonic() - began, figures=figures
        )


def _device_name(device: str) -> str:
    try:
        import torch
    except ImportError:
        raise need("torch", "train") from None
    if device == "cpu":
        return f"no GPU asked for: {describe_host()}"
    if not torch.cuda.is_available():
        raise InputError(
            "--device cuda: must be a GPU that PyTorch can use, there is none; run this where there is one, or give "
            f"--device cpu to try the script (it would run {', '.join(_TYPICAL_S)})"
        )
    found = torch.cuda.get_device_properties(0)
    return (
        f"{found.name}, compute capability {found.major}.{found.minor}, {found.total_memory >> 30} GiB, "
        f"CUDA {torch.version.cuda}"
    )


# --- the parts: each gives a line and its figures, or fails with a line ---


def _networks(size: int) -> dict[str, nn.Module]:
    """A student and a teacher with random weights, in eval mode; the same ones in every call."""
    import torch

    from segcore.bundle.manifest import Manifest
    from segcore.picture.preprocess import output_spec
    from student.design import find_design
    from student.network import build_student
    from teacher.system import open_plain

    torch.manual_seed(0)
    student = build_student(find_design("small"), channels=1, outputs=1)
    output = output_spec(("lung",), 4)
    manifest = Manifest.model_construct(
        architecture="s2agscunet",
        architecture_settings={"encoder": "tiny", "tune": "decoder"},
        classes=("lung",),
        input=_spec(size, 3),
        output=output,
    )
    return {"student small": student.eval(), "teacher S2AgScUNet tiny": open_plain(manifest).eval()}


def _spec(size: int, channels: int) -> Any:
    from segcore.picture.preprocess import InputSpec

    return InputSpec(
        height_px=size, width_px=size, channels=1, mean=(0.5,) * channels, std=(0.25,) * channels
    )


def _channels(name: str) -> int:
    return 1 if name.startswith("student") else 3


def _check_arithmetic(device: str) -> tuple[str, dict[str, float]]:
    import torch
    from torch.nn import functional as F

    size, batch = (256, 8) if device == "cuda" else (64, 2)
    figures: dict[str, float] = {}
    for name, network in _networks(size).items():
        torch.manual_seed(1)
        images = torch.rand(batch, _channels(name), size, size)

        def step(
            where: str, low: bool, network: nn.Module = network, images: Any = images
        ) -> tuple[Any, Any]:
            network.to(where).zero_grad()
            with torch.autocast(where, torch.bfloat16, enabled=low):
                logits = network(images.to(where))
            target = F.interpolate(images.to(where)[:, :1], logits.shape[2:]) > 0.5
            loss = F.binary_cross_entropy_with_logits(logits.float(), target.float())
            loss.backward()
            flat = [p.grad.float().flatten().cpu() for p in network.parameters() if p.grad is not None]
            return loss.item(), torch.cat(flat)

        exact, expected = step("cpu", False)
        loss, found = step(device, True)
        change = abs(loss - exact) / abs(exact)
        cosine = float(F.cosine_similarity(found, expected, dim=0))
        figures |= {f"{name}: loss changed by": change, f"{name}: gradients' cosine": cosine}
        if change > _MOST_LOSS_CHANGE or cosine < _LEAST_COSINE:
            raise PartFailed(
                f"{name}: bf16 on {device} must give the loss within {_MOST_LOSS_CHANGE:.0%} and gradients at a "
                f"cosine of {_LEAST_COSINE} or more, gave {change:.2%} and {cosine:.4f}"
            )
    worst = min(value for name, value in figures.items() if name.endswith("cosine"))
    return f"bf16 steps agree with fp32 on the CPU, gradients' cosine at least {worst:.4f}", figures


def _check_masks(device: str) -> tuple[str, dict[str, float]]:
    import torch

    from segcore.bundle.golden import golden_inputs
    from segcore.learn.network import DeployGraph

    size = 256 if device == "cuda" else 64
    figures: dict[str, float] = {}
    for name, network in _networks(size).items():
        spec = _spec(size, _channels(name))
        graph, pictures = DeployGraph(network, spec).eval(), torch.from_numpy(golden_inputs(spec))
        with torch.inference_mode():
            expected = graph(pictures)
            found = graph.to(device)(pictures.to(device)).cpu()
        soft = float((torch.sigmoid(found) - torch.sigmoid(expected)).abs().max())
        pixels = float(((found > 0) != (expected > 0)).float().mean())
        figures |= {f"{name}: soft labels changed by": soft, f"{name}: share of mask pixels": pixels}
        if soft > _MOST_SOFT_CHANGE or pixels > _MOST_PIXELS:
            raise PartFailed(
                f"{name}: soft labels must be within {_MOST_SOFT_CHANGE} of the CPU's and {_MOST_PIXELS:.1%} of the "
                f"mask pixels, are off by {soft:.4f} and {pixels:.3%}"
            )
    return f"soft labels within {max(figures.values()):.1e} of the CPU's", figures


def _measure_speed(device: str) -> tuple[str, dict[str, float]]:
    import torch

    size, batches = (256, (1, 8, 32, 128)) if device == "cuda" else (64, (1, 2))
    figures: dict[str, float] = {}
    for name, network in _networks(size).items():
        network.to(device)
        for low in (False, True):
            for batch in batches:
                images = torch.rand(batch, _channels(name), size, size, device=device)
                with torch.inference_mode(), torch.autocast(device, torch.bfloat16, enabled=low):
                    rate = batch * _calls_a_second(lambda: network(images), device)  # noqa: B023
                figures[f"{name}, {'bf16' if low else 'fp32'}, batch {batch}: pictures/s"] = rate
    best = {name: max(v for k, v in figures.items() if k.startswith(name)) for name in _networks(size)}
    return ", ".join(f"{name} up to {rate:.0f} pictures/s" for name, rate in best.items()), figures


def _calls_a_second(call: Callable[[], object], device: str) -> float:
    import torch

    def wait() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    for _ in range(3):
        call()
    wait()
    began, calls = time.perf_counter(), 0
    while time.perf_counter() - began < _SECONDS_A_BATCH:
        call()
        wait()
        calls += 1
    return calls / (time.perf_counter() - began)


def _run_training(device: str) -> tuple[str, dict[str, float]]:
    size, cases = ("256", "phantom:cxr:64") if device == "cuda" else ("64", "phantom:cxr:24")
    common = ["--data", cases, "--size", size, "--device", device, "--epochs", "1"]
    figures = {}
    with tempfile.TemporaryDirectory() as name:
        teacher, student = Path(name) / "teacher", Path(name) / "student"
        words = ["--system", "unet", "--unet-width", "16", "--out", str(teacher)]
        figures["teacher.train, an epoch: s"] = _command("teacher.train", *common, *words)
        words = ["--design", "nano", "--teacher", str(teacher), "--no-teacher-check", "--out", str(student)]
        figures["student.distill, an epoch: s"] = _command("student.distill", *common, *words)
    return f"both commands train on {device}", figures


def _prove_engine(device: str) -> tuple[str, dict[str, float]]:
    engine, to = ("tensorrt-rtx", "tensorrt-rtx") if device == "cuda" else ("onnxruntime", "onnx")
    figures = {}
    with tempfile.TemporaryDirectory() as name:
        student, exported = Path(name) / "student", Path(name) / "exported"
        words = ["--data", "phantom:cxr:24", "--size", "64", "--epochs", "1", "--design", "nano"]
        _command("student.distill", *words, "--device", "cpu", "--out", str(student))
        figures["export: s"] = _command(
            "export", "--bundle", str(student), "--to", to, "--precision", "fp16", "--out", str(exported)
        )
        words = ["--bundle", str(exported), "--engine", engine]
        figures["verify, kernels compiled: s"] = _command("runtime.verify", *words)
        figures["verify again, kernels kept: s"] = _command("runtime.verify", *words)
        _command("runtime.device", *words, "--out", str(Path(name) / "report.json"), "--warm-up-s", "1")
    return f"{engine} opens a student here, and its golden masks are right", figures


def _command(module: str, *words: str) -> float:
    """Seconds of one of our commands.

    Raises:
        PartFailed: it ended badly; its own last line.
    """
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-m", module, *words], capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise PartFailed(f"{module}: {last.removeprefix('error: ')}")
    return time.monotonic() - began


_PARTS: dict[str, Callable[[str], tuple[str, dict[str, float]]]] = {
    "arithmetic": _check_arithmetic,
    "masks": _check_masks,
    "speed": _measure_speed,
    "training": _run_training,
    "engine": _prove_engine,
}


if __name__ == "__main__":
    run_command(main, GpuSettings, "python -m benchmarks.checks.gpu")
