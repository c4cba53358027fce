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

from runtime.predict_files import predict_one
from runtime.predict_inputs import Input
from runtime.predict_open import Opening, open_predictor
from runtime.predict_write import Outputs
from segcore.errors import InputError

_TRIES = 2


@dataclass
class _Worker:
    process: SpawnProcess
    connection: Connection
    item: Input | None = None
    opened: bool = False


def predict_in_processes(
    opening: Opening, inputs: Sequence[Input], folder: Path, outputs: Outputs, *, workers: int
) -> Generator[dict[str, Any], None, None]:
    """The records of inputs, in the order in which they are completed; as `runtime.predict_files` otherwise.

    Args:
        opening: of every process's model; its threads are each one's own.
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
    unopened = (
        0  # processes in a row that died before the model was open: one may be killed by chance, not all
    )
    try:
        while waiting or any(one.item for one in team):
            while len(team) < min(workers, len(waiting) + sum(one.item is not None for one in team)):
                team.append(_start(opening, folder, outputs))
            for connection in wait([one.connection for one in team]):
                one = next(one for one in team if one.connection is connection)
                try:
                    answer = one.connection.recv()
                except (EOFError, OSError):
                    team.remove(one)
                    dead = _bury(one)
                    if dead is None:
                        unopened += not one.opened
                        if unopened > workers:
                            raise InputError(
                                f"--workers {workers}: must be so few that each can open the model, {unopened} in a "
                                f"row could not ({_end(one.process.exitcode)}); use fewer"
                            ) from None
                        continue
                    tries[dead.case] += 1
                    if tries[dead.case] < _TRIES:
                        waiting.appendleft(dead)
                    else:
                        yield {"case": dead.case, "error": _died(dead, one.process.exitcode)}
                    continue
                if isinstance(answer, Exception):
                    raise answer
                one.opened, one.item, unopened = True, None, 0
                if answer is not None:
                    yield answer
                if waiting:
                    one.item = waiting.popleft()
                    with suppress(OSError):  # it died meanwhile: the next wait says so
                        one.connection.send(one.item)
                else:
                    team.remove(one)
                    one.connection.close()  # which ends it
                    one.process.join()
    finally:
        for one in team:
            one.process.terminate()
            one.process.join()


def _start(opening: Opening, folder: Path, outputs: Outputs) -> _Worker:
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_work, args=(there, opening, folder, outputs), daemon=True)
    with _ctrl_c_is_ours():
        process.start()
    there.close()  # so that the other end's death is seen here
    return _Worker(process, here)


@contextmanager
def _ctrl_c_is_ours() -> Generator[None, None, None]:
    """Ctrl-C reaches all processes of a terminal; what is started meanwhile leaves it to this one."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _work(connection: Connection, opening: Opening, folder: Path, outputs: Outputs) -> None:
    """In the process: None when the model is open, then a record for each input that comes."""
    try:
        with open_predictor(opening) as predictor:
            connection.send(None)
            while True:
                item = connection.recv()
                connection.send(predict_one(predictor, item, folder, outputs))
    except EOFError:
        pass  # the end, or the other process is gone
    except (InputError, OSError) as error:
        with suppress(OSError):
            connection.send(error)


def _bury(one: _Worker) -> Input | None:
    """Waits for a dead process and gives the input that it had, if any."""
    one.connection.close()
    one.process.join()
    return one.item


def _died(item: Input, status: int | None) -> str:
    return (
        f"image {item.shown}: must be read and segmented, {_TRIES} processes died at it ({_end(status)}); "
        "it may need more memory: use fewer --workers, or look at this file alone"
    )


def _end(status: int | None) -> str:
    return f"exit status {status}" if status is None or status >= 0 else f"signal {-status}"
