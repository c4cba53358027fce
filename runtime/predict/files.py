"""Segments inputs, or answers a prompt about one, and writes the outputs: a record for each, also for what fails.

with Predictor.open("runs/student-int8") as predictor:
    for record in predict_files(predictor, name_inputs([Path("a.dcm"), Path("b.png")]), Path("out")):
        print(record["case"], record.get("error") or record["area_px"])

An input that fails, however it fails, ends nothing: its record is {"case", "error"}.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from runtime.deferral import BELOW, DeferringPredictor
from runtime.engines.seam import ON_GPU
from runtime.engines.stream import in_order
from runtime.predict.inputs import PredictionInput
from runtime.predict.write import Outputs, ScanPrediction, failure_record, write_prediction
from runtime.predictor import Prediction, Predictor, Timings
from runtime.promptable import PromptPredictor, answer_spec, prompt_spec
from runtime.verify import prove
from segcore.bundle.folder import Bundle, check_expected, open_bundle
from segcore.errors import InputError
from segcore.medical.read import read_scan
from segcore.picture.prompts import Prompt
from segcore.picture.scan import Scan

_WRITERS = 2
"""Threads that write beside a GPU's engine, or one of several pictures a call."""
_AHEAD = 4
"""Inputs under way or done for each thread, so that one slow input stops no other thread; a record is small."""
_NO_IMAGE = np.zeros(0, np.uint8)
"""Stands for a slice that could not be read, so that its error comes in its turn."""
AnyPredictor = Predictor | DeferringPredictor
"""One model, or a quick one and the one that it passes unsure pictures on to."""


@dataclass(frozen=True)
class PredictorOptions:
    """What `Predictor.open` and `DeferringPredictor.open` take; the names are those of the flags.

    Attributes:
        bundle: folder of an exported bundle.
        defer_to: folder of the second model, or None.
        below: expected Dice below which a picture goes to the second.
        engine: of both; None for what suits the bundle.
        threads: CPU threads of the engine; None for all.
        streams: batches that the engine works on at once; None for one a thread, on a GPU for 1.
        batch: pictures a call.
        cache: folder where OpenVINO keeps what it compiled.
        verify: prove the models with their golden cases first.
        expect: sha256 of the bundles that the command has opened, so that a process of its own opens no others.
    """

    bundle: Path
    defer_to: Path | None = None
    below: float = BELOW
    engine: str | None = None
    threads: int | None = None
    streams: int | None = 1
    batch: int = 1
    cache: Path | None = None
    verify: bool = True
    expect: tuple[str, ...] = ()


def open_predictor(options: PredictorOptions) -> AnyPredictor:
    """Opens the model, or the pair.

    Raises:
        InputError: as `Predictor.open` and `DeferringPredictor.open`.
        GateError: a model computes other masks here than where it was exported.
    """
    bundle = open_bundle(options.bundle)
    check_expected(bundle, options.expect)
    if options.defer_to is None:
        predictor = Predictor.open(
            bundle,
            engine=options.engine,
            threads=options.threads,
            streams=options.streams,
            batch=options.batch,
            cache=options.cache,
        )
        if options.verify:
            prove(predictor)
        return predictor
    if options.batch > 1:
        raise InputError(
            f"--batch: must be 1 with --defer-to, got {options.batch}; it takes pictures one by one"
        )
    second = open_bundle(options.defer_to)
    check_expected(second, options.expect)
    return DeferringPredictor.open(
        bundle,
        second,
        below=options.below,
        engine=options.engine,
        threads=options.threads,
        streams=options.streams,
        cache=options.cache,
        verify=options.verify,
    )


