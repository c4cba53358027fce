"""Segments inputs in several processes, each with its own engine: on this machine, or with Ray Data on several hosts.

This process hands the inputs out and gets the records as they come. A process that dies (killed, out of memory, a
decoder that crashes) is replaced. Its input is tried once more, then its record says so; the others go on.

With Ray every host must see the inputs, the bundle and the output folder under the same paths, and have this package
installed.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import signal
import threading
import warnings
from collections import Counter, deque
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

import numpy as np

from runtime.engines.seam import available_threads
from runtime.predict.files import PredictorOptions, open_predictor, predict_input
from runtime.predict.inputs import PredictionInput
from runtime.predict.write import Outputs
from segcore.errors import GateError, InputError, need
from segcore.medical.dicom.series import SeriesFiles

_TRIES = 2
"""How often an input is begun whose process dies."""
_RAY_STARTS = 3
_INPUTS_PER_BLOCK = 8
"""Inputs that an actor is given at once; their records come together, and what is killed is repeated."""
_DISK_ERROR, _OPEN_ERROR, _GATE_ERROR = "fatal", "unopened", "unproved"
"""Keys of what an actor gives in place of a record: an exception would reach the driver inside several of Ray's."""


# --- processes of this machine ---


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
        GateError: it computes other masks here than where it was exported.
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


@dataclass
class _Worker:
    """A process, and the input that it has now."""

    process: SpawnProcess
    connection: Connection
    input: PredictionInput | None = None
    opened: bool = False


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
    except (InputError, GateError, OSError) as error:
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


# --- actors of a Ray cluster ---


