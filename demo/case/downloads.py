"""The files that a reader takes along: masks, a record, the page of the case. No name of theirs tells of a patient."""

from __future__ import annotations

import base64
import io
import shutil
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
from PIL import Image

from demo.case.content import CaseView, case_text, view_of_case
from demo.case.pdf import case_pdf
from demo.session.prompt_summary import prompt_record
from demo.session.reader_session import ReaderSession
from segcore.bundle.manifest import Manifest
from segcore.errors import InputError, need
from segcore.measure.masks import measure_scan
from segcore.medical.mask_files import MaskFormat, case_json, write_masks
from segcore.outfolder import write_text
from segcore.picture.overlay import COLOURS
from segcore.picture.scan import Scan

NEUTRAL = "case"
"""What the JSON calls the scan: a hospital's file name may hold a patient's."""
TEMPLATE = Path(__file__).with_name("case.html.j2")
_STEM = "mask"
_SVG_DASHES = {"solid": "none", "dashed": "7 5", "dotted": "3 3"}  # by the kinds of line of `content.LINES`


@dataclass(frozen=True)
class DownloadFormat:
    """One choice on the page: `key` for `write_mask_files`, or "page"; `words` for the reader."""

    key: str
    words: str


FORMATS = (
    DownloadFormat("png", "PNG mask"),
    DownloadFormat("nifti", "NIfTI mask"),
    DownloadFormat("dicom-seg", "DICOM segmentation"),
    DownloadFormat("json", "record (JSON)"),
)
PAGE = DownloadFormat("page", "page of the case (HTML, PDF)")


def formats_for(scan: Scan) -> list[DownloadFormat]:
    """What the page offers for a scan: a DICOM segmentation only of a DICOM, because it refers to its source; a NIfTI
    only of slices that are a volume."""
    cannot = {"dicom-seg"} if scan.kind != "dicom" else set()
    if scan.uneven:
        cannot.add("nifti")
    return [one for one in FORMATS if one.key not in cannot] + [PAGE]


def write_case_files(session: ReaderSession, model: str, wanted: Sequence[str]) -> list[Path]:
    """Writes what was asked for into a folder of the session, in place of what was written before.

    Args:
        session: its lock is held.
        model: whose masks.
        wanted: keys of `FORMATS` and of `PAGE`.

    Raises:
        InputError: a format that the scan cannot give, or a library that is not installed.
    """
    if not session.automatic_answers:
        raise InputError("the case: must be shown first, none is; choose an example or a file")
    if model not in session.model_names:
        raise InputError(f"masks of: must be one of {', '.join(session.model_names)}, got another")
    folder = session.downloads_folder / "along"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    written: list[Path] = []
    formats = [key for key in wanted if key != PAGE.key]
    if formats:
        assert session.scan is not None
        manifest = session.models.manifest(model)
        summary = session.shown_answers[session.model_names.index(model)].prompt_summary
        written += write_mask_files(
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
        view = view_of_case(session)
        for name, content in (("case.html", case_html(view).encode()), ("case.pdf", case_pdf(view))):
            (folder / name).write_bytes(content)
            written.append(folder / name)
    return written


def write_mask_files(
    scan: Scan,
    masks: np.ndarray,
    manifest: Manifest,
    folder: Path,
    formats: Sequence[str],
    *,
    threshold: float | None = None,
    bundle_sha256: str | None = None,
    reference: str | None = None,
    prompt: Mapping[str, Any] | None = None,
) -> list[Path]:
    """Writes mask.png (mask-png.zip of several slices), mask.nii.gz, mask-seg.dcm and case.json, as asked for.

    What cannot be written beside others is told in not-written.txt.

    Args:
        scan: what was segmented.
        masks: N×H×W uint8 class indices, one a slice.
        manifest: of the model.
        folder: there already.
        formats: keys of `FORMATS`.
        threshold: that the reader chose, for the JSON; None: the model's own.
        bundle_sha256: of the model's bundle, for the JSON and the segmentation.
        reference: the class that the JSON gives the others' areas as a share of.
        prompt: `demo.session.prompt_summary.prompt_record`, where a reader's prompt made a class of the masks: for the
            JSON, and so that a segmentation calls the class semi-automatic.

    Raises:
        InputError: an unknown format, or nothing of what was asked for can be written.
    """
    wanted: set[MaskFormat] = {key for key in get_args(MaskFormat) if key in formats}
    if unknown := sorted(set(formats) - wanted):
        known = ", ".join(get_args(MaskFormat))
        raise InputError(f"format: must be one of {known}, got {unknown[0]}")
    if threshold is not None and manifest.output.activation == "sigmoid":
        output = manifest.output.model_copy(update={"threshold": threshold})
        manifest = manifest.model_copy(update={"output": output})
    written = write_masks(
        folder,
        _STEM,
        scan,
        masks,
        manifest,
        wanted - {"json"},
        bundle_sha256=bundle_sha256,
        prompted=() if prompt is None else (prompt["class"],),
    )
    files: dict[str, list[str]] = {
        key: [_name_for_reader(folder, key, names)] for key, names in written.files.items()
    }
    if written.failed:  # told beside the files that could be written
        write_text(folder / "not-written.txt", "\n".join(written.failed.values()) + "\n")
        files["not written"] = ["not-written.txt"]
    if "json" in wanted:
        measured = measure_scan(scan, masks, manifest.classes, reference=reference)
        text = case_json(
            replace(scan, name=NEUTRAL),
            masks,
            manifest,
            details={
                "measurements": [one.model_dump(mode="json") for one in measured],
                **({} if prompt is None else {"prompt": dict(prompt)}),
            },
            files=files,
            bundle_sha256=bundle_sha256,
        )
        write_text(folder / "case.json", text)
        files["json"] = ["case.json"]
    return [folder / names[0] for names in files.values()]


def _name_for_reader(folder: Path, key: str, names: Sequence[str]) -> str:
    """Makes one file of each format: a series of PNG is packed; a segmentation's name says what it is."""
    if key == "dicom-seg":
        (folder / names[0]).replace(folder / f"{_STEM}-seg.dcm")
        return f"{_STEM}-seg.dcm"
    if key == "png" and len(names) > 1:
        with zipfile.ZipFile(folder / f"{_STEM}-png.zip", "w") as archive:  # PNG is packed already
            for name in names:
                archive.write(folder / name, name)
        return f"{_STEM}-png.zip"
    return names[0]


def case_html(case: CaseView) -> str:
    """The page as one file that fetches nothing. One slice and two models print on one A4 page.

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
        dashes=_SVG_DASHES,
    )


def _data_address(picture: np.ndarray) -> str:
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "PNG")
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"
