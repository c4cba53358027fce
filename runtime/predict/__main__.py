"""Segments pictures with an exported bundle: `python -m runtime.predict --bundle B --image I --out O`.

O/masks/…              as --to says; png: 0/255 for a model of one class, class indices (0 background) for several
O/overlays/…           the pictures with the mask drawn over them
O/predictions.jsonl    a line an input: files, sizes, measurements, expected quality, timings; or {"case", "error"}

Names under masks/ and overlays/ are those under I: I/sub/dir/NAME.dcm gives masks/sub/dir/NAME.png. A scan of several
slices gives a folder with a picture a slice.

Several inputs are worked on at once, one in each thread from its file to its masks; the times in a record then hold
the waits for the others. For the latency of a picture give one file. With `--defer-to B2`, B2 draws the masks of the
pictures that B is unsure of.

What is killed or interrupted goes on when the same command is given again.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import Field

from runtime.deferral import BELOW
from runtime.engines.seam import available_threads
from runtime.predict.files import (
    PredictorOptions,
    PromptQuestion,
    open_predictor,
    predict_files,
    predict_with_prompt,
    read_question,
)
from runtime.predict.inputs import InputList, PredictionInput, inputs_sha256, list_inputs
from runtime.predict.parallel import predict_in_processes, predict_with_ray
from runtime.predict.write import PREDICTIONS_FILE, Outputs, RecordFile, open_records, read_records
from runtime.promptable import PromptPredictor
from runtime.trt.cuda_runtime import CudaLibrary, choose_cuda
from runtime.verify import prove
from segcore.bundle.folder import Bundle, open_and_tell
from segcore.command import Progress, Settings, log, run_command
from segcore.errors import InputError
from segcore.medical.mask_files import MaskFormat
from segcore.outfolder import check_apart, out_folder
from segcore.picture.prompts import prompt_of


class PredictSettings(Settings):
    """Segments pictures, DICOM series and NIfTI volumes, and goes on where it was interrupted.

    Inputs that cannot be used are named on stderr and have a line in predictions.jsonl; the others go on, and the exit
    status is then 2. stdout has one JSON line for each that was segmented.
    """

    bundle: Path
    """Folder of an exported bundle."""
    expect: tuple[str, ...] = ()
    """sha256 of the bundle (its first 12 digits or more will do); another bundle is refused. Repeat for several."""
    image: Path
    """A picture, DICOM or NIfTI file; a folder of them, with its folders, each DICOM series in it one input; or a
    list: a .txt with a path a line, or a .csv with a column image and perhaps case, relative to the list's folder."""
    out: Path
    """Folder to write: masks/, overlays/ and predictions.jsonl."""
    to: tuple[MaskFormat, ...] = ("png",)
    """Format of the masks; repeat for several. dicom-seg is for DICOM only."""
    overlays: bool = True
    """Draw the masks over the pictures, too."""
    measurements: bool = True
    """Measure the masks: areas, diameters, volumes. Without it a small student's folder is done much sooner."""
    reference_class: str | None = None
    """Class that the measurements give the others' areas as a share of."""
    deidentify: bool = False
    """Read DICOM headers without what identifies a patient, and call outputs case-000001 and so on, in the order of
    the inputs' paths (of the lines of a list). Which is which is written nowhere."""
    point: tuple[float, ...] = ()
    """X,Y: a place on what is asked for, in the picture's own pixels; repeat for several. For one picture, and a bundle
    of a promptable teacher."""
    background: tuple[float, ...] = ()
    """X,Y: a place beside it; repeat for several."""
    box: tuple[float, ...] = ()
    """LEFT,TOP,RIGHT,BOTTOM: a box around it."""
    prompt_class: str | None = None
    """The class that is asked for, where the bundle has several; the mask holds it alone."""
    defer_to: Path | None = None
    """Folder of a better, slower exported bundle: it segments the pictures whose quality is below --below."""
    below: float = Field(BELOW, ge=0, le=1)
    """Expected Dice below which a picture goes to --defer-to."""
    engine: str | None = None
    """openvino, onnxruntime, tensorrt or tensorrt-rtx; by default openvino where it is there and can open the bundle
    (on ARM onnxruntime for int8)."""
    cuda_library: CudaLibrary | None = None
    """For an engine on a GPU: cuda-python or pycuda; by default cuda-python where it is installed."""
    threads: int | None = Field(None, ge=1)
    """CPU threads, of all workers together; by default all that this process may use. With --ray those of each worker,
    by default 1."""
    streams: int | None = Field(None, ge=1)
    """Pictures that the engine works on at once, sharing --threads: more a second, each later. By default one a thread
    for several inputs on the CPU, else 1."""
    batch: int = Field(1, ge=1)
    """Pictures a call of the engine; the bundle must hold a file for so many."""
    workers: int | None = Field(None, ge=1)
    """Processes, each with its own engine; by default 1, whose threads each take an input from its file to its
    masks. With --ray by default as many as the cluster has room for."""
    ray: bool = False
    """Work through Ray Data, which needs the extra ray. OUT, --image and --bundle must be on storage that all hosts
    see under the same path."""
    ray_address: str | None = None
    """A running Ray cluster, HOST:6379 or auto; without it --ray starts one on this machine."""
    verify: bool = True
    """Run the bundle's golden cases before its first masks on this machine, and refuse to go on (exit status 3) where
    they come out differently. That they passed is remembered."""
    cache: Path | None = None
    """Folder that you alone can write to, where OpenVINO keeps what it compiled, to open faster the next time; at most
    2 GiB."""
    overwrite: bool = False
    """Replace OUT if it is there."""


