"""Opens a graph that may come from a stranger first in a process of its own: `python -m runtime.engines.probe`.

A library that reads a malformed graph may end the process that asked it: OpenVINO 2026.4.1 does so (SIGSEGV) at a
convolution with one input. Others never end, or take all memory. In a child each of these is one line.

Only the first open of a file pays for it. That a file opened is remembered in the user's cache, and holds for this
file, this engine's version and this processor.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from runtime.engines import onnxruntime_engine, openvino_engine
from runtime.engines.seam import ON_GPU, GraphTensor
from runtime.engines.tensor_session import open_session
from segcore.bundle.folder import Bundle
from segcore.cache import is_remembered, remember
from segcore.command import log
from segcore.errors import InputError
from segcore.host import describe_host

_KIND = "opened"
_LIBRARY_VERSION = {
    "openvino": openvino_engine.library_version,
    "onnxruntime": onnxruntime_engine.library_version,
}
_ROOT = Path(__file__).parents[2]
_LEAST_DEADLINE_S, _BYTES_A_SECOND = 120.0, 1e6
"""A deadline is for what never ends: a Raspberry Pi opens and runs a teacher of 40 MB in half of what this gives it."""
_MEMORY_SHARE = 0.9
"""Of what is free: more than that would end other processes, and this one."""
_PR_SET_PDEATHSIG = 1


def ensure_opens(
    engine: str, bundle: Bundle, file: str, *, threads: int, deadline_s: float | None = None
) -> None:
    """Opens a file of a bundle in a child and runs it once on zeros, unless it is remembered that this went well.

    A TensorRT plan is not tried: it takes its memory on the GPU twice, and a plan is a program, which a child does not
    make harmless (SECURITY.md).

    Args:
        engine: a key of `runtime.engines.seam.ENGINES`, installed.
        bundle: opened, so that its files are those whose hashes the manifest lists.
        file: its name in the bundle.
        threads: CPU threads of the engine.
        deadline_s: seconds that the child may take; by default enough for a slow computer.

    Raises:
        InputError: the file does not open or run, or it ended the child, or the child did not end.
    """
    if engine in ON_GPU:
        return
    key = _verdict_key(engine, bundle, file)
    if is_remembered(_KIND, key):
        return
    path = bundle.path(file)
    log(f"opening {path} with {engine} in a process of its own, once on this machine")
    if deadline_s is None:
        deadline_s = _LEAST_DEADLINE_S + path.stat().st_size / _BYTES_A_SECOND
    if problem := _try_in_child(engine, path, threads=threads, deadline_s=deadline_s):
        raise InputError(problem)
    remember(_KIND, key)


def remember_opened(engine: str, bundle: Bundle, file: str) -> None:
    """Spares a file its child, where this process has opened it and run it: as an export's gate does."""
    if engine not in ON_GPU:
        remember(_KIND, _verdict_key(engine, bundle, file))


def _verdict_key(engine: str, bundle: Bundle, file: str) -> dict[str, Any]:
    listed = bundle.manifest.files
    weights = str(Path(file).with_suffix(".bin"))
    return {
        "files": [listed[name].sha256 for name in (file, weights) if name in listed],
        "engine": f"{engine} {_LIBRARY_VERSION[engine]()}",
        "host": describe_host(),
    }


def _try_in_child(engine: str, path: Path, *, threads: int, deadline_s: float) -> str:
    """What is wrong with the file, in one line; empty where it opens and runs."""
    memory = _free_memory()
    request = {
        "engine": engine,
        "path": str(path.resolve()),
        "shown": str(path),
        "threads": threads,
        "deadline_s": deadline_s,
        "memory_bytes": memory and int(memory * _MEMORY_SHARE),
    }
    name = f"model {path}: must open in {engine} {_LIBRARY_VERSION[engine]().split('-')[0]}"
    advice = "do not use this bundle: export it again"
    try:
        done = subprocess.run(
            [sys.executable, "-m", "runtime.engines.probe"],
            input=json.dumps(request),
            capture_output=True,
            text=True,
            errors="replace",
            timeout=deadline_s,
            cwd=_ROOT,
            env=_child_environment(),
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"{name} and run within {deadline_s:.3g} s, did not; {advice}"
    if done.returncode == 0:
        problem: str = json.loads(done.stdout.splitlines()[-1])["problem"]
        return problem
    if (
        done.returncode > 0 and "Traceback (most recent call last)" in done.stderr
    ):  # ours, and no library's end
        raise RuntimeError(f"the process that opens {path} with {engine} failed:\n{done.stderr}")
    return f"{name}, ended the process ({_how_it_ended(done.returncode)}); {advice}"


def _child_environment() -> dict[str, str]:
    """The child imports what this process imports, and nothing from the folder in which the user happens to be."""
    paths = [path for path in sys.path if path and Path(path) != Path.cwd()]
    if str(_ROOT) not in paths:
        paths.insert(0, str(_ROOT))
    # PYTHONSAFEPATH is read from Python 3.11 on; before, the working directory, which is _ROOT, is the first path.
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONSAFEPATH": "1"}


def _how_it_ended(returncode: int) -> str:
    try:
        return signal.Signals(-returncode).name
    except ValueError:
        return f"exit status {returncode}"


def _free_memory() -> int | None:
    """Bytes that may still be taken: of the machine, or of this container where that is less. None where unknown."""
    found = []
    try:
        if match := re.search(r"^MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE):
            found.append(1024 * int(match[1]))
        group = Path("/sys/fs/cgroup")
        most = (group / "memory.max").read_text().strip()
        if most != "max":
            found.append(max(0, int(most) - int((group / "memory.current").read_text())))
    except OSError:  # another system, or no container
        pass
    return min(found, default=None)


# The child.


def _bound_this_process(request: dict[str, Any]) -> None:
    """No core file, bounded memory, and an end when the deadline has passed or the parent is gone."""
    if sys.platform == "win32":
        return
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.alarm(int(request["deadline_s"]) + 1)  # by itself, should nobody be left to end it
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if request["memory_bytes"]:  # what malloc and mmap give to write to, from Linux 4.7 on
            resource.setrlimit(resource.RLIMIT_DATA, (request["memory_bytes"],) * 2)


def _open_and_run(request: dict[str, Any]) -> str:
    """What is wrong, in one line; empty where it opens and runs on zeros."""
    path = Path(request["path"])
    try:
        with closing(open_session(request["engine"], path, threads=request["threads"])) as session:
            session.run({name: _zeros(name, tensor, request) for name, tensor in session.inputs.items()})
    except InputError as error:
        return str(error).replace(request["path"], request["shown"])
    except MemoryError:
        return (
            f"model {request['shown']}: must open and run in {request['engine']} within the memory that is free, takes "
            "more; end other programs, or do not use this bundle"
        )
    return ""


def _zeros(name: str, tensor: GraphTensor, request: dict[str, Any]) -> np.ndarray:
    """Zeros that fit; a side that is not fixed is 1, and refused afterwards by what the bundle says of it."""
    try:
        return np.zeros([max(side, 1) for side in tensor.shape], tensor.type)
    except TypeError:
        raise InputError(
            f"model {request['path']}: must take tensors of numbers, takes {tensor} as {name!r}; do not use this bundle"
        ) from None


if __name__ == "__main__":
    asked = json.load(sys.stdin)
    _bound_this_process(asked)
    print(json.dumps({"problem": _open_and_run(asked)}))
