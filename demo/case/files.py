"""The files that a reader takes along: masks, a record, the page of the case."""

from __future__ import annotations

import base64
import io
import shutil
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from demo.case.content import CaseView, case_text
from demo.case.downloads import PAGE, write_mask_files
from demo.case.pdf import case_pdf
from demo.session.answers import ModelAnswer
from demo.session.prompt_dialogue import prompt_json
from demo.session.prompt_summary import prompt_record
from demo.session.reader_session import ReaderSession
from demo.viewer.scene import ModelView, ViewerScene, offered_windows, scene_json
from segcore.errors import need
from segcore.measure.masks import measure_mask
from segcore.picture.overlay import COLOURS


def write_case_files(session: ReaderSession, model: str, wanted: Sequence[str]) -> list[Path]:
    """Writes what was asked for into a folder of the session, in place of what was written before.

    Args:
        session: its lock is held.
        model: whose masks.
        wanted: keys of `demo.case.downloads`' formats, and of its `PAGE`.

    Raises:
        InputError: nothing was asked for, or a format that the scan cannot give.
    """
    folder = session.downloads_folder / "along"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    made: list[Path] = []
    formats = [key for key in wanted if key != PAGE.key]
    if formats:
        assert session.scan is not None
        manifest = session.models.manifest(model)
        summary = session.shown_answers[session.model_names.index(model)].prompt_summary
        made += write_mask_files(
            session.scan,
            session.masks_of(model),
            manifest,
            folder,
            formats,
            threshold=session.threshold,
            bundle_sha256=session.models.sha256(model),
            reference=session.models.reference_for(manifest.classes),
            prompt=None if summary is None else prompt_record(summary, session.slice_index),
        )
    if PAGE.key in wanted:
        view = case_view(session)
        for name, content in (("case.html", case_html(view).encode()), ("case.pdf", case_pdf(view))):
            (folder / name).write_bytes(content)
            made.append(folder / name)
    return made


# The case as one HTML page to print or file: everything is in the one file, nothing is fetched.

TEMPLATE = Path(__file__).with_name("case.html.j2")
_DASHES = {"solid": "none", "dashed": "7 5", "dotted": "3 3"}


def case_html(case: CaseView) -> str:
    """The page as text. One slice and two models print on one A4 page.

    Raises:
        InputError: jinja2 is not installed.
    """
    try:
        from jinja2 import Environment, StrictUndefined
    except ModuleNotFoundError:
        raise need("jinja2", "demo") from None
    text = case_text(case)
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(TEMPLATE.read_text()).render(
        text=text,
        pictures=[_data_address(one.picture) for one in text.figures],
        colours=[f"rgb{colour}" for colour in COLOURS],
        dashes=_DASHES,
    )


def _data_address(picture: np.ndarray) -> str:
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "PNG")
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"


# What a session shows, in the forms that the viewer and the case page take.


def viewer_value(session: ReaderSession) -> dict[str, Any]:
    """The viewer's value for the shown slice."""
    scan = session.scan
    assert scan is not None
    picture = scan.values(session.slice_index)
    scene = ViewerScene(
        key=str(session.version),
        name=scan.name,
        slice_index=session.slice_index,
        slices=scan.slices,
        picture=picture,
        windows=offered_windows(picture, own=scan.windows, modality=scan.modality),
        spacing_mm=scan.spacing_mm,
        models=tuple(
            _model_view(n, a) for n, a in zip(session.model_names, session.current_answers, strict=True)
        ),
        truth=session.truth_slice,
        unit="HU" if scan.modality == "CT" else "",
        prompt=None if session.dialogue is None else prompt_json(session.dialogue),
    )
    return scene_json(scene)


def _model_view(name: str, answer: ModelAnswer) -> ModelView:
    output = answer.manifest.output
    return ModelView(
        title=name,
        kind=answer.manifest.kind,
        probability=answer.foreground,
        activation=output.activation,
        threshold=output.threshold,
        classes=answer.manifest.classes,
        quality=answer.quality,
        mask=None if answer.prompt_summary is None else answer.mask,
        prompt_iou=None if answer.prompt_summary is None else answer.prompt_summary.estimated_iou,
    )


def case_view(session: ReaderSession) -> CaseView:
    """The shown slice for the case page; the file's name stays out, it may be a patient's."""
    scan = session.scan
    assert scan is not None
    spacing, reference = scan.spacing_mm, session.models.reference_for
    return CaseView(
        name="",
        time=datetime.now(),
        image=scan.display(session.slice_index),
        answers=session.shown_answers,
        hashes=tuple(session.models.sha256(name) for name in session.model_names),
        slice_index=session.slice_index,
        slices=scan.slices,
        spacing_mm=spacing,
        truth=session.truth_slice,
        threshold=session.threshold,
        measurements=tuple(
            measure_mask(
                a.mask, a.manifest.classes, spacing_mm=spacing, reference=reference(a.manifest.classes)
            )
            for a in session.shown_answers
        ),
        volume=tuple(
            session.measured_volume(session.volume_masks[name], session.models.manifest(name).classes)
            for name in session.model_names
            if name in session.volume_masks
        ),
    )
