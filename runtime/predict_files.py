"""Segments inputs and writes their outputs; a record for each, also for one that cannot be used.

with Predictor.open("runs/student-int8") as predictor:
    for record in predict_files(predictor, named([Path("a.dcm"), Path("b.png")]), Path("out")):
        print(record["case"], record.get("error") or record["area_px"])

An input that fails, however it fails, ends nothing: its record is {"case", "error"}.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from runtime.deferral import DeferringPredictor
from runtime.predict_inputs import Input
from runtime.predict_write import Answer, Outputs, failure, write_answer
from runtime.prediction import Prediction
from runtime.predictor import Predictor
from runtime.stream import in_order
from segcore.errors import InputError
from segcore.medical.read import read_scan
from segcore.scan import Scan

_WRITERS = 2
"""Threads that write: packing an overlay as PNG takes longer than a student's whole prediction."""
_NOTHING = np.zeros(0, np.uint8)
_AnyPredictor = Predictor | DeferringPredictor


def predict_files(
    predictor: Predictor | DeferringPredictor,
    inputs: Sequence[Input],
    folder: Path,
    outputs: Outputs | None = None,
) -> Iterator[dict[str, Any]]:
    """Segments inputs one after another, reading some and writing others while the engine works.

    Args:
        predictor: the opened model, or pair of models, which takes them one by one.
        inputs: with different cases; `runtime.predict_inputs` makes them.
        folder: gets masks/ and overlays/, whose files are written anew where they are there.
        outputs: which files are written; by default PNG masks and overlays.

    Yields:
        The record of each input, as soon as its files are complete; one that failed has "case" and "error" alone.

    Raises:
        OSError: the folder cannot be written to.
    """
    wanted = outputs or Outputs()
    if isinstance(predictor, DeferringPredictor) or len(inputs) == 1:
        answers = (_answer(predictor, item, wanted) for item in inputs)
    else:
        answers = _overlapping(predictor, inputs, wanted)

    def write(answer: Answer | dict[str, Any]) -> Future[dict[str, Any]]:
        return pool.submit(_written, answer, folder, wanted)

    with (
        closing(answers),
        ThreadPoolExecutor(_WRITERS) as pool,
        closing(
            in_order(answers, write, Future.result, in_flight=_WRITERS + 1, drop=Future.cancel)
        ) as records,
    ):
        yield from records


def predict_one(
    predictor: Predictor | DeferringPredictor, item: Input, folder: Path, outputs: Outputs
) -> dict[str, Any]:
    """Segments one input, writes its files, and gives its record: what worker processes and Ray's actors call.

    Raises:
        OSError: the folder cannot be written to.
    """
    return _written(_answer(predictor, item, outputs), folder, outputs)


def _written(answer: Answer | dict[str, Any], folder: Path, outputs: Outputs) -> dict[str, Any]:
    return write_answer(answer, folder, outputs) if isinstance(answer, Answer) else answer


def _answer(predictor: _AnyPredictor, item: Input, outputs: Outputs) -> Answer | dict[str, Any]:
    """Of one input, or its failure; several slices overlap where one model takes them."""
    try:
        scan = read_scan(item.path, deidentify=outputs.deidentify)
        depth, shown = _first(predictor).manifest.input.depth, None
        if scan.slices == 1:
            picture = scan.picture(0, depth)
            shown = shown_picture(scan, picture)
            predictions = [_light(predictor.predict(picture, name=_slice_name(item, scan, 0)))]
        else:
            pictures = ((scan.picture(n, depth), _slice_name(item, scan, n)) for n in range(scan.slices))
            predictions = [_light(one) for one in _predicted(predictor, pictures)]
        return Answer(item, scan, tuple(predictions), _maker(predictor, predictions), shown)
    except Exception as error:
        return failure(item, error, outputs)