def predict_files(
    predictor: AnyPredictor,
    inputs: Sequence[PredictionInput],
    folder: Path,
    outputs: Outputs | None = None,
) -> Iterator[dict[str, Any]]:
    """Segments several inputs at once, in as many threads as the engine has; each thread takes an input from its file
    to its masks.

    A GPU's engine, and one that takes several pictures a call, stays in this thread: there others read, prepare,
    finish and write while it works.

    Args:
        predictor: the opened model, or pair of models.
        inputs: with different cases; `runtime.predict.inputs` makes them.
        folder: gets masks/ and overlays/, whose files are written anew where they are there.
        outputs: which files are written; by default PNG masks and overlays.

    Yields:
        The record of each input in their order, when its files are complete; one that failed has "case" and "error"
        alone.

    Raises:
        OSError: the folder cannot be written to.
    """
    wanted, model = outputs or Outputs(), _first_model(predictor)
    if model.batch > 1 or any(name in ON_GPU for name in predictor.engine_names):
        yield from _predict_around_engine(predictor, inputs, folder, wanted)
        return
    workers = min(model.threads, len(inputs))
    if workers < 2:
        yield from (predict_input(predictor, input_, folder, wanted) for input_ in inputs)
        return

    def begin(input_: PredictionInput) -> Future[dict[str, Any]]:
        return pool.submit(predict_input, predictor, input_, folder, wanted)

    with (
        ThreadPoolExecutor(workers) as pool,
        closing(
            in_order(inputs, begin, Future.result, in_flight=_AHEAD * workers, drop=Future.cancel)
        ) as records,
    ):
        yield from records


def predict_input(
    predictor: AnyPredictor, input_: PredictionInput, folder: Path, outputs: Outputs
) -> dict[str, Any]:
    """Segments one input, writes its files, and gives its record: what a thread, a worker process and Ray's actor do.

    Raises:
        OSError: the folder cannot be written to.
    """
    return _write_result(_predict_scan(predictor, input_, outputs), folder, outputs)


def _predict_around_engine(
    predictor: AnyPredictor, inputs: Sequence[PredictionInput], folder: Path, outputs: Outputs
) -> Iterator[dict[str, Any]]:
    """The engine in this thread, and writers beside it."""
    if isinstance(predictor, DeferringPredictor) or len(inputs) == 1:
        predictions = (_predict_scan(predictor, input_, outputs) for input_ in inputs)
    else:
        predictions = _predict_overlapping(predictor, inputs, outputs)

    def write(prediction: ScanPrediction | dict[str, Any]) -> Future[dict[str, Any]]:
        return pool.submit(_write_result, prediction, folder, outputs)

    # Closed from the last to the first: no writer is left without its pool, and the pipeline is emptied at the end.
    with (
        closing(predictions),
        ThreadPoolExecutor(_WRITERS) as pool,
        closing(
            in_order(predictions, write, Future.result, in_flight=_WRITERS + 1, drop=Future.cancel)
        ) as records,
    ):
        yield from records


def _write_result(
    prediction: ScanPrediction | dict[str, Any], folder: Path, outputs: Outputs
) -> dict[str, Any]:
    """The record of an input; one that failed has its record already, and no files."""
    return (
        write_prediction(prediction, folder, outputs)
        if isinstance(prediction, ScanPrediction)
        else prediction
    )


def _predict_scan(
    predictor: AnyPredictor, input_: PredictionInput, outputs: Outputs
) -> ScanPrediction | dict[str, Any]:
    """Of one input, or its failure; several slices overlap where one model takes them."""
    try:
        scan = read_scan(input_.path, deidentify=outputs.deidentify)
        depth, shown = _first_model(predictor).manifest.input.depth, None
        if scan.slices == 1:
            image = scan.picture(0, depth)
            shown = _shown_picture(scan, image)
            name = _slice_name(input_, scan, 0)
            predictions = [predictor.predict(image, name=name)]
        else:
            images = ((scan.picture(n, depth), _slice_name(input_, scan, n)) for n in range(scan.slices))
            predictions = [_without_logits(prediction) for prediction in _predict_slices(predictor, images)]
        return ScanPrediction(input_, scan, tuple(predictions), _drawing_model(predictor, predictions), shown)
    except Exception as error:  # whatever it is, the other inputs go on
        return failure_record(input_, error, outputs)


