"""The tab of one case: files and models on the left, the viewer, and below it trust, measurements and speed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import gradio as gr

from demo import cards
from demo.downloads import PAGE, formats_for
from demo.examples import Example
from demo.models import Models
from demo.prompting import Step
from demo.session import Session
from demo.sessions import Sessions
from demo.shown import viewer_value
from demo.take_along import case_files
from demo.viewer import VIEWER
from segcore.errors import InputError

OWN_ENGINE = "each model's own"
QUEUE: dict[str, Any] = {"concurrency_id": "models", "concurrency_limit": 2, "api_visibility": "private"}
"""Two readers' files may be read at once; a model answers one at a time."""


def build_case_tab(models: Models, sessions: Sessions, examples: Sequence[Example]) -> None:
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
            scan = gr.Dropdown(label="Scan of the upload", visible=False, type="index", elem_id="scan")
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
            chosen = gr.Dropdown(
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
            said = gr.HTML(elem_classes="s2e", elem_id="said")
            viewer = gr.HTML(None, elem_id="viewer", **VIEWER)
            with gr.Row(equal_height=False, elem_id="cards"):
                trust = gr.HTML(elem_classes="s2e", elem_id="trust")
                measured = gr.HTML(elem_classes="s2e", elem_id="measured")
                speed = gr.HTML(elem_classes="s2e", elem_id="speed")
            every = gr.Button("Measure every slice", size="sm", visible=False, elem_id="every")
            with gr.Row(equal_height=False, elem_id="along", visible=False) as along:
                formats = gr.CheckboxGroup([], label="Take along", elem_id="formats", scale=3)
                of = gr.Dropdown(list(models.names), label="Masks of", elem_id="of", scale=1, min_width=240)
                take = gr.Button("Make the files", size="sm", elem_id="take", scale=0, min_width=140)
                files = gr.File(
                    label="Files",
                    file_count="multiple",
                    interactive=False,
                    elem_id="files",
                    visible=False,
                    scale=2,
                )
    answered = [said, viewer, trust, measured, speed, files]
    shown = [said, viewer, trust, measured, speed, every, along, formats, of, files]

    def show(session: Session) -> list[Any]:
        if session.scan is None or not session.answers:
            return _nothing("")
        several = session.scan.slices > 1
        choices = [(one.words, one.key) for one in formats_for(session.scan)]
        return [
            cards.heading(session.scan),
            viewer_value(session),
            cards.trust(session),
            cards.measured(session),
            cards.speed(session),
            gr.Button(visible=several),
            gr.Row(visible=True),
            gr.CheckboxGroup(choices, value=[choices[0][1], PAGE.key]),
            gr.Dropdown(list(session.chosen), value=session.chosen[-1]),
            gr.File(None, visible=False),
        ]

    def attempt(request: gr.Request, change: Callable[[Session], None]) -> list[Any]:
        """Changes the reader's session and shows it; a problem stands where the case would, and nothing else does."""
        session = sessions.of(str(request.session_hash))
        with session.lock:
            try:
                change(session)
                return show(session)
            except InputError as error:
                return _nothing(cards.problem(str(error)))

    def on_upload(sent: list[str] | None, request: gr.Request) -> list[Any]:
        # The drop zone is empty again at once: the file is no longer where the browser would look for it.
        result = attempt(request, lambda session: session.upload(sent or []))
        names = sessions.of(str(request.session_hash)).scan_names
        return [*result, None, gr.Dropdown(names, value=names[0] if names else None, visible=len(names) > 1)]

    def on_scan(number: int | None, request: gr.Request) -> list[Any]:
        return attempt(request, lambda session: session.choose(number or 0))

    def on_example(event: gr.SelectData, request: gr.Request) -> list[Any]:
        example = examples[event.index]
        result = attempt(request, lambda session: session.show_example(example.scan, example.truth))
        return [*result, gr.Dropdown(visible=False)]

    def on_models(names: list[str], engine: str, request: gr.Request) -> list[Any]:
        own = None if engine == OWN_ENGINE else engine
        return attempt(request, lambda session: session.use(names, own))

    def on_truth(sent: str | None, request: gr.Request) -> list[Any]:
        session = sessions.of(str(request.session_hash))
        with session.lock:
            try:
                session.compare_with(sent or "")
                return show(session)
            except InputError as error:  # the case stays: it is the mask that cannot be used
                heading = cards.heading(session.scan) if session.scan else ""
                return [heading + cards.problem(str(error)), *[gr.skip()] * (len(shown) - 1)]

    def on_slice(event: gr.EventData, request: gr.Request) -> list[Any]:
        def go(session: Session) -> None:
            if str(event.key) == str(session.version):  # else it was meant for a scan that has been replaced
                session.go_to(int(event.slice))

        return attempt(request, go)

    def on_threshold(event: gr.EventData, request: gr.Request) -> list[Any]:
        """The viewer has drawn the masks already: only the words and numbers follow."""
        session = sessions.of(str(request.session_hash))
        with session.lock:
            session.set_threshold(event.threshold)
            return [cards.trust(session), cards.measured(session)]

    def on_prompt(event: gr.EventData, request: gr.Request) -> list[Any]:
        """A click, a box, or taking one back; where it cannot be answered, the case stays as it is."""
        session = sessions.of(str(request.session_hash))
        with session.lock:
            if session.scan is None or (str(event.key), event.slice) != (str(session.version), session.index):
                return [gr.skip()] * len(answered)  # it was meant for what has been replaced
            heading = cards.heading(session.scan)
            try:
                session.take(Step.model_validate(event.step))
            except InputError as error:
                skipped = [gr.skip()] * (len(answered) - 2)
                return [heading + cards.problem(str(error)), viewer_value(session), *skipped]
            numbers = [cards.trust(session), cards.measured(session), cards.speed(session)]
            return [heading, viewer_value(session), *numbers, gr.File(None, visible=False)]

    def on_every(request: gr.Request) -> Iterator[list[Any]]:
        session = sessions.of(str(request.session_hash))
        try:
            for done in session.measure_all():
                yield [gr.Button(f"Measured {done} slices …", interactive=False), gr.skip(), gr.skip()]
            with session.lock:
                answer = [cards.measured(session), gr.skip()]
        except InputError as error:
            answer = [gr.skip(), cards.problem(str(error))]
        yield [gr.Button("Measure every slice", interactive=True), *answer]

    def on_take(wanted: list[str], model: str, request: gr.Request) -> list[Any]:
        session = sessions.of(str(request.session_hash))
        with session.lock:
            try:
                made = case_files(session, model, wanted)
                return [gr.File([str(path) for path in made], visible=True), gr.skip()]
            except InputError as error:
                return [gr.File(None, visible=False), cards.problem(str(error))]

    quiet: dict[str, Any] = {"show_progress": "hidden", **QUEUE}
    busy: dict[str, Any] = {"show_progress": "minimal", "show_progress_on": [viewer], **QUEUE}
    upload.upload(on_upload, upload, [*shown, upload, scan], **busy)
    folder.upload(on_upload, folder, [*shown, folder, scan], **busy)
    scan.input(on_scan, scan, shown, **busy)
    gallery.select(on_example, None, [*shown, scan], **busy)
    gr.on([chosen.input, engine.input], on_models, [chosen, engine], shown, **busy)
    truth.upload(on_truth, truth, shown, **busy)
    viewer.input(on_slice, None, shown, **quiet, trigger_mode="always_last")
    viewer.release(on_threshold, None, [trust, measured], **quiet, trigger_mode="always_last")
    viewer.select(on_prompt, None, answered, **quiet, trigger_mode="multiple")
    every.click(on_every, None, [every, measured, said], **quiet)
    take.click(on_take, [formats, of], [files, said], **busy)


def _nothing(said: str) -> list[Any]:
    """No case: only the words why."""
    return [
        said, None, "", "", "", gr.Button(visible=False), gr.Row(visible=False), gr.CheckboxGroup([], value=[]),
        gr.skip(), gr.File(None, visible=False),
    ]  # fmt: skip
