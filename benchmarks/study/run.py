"""Runs the jobs of a study: so many at once, each on its own GPU or share of the cores; what is finished is kept."""

from __future__ import annotations

import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NoReturn

from benchmarks.study.job import Job
from benchmarks.study.record import Failure
from runtime.engines.seam import available_threads
from segcore.command import EXIT_INTERRUPTED, log
from segcore.errors import InputError

_ROOT = Path(__file__).parents[2]
_QUIT_S = 10.0
"""Time for a training to end after it was asked to."""


def find_gpus() -> list[str]:
    """The CUDA devices that this process may use, as CUDA_VISIBLE_DEVICES names them; asks the driver, not torch."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [name for name in given.split(",") if name.strip() not in ("", "-1")]
    if shutil.which("nvidia-smi") is None:
        return []
    command = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.split() if done.returncode == 0 else []


def slots_of(parallel: int | None, device: str) -> list[dict[str, str]]:
    """The environment of each place where a training can run at a time.

    Raises:
        InputError: more places than cores, where there is no GPU.
    """
    gpus = [] if device == "cpu" else find_gpus()
    count = parallel or max(1, len(gpus))
    if gpus:
        return [{"CUDA_VISIBLE_DEVICES": gpus[i % len(gpus)]} for i in range(count)]
    if count == 1:
        return [{}]
    cores = available_threads()
    if count > cores:
        raise InputError(f"--parallel {count}: must be at most {cores}, the cores of this machine")
    return [{"OMP_NUM_THREADS": str(cores // count)} for _ in range(count)]


class _Interruption(Exception):
    """A job was interrupted: no further one may start."""


class _Progress:
    """Says which run of how many is under way, and about how long the rest takes."""

    def __init__(self, total: int, done: int, places: int) -> None:
        self.total, self.begun, self.places = total, done, places
        self.lock, self.started, self.seconds = threading.Lock(), time.monotonic(), list[float]()

    def begin(self, label: str) -> None:
        with self.lock:
            self.begun += 1
            spent = time.monotonic() - self.started
            log(
                f"run {self.begun} of {self.total}: {label}  [{_duration_words(spent)} so far{self._rest_words()}]"
            )

    def end(self, label: str, seconds: float, problem: str | None) -> None:
        with self.lock:
            self.seconds.append(seconds)
            log(
                f"  failed: {label}: {problem}"
                if problem
                else f"  done: {label} in {_duration_words(seconds)}"
            )

    def _rest_words(self) -> str:
        if not self.seconds:
            return ""
        left = (self.total - self.begun + 1) / self.places * sum(self.seconds) / len(self.seconds)
        return f", about {_duration_words(left)} left"


def _duration_words(seconds: float) -> str:
    """8 s, 3 min, 2.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def run_jobs(
    jobs: Sequence[Job], labels: Sequence[str], slots: Sequence[Mapping[str, str]], logs: Path
) -> list[Failure]:
    """Runs the jobs that are not complete, in their order.

    Args:
        jobs: all jobs; whose `scores` are there is complete.
        labels: of the jobs, for people.
        slots: the environment of each place.
        logs: folder for what each job says.

    Raises:
        KeyboardInterrupt: this process or a job was interrupted; no job is left running.
    """
    waiting = [(job, label) for job, label in zip(jobs, labels, strict=True) if not job.scores.exists()]
    if len(waiting) < len(jobs):
        log(f"{len(jobs) - len(waiting)} of {len(jobs)} runs are complete already")
    if not waiting:
        return []
    logs.mkdir(exist_ok=True)
    log(f"what each run says: tail -f {logs}/*.log")
    progress = _Progress(len(jobs), len(jobs) - len(waiting), len(slots))
    places: queue.Queue[Mapping[str, str]] = queue.Queue()
    for slot in slots:
        places.put(slot)
    live: dict[str, subprocess.Popen[bytes]] = {}
    stop = threading.Event()

    def run(job: Job, label: str) -> Failure | None:
        if stop.is_set():
            raise _Interruption
        place = places.get()
        progress.begin(label)
        started = time.monotonic()
        try:
            problem = _run_one(job, place, logs / f"{job.name}.log", live)
        except _Interruption:
            stop.set()
            raise
        finally:
            places.put(place)
        if stop.is_set():
            raise _Interruption
        progress.end(label, time.monotonic() - started, problem)
        return Failure(run=job.name, reason=problem) if problem else None

    with terminating_like_ctrl_c(), ThreadPoolExecutor(len(slots)) as pool:
        futures = [pool.submit(run, *one) for one in waiting]
        try:
            return [failure for future in futures if (failure := future.result())]
        except (_Interruption, KeyboardInterrupt):
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            _end_processes(list(live.values()))
            raise KeyboardInterrupt from None


def _run_one(
    job: Job, place: Mapping[str, str], log_file: Path, live: dict[str, subprocess.Popen[bytes]]
) -> str | None:
    """Runs a job; returns what went wrong in one line, or None."""
    paths = os.pathsep.join(filter(None, (str(_ROOT), os.environ.get("PYTHONPATH", ""))))
    command = [sys.executable, "-m", "benchmarks.study.job", job.model_dump_json(), str(os.getpid())]
    with log_file.open("wb") as said:
        process = subprocess.Popen(
            command,
            env={**os.environ, "PYTHONPATH": paths, **place},
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=subprocess.STDOUT,
        )
        live[job.name] = process
        status = process.wait()
        del live[job.name]
    if status in (EXIT_INTERRUPTED, -signal.SIGINT, -signal.SIGTERM):
        raise _Interruption
    if status == 0:
        return None
    if status < 0:
        return f"killed by signal {-status} ({signal.Signals(-status).name}); too little memory?"
    return last_line(log_file.read_bytes())


def last_line(said: bytes) -> str:
    """The last line that is not empty, of output that progress bars may have overwritten."""
    lines = [line.strip() for line in said.decode(errors="replace").replace("\r", "\n").split("\n")]
    return next((line.removeprefix("error: ") for line in reversed(lines) if line), "ended without a word")


def _end_processes(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        process.terminate()
    for process in processes:
        try:
            process.wait(_QUIT_S)
        except subprocess.TimeoutExpired:
            process.kill()


@contextmanager
def terminating_like_ctrl_c() -> Iterator[None]:
    """Lets SIGTERM, as a scheduler sends it, end the study as Ctrl-C does: with its trainings."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> NoReturn:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
