"""Imports TensorRT, or says in one line why that does not work."""

from __future__ import annotations

from importlib.util import find_spec
from types import ModuleType

from segcore.errors import InputError

_INSTALL = (
    "on a Jetson: sudo apt install python3-libnvinfer, and a virtual environment made with --system-site-packages; "
    "on a PC with a GPU: pip install 'sam2edge[tensorrt]'"
)


def check_installed() -> None:
    """Refuses a machine without TensorRT's Python bindings, without importing them.

    Raises:
        InputError: they are not there.
    """
    if find_spec("tensorrt") is None:
        raise InputError(f"tensorrt: must be installed to build an engine, is not; {_INSTALL}")


def import_tensorrt() -> ModuleType:
    """The module `tensorrt`.

    Raises:
        InputError: it is not installed, or its libraries do not load.
    """
    check_installed()
    try:
        import tensorrt
    except ImportError as error:  # "libnvinfer.so.10: cannot open shared object file"
        raise InputError(f"tensorrt: must load, does not ({error}); {_INSTALL}") from None
    library: ModuleType = tensorrt
    return library