def main(settings: PredictSettings) -> None:
    """Writes OUT, then prints a JSON line for each input that was segmented.

    Raises:
        InputError: an input could not be used; the results of the others are in OUT. Or the bundles do not go together.
        GateError: the masks of the golden cases come out differently here than where the bundle was exported.
    """
    choose_cuda(settings.cuda_library)
    bundle, listed = _check_inputs(settings)
    inputs = listed.inputs
    question = read_question(
        bundle,
        inputs,
        prompt_of(settings.point, settings.background, settings.box),
        settings.prompt_class,
        alone={"--defer-to": settings.defer_to, "--workers": settings.workers, "--ray": settings.ray},
    )
    second = open_and_tell(settings.defer_to, settings.expect) if settings.defer_to else None
    # Not how many work at it, which does not change the result.
    made_from = {
        "bundle": bundle.sha256,
        "defer_to": second and second.sha256,
        "below": settings.defer_to and settings.below,
        "engine": settings.engine,
        "to": list(settings.to),
        "overlays": settings.overlays,
        "measurements": settings.measurements,
        "reference_class": settings.reference_class,
        "deidentify": settings.deidentify,
        "the files of --image": inputs_sha256(inputs),
        "prompt": question and {"class": question.class_name, **question.prompt.model_dump(mode="json")},
    }
    with out_folder(settings.out, made_from, overwrite=settings.overwrite) as folder:
        failed, incomplete = _predict_missing(settings, bundle, second, inputs, folder, question)
    # Only now: the files have their final paths, and what an earlier, interrupted run finished is told, too.
    for record in read_records(settings.out):
        if "error" not in record:
            print(json.dumps(_with_paths(record, settings.out)), flush=True)
    for line in listed.left_out:
        log(line)
    if failed:
        raise InputError(_failure_summary(settings, failed, len(inputs)))
    if incomplete:
        raise InputError(
            f"--to {' '.join(settings.to)}: {incomplete} of {len(inputs)} images lack a file, each is named in "
            f"predictions.jsonl; all others are in {settings.out}"
        )


def _check_inputs(settings: PredictSettings) -> tuple[Bundle, InputList]:
    check_apart(settings.out, settings.image, "--image")
    check_apart(settings.out, settings.bundle, "--bundle")
    if settings.defer_to is not None:
        check_apart(settings.out, settings.defer_to, "--defer-to")
    bundle = open_and_tell(settings.bundle, settings.expect)
    classes = bundle.manifest.classes
    if settings.reference_class is not None and settings.reference_class not in classes:
        raise InputError(
            f"--reference-class: must be one of {', '.join(classes)}, got {settings.reference_class}"
        )
    listed = list_inputs(settings.image, deidentify=settings.deidentify)
    if settings.image.is_file():  # a list may name files in OUT, which --overwrite would delete
        out = settings.out.resolve()
        for input_ in listed.inputs:
            if isinstance(input_.path, Path) and out in input_.path.resolve().parents:
                raise InputError(
                    f"--out {settings.out}: must be apart from the files of --image, holds {input_.path}; "
                    "choose another"
                )
    return bundle, listed