def _predicted(predictor: _AnyPredictor, pictures: Iterable[tuple[np.ndarray, str]]) -> Iterator[Prediction]:
    if isinstance(predictor, DeferringPredictor):
        yield from (predictor.predict(picture, name=name) for picture, name in pictures)
        return
    names: deque[str] = deque()

    def images() -> Iterator[np.ndarray]:
        for picture, name in pictures:
            names.append(name)
            yield picture

    with predictor.map(images(), names=(names.popleft() for _ in count())) as found:
        yield from found


@dataclass
class _UnderWay:
    """An input whose slices are in the pipeline."""

    item: Input
    scan: Scan | None = None
    predictions: list[Prediction] = field(default_factory=list)
    error: Exception | None = None
    shown: np.ndarray | None = None


def _overlapping(
    predictor: Predictor, inputs: Sequence[Input], outputs: Outputs
) -> Generator[Answer | dict[str, Any], None, None]:
    left = deque(inputs)
    while left:
        under_way: deque[tuple[_UnderWay, bool]] = deque()  # a slice each, and whether it is the input's last
        names: deque[str] = deque()
        pictures = _pictures(predictor, tuple(left), outputs, under_way, names)
        try:
            with predictor.try_map(pictures, names=(names.popleft() for _ in count())) as answers:
                for answer in answers:
                    one, last = under_way.popleft()
                    if isinstance(answer, Prediction):
                        one.predictions.append(_light(answer))
                    else:
                        one.error = one.error or answer
                    if last:
                        left.popleft()
                        yield _finished(one, predictor, outputs)
        except Exception as error:
            # Not the pictures' fault by the pipeline's lights: it stops. It does so in the turn of the picture that
            # it failed at, so that one fails and the others are begun anew.
            if not under_way:
                raise
            yield failure(left.popleft(), error, outputs)


def _pictures(
    predictor: Predictor,
    inputs: Sequence[Input],
    outputs: Outputs,
    under_way: deque[tuple[_UnderWay, bool]],
    names: deque[str],
) -> Iterator[np.ndarray]:
    """Slices of one input after another. In place of what cannot be read comes an empty one, which fails in turn."""
    for item in inputs:
        one = _UnderWay(item)
        try:
            scan = one.scan = read_scan(item.path, deidentify=outputs.deidentify)
            for n in range(scan.slices):
                picture = scan.picture(n, predictor.manifest.input.depth)
                if scan.slices == 1:
                    one.shown = shown_picture(scan, picture)
                under_way.append((one, n == scan.slices - 1))
                names.append(_slice_name(item, scan, n))
                yield picture
        except Exception as error:
            one.error = error
            under_way.append((one, True))
            names.append(item.shown)
            yield _NOTHING


def _finished(one: _UnderWay, predictor: Predictor, outputs: Outputs) -> Answer | dict[str, Any]:
    if one.error is not None or one.scan is None:
        return failure(
            one.item, one.error or InputError(f"image {one.item.shown}: must hold slices"), outputs
        )
    return Answer(one.item, one.scan, tuple(one.predictions), predictor, one.shown)


def _light(prediction: Prediction) -> Prediction:
    """Without the probabilities: those of a series would take gigabytes."""
    return replace(prediction, probabilities=np.zeros((0, 0, 0), np.float32))


def shown_picture(scan: Scan, picture: np.ndarray) -> np.ndarray | None:
    """The picture where it can be looked at as it is; None where the file's own window must be put on it."""
    return picture if scan.kind == "image" or picture.dtype == np.uint8 else None


def _first(predictor: _AnyPredictor) -> Predictor:
    return predictor.first if isinstance(predictor, DeferringPredictor) else predictor


def _maker(predictor: _AnyPredictor, predictions: Sequence[Prediction]) -> Predictor:
    """The model that drew the masks; of a series that two drew, the second."""
    if isinstance(predictor, Predictor):
        return predictor
    passed_on = [one for one in predictions if one.first_quality is not None]
    return predictor.maker_of((passed_on or list(predictions))[0])


def _slice_name(item: Input, scan: Scan, index: int) -> str:
    return f"image {item.shown}" + (f", slice {index + 1}" if scan.slices > 1 else "")
