"""Runs commands as child processes, so many at once, each on its own GPU or share of the cores.

A study runs its trainings so, and the comparison of distilled students all of its stages. What is complete is not run
again. A child is started with its parent's number as its last word and ends when that process is gone (`end_with`):
two of them must not write one folder when the parent is started again.
"""

from __future__ import annotations

import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import NoReturn

from benchmarks.measuring import Part
from runtime.engines.seam import available_threads
from runtime.timing.latency import peak_memory_mib
from segcore.command import EXIT_GATE, EXIT_INPUT, EXIT_INTERRUPTED, log
from segcore.errors import GateError, InputError

_ROOT = Path(__file__).parents[1]
_QUIT_S = 10.0
"""Time for a child to end after it was asked to."""


@dataclass(frozen=True)
class Child:
    """A command to run in a process of its own.

    Attributes:
        name: of its log, unique.
        label: for people.
        words: of `python -m`; the number of this process is added.
        done: a file or folder; where it is there the child is complete.
        after: names of the children whose results it reads.
    """

    name: str
    label: str
    words: tuple[str, ...]
    done: Path
    after: tuple[str, ...] = ()


@dataclass(frozen=True)
class ChildFailure:
    """A child that did not end well.

    Attributes:
        reason: the last line it said.
        status: its exit status.
        follows: it was not run, since one that it comes after failed.
    """

    name: str
    reason: str
    status: int
    follows: bool = False


class TrainingMemory(Part):
    """The largest memory that a process held, in MiB; of the GPU None where there is none."""

    peak_memory_mib: float
    peak_gpu_memory_mib: float | None = None


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
    """The environment of each place where a child can run at a time.

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
    """A child was interrupted: no further one may start."""


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


def run_children(
    children: Sequence[Child], slots: Sequence[Mapping[str, str]], logs: Path
) -> list[ChildFailure]:
    """Runs the children that are not complete, in their order, each when those it comes after are complete.

    Args:
        children: all of them; none comes before what it reads.
        slots: the environment of each place.
        logs: folder for what each child says.

    Raises:
        KeyboardInterrupt: this process or a child was interrupted; no child is left running.
    """
    waiting = [child for child in children if not child.done.exists()]
    if len(waiting) < len(children):
        log(f"{len(children) - len(waiting)} of {len(children)} runs are complete already")
    if not waiting:
        return []
    logs.mkdir(exist_ok=True)
    log(f"what each run says: tail -f {logs}/*.log")
    progress = _Progress(len(children), len(children) - len(waiting), len(slots))
    places: queue.Queue[Mapping[str, str]] = queue.Queue()
    for slot in slots:
        places.put(slot)
    live: dict[str, subprocess.Popen[bytes]] = {}
    stop = threading.Event()

    def run(child: Child) -> ChildFailure | None:
        if stop.is_set():
            raise _Interruption
        place = places.get()
        progress.begin(child.label)
        started = time.monotonic()
        try:
            failure = _run_one(child, place, logs / f"{child.name}.log", live)
        except _Interruption:
            stop.set()
            raise
        finally:
            places.put(place)
        if stop.is_set():
            raise _Interruption
        progress.end(child.label, time.monotonic() - started, failure.reason if failure else None)
        return failure

    failures: dict[str, ChildFailure] = {}
    running: dict[Future[ChildFailure | None], str] = {}
    with terminating_like_ctrl_c(), ThreadPoolExecutor(len(slots)) as pool:
        try:
            while waiting or running:
                for child in list(waiting):
                    lost = next((name for name in child.after if name in failures), None)
                    open_names = {one.name for one in waiting} | set(running.values())
                    if lost is not None:
                        reason = f"needs {lost}, which failed"
                        failures[child.name] = ChildFailure(child.name, reason, failures[lost].status, True)
                        waiting.remove(child)
                    elif len(running) < len(slots) and not open_names & set(child.after):
                        running[pool.submit(run, child)] = child.name
                        waiting.remove(child)
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    del running[future]
                    if failure := future.result():
                        failures[failure.name] = failure
        except (_Interruption, KeyboardInterrupt):
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            _end_processes(list(live.values()))
            raise KeyboardInterrupt from None
    return [failures[child.name] for child in children if child.name in failures]


def _run_one(
    child: Child, place: Mapping[str, str], log_file: Path, live: dict[str, subprocess.Popen[bytes]]
) -> ChildFailure | None:
    """Runs a child; returns what went wrong in one line, or None."""
    paths = os.pathsep.join(filter(None, (str(_ROOT), os.environ.get("PYTHONPATH", ""))))
    command = [sys.executable, "-m", *child.words, str(os.getpid())]
    with log_file.open("wb") as said:
        process = subprocess.Popen(
            command,
            env={**os.environ, "PYTHONPATH": paths, **place},
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=subprocess.STDOUT,
        )
        live[child.name] = process
        status = process.wait()
        del live[child.name]
    if status in (EXIT_INTERRUPTED, -signal.SIGINT, -signal.SIGTERM):
        raise _Interruption
    if status == 0:
        return None
    if status < 0:
        reason = f"killed by signal {-status} ({signal.Signals(-status).name}); too little memory?"
        return ChildFailure(child.name, reason, status)
    return ChildFailure(child.name, last_line(log_file.read_bytes()), status)


def last_line(said: bytes) -> str:
    """The last line that is not empty, of output that progress bars may have overwritten."""
    lines = [line.strip() for line in said.decode(errors="replace").replace("\r", "\n").split("\n")]
    last = next((line for line in reversed(lines) if line), "ended without a word")
    return last.removeprefix("error: ").removeprefix("gate failed: ")


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
    """Lets SIGTERM, as a scheduler sends it, end this process as Ctrl-C does: with its children."""
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


def peak_memory() -> TrainingMemory:
    """Of this process so far; the GPU's as PyTorch's allocator reserved it."""
    import torch

    gpu = torch.cuda.max_memory_reserved() / 2**20 if torch.cuda.is_available() else None
    return TrainingMemory(peak_memory_mib=peak_memory_mib(), peak_gpu_memory_mib=gpu)


def end_with(parent: int, *, every_s: float = 0.5) -> None:
    """Ends this process, from a thread, when it is no longer `parent`'s child."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(every_s)
        os._exit(EXIT_INTERRUPTED)

    threading.Thread(target=watch, daemon=True).start()


def run_as_child(run: Callable[[str], None]) -> None:
    """What a child's module does: `run` with its first word, which is the job; its last is its parent's number.

    It ends when the parent is gone, and otherwise with the status of a command.
    """
    end_with(int(sys.argv[2]))
    try:
        run(sys.argv[1])
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(EXIT_INPUT)
    except GateError as error:
        print(f"gate failed: {error}", file=sys.stderr)
        sys.exit(EXIT_GATE)
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)
