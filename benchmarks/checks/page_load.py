"""The demo's page under load: many callers at once, good and bad, each of whom knows what must come back."""

from __future__ import annotations

import random
import socket
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Lock, Thread
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from benchmarks.checks.page_caller import API, LONGEST_ANSWER_S, Answer, PageCaller, page_says
from benchmarks.measuring import Part, resident_mib


class LoadFigures(Part):
    """The load.

    Attributes:
        asked: requests of each kind.
        errors: answers that were not what they must be; `messages` are the first few.
        lost: requests without any answer.
        wait_ms_p50: of a good `/segment`, upload included.
        memory_mib: the server's, before and after.
        descriptors: the same.
        left_open: files with readers' content, a few seconds after the last caller left.
        left_closed: files when the server was stopped.
    """

    clients: int
    seconds: float
    asked: dict[str, int]
    errors: int
    lost: int
    messages: tuple[str, ...]
    wait_ms_p50: float
    wait_ms_p95: float
    wait_ms_max: float
    memory_mib: tuple[float, float, float]
    descriptors: tuple[int, int, int]
    left_open: int
    left_closed: int = 0


@dataclass
class _Tally:
    asked: Counter[str] = field(default_factory=Counter)
    answered: int = 0
    waits: list[float] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)
    lock: Lock = field(default_factory=Lock)

    def note(self, kind: str, problem: str | None, wait_s: float) -> None:
        with self.lock:
            self.answered += 1
            if kind == "good picture":
                self.waits.append(wait_s)
            if problem is not None:
                self.messages.append(f"{kind}: {problem}")


def load_page(
    address: str, pid: int, pictures: Sequence[Path], folder: Path, *, clients: int, seconds: float
) -> LoadFigures:
    """Many callers at once.

    Args:
        address: of the page.
        pid: of its process.
        pictures: that are sent.
        folder: the server's temporary one.
        clients: callers at once.
        seconds: how long they go on.
    """
    import psutil

    server, tally, stop = psutil.Process(pid), _Tally(), Event()
    with tempfile.TemporaryDirectory(prefix="sam2edge-callers-") as scratch:
        _segment_new(address, pictures[0])  # so that what is opened once is open
        memory, descriptors = [resident_mib(pid)], [server.num_fds()]
        threads = [
            Thread(target=_call_until, args=(address, pictures, Path(scratch), tally, stop, n), daemon=True)
            for n in range(clients)
        ]
        for thread in threads:
            thread.start()
        begin = time.perf_counter()
        while time.perf_counter() - begin < seconds:
            time.sleep(1)
            memory.append(resident_mib(pid))
            descriptors.append(server.num_fds())
        stop.set()
        for thread in threads:
            thread.join(LONGEST_ANSWER_S)
        time.sleep(8)  # connections that were kept are let go
    left = [p for p in folder.rglob("*.png") if "examples" not in p.parts and "made-" not in str(p)]
    waits = 1e3 * np.array(tally.waits or [float("nan")])
    return LoadFigures(
        clients=clients,
        seconds=seconds,
        asked=dict(tally.asked),
        errors=len(tally.messages),
        lost=sum(tally.asked.values()) - tally.answered,
        messages=tuple(dict.fromkeys(tally.messages))[:5],
        wait_ms_p50=float(np.median(waits)),
        wait_ms_p95=float(np.percentile(waits, 95)),
        wait_ms_max=float(waits.max()),
        memory_mib=(memory[0], max(memory), resident_mib(pid)),
        descriptors=(descriptors[0], max(descriptors), server.num_fds()),
        left_open=len(left),
    )


def _call_until(
    address: str, pictures: Sequence[Path], scratch: Path, tally: _Tally, stop: Event, number: int
) -> None:
    chance = random.Random(number)
    program = scratch / f"program-{number}.png"
    program.write_bytes(b"MZ\x90\x00 this is a program")
    kinds: dict[str, tuple[int, Callable[[], str | None]]] = {
        "good picture": (10, lambda: _expect_values(_segment_new(address, chance.choice(pictures)))),
        "page: example, slice, threshold": (3, lambda: _read_page(address)),
        "a program as a picture": (2, lambda: _expect_line(_segment_new(address, program))),
        "wrong types": (2, lambda: _expect_line(_segment_new(address, pictures[0], 7, "x", [], 5))),
        "a folder": (2, lambda: _expect_line(PageCaller(address, browser=True).segment("/tmp"))),
        "foreign Origin": (1, lambda: _expect_status(PageCaller(address, browser=False), 403)),
        "an upload cut off": (1, lambda: _cut_off(address, pictures[0])),
    }
    names = [name for name, (share, _) in kinds.items() for _ in range(share)]
    while not stop.is_set():
        kind = chance.choice(names)
        with tally.lock:
            tally.asked[kind] += 1
        begin = time.perf_counter()
        try:
            problem = kinds[kind][1]()
        except Exception as error:  # whatever a client can meet counts as its error
            problem = f"{type(error).__name__}: {error}"
        tally.note(kind, problem, time.perf_counter() - begin)


def _segment_new(address: str, picture: Path, *values: Any) -> Answer:
    caller = PageCaller(address, browser=False)
    try:
        return caller.segment(caller.upload(picture)[0], *values)
    finally:
        caller.close()


def _expect_values(answer: Answer) -> str | None:
    return None if answer.values else f"must be answered, got {answer.problem}"


def _expect_line(answer: Answer) -> str | None:
    return None if answer.is_one_line else f"must be one line, got {answer.problem or answer.values}"


def _expect_status(caller: PageCaller, status: int) -> str | None:
    got = caller.get("/config", Origin="http://evil.example")
    caller.close()
    return None if got == status else f"must be {status}, got {got}"


def _read_page(address: str) -> str | None:
    """A reader who opens the page, looks and leaves."""
    caller = PageCaller(address, browser=True)
    with caller.http.stream("GET", f"{API}/heartbeat/{caller.page}"):
        shown = caller.event("examples", "select", index=1)
        moved = caller.event("viewer", "release", threshold=0.4)
    caller.close()
    return page_says(shown) or page_says(moved) or None


def _cut_off(address: str, picture: Path) -> str | None:
    """Half of an upload, and the connection is closed."""
    url = urlsplit(address)
    head = (
        f"POST {API}/upload HTTP/1.1\r\nHost: {url.netloc}\r\nContent-Length: 1000000\r\n"
        "Content-Type: multipart/form-data; boundary=b\r\n\r\n"
        '--b\r\nContent-Disposition: form-data; name="files"; filename="half.png"\r\n\r\n'
    )
    with socket.create_connection(("127.0.0.1", url.port or 80), timeout=20) as connection:
        connection.sendall(head.encode() + picture.read_bytes()[:10_000])
    return None
