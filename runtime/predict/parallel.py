"""Several processes, each with its own engine, segment inputs; this one hands them out and gets the records.

A process that dies (killed, out of memory, a decoder that crashes) is replaced. Its input is tried once more, then its
record says so; the others go on.
"""

from __future__ import annotations

import multiprocessing
import signal
import threading
from collections import Counter, deque
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

from runtime.predict.files import PredictorOptions, open_predictor, predict_input
from runtime.predict.inputs import PredictionInput
from runtime.predict.write import Outputs
from segcore.errors import InputError

_TRIES = 2


@dataclass
class _Worker:
    process: SpawnProcess
    connection: Connection
    input: PredictionInput | None = None
    opened: bool = False


def predict_in_processes(
    options: PredictorOptions,
    inputs: Sequence[PredictionInput],
    folder: Path,
    outputs: Outputs,
    *,
    workers: int,
) -> Generator[dict[str, Any], None, None]:
    """The records of inputs, in the order in which they are completed; as `runtime.predict.files` otherwise.

    Args:
        options: of every process's model; its threads are each one's own.
        inputs: with different cases.
        folder: gets masks/ and overlays/.
        outputs: which files are written.
        workers: processes.

    Raises:
        InputError: the model cannot be opened.
        OSError: the folder cannot be written to.
    """
    waiting, tries = deque(inputs), Counter[str]()
    team: list[_Worker] = []
    unopened = 0  # processes in a row that died before the model was open: one may be by chance, not all
    try:
        while waiting or any(worker.input for worker in team):
            while len(team) < min(workers, len(waiting) + sum(worker.input is not None for worker in team)):
                team.append(_start_worker(options, folder, outputs))
            for connection in wait([worker.connection for worker in team]):
                worker = next(worker for worker in team if worker.connection is connection)
                try:
                    reply = worker.connection.recv()
                except (EOFError, OSError):
                    team.remove(worker)
                    dead = _end_worker(worker)  # the input that it died at; None before it got its first
                    if dead is None:
                        unopened += not worker.opened
                        if unopened > workers:
                            raise InputError(
                                f"--workers {workers}: must be so few that each can open the model, {unopened} in a "
                                f"row could not ({_exit_text(worker.process.exitcode)}); use fewer"
                            ) from None
                        continue
                    tries[dead.case] += 1
                    if tries[dead.case] < _TRIES:
                        waiting.appendleft(dead)
                    else:
                        yield {"case": dead.case, "error": _death_text(dead, worker.process.exitcode)}
                    continue
                if isinstance(reply, Exception):
                    raise reply
                worker.opened, worker.input, unopened = True, None, 0
                if reply is not None:
                    yield reply
                if waiting:
                    worker.input = waiting.popleft()
                    with suppress(OSError):  # it died meanwhile: the next wait says so
                        worker.connection.send(worker.input)
                else:
                    team.remove(worker)
                    worker.connection.close()  # which ends it
                    worker.process.join()
    finally:
        for worker in team:
            worker.process.terminate()
            worker.process.join()


def _start_worker(options: PredictorOptions, folder: Path, outputs: Outputs) -> _Worker:
    # Not fork, which copies the locks of an engine's threads and not the threads that would open them.
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_run_worker, args=(there, options, folder, outputs), daemon=True)
    with _without_interrupts():
        process.start()
    there.close()  # so that the other end's death is seen here
    return _Worker(process, here)


@contextmanager
def _without_interrupts() -> Generator[None, None, None]:
    """Ctrl-C reaches all processes of a terminal; what is started meanwhile leaves it to this one."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _run_worker(connection: Connection, options: PredictorOptions, folder: Path, outputs: Outputs) -> None:
    """In the process: None when the model is open, then a record for each input that comes."""
    try:
        with open_predictor(options) as predictor:
            connection.send(None)
            while True:
                input_ = connection.recv()
                connection.send(predict_input(predictor, input_, folder, outputs))
    except EOFError:
        pass  # the end, or the other process is gone
    except (InputError, OSError) as error:
        with suppress(OSError):
            connection.send(error)


def _end_worker(worker: _Worker) -> PredictionInput | None:
    """Waits for a dead process and gives the input that it had, if any."""
    worker.connection.close()
    worker.process.join()
    return worker.input


def _death_text(input_: PredictionInput, status: int | None) -> str:
    return (
        f"image {input_.shown}: must be read and segmented, {_TRIES} processes died at it ({_exit_text(status)}); "
        "it may need more memory: use fewer --workers, or look at this file alone"
    )


def _exit_text(status: int | None) -> str:
    return f"exit status {status}" if status is None or status >= 0 else f"signal {-status}"
