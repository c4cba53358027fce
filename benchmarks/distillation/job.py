"""One stage in a process of its own, which makes its folder and tests it.

`python -m benchmarks.distillation.job JOB PARENT`: JOB is in JSON, PARENT the number of the process that waits for it.
What makes the folder is the command itself, which resumes; what it took is noted when it ends.
"""

from __future__ import annotations

import runpy
import sys
import time
from contextlib import closing
from pathlib import Path

import numpy as np

from benchmarks.children import peak_memory, run_as_child
from benchmarks.distillation.record import CaseScore, ScoreFile, Usage
from benchmarks.measuring import Part
from benchmarks.report.subject import open_fair_cases, open_subject
from segcore.bundle.folder import open_and_tell
from segcore.command import log
from segcore.dataset.case import Case
from segcore.measure.metrics import dice_per_class, iou_per_class, precision_recall_per_class
from segcore.outfolder import write_text


class Job(Part):
    """What the process is told.

    Attributes:
        module: of the command.
        words: of the command, with --out.
        folder: that it leaves behind.
        usage: file for what it took.
        scores: file for the scores, or None where nothing is tested.
        masks: file for the masks of the test images, or None.
        engine: torch or openvino.
        data: what is tested on.
        test_limit: test cases, or None for all.
    """

    module: str
    words: tuple[str, ...]
    folder: Path
    usage: Path
    scores: Path | None
    masks: Path | None
    engine: str
    data: str
    test_limit: int | None


def run_job(job: Job) -> None:
    """Makes the folder where it is not there yet, tests the bundle in it, and writes the scores last."""
    if not job.folder.exists():
        make_folder(job)
    if job.scores is not None:
        log("testing")
        scores = score_bundle(job)
        write_text(job.scores, scores.model_dump_json())


def make_folder(job: Job) -> None:
    """Runs the command as it would run itself, and notes what it took.

    Raises:
        SystemExit: it did not end well; with its status.
    """
    started = time.monotonic()
    sys.argv = [f"python -m {job.module}", *job.words]
    try:
        runpy.run_module(job.module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if end.code:
            raise
    took = Usage(seconds=time.monotonic() - started, **peak_memory().model_dump())
    write_text(job.usage, took.model_dump_json())


def score_bundle(job: Job) -> ScoreFile:
    """Tests a bundle on the test split that it was trained beside.

    Raises:
        InputError: data of other classes or another split.
    """
    bundle = open_and_tell(job.folder)
    dataset, cases = open_fair_cases(job.data, [bundle], bundle, limit=job.test_limit)
    classes, found, kept = len(dataset.classes), list[CaseScore](), dict[str, np.ndarray]()
    with closing(open_subject(bundle, job.engine, None)) as predictor:
        for case in cases:
            mask = predictor.predict(case.image(), name=f"image {case.id}").mask
            found.append(score_mask(mask, case, classes))
            kept[case.id] = mask.astype(np.uint8)
    if job.masks is not None:
        np.savez_compressed(job.masks, **kept)  # type: ignore[arg-type]  # numpy's stub knows no such names
    return ScoreFile(
        bundle_sha256=bundle.sha256,
        engine=job.engine,
        data_sha256=dataset.sha256,
        test_limit=job.test_limit,
        cases=tuple(found),
    )


def score_mask(mask: np.ndarray, case: Case, classes: int) -> CaseScore:
    """Scores one mask, H×W class indices, against the case's own; means over the classes."""
    truth = case.mask()
    precision, recall = precision_recall_per_class(mask, truth, classes)
    return CaseScore(
        case=case.id,
        patient=case.patient,
        dice=float(dice_per_class(mask, truth, classes).mean()),
        iou=float(iou_per_class(mask, truth, classes).mean()),
        precision=float(precision.mean()),
        recall=float(recall.mean()),
        true_share=float((truth > 0).mean()),
    )


if __name__ == "__main__":
    run_as_child(lambda job: run_job(Job.model_validate_json(job)))
