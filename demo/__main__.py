"""`python -m demo --bundle TEACHER --bundle STUDENT`: serves the page, on this computer only."""

from __future__ import annotations

import os
import signal
import socket
import tempfile
from contextlib import ExitStack, closing
from pathlib import Path

from pydantic import Field

from runtime.trt.cuda_runtime import CudaLibrary, choose_cuda
from segcore.command import Settings, log, run_command
from segcore.errors import InputError, need
from segcore.text import read_text

HOST = "127.0.0.1"


class DemoSettings(Settings):
    """Serves a page, on this computer only: what models mark, how far to trust it, how long it takes.

    The page takes pictures, DICOM, NIfTI, a series as a ZIP or a folder. It asks nothing of any other computer.
    """

    bundle: list[Path] = Field(min_length=1)
    """exported bundle; give it again for each further model, the first is the one compared with"""
    expect: tuple[str, ...] = ()
    """sha256 of a bundle (its first 12 digits or more will do); repeat for each: another bundle is refused"""
    engine: str | None = None
    """openvino, onnxruntime, tensorrt or tensorrt-rtx (default: what each bundle and this computer allow); the page can
    change it"""
    cuda_library: CudaLibrary | None = None
    """for an engine on a GPU: cuda-python or pycuda (default: cuda-python where it is installed)"""
    port: int = Field(7860, ge=1, le=65535)
    """port of the page"""
    data: str = "phantom:cxr"
    """dataset whose test cases are the examples"""
    threads: int | None = Field(None, ge=1)
    """CPU threads of each model (default: all)"""
    reference_class: str | None = None
    """class that the others are measured as a share of: lung, for lesions in the lung"""
    max_upload_mb: int = Field(500, ge=1)
    """largest file that the page takes, in megabytes"""
    allow_host: list[str] = Field([])
    """name that the page is reached by besides this computer's own, behind a proxy; give it again for each"""
    user: str | None = None
    """name that a reader must give; needs --password-file"""
    password_file: Path | None = None
    """file whose first line is the password (a password on the command line could be seen by others)"""


def main(settings: DemoSettings) -> None:
    """Opens the bundles, warms them up, serves until interrupted.

    Raises:
        InputError: gradio is missing, a bundle or the dataset cannot be opened, or the port is taken.
    """
    auth = _read_login(settings)
    choose_cuda(settings.cuda_library)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sam2edge-demo-")))
        os.environ["GRADIO_TEMP_DIR"] = str(folder / "web")  # so that uploads go when the page goes
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
        for package, extra in (("gradio", "demo"), ("pydicom", "medical"), ("nibabel", "medical")):
            try:
                __import__(package)
            except ModuleNotFoundError:
                raise need(package, extra) from None
        from demo.page.layout import build_page, launch_options
        from demo.session.incoming import make_examples
        from demo.session.models import Models
        from demo.session.open_sessions import OpenSessions
        from segcore.bundle.folder import open_and_tell

        _check_port(settings.port)
        bundles = [open_and_tell(path, settings.expect) for path in settings.bundle]
        models = stack.enter_context(
            Models(
                bundles, engine=settings.engine, threads=settings.threads, reference=settings.reference_class
            )
        )
        # Opened now, so that a bundle or an engine that cannot be is told here, and not to a reader.
        for name in models.names:
            models.predictor(name)
        for name in models.promptable(models.names):
            models.prompt_predictor(name)
        # Only the web server's folder is served; readers' uploads are not.
        for name in ("web/examples", "readers"):
            (folder / name).mkdir(parents=True)
        examples = make_examples(settings.data, folder / "web" / "examples")
        sessions = stack.enter_context(closing(OpenSessions(folder / "readers", folder / "web", models)))
        page = build_page(models, sessions, examples)
        log(f"open http://{HOST}:{settings.port} in a browser; Ctrl-C ends it")
        # A service manager's stop is an end like Ctrl-C: the uploads are removed.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        page.launch(
            server_name=HOST,
            server_port=settings.port,
            auth=auth,
            **launch_options(sessions, max_upload_mb=settings.max_upload_mb, hosts=settings.allow_host),
        )


def _read_login(settings: DemoSettings) -> tuple[str, str] | None:
    if (settings.user is None) != (settings.password_file is None):
        raise InputError(
            "--user: must come with --password-file, and the other way round; give both or neither"
        )
    if settings.user is None or settings.password_file is None:
        return None
    try:
        text = read_text(settings.password_file, f"--password-file {settings.password_file}")
        password = text.splitlines()[0].strip()
    except (OSError, IndexError):
        password = ""
    if not password:
        raise InputError(
            f"--password-file {settings.password_file}: must hold a password in its first line, does not"
        )
    return settings.user, password


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
