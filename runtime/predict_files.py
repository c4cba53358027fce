"""Segments files and writes their masks and overlays, in the order of the files."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from runtime.deferral import DeferringPredictor
from runtime.prediction import Prediction
from runtime.predictor import Predictor
from runtime.stream import in_order
from segcore.command import log
from segcore.errors import InputError
from segcore.image import read_image
from segcore.overlay import overlay

_WRITERS = 2
"""Threads that write: packing an overlay as PNG takes longer than a student's whole prediction."""
Answer = tuple[Path, np.ndarray, Prediction]
"""A file, its picture, and what was predicted."""


def predict_files(
    predictor: Predictor | DeferringPredictor, images: Sequence[Path], folder: Path, failed: list[str]
) -> Iterator[dict[str, Any]]:
    """Segments files, writes mask and overlay, and yields the record of each, in their order.

    Args:
        predictor: the opened model, or pair of models.
        images: files with different stems.
        folder: where masks/ and overlays/ are.
        failed: gets the message of every file that could not be used.
    """

    def write(answer: Answer) -> Future[dict[str, Any]]:
        path, image, prediction = answer
        maker = predictor.maker_of(prediction) if isinstance(predictor, DeferringPredictor) else predictor
        record = _record(path.stem, prediction, maker)
        scale = np.uint8(255 if len(maker.manifest.classes) == 1 else 1)
        return pool.submit(_write, folder, record, image, prediction.mask, scale)

    def fail(error: InputError) -> None:
        failed.append(str(error))
        if len(images) > 1:
            log(f"error: {error}")

    if len(images) == 1 or isinstance(predictor, DeferringPredictor):
        answers = _one_by_one(predictor, images, fail)
    else:
        answers = _overlapping(predictor, images, fail)
    with (
        closing(answers),
        ThreadPoolExecutor(_WRITERS) as pool,
        closing(
            in_order(answers, write, Future.result, in_flight=_WRITERS + 1, drop=Future.cancel)
        ) as records,
    ):
        yield from records


def _one_by_one(
    predictor: Predictor | DeferringPredictor, paths: Sequence[Path], fail: Callable[[InputError], None]
) -> Generator[Answer, None, None]:
    for path in paths:
        try:
            image = read_image(path)
            yield path, image, predictor.predict(image, name=f"image {path}")
        except InputError as error:
            fail(error)


def _overlapping(
    predictor: Predictor, paths: Sequence[Path], fail: Callable[[InputError], None]
) -> Generator[Answer, None, None]:
    under_way: deque[tuple[Path, np.ndarray]] = deque()

    def images() -> Iterator[np.ndarray]:
        for path in paths:
            try:
                image = read_image(path)
            except InputError as error:
                fail(error)
            else:
                under_way.append((path, image))
                yield image

    names = (f"image {under_way[-1][0]}" for _ in count())  # asked for right after each picture
    with predictor.try_map(images(), names=names) as answers:
        for answer in answers:
            path, image = under_way.popleft()
            if isinstance(answer, InputError):
                fail(answer)
            else:
                yield path, image, answer


def _write(
    folder: Path, record: dict[str, Any], image: np.ndarray, mask: np.ndarray, scale: np.uint8
) -> dict[str, Any]:
    Image.fromarray(mask * scale).save(folder / record["mask"])
    Image.fromarray(overlay(image, mask)).save(folder / record["overlay"])
    return record


def _record(case: str, prediction: Prediction, maker: Predictor) -> dict[str, Any]:
    classes, timings = maker.manifest.classes, prediction.timings
    counts = np.bincount(prediction.mask.ravel(), minlength=len(classes) + 1)
    return {
        "case": case,
        "mask": f"masks/{case}.png",
        "overlay": f"overlays/{case}.png",
        "height_px": prediction.mask.shape[0],
        "width_px": prediction.mask.shape[1],
        "area_px": {name: int(counts[k]) for k, name in enumerate(classes, start=1)},
        "quality": _rounded(prediction.quality),
        "deferred": prediction.first_quality is not None,
        "first_quality": _rounded(prediction.first_quality),
        "model": maker.manifest.name,
        "pre_ms": round(timings.pre_ms, 3),
        "engine_ms": round(timings.engine_ms, 3),
        "post_ms": round(timings.post_ms, 3),
        "total_ms": round(timings.total_ms, 3),
        "engine": f"{maker.engine_name} {maker.engine_version}",
    }


def _rounded(quality: float | None) -> float | None:
    return None if quality is None else round(quality, 4)