def _predict_slices(
    predictor: AnyPredictor, named_images: Iterable[tuple[np.ndarray, str]]
) -> Iterator[Prediction]:
    if isinstance(predictor, DeferringPredictor):
        yield from (predictor.predict(image, name=name) for image, name in named_images)
        return
    names: deque[str] = deque()

    def images() -> Iterator[np.ndarray]:
        for image, name in named_images:
            names.append(name)
            yield image

    # `map` pulls a name right after its image, so the name is always there.
    with predictor.map(images(), names=(names.popleft() for _ in count())) as predictions:
        yield from predictions


@dataclass
class _PendingInput:
    """An input whose slices are in the pipeline."""

    input: PredictionInput
    scan: Scan | None = None
    predictions: list[Prediction] = field(default_factory=list)
    error: Exception | None = None
    shown: np.ndarray | None = None


def _predict_overlapping(
    predictor: Predictor, inputs: Sequence[PredictionInput], outputs: Outputs
) -> Generator[ScanPrediction | dict[str, Any], None, None]:
    """All slices of all inputs through one pipeline; its answers come in order, so they are counted off."""
    left = deque(inputs)
    while left:
        # A slice each, and whether it is the input's last.
        under_way: deque[tuple[_PendingInput, bool]] = deque()
        names: deque[str] = deque()
        images = _read_slices(predictor, tuple(left), outputs, under_way, names)
        try:
            with predictor.try_map(images, names=(names.popleft() for _ in count())) as results:
                for result in results:
                    pending, last = under_way.popleft()
                    if isinstance(result, Prediction):
                        pending.predictions.append(_without_logits(result))
                    else:
                        pending.error = pending.error or result
                    if last:
                        left.popleft()
                        yield _finish_input(pending, predictor, outputs)
        except Exception as error:
            # Anything but an InputError stops the pipeline, which says nothing of the other images. It stops in the
            # turn of the image that it failed at, so that input fails and those after it are begun anew.
            if not under_way:
                raise
            yield failure_record(left.popleft(), error, outputs)


def _read_slices(
    predictor: Predictor,
    inputs: Sequence[PredictionInput],
    outputs: Outputs,
    under_way: deque[tuple[_PendingInput, bool]],
    names: deque[str],
) -> Iterator[np.ndarray]:
    """Slices of one input after another. In place of what cannot be read comes an empty one, which fails in turn."""
    for input_ in inputs:
        pending = _PendingInput(input_)
        try:
            scan = pending.scan = read_scan(input_.path, deidentify=outputs.deidentify)
            for n in range(scan.slices):
                image = scan.picture(n, predictor.manifest.input.depth)
                if scan.slices == 1:
                    pending.shown = _shown_picture(scan, image)
                under_way.append((pending, n == scan.slices - 1))  # before the yield: its answer looks for it
                names.append(_slice_name(input_, scan, n))
                yield image
        except Exception as error:
            pending.error = error
            under_way.append((pending, True))
            names.append(input_.shown)
            yield _NO_IMAGE


def _finish_input(
    pending: _PendingInput, predictor: Predictor, outputs: Outputs
) -> ScanPrediction | dict[str, Any]:
    input_ = pending.input
    if pending.error is not None or pending.scan is None:
        error = pending.error or InputError(f"image {input_.shown}: must hold slices")
        return failure_record(input_, error, outputs)
    return ScanPrediction(input_, pending.scan, tuple(pending.predictions), predictor, pending.shown)


def _without_logits(prediction: Prediction) -> Prediction:
    """Of a slice: those of a series would take much memory, and nothing here reads them."""
    return replace(prediction, logits=prediction.logits[:, :0])


def _shown_picture(scan: Scan, image: np.ndarray) -> np.ndarray | None:
    """The image where it can be looked at as it is; None where the file's own window must be put on it."""
    return image if scan.kind == "image" or image.dtype == np.uint8 else None


def _first_model(predictor: AnyPredictor) -> Predictor:
    return predictor.first if isinstance(predictor, DeferringPredictor) else predictor


