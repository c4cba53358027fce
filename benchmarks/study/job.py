"""One run of a study in a process of its own, which trains and then tests: `python -m benchmarks.study.job JOB PARENT`.

JOB is in JSON, PARENT the number of the study's process. The training is `teacher.train` itself, which resumes; what it
needed of memory is noted when it ends. A job whose study is gone ends, too: two trainings must not write one folder
when the study is started again.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

from benchmarks.children import peak_memory, run_as_child
from benchmarks.measuring import Part, write_lines
from segcore.command import log

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


if __name__ == "__main__":
    run_as_child(lambda job: run_job(Job.model_validate_json(job)))
