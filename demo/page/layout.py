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

from demo.case.api import read_prompt, segment_file
from demo.case.downloads import FORMATS
from demo.page import html_pieces
from demo.page.batch import build_batch_tab
from demo.page.case import build_case_tab
from demo.session.incoming import Example
from demo.session.models import Models
from demo.session.open_sessions import OpenSessions, new_folder
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
            sessions.end(str(request.session_hash))

        page.unload(on_leave)
    page.queue(max_size=WAITING)
    return page


def launch_options(*, max_upload_mb: int) -> dict[str, Any]:
    """Arguments of `launch` that make the page look as it should and keep to itself."""
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
        file: str | None, model: str, formats: list[str], threshold: float | None, prompt: Any = None
    ) -> tuple[dict[str, Any], list[str]]:
        """Segments one file: the record, and the mask files asked for; `prompt` is
        `demo.case.api.ProgramPrompt`."""
        work = Path(tempfile.mkdtemp(prefix="segment-", dir=sessions.folder))
        try:
            record, paths = segment_file(
                models,
                file or "",
                work,
                new_folder(sessions.web),  # goes when it has lain there: a program does not say goodbye
                model=model or models.names[-1],
                formats=formats,
                threshold=threshold,
                prompt=None if prompt is None else read_prompt(prompt),
            )
        except InputError as error:
            raise gr.Error(str(error), print_exception=False) from None
        finally:
            shutil.rmtree(work, ignore_errors=True)
            if file:
                Path(file).unlink(missing_ok=True)  # it is still there where the model's name was wrong
        return record, [str(path) for path in paths]

    # Components that nobody sees: they check that a file is one that was uploaded, and not one of this computer.
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
        concurrency_id="models",
        concurrency_limit=2,
    )
