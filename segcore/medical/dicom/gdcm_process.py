"""Runs GDCM in a process of its own: on damaged JPEG it ends the process that it is in (seen with 3.2.6).

The process is started for the first frame, serves all later ones, and ends with its parent, whose end closes its input.
Both sides speak in messages: the length of a JSON head, the head, and as many bytes as it says.
"""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

_LIMIT_S = 120.0
_lock = threading.Lock()
_started: dict[int, subprocess.Popen[bytes]] = {}  # by process, so that a fork starts its own


def decode_by_gdcm(frame: bytes, syntax: str, options: dict[str, Any]) -> np.ndarray:
    """One frame as pydicom gives it by way of GDCM.

    Args:
        frame: the codestream.
        syntax: UID of its transfer syntax.
        options: pydicom's own decoding options, numbers and strings.

    Raises:
        ValueError: GDCM cannot decode it, took too long, or died of it.
    """
    with _lock:
        process = _running_process()
        # A decoder that hangs is ended with its process; the next frame starts another one.
        watch = threading.Timer(_LIMIT_S, process.kill)
        watch.start()
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            _send_message(process.stdin, {"syntax": syntax, "options": options}, frame)
            head, data = _receive_message(process.stdout)
        except (OSError, EOFError):
            process.kill()
            process.wait()
            raise ValueError("GDCM ended") from None
        finally:
            watch.cancel()
    if "shape" not in head:
        raise ValueError("GDCM refused")
    return np.asarray(np.frombuffer(data, head["dtype"]).reshape(head["shape"]))


def _running_process() -> subprocess.Popen[bytes]:
    running = _started.get(os.getpid())
    if running is None or running.poll() is not None:
        root = str(Path(__file__).parents[3])  # where segcore lies, for a child started from another folder
        known = os.environ.get("PYTHONPATH")
        running = subprocess.Popen(
            [sys.executable, "-m", "segcore.medical.dicom.gdcm_process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # GDCM and its libjpeg write there by themselves
            cwd=root,  # gdcm imports a module `dl`: no folder of that name where the user happens to be may be taken
            env={**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{known}" if known else root},
        )
        _started[os.getpid()] = running
    return running


def _send_message(stream: BinaryIO | Any, head: dict[str, Any], data: bytes) -> None:
    text = json.dumps({**head, "bytes": len(data)}).encode()
    stream.write(struct.pack("<L", len(text)) + text)
    stream.write(data)
    stream.flush()


def _receive_message(stream: BinaryIO | Any) -> tuple[dict[str, Any], bytes]:
    (length,) = struct.unpack("<L", _read_exactly(stream, 4))
    head: dict[str, Any] = json.loads(_read_exactly(stream, length))
    return head, _read_exactly(stream, head["bytes"])


def _read_exactly(stream: BinaryIO | Any, count: int) -> bytes:
    data: bytes = stream.read(count)
    if len(data) < count:  # the other side has ended
        raise EOFError
    return data


def _serve() -> None:
    """The child's side: frames in, pixels out, until the input is closed."""
    from pydicom.encaps import encapsulate
    from pydicom.pixels import get_decoder

    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever GDCM prints must not come between the messages
    while True:
        try:
            head, frame = _receive_message(sys.stdin.buffer)
        except EOFError:
            return
        try:
            pixels, _ = get_decoder(head["syntax"]).as_array(
                encapsulate([frame]), index=0, decoding_plugin="gdcm", validate=False, **head["options"]
            )
        except Exception:  # pydicom and GDCM raise many types; the parent names the file
            _send_message(answers, {}, b"")
            continue
        _send_message(answers, {"dtype": pixels.dtype.str, "shape": pixels.shape}, pixels.tobytes())


if __name__ == "__main__":
    _serve()
