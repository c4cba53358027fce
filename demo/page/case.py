"""The tab of one case: files and models on the left, the viewer, and below it trust, measurements and speed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import gradio as gr
from gradio.blocks import Block

from demo.case.downloads import PAGE, formats_for, write_case_files
from demo.page import html_pieces
from demo.session.incoming import Example
from demo.session.models import Models
from demo.session.open_sessions import OpenSessions
from demo.session.prompt_dialogue import PromptStep
from demo.session.reader_session import ReaderSession
from demo.viewer.scene import VIEWER, viewer_value
from segcore.errors import InputError
from segcore.picture.scan import Scan

OWN_ENGINE = "each model's own"
QUEUE: dict[str, Any] = {"concurrency_id": "models", "concurrency_limit": 2, "api_visibility": "private"}
"""Two readers' files may be read at once; a model answers one at a time."""

Updates = dict[Block, Any]
"""A handler's answer: new values by component."""


def build_case_tab(models: Models, sessions: OpenSessions, examples: Sequence[Example]) -> None:
    """Lays out the tab and connects it."""
    with gr.Row(equal_height=False):
        with gr.Column(scale=1, min_width=230, elem_id="choices"):
            upload = gr.File(
                label="Drop a picture, DICOM, NIfTI or ZIP",
                file_count="multiple",
                height=116,
                elem_id="upload",
            )
            folder = gr.UploadButton("Choose the folder of a series", file_count="directory", size="sm")
            scan_choice = gr.Dropdown(label="Scan of the upload", visible=False, type="index", elem_id="scan")
            gallery = gr.Gallery(
                [(str(e.thumbnail), e.scan.name) for e in examples],
                label="Or choose an example",
                elem_id="examples",
                columns=3,
                height="auto",
                allow_preview=False,
                buttons=[],
                format="png",
                interactive=False,
            )
            model_choice = gr.Dropdown(
                list(models.names),
                value=list(models.names[:2]),
                multiselect=True,
                max_choices=3,
                label="Models",
                elem_id="models",
            )
            engine = gr.Dropdown(
                [OWN_ENGINE, *models.engines], value=OWN_ENGINE, label="Engine", elem_id="engine"
            )
            truth = gr.UploadButton("Compare with a reference mask", size="sm", elem_id="truth")
        with gr.Column(scale=5, min_width=320):
            message = gr.HTML(elem_classes="s2e", elem_id="said")
            viewer = gr.HTML(None, elem_id="viewer", **VIEWER)
            with gr.Row(equal_height=False, elem_id="cards"):
                trust = gr.HTML(elem_classes="s2e", elem_id="trust")
                measured = gr.HTML(elem_classes="s2e", elem_id="measured")
                speed = gr.HTML(elem_classes="s2e", elem_id="speed")
            measure_every = gr.Button("Measure every slice", size="sm", visible=False, elem_id="every")
            with gr.Row(equal_height=False, elem_id="along", visible=False) as download_row:
                formats = gr.CheckboxGroup([], label="Take along", elem_id="formats", scale=3)
                mask_model = gr.Dropdown(
                    list(models.names), label="Masks of", elem_id="of", scale=1, min_width=240
                )
                make_files = gr.Button("Make the files", size="sm", elem_id="take", scale=0, min_width=140)
                files = gr.File(
                    label="Files",
                    file_count="multiple",
                    interactive=False,
                    elem_id="files",
                    visible=False,
                    scale=2,
                )
    # A handler returns new values by component, any of its event's outputs; Gradio leaves the others as they are.
    answer_outputs = [message, viewer, trust, measured, speed, files]
    case_outputs = [*answer_outputs, measure_every, download_row, formats, mask_model]
    quiet: dict[str, Any] = {"show_progress": "hidden", **QUEUE}
    busy: dict[str, Any] = {"show_progress": "minimal", "show_progress_on": [viewer], **QUEUE}

    # What an answer looks like: the current answers, the whole case, or words instead of a case.

    def show_answers(session: ReaderSession, scan: Scan) -> Updates:
        return {
            message: html_pieces.case_heading(scan),
            viewer: viewer_value(session),
            trust: html_pieces.trust_card(session),
            measured: html_pieces.measurement_card(session),
            speed: html_pieces.speed_card(session),
            files: gr.File(None, visible=False),  # made of the masks before
        }

    def show_case(session: ReaderSession) -> Updates:
        if session.scan is None or not session.automatic_answers:
            return show_nothing("")
        choices = [(one.words, one.key) for one in formats_for(session.scan)]
        return show_answers(session, session.scan) | {
            measure_every: gr.Button(visible=session.scan.slices > 1),
            download_row: gr.Row(visible=True),
            formats: gr.CheckboxGroup(choices, value=[choices[0][1], PAGE.key]),
            mask_model: gr.Dropdown(list(session.model_names), value=session.model_names[-1]),
        }

    def show_nothing(words: str) -> Updates:
        """The list of models keeps what it offered: it is hidden with its row."""
        return {
            message: words,
            viewer: None,
            trust: "",
            measured: "",
            speed: "",
            files: gr.File(None, visible=False),
            measure_every: gr.Button(visible=False),
            download_row: gr.Row(visible=False),
            formats: gr.CheckboxGroup([], value=[]),
        }

    @contextmanager
    def locked_session(request: gr.Request) -> Iterator[ReaderSession]:
        session = sessions.of(str(request.session_hash))
        with session.lock:
            yield session

    def attempt(request: gr.Request, change: Callable[[ReaderSession], None]) -> Updates:
        """Changes the reader's session and shows it; a problem stands where the case would, and nothing else does."""
        with locked_session(request) as session:
            try:
                change(session)
                return show_case(session)
            except InputError as error:
                return show_nothing(html_pieces.problem_line(str(error)))

    # What the reader can do, each with what it answers.

    def upload_to(source: gr.File | gr.UploadButton) -> Callable[[list[str] | None, gr.Request], Updates]:
        def on_upload(sent: list[str] | None, request: gr.Request) -> Updates:
            updates = attempt(request, lambda session: session.take_upload(sent or []))
            names = sessions.of(str(request.session_hash)).scan_names
            # The drop zone is empty again at once: the file is no longer where the browser would look for it.
            updates[source] = None
            updates[scan_choice] = gr.Dropdown(
                names, value=names[0] if names else None, visible=len(names) > 1
            )
            return updates

        return on_upload

    upload.upload(upload_to(upload), upload, [*case_outputs, upload, scan_choice], **busy)
    folder.upload(upload_to(folder), folder, [*case_outputs, folder, scan_choice], **busy)

    @scan_choice.input(inputs=scan_choice, outputs=case_outputs, **busy)
    def on_scan(number: int | None, request: gr.Request) -> Updates:
        return attempt(request, lambda session: session.show_scan_of_upload(number or 0))

    @gallery.select(inputs=None, outputs=[*case_outputs, scan_choice], **busy)
    def on_example(event: gr.SelectData, request: gr.Request) -> Updates:
        example = examples[event.index]
        updates = attempt(request, lambda session: session.show_example(example.scan, example.truth))
        return updates | {scan_choice: gr.Dropdown(visible=False)}

    @gr.on([model_choice.input, engine.input], inputs=[model_choice, engine], outputs=case_outputs, **busy)
    def on_models(names: list[str], engine: str, request: gr.Request) -> Updates:
        own = None if engine == OWN_ENGINE else engine
        return attempt(request, lambda session: session.use_models(names, own))

    @truth.upload(inputs=truth, outputs=case_outputs, **busy)
    def on_truth(sent: str | None, request: gr.Request) -> Updates:
        with locked_session(request) as session:
            try:
                session.take_reference_mask(sent or "")
                return show_case(session)
            except InputError as error:  # the case stays: it is the mask that cannot be used
                heading = html_pieces.case_heading(session.scan) if session.scan else ""
                return {message: heading + html_pieces.problem_line(str(error))}

    @viewer.input(inputs=None, outputs=case_outputs, **quiet, trigger_mode="always_last")
    def on_slice(event: gr.EventData, request: gr.Request) -> Updates:
        def go(session: ReaderSession) -> None:
            if str(event.key) == str(session.version):  # else it was meant for a scan that has been replaced
                session.go_to(int(event.slice))

        return attempt(request, go)

    @viewer.release(inputs=None, outputs=[trust, measured], **quiet, trigger_mode="always_last")
    def on_threshold(event: gr.EventData, request: gr.Request) -> Updates:
        """The viewer has drawn the masks already: only the words and numbers follow."""
        with locked_session(request) as session:
            session.set_threshold(event.threshold)
            return {trust: html_pieces.trust_card(session), measured: html_pieces.measurement_card(session)}

    @viewer.select(inputs=None, outputs=answer_outputs, **quiet, trigger_mode="multiple")
    def on_prompt(event: gr.EventData, request: gr.Request) -> Updates:
        """A click, a box, or taking one back; where it cannot be answered, the case stays as it is."""
        with locked_session(request) as session:
            asked_of = str(event.key), event.slice
            if session.scan is None or asked_of != (str(session.version), session.slice_index):
                # It was meant for what has been replaced. Gradio 6.31 takes an empty dict for a value of the first
                # output: one must be named.
                return {message: gr.skip()}
            try:
                session.take_step(PromptStep.model_validate(event.step))
            except InputError as error:
                # The viewer gets its value again: by `prompt.handled` it knows that the step was refused.
                heading = html_pieces.case_heading(session.scan)
                return {
                    message: heading + html_pieces.problem_line(str(error)),
                    viewer: viewer_value(session),
                }
            return show_answers(session, session.scan)

    @measure_every.click(inputs=None, outputs=[measure_every, measured, message], **quiet)
    def on_measure_every(request: gr.Request) -> Iterator[Updates]:
        session = sessions.of(str(request.session_hash))
        try:
            for done in session.measure_all():
                yield {measure_every: gr.Button(f"Measured {done} slices …", interactive=False)}
            with session.lock:
                updates: Updates = {measured: html_pieces.measurement_card(session)}
        except InputError as error:
            updates = {message: html_pieces.problem_line(str(error))}
        yield updates | {measure_every: gr.Button("Measure every slice", interactive=True)}

    @make_files.click(inputs=[formats, mask_model], outputs=[files, message], **busy)
    def on_make_files(wanted: list[str], model: str, request: gr.Request) -> Updates:
        with locked_session(request) as session:
            try:
                paths = write_case_files(session, model, wanted)
                return {files: gr.File([str(path) for path in paths], visible=True)}
            except InputError as error:
                return {files: gr.File(None, visible=False), message: html_pieces.problem_line(str(error))}
