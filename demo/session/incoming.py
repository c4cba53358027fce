"""Where the pictures come from: a reader's uploads, and the page's own examples.

Uploads are moved out of the web server's folder at once, unpacked, and called by their own name only.
"""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from segcore.dataset.case import Case
from segcore.dataset.dataset import open_dataset
from segcore.errors import InputError
from segcore.medical.archive import unpack
from segcore.medical.dicom.series import SeriesFiles
from segcore.medical.read import find_scans
from segcore.picture.overlay import as_rgb
from segcore.picture.scan import Scan


def receive(sent: Sequence[str], folder: Path) -> list[Path]:
    """Takes files that were uploaded, and lists the scans among them.

    Args:
        sent: paths of the uploads; they are gone afterwards, whatever happens.
        folder: empty or new, for this upload alone.

    Returns:
        Files, and folders that are one DICOM series each.

    Raises:
        InputError: nothing that can be read, two files of one name, or an archive that must not be unpacked. No
            path in the message.
    """
    if not sent:
        raise InputError("the upload: must hold a file, got none; choose one")
    folder.mkdir(parents=True, exist_ok=True)
    files = [Path(path) for path in sent]
    try:
        with without_paths(*files, folder):
            for file in files:
                _take_file(file, folder)
            sent_one = folder / files[0].name if len(files) == 1 else folder
            if sent_one.is_file():
                return [sent_one]
            found = find_scans(folder).scans
            return [_own_folder(scan) if isinstance(scan, SeriesFiles) else scan for scan in found]
    finally:
        for file in files:
            file.unlink(missing_ok=True)


def bytes_as_pixels(sent: Sequence[str]) -> int:
    """What it costs to unpack files, as if it were a picture of so many pixels: two bytes each."""
    return sum(Path(path).stat().st_size for path in sent) // 2


def _own_folder(series: SeriesFiles) -> Path:
    """Of several series in one folder each is moved to its own, so that a path stands for it."""
    folder = series.folder / series.name
    folder.mkdir()
    for file in series.files:
        file.replace(folder / file.name)
    return folder


def _take_file(file: Path, folder: Path) -> None:
    target = folder / file.name
    if target.exists():
        raise InputError(f"{file.name}: must come once, came twice; rename one, or send the series as a ZIP")
    if zipfile.is_zipfile(file):
        unpack(file, folder / file.stem)  # a series without a folder is called as the ZIP is
    else:
        shutil.move(file, target)


@contextmanager
def without_paths(*paths: Path) -> Iterator[None]:
    """Cuts the server's folders out of an error: a reader knows a file by its name."""
    try:
        yield
    except InputError as error:
        raise InputError(say_names(str(error), *paths)) from None


def say_names(text: str, *paths: Path) -> str:
    """The text with each path's folder left out."""
    for path in sorted(paths, key=lambda p: -len(str(p))):
        text = text.replace(f"{path}/", "").replace(str(path), path.name)
        text = text.replace(f"{path.parent}/", "")
    return text


# The pictures that the page offers before a reader has one: a dataset's test cases, procedural ones by default.

EXAMPLES = 6


@dataclass(frozen=True)
class Example:
    """A picture that the page offers, with its reference mask.

    Attributes:
        scan: one slice, as the models take it.
        truth: class indices 1×H×W, or None.
        thumbnail: PNG for the gallery.
    """

    scan: Scan
    truth: np.ndarray | None
    thumbnail: Path


def make_examples(data: str, folder: Path) -> list[Example]:
    """Takes a few test cases of a dataset (any, where none is labelled); writes thumbnails to `folder`.

    Raises:
        InputError: the dataset cannot be opened.
    """
    dataset = open_dataset(data, need_masks=False)
    cases = dataset.split("test", limit=EXAMPLES) or dataset.cases[:EXAMPLES]
    return [_make_example(case, folder / f"example-{i}.png") for i, case in enumerate(cases)]


def _make_example(case: Case, thumbnail: Path) -> Example:
    image = case.image()
    shown = as_rgb(image)
    small = Image.fromarray(shown)
    small.thumbnail((256, 256))
    small.save(thumbnail)
    scan = Scan(
        name=case.id,
        kind="image",
        slices=1,
        size_px=(image.shape[0], image.shape[1]),
        values=lambda _: image,
        display=lambda _: shown,
        spacing_mm=case.spacing_mm,
    )
    return Example(scan, case.mask()[None] if case.labelled else None, thumbnail)
