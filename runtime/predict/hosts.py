"""Ray Data over several hosts: actors segment inputs with `predict_input`; the driver gets the records as they come.

Every host must see the inputs, the bundle and the output folder under the same paths, and have this package installed.
"""

from __future__ import annotations

import json
import logging
import os
import warnings
from collections.abc import Generator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from runtime.engines.seam import available_threads
from runtime.predict.files import PredictorOptions, open_predictor, predict_input
from runtime.predict.inputs import PredictionInput
from runtime.predict.write import Outputs
from segcore.errors import InputError, need

_INPUTS_PER_BLOCK = 8
"""Inputs that an actor is given at once; their records come together, and what is killed is repeated."""
_DISK_ERROR, _OPEN_ERROR = "fatal", "unopened"


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
            ray.init(address="local", num_cpus=cpus, include_dashboard=False, **quiet)
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
        sent = [replace(input_, path=here / input_.path, name=input_.shown) for input_ in inputs]
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
    rows = [{"input": json.dumps([str(input_.path), input_.case, input_.name])} for input_ in inputs]
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


class _PredictionActor:
    """Ray's actor: opens the model once, then takes inputs."""

    def __init__(self, options: PredictorOptions, folder: Path, outputs: Outputs) -> None:
        self._unopened: str | None = None
        try:
            self._predictor = open_predictor(options)
        except InputError as error:  # raised here it would reach the driver inside several of Ray's
            self._unopened = str(error)
        self._folder = folder
        self._outputs = outputs

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list[str]]:
        """`input` → `record`, both JSON."""
        return {"record": [json.dumps(self._predict_row(text)) for text in batch["input"]]}

    def _predict_row(self, text: str) -> dict[str, Any]:
        if self._unopened is not None:
            return {_OPEN_ERROR: self._unopened}
        path, case, name = json.loads(text)
        try:
            return predict_input(
                self._predictor, PredictionInput(Path(path), case, name), self._folder, self._outputs
            )
        except OSError as error:
            return {_DISK_ERROR: [error.errno, error.strerror, str(error.filename or self._folder)]}