def _drawing_model(predictor: AnyPredictor, predictions: Sequence[Prediction]) -> Predictor:
    """The model that drew the masks; of a series that two drew, the second."""
    if isinstance(predictor, Predictor):
        return predictor
    passed_on = [prediction for prediction in predictions if prediction.first_quality is not None]
    return predictor.maker_of((passed_on or list(predictions))[0])


def _slice_name(input_: PredictionInput, scan: Scan, index: int) -> str:
    return f"image {input_.shown}" + (f", slice {index + 1}" if scan.slices > 1 else "")


# --- one picture, asked about with points and a box: its answer is written as any other ---


@dataclass(frozen=True)
class PromptQuestion:
    """What a user asks of one image: where, and for which class.

    Attributes:
        prompt: points and box, in the picture's own pixels.
        class_name: of the bundle, that the mask gets.
    """

    prompt: Prompt
    class_name: str


def read_question(
    bundle: Bundle,
    inputs: Sequence[PredictionInput],
    prompt: Prompt | None,
    class_name: str | None,
    *,
    alone: Mapping[str, object],
) -> PromptQuestion | None:
    """A question from the flags; None where there is none.

    Args:
        bundle: that is asked.
        inputs: of `--image`.
        prompt: of `--point`, `--background` and `--box`.
        class_name: of `--prompt-class`.
        alone: flags that do not go together with a prompt, and what was given for them.

    Raises:
        InputError: the bundle takes no prompts, several inputs, a class that is not clear, or another flag.
    """
    if prompt is None:
        if class_name is not None:
            raise InputError(
                f"--prompt-class {class_name}: must come with --point or --box, got neither; say where it is"
            )
        return None
    prompt_spec(bundle)
    for flag, given in alone.items():
        if given:
            raise InputError(f"{flag}: must be left away with --point and --box, which are for one picture")
    classes = bundle.manifest.classes
    if len(inputs) > 1:
        raise InputError(
            f"--image: must be one picture with --point or --box, got {len(inputs)}; a prompt is a place in one"
        )
    if class_name is None and len(classes) > 1:
        raise InputError(
            f"--prompt-class: must be one of {', '.join(classes)}, got none; say what is asked for"
        )
    if class_name is not None and class_name not in classes:
        raise InputError(f"--prompt-class: must be one of {', '.join(classes)}, got {class_name}")
    return PromptQuestion(prompt, class_name or classes[0])


def predict_with_prompt(
    predictor: PromptPredictor,
    input_: PredictionInput,
    question: PromptQuestion,
    folder: Path,
    outputs: Outputs,
) -> dict[str, Any]:
    """Answers, writes the files, and gives the record: that of an automatic answer, with `prompt` and `estimated_iou`.

    Raises:
        OSError: the folder cannot be written to.
    """
    try:
        prediction = _answer_prompt(predictor, input_, question, outputs)
    except Exception as error:
        return failure_record(input_, error, outputs)
    return write_prediction(prediction, folder, outputs)


def _answer_prompt(
    predictor: PromptPredictor, input_: PredictionInput, question: PromptQuestion, outputs: Outputs
) -> ScanPrediction:
    scan = read_scan(input_.path, deidentify=outputs.deidentify)
    if scan.slices > 1:
        raise InputError(
            f"image {input_.shown}: must be one picture with --point or --box, has {scan.slices} slices; give one slice"
        )
    image = scan.picture(0, predictor.manifest.input.depth)
    found = predictor.answer(predictor.look(image, name=f"image {input_.shown}"), question.prompt)
    times = found.timings
    index = predictor.manifest.classes.index(question.class_name) + 1
    prediction = Prediction(
        mask=found.mask * np.uint8(index),
        logits=found.logits[None],
        output=answer_spec(predictor.manifest.output),
        timings=Timings(times.pre_ms, times.encoder_ms + times.decoder_ms, times.post_ms),
    )
    details = {
        "prompt": {"class": question.class_name, **question.prompt.model_dump(mode="json")},
        "estimated_iou": round(found.estimated_iou, 4),
    }
    shown = _shown_picture(scan, image)
    return ScanPrediction(
        input_, scan, (prediction,), predictor, shown, prompted=question.class_name, details=details
    )
