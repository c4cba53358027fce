"""The page: layout of its tabs, what they share, and its functions for programs. What they do needs no gradio."""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported

import gradio as gr
from gradio import route_utils
from starlette.middleware import Middleware

from demo.case.api import read_request, segment_file
from demo.case.downloads import FORMATS
from demo.page import html_pieces
from demo.page.batch import build_batch_tab
from demo.page.calls import caller_of, check_call, text_value, upload_paths
from demo.page.case import build_case_tab
from demo.page.guard import Guard
from demo.session.incoming import Example
from demo.session.models import PLACES, Models
from demo.session.open_sessions import MAX_SESSIONS, OpenSessions
from segcore.errors import InputError

CSS = Path(__file__).with_name("page.css")
SYSTEM_FONTS = ("system-ui", "Segoe UI", "Roboto", "sans-serif")
WAITING = 64
"""Requests that may wait; the next is told to come back later."""


def build_page(models: Models, sessions: OpenSessions, examples: Sequence[Example]) -> gr.Blocks:
    """Lays out the page. Launch it with `launch_options()`."""
    _keep_uploads_apart()
    with gr.Blocks(title="sam2edge", analytics_enabled=False, fill_width=True) as page:
        with gr.Row(equal_height=True, elem_id="top"):
            gr.HTML(html_pieces.INTRO, elem_classes="s2e")
            gr.HTML(html_pieces.BANNER, elem_classes="s2e")
        with gr.Tabs():
            with gr.Tab("One case"):
                build_case_tab(models, sessions, examples)
            with gr.Tab("Many cases"):
                build_batch_tab(models, sessions)
            with gr.Tab("The models"):
                sections = (html_pieces.model_section(bundle.manifest) for bundle in models.bundles)
                gr.HTML("".join(sections), elem_classes="s2e prose")
        _add_endpoints(models, sessions)

        def on_leave(request: gr.Request) -> None:
            sessions.end(str(request.session_hash), caller_of(request).reader)

        page.unload(on_leave)
    page.queue(max_size=WAITING)
    return page


def launch_options(
    sessions: OpenSessions, *, max_upload_mb: int, hosts: Sequence[str] = ()
) -> dict[str, Any]:
    """Arguments of `launch` that make the page look as it should and keep to itself.

    Args:
        sessions: those that the page was built with.
        max_upload_mb: of the largest file.
        hosts: names, besides this computer's own, that the page is reached by.
    """
    guard = Middleware(
        Guard, sessions=sessions, hosts=tuple(hosts), max_upload_bytes=max_upload_mb * 1_000_000
    )
    theme = gr.themes.Default(
        primary_hue="teal",
        neutral_hue="slate",
        font=list(SYSTEM_FONTS),
        font_mono=["ui-monospace", "monospace"],
    ).set(
        # The theme's own teal is too light to be read under white words.
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover_dark="*primary_800",
        button_primary_text_color="white",
    )
    return {
        "theme": theme,
        "css_paths": CSS,
        "footer_links": [],
        "share": False,
        "ssr_mode": False,
        "run_history": False,  # else Gradio keeps every picture and answer in the browser, after the page is closed
        "quiet": True,
        "app_kwargs": {"middleware": [guard]},
        # Gradio keeps a copy of every component for each page that called, 10,000 by default.
        "state_session_capacity": 2 * MAX_SESSIONS,
        "show_error": False,  # an error of ours goes to the log, not to the reader
        "max_file_size": f"{max_upload_mb}mb",
    }


def _keep_uploads_apart() -> None:
    """Gives every upload a folder of its own.

    Gradio 6.31 names the folder by the content alone: the same file from two readers is one file, which is gone for
    the second once the first has taken it.
    """

    class UploadApart(route_utils.GradioUploadFile):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.sha.update(secrets.token_bytes(16))

    route_utils.GradioUploadFile = UploadApart  # type: ignore[misc]


# The page's functions for programs: endpoints that `gradio_client` and plain HTTP can call (docs/demo.md).


def _add_endpoints(models: Models, sessions: OpenSessions) -> None:
    """Adds `/models` and `/segment`."""

    def list_models() -> list[dict[str, Any]]:
        """The served models: name, kind, classes, precision, parameters, input size, engines."""
        return [models.describe(name) for name in models.names]

    # Gradio 6.31 gives an endpoint's parameters the names of the function's: they are a contract with programs.
    def segment(
        file: Any,
        model: Any,
        formats: Any,
        threshold: Any,
        prompt: Any = None,
        request: gr.Request | None = None,
    ) -> tuple[dict[str, Any], list[str]]:
        """Segments one file: the record, and the mask files asked for; `prompt` is
        `demo.case.api.ProgramPrompt`."""
        assert request is not None  # Gradio gives it
        work = Path(tempfile.mkdtemp(prefix="segment-", dir=sessions.folder))
        sent = upload_paths(file)
        try:
            check_call(request)
            name = ("" if model is None else text_value(model, "model")) or models.names[-1]
            asked = read_request(name, formats, threshold, prompt, models)
            # The files go when they have lain there: a program does not say goodbye.
            files_folder = sessions.owned.new_folder(caller_of(request).reader)
            record, paths = segment_file(models, sent[0] if sent else "", work, files_folder, asked)
        except InputError as error:
            raise gr.Error(str(error), print_exception=False) from None
        finally:
            shutil.rmtree(work, ignore_errors=True)
            for path in sent:
                Path(path).unlink(missing_ok=True)  # it is still there where the model's name was wrong
        return record, [str(path) for path in paths]

    # Components that nobody sees: they tell programs what is taken.
    with gr.Row(visible=False):
        inputs = [
            gr.File(label="file"),
            gr.Textbox(label="model"),
            gr.CheckboxGroup([one.key for one in FORMATS], value=["png"], label="formats"),
            gr.Number(None, label="threshold"),
            gr.JSON(None, label="prompt"),
        ]
        record, files = gr.JSON(label="record"), gr.File(label="files", file_count="multiple")
        ask, call = gr.Button(), gr.Button()
    ask.click(list_models, None, record, api_name="models", show_progress="hidden")
    call.click(
        segment,
        inputs,
        [record, files],
        api_name="segment",
        show_progress="hidden",
        preprocess=False,
        concurrency_id="programs",  # so that programs do not keep readers waiting
        concurrency_limit=PLACES,
    )
