"""Keeps a bounded number of jobs under way and gives their results in the order the jobs came."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from contextlib import suppress
from typing import TypeVar

Job = TypeVar("Job")
Begun = TypeVar("Begun")
Result = TypeVar("Result")


def in_order(
    jobs: Iterable[Job],
    begin: Callable[[Job], Begun],
    finish: Callable[[Begun], Result],
    *,
    in_flight: int,
    drop: Callable[[Begun], object],
) -> Generator[Result, None, None]:
    """Begins jobs ahead of the one whose result is asked for, and pulls no more of them than that.

    Where the source of the jobs fails, or one cannot begin, the results of those before it still come; then the
    error is raised, in its turn. Jobs that are under way when the generator ends early are dropped.

    Args:
        jobs: pulled one at a time, in the caller's thread, while fewer than `in_flight` are under way.
        begin: starts a job without waiting for it.
        finish: waits for a begun job and gives its result.
        in_flight: jobs under way at most.
        drop: waits for, or calls off, a begun job that nobody will ask for.
    """
    under_way: deque[Begun] = deque()
    source = iter(jobs)
    failure: Exception | None = None
    more = True
    try:
        while more or under_way:
            # First as many as may be, then the oldest one's result: meanwhile the others are worked on.
            while more and len(under_way) < in_flight:
                try:
                    under_way.append(begin(next(source)))
                except StopIteration:
                    more = False
                except Exception as error:
                    failure, more = error, False  # raised when the results of the jobs before it are out
            if under_way:
                yield finish(under_way.popleft())
        if failure is not None:
            raise failure
    finally:
        while under_way:
            with suppress(Exception):  # one that failed too must not keep the others from being let go
                drop(under_way.popleft())