def _predict_missing(
    settings: PredictSettings,
    bundle: Bundle,
    second: Bundle | None,
    inputs: Sequence[PredictionInput],
    folder: Path,
    question: PromptQuestion | None,
) -> tuple[int, int]:
    """Segments what has no line yet, and says how many inputs in all have failed, and lack a file.

    Raises:
        InputError: all have; then nothing is kept.
    """
    with open_records(folder) as records:
        left = [input_ for input_ in inputs if input_.case not in records.done]
        failed_before, begin = records.failed, time.perf_counter()
        try:
            for name in ("masks", "overlays") if settings.overlays else ("masks",):
                (folder / name).mkdir(exist_ok=True)
            error = ""
            if left:
                segmented = _predict_inputs(settings, bundle, second, left, folder, question)
                error = _append_records(segmented, records, left=len(left), total=len(inputs))
            if records.failed == len(inputs):
                raise InputError(
                    error if len(inputs) == 1 else _failure_summary(settings, records.failed, len(inputs))
                )
        except BaseException:
            if not records.done or records.failed == len(inputs):
                for name in ("masks", "overlays"):  # there is nothing to go on with: the folder goes, too
                    shutil.rmtree(folder / name, ignore_errors=True)
                (folder / PREDICTIONS_FILE).unlink(missing_ok=True)
            raise
        seconds, done = time.perf_counter() - begin, len(left) - (records.failed - failed_before)
        if len(left) > 1:
            log(f"{done} images in {seconds:.1f} s, {done / seconds:.1f} images/s with reading and writing")
        return records.failed, records.incomplete


def _append_records(
    segmented: Generator[dict[str, Any], None, None], records: RecordFile, *, left: int, total: int
) -> str:
    """Appends a line for each input; gives the last one's error, or an empty string."""
    error = ""
    with (
        # Closed here and not by the garbage collector: an error must end workers and pipeline at once.
        closing(segmented),
        Progress[None](label="predicting", total=total, done=total - left, unit="image") as bar,
    ):
        for record in segmented:
            records.add(record)
            bar.update()
            error = record.get("error", "")
            for text in record.get("not_written", {}).values():
                bar.write(f"error: {text}")
            if error and total > 1:
                bar.write(f"error: {error}")
                bar.note(f"{records.failed} failed")
    return error


def _predict_inputs(
    settings: PredictSettings,
    bundle: Bundle,
    second: Bundle | None,
    inputs: Sequence[PredictionInput],
    folder: Path,
    question: PromptQuestion | None,
) -> Generator[dict[str, Any], None, None]:
    """The record of each input, as its files are complete: from a prompt, Ray, processes, or here as usual."""
    outputs = Outputs(
        tuple(dict.fromkeys(settings.to)),
        overlays=settings.overlays,
        measurements=settings.measurements,
        reference_class=settings.reference_class,
        deidentify=settings.deidentify,
    )
    if question:
        with PromptPredictor.open(bundle, engine=settings.engine, threads=settings.threads) as prompted:
            if settings.verify:
                prove(prompted)
            yield predict_with_prompt(prompted, inputs[0], question, folder, outputs)
        return
    workers = settings.workers or 1
    options = PredictorOptions(
        settings.bundle,
        settings.defer_to,
        settings.below,
        engine=settings.engine,
        threads=settings.threads,
        streams=settings.streams or (None if len(inputs) > 1 else 1),
        batch=settings.batch,
        cache=settings.cache,
        verify=settings.verify,
        expect=tuple(one.sha256 for one in (bundle, second) if one),
    )
    if settings.ray or settings.ray_address is not None:
        yield from predict_with_ray(
            options, inputs, folder, outputs, workers=settings.workers, address=settings.ray_address
        )
    elif workers > 1:
        each = max(1, (settings.threads or available_threads()) // workers)
        yield from predict_in_processes(
            replace(options, threads=each, streams=settings.streams or 1),
            inputs,
            folder,
            outputs,
            workers=workers,
        )
    else:
        with open_predictor(options) as predictor:
            yield from predict_files(predictor, inputs, folder, outputs)


def _with_paths(record: dict[str, Any], out: Path) -> dict[str, Any]:
    """With the paths of files as they are from the working directory."""
    files = {form: str(out / name) for form, name in record["files"].items()}
    drawn = record["overlay"] and str(out / record["overlay"])
    return {**record, "mask": str(out / record["mask"]), "overlay": drawn, "files": files}


def _failure_summary(settings: PredictSettings, failed: int, total: int) -> str:
    counts = f"{failed} of {total} images could not be used"
    if failed == total:
        return f"--image {settings.image}: {counts}, each is named above; nothing was written"
    return (
        f"--image {settings.image}: {counts}, each is named in predictions.jsonl; "
        f"the masks of the others are in {settings.out}"
    )


if __name__ == "__main__":
    run_command(main, PredictSettings, "python -m runtime.predict")
