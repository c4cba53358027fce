"""`python -m demo --bundle TEACHER --bundle STUDENT`: serves the page, on this computer only."""

from __future__ import annotations

import os
import signal
import socket
import tempfile
from contextlib import ExitStack
from pathlib import Path

from pydantic import Field

from segcore.command import Settings, log, run_command
from segcore.errors import InputError, need

HOST = "127.0.0.1"


class DemoSettings(Settings):
    """Serves a page, on this computer only, that shows what models mark and how long they take."""

    bundle: list[Path] = Field(min_length=1)
    """exported bundle; give it again for each further model, the first is the one compared with"""
    engine: str | None = None
    """openvino or onnxruntime (default: what the bundle and this computer allow)"""
    port: int = Field(7860, ge=1, le=65535)
    """port of the page"""
    data: str = "phantom:cxr"
    """dataset whose test cases are the examples"""
    threads: int | None = Field(None, ge=1)
    """CPU threads of each model (default: all)"""


def main(settings: DemoSettings) -> None:
    """Opens the bundles, warms them up, serves until interrupted.

    Raises:
        InputError: gradio is missing, a bundle or the dataset cannot be opened, or the port is taken.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sam2edge-demo-")))
        os.environ["GRADIO_TEMP_DIR"] = str(folder / "uploads")  # so that uploads go when the page goes
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
        try:
            import gradio  # noqa: F401
        except ModuleNotFoundError:
            raise need("gradio", "demo") from None
        from demo.page import build_page, look, make_examples
        from runtime.predictor import Predictor

        _check_port(settings.port)
        predictors = [
            stack.enter_context(Predictor.open(path, engine=settings.engine, threads=settings.threads))
            for path in settings.bundle
        ]
        examples = make_examples(settings.data, folder)
        page = build_page(predictors, examples)
        log(f"open http://{HOST}:{settings.port} in a browser; Ctrl-C ends it")
        # A service manager's stop is an end like Ctrl-C: the uploads are removed.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        page.launch(
            server_name=HOST, server_port=settings.port, quiet=True, allowed_paths=[str(folder)], **look()
        )


def _check_port(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise InputError(
                f"--port {port}: must be free, got {error.strerror}; choose another --port"
            ) from None


if __name__ == "__main__":
    run_command(main, DemoSettings, "python -m demo")
