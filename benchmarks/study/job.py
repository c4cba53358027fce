"""One run of a study in a process of its own, which trains and then tests: `python -m benchmarks.study.job JOB PARENT`.

JOB is in JSON, PARENT the number of the study's process. The training is `teacher.train` itself, which resumes; what it
needed of memory is noted when it ends. A job whose study is gone ends, too: two trainings must not write one folder
when the study is started again.
"""

from __future__ import annotations

import os
import runpy
import sys
import threading
import time
from pathlib import Path

from benchmarks.measuring import Part, write_lines
from benchmarks.study.record import TrainingMemory
from runtime.timing.latency import peak_memory_mib
from segcore.command import EXIT_INPUT, EXIT_INTERRUPTED, log
from segcore.errors import InputError

WEIGHTS = "model.safetensors"


class Job(Part):
    """What the process is told.

    Attributes:
        name: of the run.
        words: of teacher.train, without --out.
        bundle: where the training writes.
        memory: file for what the training needed.
        scores: file for the scores; its presence says that the run is complete.
        masks: file for the masks that the report draws, or None.
        data: what is trained on.
        data_sha256: when the study began.
        also_test: other data, or None.
        test_limit: test cases of each, or None.
        device: auto, cpu or cuda.
        drop_weights: remove the weights at the end.
    """

    name: str
    words: tuple[str, ...]
    bundle: Path
    memory: Path
    scores: Path
    masks: Path | None
    data: str
    data_sha256: str
    also_test: str | None
    test_limit: int | None
    device: str
    drop_weights: bool


def run_job(job: Job) -> None:
    """Trains what is not trained yet, tests it, and writes the scores last."""
    if not job.bundle.exists():
        train(job)
    from benchmarks.study.teachers import score_bundle

    log("testing")
    scores = score_bundle(
        job.bundle,
        run=job.name,
        data=job.data,
        data_sha256=job.data_sha256,
        also_test=job.also_test,
        limit=job.test_limit,
        device=job.device,
        masks=job.masks,
    )
    write_lines(job.scores, scores)
    if job.drop_weights:
        (job.bundle / WEIGHTS).unlink()


def train(job: Job) -> None:
    """Runs teacher.train as its command would, and notes the memory.

    Raises:
        SystemExit: it did not end well; with its status.
    """
    sys.argv = ["python -m teacher.train", *job.words, "--out", str(job.bundle)]
    try:
        runpy.run_module("teacher.train", run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if end.code:
            raise
    write_lines(job.memory, [peak_memory()])


def peak_memory() -> TrainingMemory:
    """Of this process so far; the GPU's as PyTorch's allocator reserved it."""
    import torch

    gpu = torch.cuda.max_memory_reserved() / 2**20 if torch.cuda.is_available() else None
    return TrainingMemory(peak_memory_mib=peak_memory_mib(), peak_gpu_memory_mib=gpu)


def end_with(parent: int, *, every_s: float = 0.5) -> None:
    """Ends this process, from a thread, when it is no longer `parent`'s child."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(every_s)
        os._exit(EXIT_INTERRUPTED)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    end_with(int(sys.argv[2]))
    try:
        run_job(Job.model_validate_json(sys.argv[1]))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(EXIT_INPUT)
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)
