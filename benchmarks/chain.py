"""The whole chain in one command: teacher → soft labels → students → exports → report.

`python -m benchmarks.chain --data D --out O` prints each command before it runs it, skips what is finished and goes
on with what is not. `make quickstart` and the results in docs/results.md are this chain with other settings.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from pydantic import Field

from segcore.command import EXIT_GATE, Settings, log, print_result, run_command


class ChainSettings(Settings):
    """Run the whole chain on one data set."""

    data: str
    """A folder with images/ and masks/, an index.csv, or phantom:cxr, phantom:ct, phantom:dental."""
    out: Path
    """One folder for everything; each stage gets its own folder inside."""
    weights: str = "none"
    """SAM 2.1's weights for the teacher; none trains everything from random weights."""
    encoder: Literal["tiny", "small", "base+", "large"] = "tiny"
    """Size of the teacher's encoder."""
    window: str | None = None
    """Values from black to white of every network's input, as for teacher.train and student.distill."""
    size: int = 256
    """Input size of all networks, in pixels."""
    teacher_epochs: int = Field(50, ge=1)
    """Epochs of the teacher."""
    teacher_lr: float = Field(5e-4, gt=0)
    """Highest learning rate of the teacher."""
    student_epochs: int = Field(50, ge=1)
    """Epochs of every student."""
    design: str = "base"
    """The student's design, as for student.distill."""
    controls: bool = False
    """Also train the same design, LightUNet and U-Net 16 without a teacher, and time U-Net 64 (untrained)."""
    rounds: int = Field(5, ge=1)
    """Interleaved rounds of the latency measurement."""
    threads: int | None = None
    """Threads of the latency measurement; the machine's where it is not given."""


@dataclass(frozen=True)
class Stage:
    """One command and the folder it leaves behind.

    Attributes:
        out: the folder.
        words: of the command.
        guarded: the INT8 guard may refuse; the chain then goes on without this bundle.
    """

    out: Path
    words: tuple[str, ...]
    guarded: bool = False

    @property
    def line(self) -> str:
        return "python -m " + shlex.join(self.words)


def stages(settings: ChainSettings) -> list[Stage]:
    """The chain's commands, in order."""
    out, data = settings.out, ("--data", settings.data)
    window = (f"--window={settings.window}",) if settings.window else ()  # "-1350,150" would look like a flag
    size = ("--size", str(settings.size), *window)
    tune = "all" if settings.weights == "none" else "lora"
    teacher, labels, export = out / "teacher", out / "labels", out / "export"

    def stage(folder: Path, *words: str, guarded: bool = False) -> Stage:
        return Stage(folder, (*words, "--out", str(folder)), guarded)

    def student(name: str, design: str, *more: str) -> Stage:
        epochs = (
            ("--epochs", str(settings.student_epochs))
            if design != "unet64"
            else ("--epochs", "1", "--limit", "8")
        )
        return stage(out / name, "student.distill", *data, *size, "--design", design, *epochs, *more)

    def exported(name: str, precision: str) -> Stage:
        words = ("export", "--bundle", str(out / name), "--to", "openvino", "--precision", precision, *data)
        return stage(export / f"{name}-{precision}", *words, guarded=precision == "int8")

    chain = [
        stage(
            teacher, "teacher.train", *data, *size, "--weights", settings.weights, "--tune", tune,
            "--encoder", settings.encoder, "--epochs", str(settings.teacher_epochs), "--lr", f"{settings.teacher_lr:g}",
        ),
        stage(labels, "teacher.label", "--bundle", str(teacher), *data),
        student("student", settings.design, "--soft", str(labels)),
    ]  # fmt: skip
    exports = [exported("teacher", "fp32"), exported("student", "fp32"), exported("student", "int8")]
    untrained: list[Stage] = []
    if settings.controls:
        controls = {"alone": settings.design, "lightunet": "lightunet", "unet16": "unet16"}
        chain += [student(name, design) for name, design in controls.items()] + [student("unet64", "unet64")]
        exports += [exported(name, p) for name in controls for p in ("fp32", "int8")]
        untrained = [exported("unet64", p) for p in ("fp32", "int8")]
    threads = ("--threads", str(settings.threads)) if settings.threads else ()
    measure = ("benchmarks", *data, "--rounds", str(settings.rounds), *threads)
    reports = [stage(out / "report", *measure, *_bundle_words(exports))]
    if untrained:  # beside the students, for its time alone: its Dice means nothing
        timed = _bundle_words([*exports[1:3], *untrained])
        reports.append(
            stage(out / "latency", *measure, *timed, "--limit", "8", "--reference", str(untrained[0].out))
        )
    return [*chain, *exports, *untrained, *reports]


def _bundle_words(exports: list[Stage]) -> list[str]:
    return [word for e in exports for word in ("--bundle", str(e.out))]


def without(stage: Stage, refused: Collection[Path]) -> Stage:
    """The stage without the bundles that the guard refused."""
    words = list(stage.words)
    for out in refused:
        while str(out) in words:
            at = words.index(str(out))
            del words[at - 1 : at + 1]  # with its flag
    return replace(stage, words=tuple(words))


def main(settings: ChainSettings) -> None:
    """Runs what is not finished; a stage that fails ends the chain with its exit status."""
    refused: list[Path] = []
    for stage in stages(settings):
        if stage.out.exists():
            log(f"\n# {stage.out} is there, going on")
            continue
        stage = without(stage, refused)
        log(f"\n$ {stage.line}")
        status = subprocess.run([sys.executable, "-m", *stage.words], check=False).returncode
        if status == EXIT_GATE and stage.guarded:
            log(f"# {stage.out}: refused, its line above says why; the report goes without it")
            refused.append(stage.out)
        elif status:
            sys.exit(status)
    report = settings.out / "report"
    table = report / "report.md"
    log(f"\n{table.read_text()}" if table.is_file() else "")
    log(f"report: {report / 'report.html'}")
    print_result(report=str(report / "report.html"))


if __name__ == "__main__":
    run_command(main, ChainSettings, "python -m benchmarks.chain")
