"""Many images, one after another, through three stages that work at the same time.

    images ──prepare, in threads──► batches ──engine──► logits ──resize, activate, decide, in threads──► predictions

Pillow and numpy let other threads work meanwhile: on 2 cores, with OpenVINO and the student `small`, images of
1024 px came twice as fast as one by one, those of 512 px 1.1 times; overlapping with the engine alone gave 1.0 times.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import chain, groupby, islice
from typing import Generic, TypeVar

import numpy as np

from runtime.buckets import FileEngines, Size
from runtime.engines.seam import RunError
from runtime.engines.stream import in_order
from segcore.errors import InputError, is_damage, reason_of

Result = TypeVar("Result")
Value = TypeVar("Value")


@dataclass(frozen=True)
class PreparedImage:
    """An image that an engine can take.

    Attributes:
        original_px: height and width of the image before it was resized.
        size_px: of the input that it was prepared for.
        image: H×W×C uint8 of that size.
        pre_ms: what that took.
        name: what an error calls it.
    """

    original_px: Size
    size_px: Size
    image: np.ndarray
    pre_ms: float
    name: str = "image"


@dataclass(frozen=True)
class ImageLogits:
    """What the engine made of an image: `logits` K×h×w, `engine_ms` from when its batch was handed over."""

    prepared: PreparedImage
    logits: np.ndarray
    engine_ms: float


def check_numbers(logits: np.ndarray, name: str) -> None:
    """Refuses what a model gave where it gave NaN or infinity: a mask of it is no mask.

    One sum of what is in the processor's cache already; NaN and infinity stay in a sum.

    Args:
        logits: of any shape, float32 or float16.
        name: of the image.

    Raises:
        InputError: naming the image.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        total = float(logits.sum(dtype=np.float32))
    # A sum may also pass the largest float32 where no number is infinite; then each is looked at.
    if math.isfinite(total) or np.isfinite(logits).all():
        return
    what = "NaN" if np.isnan(logits).any() else "infinity"
    raise InputError(
        f"{name}: must be segmented, the model gave {what}; its weights or this engine are at fault, which "
        "python -m runtime.verify tells"
    )


@contextmanager
def running(name: Callable[[], str], of_source: Sequence[Exception] = ()) -> Iterator[None]:
    """Around an engine's work: what its library raises then becomes one line that names the picture.

    Args:
        name: gives the name of the picture that the engine is at.
        of_source: errors that are not the engine's: those of what it pulls its pictures from.

    Raises:
        InputError: the engine failed. A RuntimeError is the library's, too: pybind11 raises it in the line that calls.
    """
    try:
        yield
    except RunError as error:
        raise InputError(f"{name()}: {error}") from error
    except Exception as error:
        theirs = type(error) is RuntimeError or is_damage(error)
        if not theirs or any(error is one for one in of_source):
            raise
        raise InputError(
            f"{name()}: must be segmented, the engine failed ({reason_of(error)}); python -m runtime.verify tells "
            "whether the bundle is at fault"
        ) from error


