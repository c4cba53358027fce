"""The tab of one case: files and models on the left, the viewer, and below it trust, measurements and speed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import gradio as gr
from gradio.blocks import Block

from demo.case.downloads import PAGE, formats_for, write_case_files
from demo.page import html_pieces
from demo.page.calls import (
    PromptEvent,
    SliceEvent,
    ThresholdEvent,
    caller_of,
    check_call,
    text_value,
    text_values,
    upload_paths,
    viewer_event,
    whole_number,
)
from demo.session.incoming import Example
from demo.session.models import PLACES, Models
from demo.session.open_sessions import OpenSessions
from demo.session.reader_session import ReaderSession
from demo.viewer.scene import VIEWER, viewer_value
from segcore.errors import InputError
from segcore.picture.scan import Scan

OWN_ENGINE = "each model's own"
MOST_SHOWN = 3
"""Models beside one another."""
QUEUE: dict[str, Any] = {
    "concurrency_id": "models",
    "concurrency_limit": PLACES,
    "api_visibility": "private",
    "preprocess": False,  # a handler reads its values itself, see `demo.page.calls`
}
VOLUMES: dict[str, Any] = {"concurrency_id": "volumes", "concurrency_limit": 2}
"""What goes through every slice has places of its own."""

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
                max_choices=MOST_SHOWN,
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
        with models.turn(scan.size_px[0] * scan.size_px[1]):
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

    def session_of(request: gr.Request) -> ReaderSession:
        return sessions.of(str(request.session_hash), caller_of(request).reader)

    @contextmanager
    def locked_session(request: gr.Request) -> Iterator[ReaderSession]:
        check_call(request)
        session = session_of(request)
        with session.lock:
            yield session

    def attempt(request: gr.Request, change: Callable[[ReaderSession], None]) -> Updates:
        """Changes the reader's session and shows it; a problem stands where the case would, and nothing else does."""
        try:
            with locked_session(request) as session:
                change(session)
                return show_case(session)
        except InputError as error:
            return show_nothing(html_pieces.problem_line(str(error)))

    def attempt_beside(request: gr.Request, change: Callable[[ReaderSession], Updates]) -> Updates:
        """Changes the reader's session; a problem stands above the case, which stays."""
        try:
            with locked_session(request) as session:
                try:
                    return change(session)
                except InputError as error:
                    heading = html_pieces.case_heading(session.scan) if session.scan else ""
                    return {message: heading + html_pieces.problem_line(str(error))}
        except InputError as error:  # no session, or values that no page sends
            return {message: html_pieces.problem_line(str(error))}

    # What the reader can do, each with what it answers.

    def upload_to(source: gr.File | gr.UploadButton) -> Callable[[Any, gr.Request], Updates]:
        def on_upload(sent: Any, request: gr.Request) -> Updates:
            names = list[str]()

            def take(session: ReaderSession) -> None:
                session.take_upload(upload_paths(sent))
                names.extend(session.scan_names)

            updates = attempt(request, take)
            # The drop zone is empty again at once: the file is no longer where the browser would look for it.
            updates[source] = None
            # Chosen by number: two series of one upload may have one name.
            choices = [(name, number) for number, name in enumerate(names)]
            updates[scan_choice] = gr.Dropdown(choices, value=0 if names else None, visible=len(names) > 1)
            return updates

        return on_upload

    upload.upload(upload_to(upload), upload, [*case_outputs, upload, scan_choice], **busy)
    folder.upload(upload_to(folder), folder, [*case_outputs, folder, scan_choice], **busy)

    @scan_choice.input(inputs=scan_choice, outputs=case_outputs, **busy)
    def on_scan(number: Any, request: gr.Request) -> Updates:
        return attempt(request, lambda session: session.show_scan_of_upload(whole_number(number, "scan")))

    @gallery.select(inputs=None, outputs=[*case_outputs, scan_choice], **busy)
    def on_example(event: gr.EventData, request: gr.Request) -> Updates:
        def show(session: ReaderSession) -> None:
            number = whole_number(getattr(event, "index", None), "example")
            if not 0 <= number < len(examples):
                raise InputError(f"example: must be one of {len(examples)}, got another")
            session.show_example(examples[number].scan, examples[number].truth)

        updates = attempt(request, show)
        return updates | {scan_choice: gr.Dropdown(visible=False)}

    @gr.on([model_choice.input, engine.input], inputs=[model_choice, engine], outputs=case_outputs, **busy)
    def on_models(names: Any, engine: Any, request: gr.Request) -> Updates:
        def use(session: ReaderSession) -> None:
            chosen = text_values(names, "models")
            if len(chosen) > MOST_SHOWN:
                raise InputError(f"models: must be at most {MOST_SHOWN}, got {len(chosen)}")
            own = text_value(engine, "engine")
            session.use_models(chosen, None if own == OWN_ENGINE else own)

        return attempt(request, use)

    @truth.upload(inputs=truth, outputs=case_outputs, **busy)
    def on_truth(sent: Any, request: gr.Request) -> Updates:
        def take(session: ReaderSession) -> Updates:
            session.take_reference_mask(next(iter(upload_paths(sent)), ""))
            return show_case(session)

        return attempt_beside(request, take)

    @viewer.input(inputs=None, outputs=case_outputs, **quiet, trigger_mode="always_last")
    def on_slice(event: gr.EventData, request: gr.Request) -> Updates:
        def go(session: ReaderSession) -> None:
            sent = viewer_event(event, SliceEvent)
            if sent.key == str(session.version):  # else it was meant for a scan that has been replaced
                session.go_to(sent.slice)

        return attempt(request, go)

    @viewer.release(inputs=None, outputs=[message, trust, measured], **quiet, trigger_mode="always_last")
    def on_threshold(event: gr.EventData, request: gr.Request) -> Updates:
        """The viewer has drawn the masks already: only the words and numbers follow."""

        def draw(session: ReaderSession) -> Updates:
            session.set_threshold(viewer_event(event, ThresholdEvent).threshold)
            if session.scan is None or not session.automatic_answers:
                return {message: gr.skip()}
            with models.turn(session.scan.size_px[0] * session.scan.size_px[1]):
                return {
                    trust: html_pieces.trust_card(session),
                    measured: html_pieces.measurement_card(session),
                }

        return attempt_beside(request, draw)

    @viewer.select(inputs=None, outputs=answer_outputs, **quiet, trigger_mode="multiple")
    def on_prompt(event: gr.EventData, request: gr.Request) -> Updates:
        """A click, a box, or taking one back; where it cannot be answered, the case stays as it is."""

        def ask(session: ReaderSession) -> Updates:
            sent = viewer_event(event, PromptEvent)
            asked_of = sent.key, sent.slice
            if session.scan is None or asked_of != (str(session.version), session.slice_index):
                # It was meant for what has been replaced. Gradio 6.31 takes an empty dict for a value of the first
                # output: one must be named.
                return {message: gr.skip()}
            try:
                with models.turn(session.scan.size_px[0] * session.scan.size_px[1]):
                    session.take_step(sent.step)
            except InputError as error:
                # The viewer gets its value again: by `prompt.handled` it knows that the step was refused.
                heading = html_pieces.case_heading(session.scan)
                return {
                    message: heading + html_pieces.problem_line(str(error)),
                    viewer: viewer_value(session),
                }
            return show_answers(session, session.scan)

        return attempt_beside(request, ask)

    @measure_every.click(inputs=None, outputs=[measure_every, measured, message], **quiet | VOLUMES)
    def on_measure_every(request: gr.Request) -> Iterator[Updates]:
        try:
            check_call(request)
            session = session_of(request)
            for done in session.measure_all():
                yield {measure_every: gr.Button(f"Measured {done} slices …", interactive=False)}
            with session.lock:
                updates: Updates = {measured: html_pieces.measurement_card(session)}
        except InputError as error:
            updates = {message: html_pieces.problem_line(str(error))}
        yield updates | {measure_every: gr.Button("Measure every slice", interactive=True)}

    @make_files.click(inputs=[formats, mask_model], outputs=[files, message], **busy | VOLUMES)
    def on_make_files(wanted: Any, model: Any, request: gr.Request) -> Updates:
        try:
            with locked_session(request) as session:
                chosen = text_values(wanted, "take along")
                paths = write_case_files(session, text_value(model, "masks of"), chosen)
                return {files: gr.File([str(path) for path in paths], visible=True)}
        except InputError as error:
            return {files: gr.File(None, visible=False), message: html_pieces.problem_line(str(error))}
