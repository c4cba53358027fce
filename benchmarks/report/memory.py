"""Cold start and peak memory, in a process of their own: `python -m benchmarks.report.memory` is the child."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.report.record import Start
from runtime.timing.latency import peak_memory_mib
from segcore.bundle.folder import Bundle, open_bundle

CHILDREN = 3
"""Processes started for each subject, one after another; fewer if fewer rounds are asked for."""
_ROOT = Path(__file__).parents[2]


def measure_start(bundle: Bundle, engine: str, image: np.ndarray, *, threads: int, children: int) -> Start:
    """Starts fresh processes that open the bundle and predict once; the median time, the largest memory.

    Args:
        bundle: what to open.
        engine: with which engine.
        image: the picture to predict, H×W or H×W×3.
        threads: the engine's threads.
        children: how many processes, one after another.
    """
    with tempfile.TemporaryDirectory() as folder:
        picture = Path(folder) / "image.npy"
        np.save(picture, image)
        starts = [_start_child(bundle.folder, engine, picture, threads) for _ in range(children)]
    return Start(
        cold_start_ms=float(np.median([s.cold_start_ms for s in starts])),
        peak_memory_mib=max(s.peak_memory_mib for s in starts),
    )


def _start_child(folder: Path, engine: str, picture: Path, threads: int) -> Start:
    paths = [str(_ROOT), os.environ.get("PYTHONPATH", "")]
    command = [
        sys.executable,
        "-m",
        "benchmarks.report.memory",
        str(folder.resolve()),
        engine,
        str(picture),
        str(threads),
    ]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(
            f"the process that opens {folder} with {engine} ended with {done.returncode}:\n{done.stderr}"
        )
    return Start.model_validate(json.loads(done.stdout.splitlines()[-1]))


def _open_and_predict(folder: str, engine: str, picture: str, threads: str) -> None:
    from benchmarks.report.subject import open_subject

    image = np.load(picture, allow_pickle=False)
    begin = time.perf_counter()
    opened = open_subject(open_bundle(folder), engine, int(threads))
    opened.predict(image)
    start = Start(cold_start_ms=1e3 * (time.perf_counter() - begin), peak_memory_mib=peak_memory_mib())
    opened.close()
    print(start.model_dump_json())


if __name__ == "__main__":
    _open_and_predict(*sys.argv[1:])