def predict_with_ray(
    options: PredictorOptions,
    inputs: Sequence[PredictionInput],
    folder: Path,
    outputs: Outputs,
    *,
    workers: int | None,
    address: str | None,
) -> Generator[dict[str, Any], None, None]:
    """The records of inputs, in the order in which they are completed; as `runtime.predict.files` otherwise.

    An actor that dies is replaced by Ray; inputs that got no record are tried once more, each alone.

    Args:
        options: of every actor's model; its threads are each one's own, and so many CPUs are asked of Ray for it.
        inputs: with different cases.
        folder: gets masks/ and overlays/; on storage that all hosts see.
        outputs: which files are written.
        workers: actors; by default as many as the cluster's CPUs allow.
        address: of a running cluster, as `ray.init` takes it; None starts one here, and ends it.

    Raises:
        InputError: ray is not installed, there is no such cluster, or the model cannot be opened.
        OSError: the folder cannot be written to.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # before the import: a hospital's machines must not call out
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # what matters comes as an exception
    try:
        import ray
    except ImportError:
        raise need("ray", "ray") from None
    threads = options.threads or 1
    quiet: dict[str, Any] = {"logging_level": "error", "log_to_driver": False}
    try:
        if address is None:
            cpus = max(available_threads(), (workers or 1) * threads)
            _start_ray(ray, num_cpus=cpus, include_dashboard=False, **quiet)
        else:
            ray.init(address=address, **quiet)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise InputError(
            f"--ray-address {address}: must be that of a running cluster, got {str(error).splitlines()[0]}"
        ) from None
    try:
        actors = workers or max(1, int(ray.cluster_resources().get("CPU", 1)) // threads)  # type: ignore[no-untyped-call]
        # Another host has another working directory.
        here = Path.cwd()
        sent = [replace(input_, path=_below(here, input_.path), name=input_.shown) for input_ in inputs]
        opened = replace(
            options,
            bundle=here / options.bundle,
            defer_to=options.defer_to and here / options.defer_to,
            cache=options.cache and here / options.cache,
            threads=threads,
        )
        left = {input_.case: input_ for input_ in sent}
        for size in (_INPUTS_PER_BLOCK, 1):
            for record in _run_actors(opened, list(left.values()), here / folder, outputs, actors, size):
                if _DISK_ERROR in record:
                    raise OSError(*record[_DISK_ERROR])
                if _OPEN_ERROR in record:
                    raise InputError(record[_OPEN_ERROR])
                if _GATE_ERROR in record:
                    raise GateError(record[_GATE_ERROR])
                del left[record["case"]]
                yield record
            if not left:
                return
        for input_ in left.values():
            yield {
                "case": input_.case,
                "error": f"image {input_.shown}: must be read and segmented, Ray's actors died at it twice; "
                "it may need more memory: look at this file alone",
            }
    except ray.exceptions.RayError as error:
        raise InputError(
            f"--ray: the cluster must stay up, did not ({type(error).__name__}); run the same command again to go on"
        ) from error
    finally:
        ray.shutdown()


def _start_ray(ray: Any, **options: Any) -> None:
    """Starts Ray on this machine. It gives up after 30 s (2.60, node.py, not to be set): too short for a busy one."""
    for _ in range(_RAY_STARTS):
        try:
            ray.init(address="local", **options)
            return
        except Exception as error:
            if "timed out during startup" not in str(error):  # Ray has no class of its own for it
                raise
            ray.shutdown()
    raise InputError(
        f"--ray: must start on this machine, did not in {_RAY_STARTS} times 30 s; the machine is too busy: omit "
        "--ray, or run the same command again later"
    )


def _run_actors(
    options: PredictorOptions,
    inputs: Sequence[PredictionInput],
    folder: Path,
    outputs: Outputs,
    actors: int,
    block: int,
) -> Generator[dict[str, Any], None, None]:
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # after the import, which sets it
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.max_errored_blocks = -1  # what an actor dies at is missing, and is noticed by the caller
    rows = [{"input": _row_of(input_)} for input_ in inputs]
    blocks = -(-len(rows) // block)
    actors = min(actors, blocks)
    items = ray.data.from_items(rows, override_num_blocks=blocks)
    with warnings.catch_warnings():
        # Ray 2.60 has no other way to say max_task_retries, whose default is to try for ever; 2.64 takes this one away.
        warnings.filterwarnings("ignore", message=".*ray_remote_args")
        records = items.map_batches(
            _PredictionActor,
            fn_constructor_args=(options, folder, outputs),
            compute=ray.data.ActorPoolStrategy(size=actors),
            num_cpus=options.threads,
            batch_size=1,
            max_task_retries=0,
        )
    for row in records.iter_rows():
        yield json.loads(row["record"])


def _below(folder: Path, path: Path | SeriesFiles) -> Path | SeriesFiles:
    """The absolute path of what is relative to a folder."""
    if isinstance(path, Path):
        return folder / path
    files, damaged = (tuple(folder / file for file in group) for group in (path.files, path.damaged))
    return replace(path, folder=folder / path.folder, files=files, damaged=damaged)


def _row_of(input_: PredictionInput) -> str:
    path = input_.path
    if isinstance(path, Path):
        return json.dumps([str(path), [], input_.case, input_.name])
    files = [list(map(str, path.files)), path.number, list(map(str, path.damaged))]
    return json.dumps([str(path.folder), files, input_.case, input_.name])


def _input_of(text: str) -> PredictionInput:
    """`_row_of` backwards."""
    path, series, case, name = json.loads(text)
    if not series:
        return PredictionInput(Path(path), case, name)
    files, number, damaged = series
    paths = tuple(map(Path, files)), number, tuple(map(Path, damaged))
    return PredictionInput(SeriesFiles(Path(path), *paths), case, name)


class _PredictionActor:
    """Ray's actor: opens the model once, then takes inputs."""

    def __init__(self, options: PredictorOptions, folder: Path, outputs: Outputs) -> None:
        self._unopened: dict[str, str] | None = None
        try:
            self._predictor = open_predictor(options)
        except InputError as error:
            self._unopened = {_OPEN_ERROR: str(error)}
        except GateError as error:
            self._unopened = {_GATE_ERROR: str(error)}
        self._folder = folder
        self._outputs = outputs

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list[str]]:
        """`input` → `record`, both JSON."""
        return {"record": [json.dumps(self._predict_row(text)) for text in batch["input"]]}

    def _predict_row(self, text: str) -> dict[str, Any]:
        if self._unopened is not None:
            return self._unopened
        try:
            return predict_input(self._predictor, _input_of(text), self._folder, self._outputs)
        except OSError as error:
            return {_DISK_ERROR: [error.errno, error.strerror, str(error.filename or self._folder)]}
