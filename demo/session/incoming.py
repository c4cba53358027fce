"""What a reader sends: moved out of the web server's folder at once, unpacked, and named by its own name only."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from segcore.errors import InputError
from segcore.medical.archive import unpack
from segcore.medical.read import scan_paths


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
            return [sent_one] if sent_one.is_file() else scan_paths(folder)
    finally:
        for file in files:
            file.unlink(missing_ok=True)


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
