"""Many pictures, one after another, through three stages that work at the same time.

    pictures ──prepare, in threads──► batches ──engine──► logits ──resize, activate, decide, in threads──► predictions

Pillow and numpy let other threads work meanwhile: on 2 cores, with OpenVINO and the student `small`, pictures of
1024 px came twice as fast as one by one, those of 512 px 1.1 times; overlapping with the engine alone gave 1.0 times.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import chain, groupby, islice
from typing import Generic, TypeVar

import numpy as np

from runtime.buckets import OpenFiles, Size
from runtime.stream import in_order
from segcore.errors import InputError

Answer = TypeVar("Answer")
Item = TypeVar("Item")


@dataclass(frozen=True)
class Ready:
    """A picture that an engine can take.

    Attributes:
        image_px: height and width of the picture itself.
        size_px: of the input that it was prepared for.
        picture: H×W×C uint8 of that size.
        pre_ms: what that took.
    """

    image_px: Size
    size_px: Size
    picture: np.ndarray
    pre_ms: float


@dataclass(frozen=True)
class Passed:
    """A picture that an engine has passed; `logits` K×h×w, `engine_ms` from when its batch was handed over."""

    ready: Ready
    logits: np.ndarray
    engine_ms: float


class Mapped(Iterator[Answer], Generic[Answer]):
    """Answers in the order of the pictures, and how fast they came. `close` it, or use it as a context manager.

    Attributes:
        images: answers so far.
        seconds: from when the first was asked for until the last came, whatever the caller did meanwhile included.
    """

    def __init__(self, answers: Generator[Answer, None, None]) -> None:
        self.images = 0
        self.seconds = 0.0
        self._answers = answers
        self._begin: float | None = None

    @property
    def images_per_s(self) -> float:
        """Throughput over the whole call so far."""
        return self.images / self.seconds if self.seconds > 0 else 0.0

    def __next__(self) -> Answer:
        if self._begin is None:
            self._begin = time.perf_counter()
        answer = next(self._answers)
        self.images += 1
        self.seconds = time.perf_counter() - self._begin
        return answer

    def close(self) -> None:
        """Ends early: what is under way is waited for and let go."""
        self._answers.close()

    def __enter__(self) -> Mapped[Answer]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def answer_all(
    images: Iterable[tuple[np.ndarray, str]],
    files: OpenFiles,
    prepare: Callable[[np.ndarray, str], Ready],
    finish: Callable[[Passed], Answer],
    *,
    batch: int,
    in_flight: int,
    workers: int,
) -> Generator[Answer | InputError, None, None]:
    """Runs every picture through the three stages.

    Args:
        images: pictures and their names, pulled when there is room for them: at most 3·`in_flight`·`batch`, and
            the few that wait to fill a batch, are between `images` and the caller.
        files: the bundle's, opened as the pictures need them.
        prepare: of one picture; called in threads.
        finish: from logits to the answer; called in threads.
        batch: pictures a call of the engine, where a file for so many is at hand.
        in_flight: batches in each stage.
        workers: threads that prepare and finish.

    Yields:
        The answer of each picture in order; the `InputError` itself for one that could not be used.
    """

    def begin(pair: tuple[np.ndarray, str]) -> Future[Ready | InputError]:
        return pool.submit(_or_error, lambda: prepare(*pair))

    def end(item: Passed | InputError) -> Future[Answer | InputError]:
        return pool.submit(_or_error, lambda: item if isinstance(item, InputError) else finish(item))

    ahead = in_flight * batch
    with (
        ThreadPoolExecutor(workers) as pool,
        closing(in_order(images, begin, Future.result, in_flight=ahead, drop=Future.cancel)) as ready,
        closing(_through_engines(ready, files, batch, in_flight)) as passed,
        closing(in_order(passed, end, Future.result, in_flight=ahead, drop=Future.cancel)) as answers,
    ):
        yield from answers


def _or_error(work: Callable[[], Item]) -> Item | InputError:
    try:
        return work()
    except InputError as error:
        return error


def _through_engines(
    ready: Iterable[Ready | InputError], files: OpenFiles, batch: int, in_flight: int
) -> Generator[Passed | InputError, None, None]:
    """Neighbours of one size go together; where the size changes, the engine's stream is emptied first."""
    for size_px, group in groupby(ready, lambda one: None if isinstance(one, InputError) else one.size_px):
        if size_px is None:
            yield from (one for one in group if isinstance(one, InputError))
            continue
        mine = (one for one in group if isinstance(one, Ready))
        rest: list[Ready] = []
        full = _full_batches(mine, files.file(size_px, batch).batch, rest)
        yield from _stream(full, files, size_px, batch, in_flight)
        # What does not fill a batch: one by one where there is a file for that, else with room to spare.
        single = files.file(size_px).batch
        few = [rest[n : n + single] for n in range(0, len(rest), single)]
        yield from _stream(few, files, size_px, 1, in_flight)


def _full_batches(ready: Iterator[Ready], batch: int, rest: list[Ready]) -> Iterator[list[Ready]]:
    """Lists of `batch` pictures; `rest` gets those that are left."""
    while part := list(islice(ready, batch)):
        if len(part) == batch:
            yield part
        else:
            rest.extend(part)


def _stream(
    batches: Iterable[list[Ready]], files: OpenFiles, size_px: Size, batch: int, in_flight: int
) -> Generator[Passed, None, None]:
    source = iter(batches)
    first = next(source, None)
    if first is None:  # a file that nothing is for stays closed
        return
    handed_over: deque[tuple[list[Ready], float]] = deque()

    def pictures() -> Iterator[np.ndarray]:
        for part in chain([first], source):
            stacked = np.stack([one.picture for one in part])
            handed_over.append((part, time.perf_counter()))
            yield stacked

    engine = files.engine(files.file(size_px, batch))
    with closing(engine.stream(pictures(), in_flight=in_flight)) as stream:
        for logits in stream:
            part, begin = handed_over.popleft()
            engine_ms = 1e3 * (time.perf_counter() - begin)
            yield from (Passed(one, each, engine_ms) for one, each in zip(part, logits, strict=True))
