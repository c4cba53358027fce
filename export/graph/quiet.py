"""Keeps exporters from talking on stdout, which belongs to results."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout

_TALKATIVE = ("torch.onnx", "torch.export", "onnxscript", "onnx_ir", "nncf")


@contextmanager
def quiet() -> Iterator[None]:
    """Sends what is printed to stderr, and hides the libraries' warnings (errors still show)."""
    before = {name: logging.getLogger(name).level for name in _TALKATIVE}
    try:
        for name in _TALKATIVE:
            logging.getLogger(name).setLevel(logging.ERROR)
        with redirect_stdout(sys.stderr), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)
