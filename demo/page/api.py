"""The page's functions for programs: endpoints that `gradio_client` and plain HTTP can call (docs/demo.md)."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import gradio as gr

from demo.case.segment import read_prompt, segment_file
from demo.session.models import Models
from demo.session.open_sessions import OpenSessions, new_folder
from segcore.errors import InputError


def add_endpoints(models: Models, sessions: OpenSessions) -> None:
    """Adds `/models` and `/segment`."""

    def list_models() -> list[dict[str, Any]]:
        """The served models: name, kind, classes, precision, parameters, input size, engines."""
        return [models.describe(name) for name in models.names]

    def segment(
        file: str | None, model: str, formats: list[str], threshold: float | None, prompt: Any = None
    ) -> tuple[dict[str, Any], list[str]]:
        """Segments one file: the record, and the mask files asked for; `prompt` is
        `demo.case.segment.ProgramPrompt`."""
        work = Path(tempfile.mkdtemp(prefix="segment-", dir=sessions.folder))
        try:
            record, made = segment_file(
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
        return record, [str(path) for path in made]

    # Components that nobody sees: they check that a file is one that was uploaded, and not one of this computer.
    with gr.Row(visible=False):
        file = gr.File(label="file")
        model = gr.Textbox(label="model")
        formats = gr.CheckboxGroup(["png", "nifti", "dicom-seg", "json"], value=["png"], label="formats")
        threshold = gr.Number(None, label="threshold")
        prompt = gr.JSON(None, label="prompt")
        record, files = gr.JSON(label="record"), gr.File(label="files", file_count="multiple")
        ask, call = gr.Button(), gr.Button()
    ask.click(list_models, None, record, api_name="models", show_progress="hidden")
    call.click(
        segment,
        [file, model, formats, threshold, prompt],
        [record, files],
        api_name="segment",
        show_progress="hidden",
        concurrency_id="models",
        concurrency_limit=2,
    )
