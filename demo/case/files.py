"""The files that a reader takes along: masks, a record, the page of the case."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from demo.case.downloads import PAGE, write_mask_files
from demo.case.page import case_html
from demo.case.pdf import case_pdf
from demo.case.views import case_view
from demo.session.prompt_summary import prompt_record
from demo.session.reader_session import ReaderSession


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
