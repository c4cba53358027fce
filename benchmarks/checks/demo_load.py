"""Ten readers at once: does the demo's server answer every request, how long do they wait, does its memory stay flat?

`python -m benchmarks.checks.demo_load --bundle B --data D --out O` starts `python -m demo`, sends pictures of D
through `gradio_client` from several clients for a minute, stops the server, and writes

    O/record.json    requests, errors, lost ones, median and 95th percentile of the wait, memory before and after
    O/memory.png     the server's resident memory over time

A request counts as lost if neither an answer nor an error came. Every answer is compared with the first of its picture.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Lock, Thread
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import numpy as np
from PIL import Image
from pydantic import Field

from benchmarks.measuring import (
    Part,
    check_libraries,
    new_png_figure,
    resident_mib,
    results_folder,
    write_record,
)
from segcore.command import Settings, log, print_result, run_command
from segcore.dataset.dataset import open_dataset
from segcore.errors import GateError, InputError
from segcore.host import Made, made_now

WARM_UP_S = 15.0
"""Seconds before the first reading of memory that counts: libraries and caches are still filling."""
_READING_EVERY_S = 1.0
_LONGEST_ANSWER_S = 120.0


class DemoLoadSettings(Settings):
    """`python -m benchmarks.checks.demo_load` measures the demo's server under several clients at once.

    Exit status 3 if a request failed or was lost.
    """

    bundle: list[Path] = Field(min_length=1)
    """exported bundle; repeat for several, the last is asked"""
    data: str
    """dataset whose pictures are sent"""
    out: Path
    """folder to write"""
    clients: int = Field(10, ge=1)
    """clients at once"""
    seconds: float = Field(60, gt=WARM_UP_S)
    """how long they go on"""
    pictures: int = Field(10, ge=1)
    """different pictures that they send"""
    threads: int | None = Field(None, ge=1)
    """CPU threads of each model"""
    overwrite: bool = False
    """replace a finished --out"""


class LoadRecord(Part):
    """What was measured.

    Attributes:
        answered: requests with a whole and right answer.
        wrong: answers that differ from the first of the same picture.
        errors: requests that ended with an error; `messages` are the first few.
        lost: requests that were begun and neither answered nor refused.
        wait_ms_p50: from sending to answer, uploads included.
        memory_mib: (seconds, resident MiB) of the server.
        growth_mib: median of the last quarter of the readings minus that of the first quarter after the warm-up.
        left_behind: files in the server's folders after the clients have gone and it was stopped.
    """

    clients: int
    seconds: float
    answered: int
    wrong: int
    errors: int
    lost: int
    messages: tuple[str, ...]
    answers_s: float
    wait_ms_p50: float
    wait_ms_p95: float
    wait_ms_max: float
    memory_mib: tuple[tuple[float, float], ...]
    growth_mib: float
    left_behind: int
    made: Made


def main(settings: DemoLoadSettings) -> None:
    """Starts the server, loads it, stops it, writes OUT.

    Raises:
        InputError: gradio is missing, or the bundle or the data cannot be opened.
        GateError: a request failed, was lost or answered differently.
    """
    check_libraries("gradio", "gradio_client", extra="demo")
    check_libraries("matplotlib")
    cases = open_dataset(settings.data, need_masks=False).cases[: settings.pictures]
    with results_folder(settings) as folder:
        with tempfile.TemporaryDirectory(prefix="sam2edge-load-") as scratch:
            pictures = [Path(scratch) / f"picture-{i}.png" for i in range(len(cases))]
            for case, path in zip(cases, pictures, strict=True):
                Image.fromarray(case.image()).save(path)
            server_folder = Path(scratch) / "server"
            server_folder.mkdir()
            with serve_demo(settings.bundle, server_folder, threads=settings.threads) as (address, process):
                tally = _load_server(settings, address, process.pid, pictures)
            left = sum(1 for path in server_folder.rglob("*") if path.is_file())
        record = tally.record(settings, left)
        write_record(folder / "record.json", record)
        _draw_memory(record, folder / "memory.png")
    print_result(**record.model_dump(exclude={"memory_mib", "made", "messages"}), out=str(settings.out))
    if record.errors or record.lost or record.wrong or record.left_behind:
        raise GateError(
            f"{record.errors} errors, {record.lost} lost, {record.wrong} differing answers, "
            f"{record.left_behind} files left behind; must be none ({'; '.join(record.messages) or 'no message'})"
        )


class _Tally:
    """What the clients saw; they write, one at a time."""

    def __init__(self) -> None:
        self.waits: list[float] = []
        self.begun = self.wrong = 0
        self.messages: list[str] = []
        self.memory: list[tuple[float, float]] = []
        self.first: dict[str, Any] = {}
        self.lock = Lock()

    def answer(self, picture: str, measured: Any, wait_s: float) -> None:
        with self.lock:
            self.waits.append(wait_s)
            self.wrong += self.first.setdefault(picture, measured) != measured

    def record(self, settings: DemoLoadSettings, left: int) -> LoadRecord:
        waits = 1e3 * np.array(self.waits or [float("nan")])
        sizes = np.array([size for t, size in self.memory if t >= WARM_UP_S])
        quarter = max(len(sizes) // 4, 1)
        return LoadRecord(
            clients=settings.clients,
            seconds=settings.seconds,
            answered=len(self.waits),
            wrong=self.wrong,
            errors=len(self.messages),
            lost=self.begun - len(self.waits) - len(self.messages),
            messages=tuple(dict.fromkeys(self.messages))[:5],
            answers_s=len(self.waits) / settings.seconds,
            wait_ms_p50=float(np.median(waits)),
            wait_ms_p95=float(np.percentile(waits, 95)),
            wait_ms_max=float(waits.max()),
            memory_mib=tuple(self.memory),
            growth_mib=float(np.median(sizes[-quarter:]) - np.median(sizes[:quarter])),
            left_behind=left,
            made=made_now(),
        )


def _load_server(settings: DemoLoadSettings, address: str, pid: int, pictures: list[Path]) -> _Tally:
    tally, stop, begin = _Tally(), Event(), time.perf_counter()
    clients = [
        Thread(
            target=_ask_until,
            args=(address, pictures[n % len(pictures) :] + pictures, tally, stop),
            daemon=True,
        )
        for n in range(settings.clients)
    ]
    for client in clients:
        client.start()
    while (now := time.perf_counter() - begin) < settings.seconds:
        tally.memory.append((round(now, 1), resident_mib(pid)))
        time.sleep(_READING_EVERY_S)
    stop.set()
    for client in clients:
        client.join(_LONGEST_ANSWER_S)
    log(f"{len(tally.waits)} answers, {len(tally.messages)} errors")
    return tally


def _ask_until(address: str, pictures: list[Path], tally: _Tally, stop: Event) -> None:
    from gradio_client import Client, handle_file

    client = Client(address, verbose=False)
    while not stop.is_set():
        for picture in pictures:
            if stop.is_set():
                return
            with tally.lock:
                tally.begun += 1
            begin = time.perf_counter()
            try:
                record, _ = client.predict(
                    file=handle_file(str(picture)),
                    model="",
                    formats=["png"],
                    threshold=None,
                    prompt=None,
                    api_name="/segment",
                )
            except Exception as error:  # whatever a client can meet counts as its error
                with tally.lock:
                    tally.messages.append(f"{type(error).__name__}: {error}")
            else:
                tally.answer(picture.name, record["measurements"], time.perf_counter() - begin)


@contextmanager
def serve_demo(
    bundles: Sequence[Path],
    folder: Path,
    *,
    threads: int | None = None,
    more: Sequence[str] = (),
    log_to: Path | None = None,
) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """The demo in a process of its own; its address. It is stopped at the end.

    Args:
        bundles: that it serves.
        folder: where it puts its temporary files.
        threads: CPU threads of each model.
        more: words of its command line.
        log_to: file for what it logs; else that goes where ours goes.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))  # the system chooses a free port
        port = probe.getsockname()[1]
    words = [word for bundle in bundles for word in ("--bundle", str(bundle.resolve()))]
    words += ["--port", str(port), *(["--threads", str(threads)] if threads else []), *more]
    process = subprocess.Popen(
        [sys.executable, "-m", "demo", *words],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "TMPDIR": str(folder)},  # so that what it leaves behind can be counted
        stdout=subprocess.DEVNULL,
        stderr=None if log_to is None else log_to.open("w"),
    )
    try:
        _wait_until_it_answers(f"http://127.0.0.1:{port}", process)
        yield f"http://127.0.0.1:{port}", process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=30)


def _wait_until_it_answers(address: str, process: subprocess.Popen[bytes]) -> None:
    for _ in range(1500):  # a busy machine may take long
        if process.poll() is not None:
            raise InputError(
                "--bundle: must be served by python -m demo, which ended at once; see its error above"
            )
        try:
            urlopen(address, timeout=1).close()
            return
        except (URLError, OSError):
            time.sleep(0.2)
    raise InputError("python -m demo: must answer within five minutes, did not; start it by hand to see why")


def _draw_memory(record: LoadRecord, path: Path) -> None:
    figure = new_png_figure(7, 3)
    axes = figure.add_subplot()
    axes.plot(*zip(*record.memory_mib, strict=True), color="#00795a")
    axes.set(xlabel="seconds", ylabel="resident memory (MiB)", ylim=(0, None))
    axes.set_title(f"{record.clients} clients, {record.answered} answers", fontsize=10)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    run_command(main, DemoLoadSettings, "python -m benchmarks.checks.demo_load")
