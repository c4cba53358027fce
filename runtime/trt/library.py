"""TensorRT as a library: importing it, its releases, and its log turned into one line that says what to do.

Nothing here imports TensorRT before it is asked for. What differs between releases stands in modules of its own; each
says in `SERVES` from which release on, and below which, its names exist. `tests/test_runtime_tensorrt_api.py` holds
every module to NVIDIA's bindings of those releases.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType

from runtime.engines.seam import check_engine_installed, how_to_install
from segcore.errors import InputError

Release = tuple[int, int]
OLDEST: Release = (8, 6)
STRONGLY_TYPED: Release = (10, 13)
"""From here on the graph's own types decide, and precision flags are deprecated; TensorRT 11 has none."""
REBUILD = "python -m export --to tensorrt --bundle B --out OUT, with the bundle B that holds its ONNX"
# "insuficient" is TensorRT 8's spelling (ultralytics#14751, TensorRT#1661), "insufficient" that of later releases
# (ultralytics#22271); "out of memory" is CUDA's word, and cudaErrorMemoryAllocation its name.
_SHORT_OF_MEMORY = re.compile(
    r"insuff?icient memory|memory is insuff?icient|out of memory|OutOfMemory|cudaErrorMemoryAllocation|"
    r"std::bad_alloc|Requested amount of GPU memory",
    re.IGNORECASE,
)
_NO_IMPLEMENTATION = re.compile(r"Could not find any implementation for node\s+(\S.*?)\s*(?:\.\s*(?:\(|$)|$)")
_UNSUPPORTED_GPU = re.compile(r"Target GPU SM (\d+) is not supported|Unsupported SM: 0x([0-9a-fA-F]+)")
_MORE_MEMORY = (
    "close the desktop (sudo systemctl isolate multi-user.target) and other programs, "
    "give a smaller --workspace-mib, or build the batch-1 file alone"
)


# --- the library and its releases ---


def import_tensorrt() -> ModuleType:
    """The module `tensorrt`.

    Raises:
        InputError: it is not installed, or its libraries do not load.
    """
    check_engine_installed("tensorrt")
    try:
        import tensorrt
    except ImportError as error:  # "libnvinfer.so.10: cannot open shared object file"
        raise InputError(f"tensorrt: must load, does not ({error}); {how_to_install('tensorrt')}") from None
    library: ModuleType = tensorrt
    return library


@dataclass(frozen=True)
class ReleaseRange:
    """Releases `first` ≤ r < `below`; None is open."""

    first: Release = OLDEST
    below: Release | None = None

    def __contains__(self, release: object) -> bool:
        if not isinstance(release, tuple):
            return False
        return self.first <= release and (self.below is None or release < self.below)


def release_of(version: str) -> Release:
    """Major and minor number: "10.13.3.9" → (10, 13)."""
    major, minor = version.split(".")[:2]
    return int(major), int(minor)


# --- its log as one line ---


def build_error(lines: Sequence[str], *, version: str, gpu: str, file: str, free_mib: int) -> InputError:
    """The one line for a build that TensorRT gave up.

    Args:
        lines: what TensorRT logged, warnings and errors, oldest first.
        version: of TensorRT.
        gpu: its name.
        file: the ONNX file.
        free_mib: memory that was free when the build began.
    """
    text = "\n".join(lines)
    if unsupported := _UNSUPPORTED_GPU.search(text):
        sm = unsupported[1] or unsupported[2].replace("0", "")
        return InputError(
            f"TensorRT {version}: must support this GPU ({gpu}, sm_{sm}), does not; install the TensorRT that came "
            "with this board's JetPack (10.3 with JetPack 6.1 and 6.2, 10.16 with 7.2)"
        )
    nowhere = _NO_IMPLEMENTATION.search(text)
    at = f" at node {nowhere[1]}" if nowhere else ""
    if _SHORT_OF_MEMORY.search(text):
        return InputError(
            f"memory: must be enough to build {file} with TensorRT {version}, was not{at} "
            f"({free_mib} MiB were free); {_MORE_MEMORY}"
        )
    if nowhere:
        # TensorRT says the same when every kernel was skipped for want of memory: TensorRT#4258, #3355.
        return InputError(
            f"{file}: must have a kernel for every node in TensorRT {version}, has none{at}; "
            f"mostly that is memory ({free_mib} MiB were free): {_MORE_MEMORY}; else export it in fp32"
        )
    reason = lines[-1] if lines else "it did not say why"
    return InputError(
        f"{file}: must build with TensorRT {version}, does not ({one_line(reason)}); export it again"
    )


def killed_error(exitcode: int, *, file: str) -> InputError:
    """The one line for a build whose process died.

    Args:
        exitcode: of the process: minus the signal that ended it.
        file: the ONNX file.
    """
    if exitcode == -9:
        return InputError(
            f"memory: must be enough to build {file}, was not (the system killed the build); {_MORE_MEMORY}"
        )
    return InputError(
        f"{file}: must build with TensorRT, the builder died (signal {-exitcode}), its last words are above; "
        "build again, and if it dies again export it in fp32"
    )


def parse_error(file: str, version: str, node: str, reason: str) -> InputError:
    """The one line for a graph that TensorRT's parser refuses."""
    return InputError(
        f"{file}, node {node or '(none named)'}: must be readable by TensorRT {version}, is not "
        f"({one_line(reason)}); export the bundle again with --to tensorrt"
    )


def load_error(file: str, version: str, lines: Sequence[str]) -> InputError:
    """The one line for a plan that TensorRT does not deserialise."""
    reason = one_line(lines[-1]) if lines else "it did not say why"
    return InputError(
        f"engine {file}: must load in TensorRT {version}, does not ({reason}); build it on this device: {REBUILD}"
    )


def one_line(text: str) -> str:
    """White space, control characters and line ends made single blanks; long text cut."""
    line = " ".join(re.sub(r"[\x00-\x1f]", " ", text).split())
    return line if len(line) <= 300 else line[:297] + "..."
