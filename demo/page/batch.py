"""The tab of many cases: files in, a table and a ZIP out."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from demo.case.downloads import FORMATS
from demo.page import html_pieces
from demo.page.calls import caller_of, check_call, text_value, text_values, upload_paths
from demo.page.case import Updates
from demo.session.batch import BatchProgress, run_batch
from demo.session.incoming import receive
from demo.session.models import Models
from demo.session.open_sessions import OpenSessions
from demo.session.reader_session import ReaderSession
from segcore.errors import InputError


def build_batch_tab(models: Models, sessions: OpenSessions) -> None:
    """Lays out the tab and connects it."""
    with gr.Row(equal_height=False):
        with gr.Column(scale=1, min_width=260):
            upload = gr.File(
                label="Drop files or ZIPs", file_count="multiple", height=140, elem_id="batch-upload"
            )
            model = gr.Dropdown(
                list(models.names), value=models.names[-1], label="Model", elem_id="batch-model"
            )
            formats = gr.CheckboxGroup(
                [(one.words, one.key) for one in FORMATS], value=["png"], label="Masks as"
            )
            start = gr.Button("Start", variant="primary", elem_id="batch-start")
            stop = gr.Button("Stop", visible=False, elem_id="batch-stop")
        with gr.Column(scale=4, min_width=320):
            message = gr.HTML(
                '<p class="hint">One row a file appears here; at the end, a ZIP of all masks.</p>',
                elem_classes="s2e",
                elem_id="batch-said",
            )
            table = gr.HTML(elem_classes="s2e", elem_id="batch-table")
            result = gr.File(label="Masks and table", interactive=False, visible=False, elem_id="batch-zip")

    hidden: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private", "preprocess": False}
    # One batch at a time, in a queue of its own: the readers of single cases do not wait for it.
    queue: dict[str, Any] = {"concurrency_id": "batch", "concurrency_limit": 1, **hidden}

    def show_batch(progress: BatchProgress) -> Updates:
        path = progress.zip_path
        return {
            message: _progress_line(progress),
            table: html_pieces.plain_table(progress.table),
            result: gr.File(None if path is None else str(path), visible=path is not None),
            upload: None,  # the files have been taken: they are no longer where the browser would look for them
        }

    def on_start(sent: Any, name: Any, wanted: Any, request: gr.Request) -> Iterator[Updates]:
        try:
            check_call(request)
            session = sessions.of(str(request.session_hash), caller_of(request).reader)
            chosen, formats = text_value(name, "model"), text_values(wanted, "masks as")
            yield from run(session, upload_paths(sent), chosen, formats)
        except InputError as error:
            yield {
                message: html_pieces.problem_line(str(error)),
                table: "",
                result: gr.File(None, visible=False),
                upload: None,
            }

    def run(session: ReaderSession, sent: list[str], name: str, wanted: list[str]) -> Iterator[Updates]:
        session.has_batch = True
        folder = Path(tempfile.mkdtemp(prefix="batch-", dir=session.uploads_folder))
        for old in session.downloads_folder.glob("batch-*"):
            shutil.rmtree(old)
        files_folder, done = session.downloads_folder / folder.name, False
        try:
            scans = receive(sent, folder / "upload")
            reference = models.reference_for(models.manifest(name).classes)
            with models.open_another(name) as predictor:
                for progress in run_batch(predictor, scans, files_folder, wanted, reference=reference):
                    if session.closed:
                        return
                    session.mark_used()
                    done = progress.zip_path is not None
                    yield show_batch(progress)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            # What is done of a stopped batch is not kept: half a ZIP would look like a whole one.
            if not done or session.closed:
                shutil.rmtree(files_folder, ignore_errors=True)

    begun = start.click(lambda: gr.Button(visible=True), None, stop, **hidden)
    running = begun.then(on_start, [upload, model, formats], [message, table, result, upload], **queue)
    running.then(lambda: gr.Button(visible=False), None, stop, **hidden)

    @stop.click(inputs=None, outputs=[stop, message, table, upload], cancels=[running], **hidden)
    def on_stop() -> Updates:
        return {
            stop: gr.Button(visible=False),
            message: '<p role="status">Stopped. Nothing was kept.</p>',
            table: "",
            upload: None,
        }


def _progress_line(progress: BatchProgress) -> str:
    left = f", {progress.failed} could not be used" if progress.failed else ""
    return (
        f'<p role="status">{progress.done} of {progress.total} files done{left}. '
        f'<progress value="{progress.done}" max="{progress.total}" aria-label="Files done"></progress></p>'
    )