class PredictionStream(Iterator[Result], Generic[Result]):
    """Results in the order of the images, and how fast they came. `close` it, or use it as a context manager.

    Attributes:
        images: results so far.
        seconds: from when the first was asked for until the last came, whatever the caller did meanwhile included.
    """

    def __init__(self, results: Generator[Result, None, None]) -> None:
        self.images = 0
        self.seconds = 0.0
        self._results = results
        self._begin: float | None = None

    @property
    def images_per_s(self) -> float:
        """Throughput over the whole call so far."""
        return self.images / self.seconds if self.seconds > 0 else 0.0

    def __next__(self) -> Result:
        if self._begin is None:
            self._begin = time.perf_counter()
        result = next(self._results)
        self.images += 1
        self.seconds = time.perf_counter() - self._begin
        return result

    def close(self) -> None:
        """Ends early: what is under way is waited for and let go."""
        self._results.close()

    def __enter__(self) -> PredictionStream[Result]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def predict_all(
    images: Iterable[tuple[np.ndarray, str]],
    files: FileEngines,
    prepare: Callable[[np.ndarray, str], PreparedImage],
    finish: Callable[[ImageLogits], Result],
    *,
    batch: int,
    in_flight: int,
    workers: int,
) -> Generator[Result | InputError, None, None]:
    """Runs every image through the three stages.

    Args:
        images: with their names, pulled when there is room for them: at most 3·`in_flight`·`batch`, and
            the few that wait to fill a batch, are between `images` and the caller.
        files: the bundle's, opened as the images need them.
        prepare: of one image; called in threads.
        finish: from logits to the result; called in threads.
        batch: images a call of the engine, where a file for so many is at hand.
        in_flight: batches in each stage.
        workers: threads that prepare and finish.

    Yields:
        The result of each image in order; the `InputError` itself for one that could not be used.
    """

    def begin(pair: tuple[np.ndarray, str]) -> Future[PreparedImage | InputError]:
        return pool.submit(_result_or_error, lambda: prepare(*pair))

    def end(logits: ImageLogits | InputError) -> Future[Result | InputError]:
        return pool.submit(
            _result_or_error, lambda: logits if isinstance(logits, InputError) else finish(logits)
        )

    ahead = in_flight * batch
    # Each stage pulls from the one before it, so a slow caller slows them all and nothing piles up. They are closed
    # from the last to the first, and the pool after them: no stage waits for one that is gone.
    with (
        ThreadPoolExecutor(workers) as pool,
        closing(in_order(images, begin, Future.result, in_flight=ahead, drop=Future.cancel)) as prepared,
        closing(_run_engines(prepared, files, batch, in_flight)) as computed,
        closing(in_order(computed, end, Future.result, in_flight=ahead, drop=Future.cancel)) as results,
    ):
        yield from results


def _result_or_error(work: Callable[[], Value]) -> Value | InputError:
    try:
        return work()
    except InputError as error:
        return error


def _run_engines(
    prepared: Iterable[PreparedImage | InputError], files: FileEngines, batch: int, in_flight: int
) -> Generator[ImageLogits | InputError, None, None]:
    """Neighbours of one size go together; where the size changes, the engine's stream is emptied first."""
    for size_px, group in groupby(prepared, lambda one: None if isinstance(one, InputError) else one.size_px):
        if size_px is None:
            yield from (one for one in group if isinstance(one, InputError))
            continue
        mine = (one for one in group if isinstance(one, PreparedImage))
        rest: list[PreparedImage] = []
        full = _full_batches(mine, files.file(size_px, batch).batch, rest)
        yield from _run_engine(full, files, size_px, batch, in_flight)
        # What does not fill a batch (known only now that the full ones are pulled): one by one where there is a file
        # for that, else with room to spare.
        single = files.file(size_px).batch
        few = [rest[n : n + single] for n in range(0, len(rest), single)]
        yield from _run_engine(few, files, size_px, 1, in_flight)


def _full_batches(
    prepared: Iterator[PreparedImage], batch: int, rest: list[PreparedImage]
) -> Iterator[list[PreparedImage]]:
    """Lists of `batch` images; `rest` gets those that are left."""
    while part := list(islice(prepared, batch)):
        if len(part) == batch:
            yield part
        else:
            rest.extend(part)


def _run_engine(
    batches: Iterable[list[PreparedImage]], files: FileEngines, size_px: Size, batch: int, in_flight: int
) -> Generator[ImageLogits, None, None]:
    source = iter(batches)
    first = next(source, None)
    if first is None:  # a file that nothing is for stays closed
        return
    handed_over: deque[tuple[list[PreparedImage], float]] = deque()
    of_source: list[Exception] = []

    def stack_batches() -> Iterator[np.ndarray]:
        # The engine pulls these; a batch's time starts here, so its wait for the batches before it is counted.
        try:
            for part in chain([first], source):
                stacked = np.stack([one.image for one in part])
                handed_over.append((part, time.perf_counter()))
                yield stacked
        except Exception as error:
            of_source.append(error)
            raise

    engine = files.engine(files.file(size_px, batch))
    stream = engine.stream(stack_batches(), in_flight=in_flight)
    with closing(stream):
        while True:
            with running(lambda: handed_over[0][0][0].name if handed_over else "image", of_source):
                logits = next(stream, None)
            if logits is None:
                return
            part, begin = handed_over.popleft()
            engine_ms = 1e3 * (time.perf_counter() - begin)
            yield from (ImageLogits(one, each, engine_ms) for one, each in zip(part, logits, strict=True))
