"""The files that a reader takes along: masks, a record, the page of the case."""

from __future__ import annotations

import base64
import io
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from demo.case.content import CaseView, case_text
from demo.case.downloads import PAGE, write_mask_files
from demo.case.pdf import case_pdf
from demo.case.views import case_view
from demo.session.prompt_summary import prompt_record
from demo.session.reader_session import ReaderSession
from segcore.errors import need
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
